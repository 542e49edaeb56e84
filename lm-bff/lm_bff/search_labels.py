"""Automatic label words (section 4.1 of the paper): `python -m lm_bff.search_labels task=sst-2 seed=42`.

1. The pre-trained model reads every training example in the manual template; no training.
2. Each class proposes its k likeliest whole words (k_likely), by the mean of its examples' logits. With k_neighbors the
   proposals are narrowed to those nearest to the manual label word, the seed, by the cosine of their decoder rows.
3. All assignments are scored by zero-shot accuracy on the training set (Pearson correlation for a regression) and the
   best n_pairs are written; `python -m lm_bff.rank` fine-tunes each of them and sorts by dev score.

`templates=<file>` searches jointly: label words for each of its first `top` templates, n_pairs / top for each, written
as prompts (template and mapping).

A proposed word has to be one that can be looked up again: a token that begins a word, and that the word with a space in
front is tokenised to. The vocabulary is taken by token id (the release relied on the order of a dictionary).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from lm_bff.batches import outputs_of
from lm_bff.candidates import Candidate, read_candidates, write_candidates
from lm_bff.data import Example, load_splits
from lm_bff.label_scores import best_pairings, best_regression_pairings, nearest, proposals
from lm_bff.label_words import RAW, label_words
from lm_bff.model import Pretrained
from lm_bff.model_names import load_pretrained
from lm_bff.prompts import PromptBuilder
from lm_bff.tasks import Task, get_task
from lm_bff.template import parse
from shared import InputError
from shared.launch import entrypoint
from shared.training import run_folder

MAX_LENGTH = 256
WORD_STARTS = ("Ġ", "▁")  # byte-level BPE, SentencePiece; WordPiece marks the tokens that do not begin a word
CONTINUES = "##"


def usable_words(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> dict[int, str]:
    """Token id -> word, of every token that can be a label word, in order of the ids."""
    tokens = tokenizer.convert_ids_to_tokens(range(min(len(tokenizer), vocab_size)))
    special = set(tokenizer.all_special_ids)
    marker = next((m for m in WORD_STARTS if any(t is not None and t.startswith(m) for t in tokens)), None)
    words: dict[int, str] = {}
    for number, token in enumerate(tokens):
        if token is None or number in special:
            continue
        if marker is None:
            word = token if not token.startswith(CONTINUES) else ""
        else:
            word = tokenizer.convert_tokens_to_string([token]).strip() if token.startswith(marker) else ""
        if word and not word.startswith(RAW) and not any(letter.isspace() for letter in word):
            words[number] = word
    encoded = tokenizer([" " + word for word in words.values()], add_special_tokens=False)["input_ids"]
    return {number: word for (number, word), ids in zip(words.items(), encoded, strict=True) if ids == [number]}


def mask_logits(
    pretrained: Pretrained,
    task: Task,
    examples: Sequence[Example],
    template: str | None = None,
    batch_tokens: int | None = None,
) -> np.ndarray:
    """`(examples, vocabulary)` zero-shot logits at the mask, in float32."""
    builder = PromptBuilder(
        pretrained.tokenizer,
        parse(template or task.template),
        (),
        task.num_sentences,
        MAX_LENGTH,
        task.first_sent_limit,
        task.other_sent_limit,
        max_positions=pretrained.max_positions,
        limit_segments=pretrained.uses_segments,
    )
    model = pretrained.prompt_model(range(len(pretrained.decoder_weight)))
    return outputs_of(model, builder.plain(examples), pretrained.tokenizer.pad_token_id, batch_tokens=batch_tokens)


def default_sizes(num_labels: int) -> tuple[int, int | None]:
    """The paper's (k_likely, k_neighbors): 100 words, 30 for five classes; for more, 1000 of which 20 are kept."""
    if num_labels < 5:
        return 100, None
    return (30, None) if num_labels == 5 else (1000, 20)


def search(
    pretrained: Pretrained,
    task: Task,
    train: Sequence[Example],
    template: str | None = None,
    *,
    k_likely: int | None = None,
    k_neighbors: int | None = None,
    n_pairs: int = 100,
    sample: int | None = None,
    sample_seed: int = 0,
    seed_words: dict | None = None,
) -> list[Candidate]:
    """The best assignments of label words, with their zero-shot training accuracy (or correlation).

    Args:
        template: None for the task's own. k_likely, k_neighbors: None for the paper's (`default_sizes`).
        sample: score so many pairings, drawn at random, instead of all.
        seed_words: the mapping that k_neighbors compares with; None for the task's own.
    Raises:
        InputError: numbers below 1, a class without examples, too many pairings.
    """
    likely, neighbors = default_sizes(len(task.labels))
    if k_likely is not None:
        likely, neighbors = k_likely, k_neighbors
    elif k_neighbors is not None:
        neighbors = k_neighbors
    for name, value in {"k_likely": likely, "k_neighbors": neighbors, "n_pairs": n_pairs}.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise InputError(f"{name}={value}: give 1 or more")
    logits = mask_logits(pretrained, task, train, template)
    words = usable_words(pretrained.tokenizer, logits.shape[1])
    allowed = np.zeros(logits.shape[1], bool)
    allowed[list(words)] = True
    gold = np.array([float(one.label) for one in train]) if task.regression else None
    # For this search alone the halves of a regression are split at the median of the training scores.
    classes = gold > np.median(gold) if gold is not None else [task.labels.index(one.label) for one in train]
    proposed = proposals(logits, np.asarray(classes).astype(int), len(task.labels), allowed, likely)
    if neighbors is not None:
        manual = label_words(pretrained.tokenizer, seed_words or task.mapping, task.labels, task.name)
        rows = pretrained.decoder_weight.detach().float().cpu().numpy()
        proposed = [nearest(ids, rows, manual.ids[label], neighbors) for label, ids in enumerate(proposed)]
    if gold is not None:
        ids, scores = best_regression_pairings(logits, gold, proposed, n_pairs)
    else:
        ids, scores = best_pairings(logits, np.asarray(classes), proposed, n_pairs, sample=sample, seed=sample_seed)
    return [
        Candidate(None, {label: words[number] for label, number in zip(task.labels, row, strict=True)}, float(score))
        for row, score in zip(ids.tolist(), scores, strict=True)
    ]


def search_jointly(
    pretrained: Pretrained,
    task: Task,
    train: Sequence[Example],
    templates: Sequence[str],
    n_pairs: int = 100,
    **options,
) -> list[Candidate]:
    """Label words for each template, n_pairs // templates of each, as prompts, in the order of the templates."""
    each = n_pairs // max(1, len(templates))
    if each < 1:
        raise InputError(
            f"n_pairs={n_pairs} for {len(templates)} templates leaves none for each; raise it or lower top"
        )
    return [
        Candidate(template, one.mapping, one.score)
        for template in templates
        for one in search(pretrained, task, train, template, n_pairs=each, **options)
    ]


def output_path(cfg: DictConfig, kind: str, task: Task) -> Path:
    """Where a search writes: `output`, else runs/lm-bff/<scale>/searched/<kind>s/<task>/<k>-<seed>.txt."""
    if cfg.output is not None:
        return Path(cfg.output).expanduser().resolve()
    return run_folder(cfg.paper, cfg.scale, "searched", None) / f"{kind}s" / task.name / f"{cfg.k}-{cfg.seed}.txt"


@entrypoint(config_name="search_labels")
def main(cfg: DictConfig) -> None:
    task = get_task(cfg.task)
    train = load_splits(task, cfg.k, cfg.seed, cfg.data_dir).train
    options = {name: cfg[name] for name in ("k_likely", "k_neighbors", "n_pairs", "sample")}
    templates = None
    if cfg.templates is not None:
        templates = [one.template for one in read_candidates(cfg.templates, "template", task, cfg.top)]
    pretrained = load_pretrained(cfg.model)
    if templates is None:
        found = search(pretrained, task, train, cfg.template, **options)
    else:
        found = search_jointly(pretrained, task, train, templates, **options)
    path = write_candidates(output_path(cfg, "mapping" if templates is None else "prompt", task), found)
    console = Console(soft_wrap=True)
    for one in found[: cfg.show]:
        console.print(f"{one.score:.3f}  {one.line(with_score=False)}", highlight=False, markup=False)
    console.print(f"{len(found)} candidates: {path}", highlight=False)


if __name__ == "__main__":
    main()
