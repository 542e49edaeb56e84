"""BLiMP by pseudo-log-likelihood: does a masked language model find the grammatical sentence of a pair more likely?

A sentence's score is the sum over its tokens of log p(token | the sentence with this token masked) (Salazar et al.,
2020). `within_word` also masks the tokens that follow in the same word (Kauf & Ivanova, 2023), because a word's later
pieces give its earlier ones away.

One masked copy per token is a forward pass each, so copies are made once: repeated sentences, and the copies that the
two sentences of a pair share (they are equal where the masked token is the one in which they differ), are computed once
and read several times. Copies of equal length are batched together, so there is no padding and no attention mask, and
the LM head sees one position of each copy.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from mlm_masking.encoders import position_limit
from mlm_masking.sequences import check_vocabulary, special_tokens
from shared import InputError

log = logging.getLogger(__name__)

VARIANTS = ("original", "within_word")
BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}
FIELDS = ("sentence_good", "sentence_bad")
WORD_START = "\u0120"  # how byte-level BPE writes the space before a word


@dataclass(frozen=True)
class Paradigm:
    """The minimal pairs of one paradigm, and the field of linguistics it is counted under."""

    name: str
    field: str
    good: list[str]
    bad: list[str]

    def __len__(self) -> int:
        return len(self.good)


def read_paradigm(file: Path, limit: int | None = None) -> Paradigm:
    """A paradigm in BLiMP's own format (JSON lines). Raises InputError for a line without the two sentences."""
    good, bad, field = [], [], "unknown"
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n")[:limit]):
        if not line.strip():
            continue
        try:
            pair = json.loads(line)
            first, second = (pair[name] for name in FIELDS)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{file}, line {number + 1}: not a minimal pair with {', '.join(FIELDS)} ({error})"
            ) from None
        if not (isinstance(first, str) and isinstance(second, str) and first.strip() and second.strip()):
            raise InputError(f"{file}, line {number + 1}: a sentence is empty")
        field = pair.get("field", field)
        good.append(first)
        bad.append(second)
    if not good:
        raise InputError(f"{file}: no minimal pairs")
    return Paradigm(file.stem, field, good, bad)


def read_paradigms(folder: Path, names: Iterable[str] | None = None, limit: int | None = None) -> list[Paradigm]:
    """The paradigms in a folder, all or those named, `limit` pairs of each.

    Raises:
        InputError: a name that is no file there, or an empty folder.
    """
    files = {file.stem: file for file in sorted(folder.glob("*.jsonl"))}
    if not files:
        raise InputError(f"{folder}: no *.jsonl, one file per paradigm")
    chosen = list(files) if names is None else list(names)
    if unknown := [name for name in chosen if name not in files]:
        raise InputError(f"paradigms: there is no {', '.join(unknown)}; there are {', '.join(files)}")
    return [read_paradigm(files[name], limit) for name in chosen]


class MaskedCopies:
    """Distinct masked copies of sentences, and which copy and token each term of a sentence's score reads.

    Args:
        rows: token ids of each sentence, special tokens included.
        mask: the id of `<mask>`.
        follows: for each row, for each position, how many further tokens of the same word follow (`within_word`), or
            None to mask one token at a time.

    Attributes:
        copies: the masked rows, each once. positions: the position in each copy that is asked for.
        copy, target, owner: (terms,) index of the copy, token id, row that the term belongs to.
    """

    def __init__(self, rows: Sequence[np.ndarray], mask: int, follows: Sequence[np.ndarray] | None = None):
        index: dict[tuple[bytes, int], int] = {}
        self.copies: list[np.ndarray] = []
        positions, copy, target, owner = [], [], [], []
        for number, row in enumerate(rows):
            for position in range(1, len(row) - 1):
                masked = row.copy()
                last = position if follows is None else position + int(follows[number][position])
                masked[position : last + 1] = mask
                key = (masked.tobytes(), position)
                if key not in index:
                    index[key] = len(self.copies)
                    self.copies.append(masked)
                    positions.append(position)
                copy.append(index[key])
                target.append(row[position])
                owner.append(number)
        self.positions = np.array(positions, dtype=np.int64)
        self.copy, self.target, self.owner = (np.array(each, dtype=np.int64) for each in (copy, target, owner))

    @property
    def shared(self) -> float:
        """The share of terms that needed no forward pass of their own."""
        return 1 - len(self.copies) / len(self.copy)


def term_log_probabilities(
    model: PreTrainedModel, copies: MaskedCopies, batch_tokens: int | None = None, progress: bool = False
) -> np.ndarray:
    """(terms,) float64 log-probabilities (nats), each from its masked copy; the head sees the asked positions only."""
    tokens = batch_tokens or BATCH_TOKENS.get(model.device.type, BATCH_TOKENS["cuda"])
    by_copy = np.argsort(copies.copy, kind="stable")
    first = np.searchsorted(copies.copy[by_copy], np.arange(len(copies.copies) + 1))
    of_length: dict[int, list[int]] = defaultdict(list)
    for number, masked in enumerate(copies.copies):
        of_length[len(masked)].append(number)
    found = np.empty(len(copies.copy), dtype=np.float64)
    model.eval()
    with (
        torch.inference_mode(),
        tqdm(total=len(copies.copies), unit=" copies", disable=not progress, leave=False) as bar,
    ):
        for length in sorted(of_length, reverse=True):
            numbers = of_length[length]
            size = max(1, tokens // length)
            for start in range(0, len(numbers), size):
                batch = numbers[start : start + size]
                log_probabilities = _at_masks(model, copies, batch)
                # One copy may be asked for several tokens: the same position of the two sentences of a pair.
                row = np.repeat(np.arange(len(batch)), [first[n + 1] - first[n] for n in batch])
                terms = np.concatenate([by_copy[first[n] : first[n + 1]] for n in batch])
                targets = torch.from_numpy(copies.target[terms]).to(log_probabilities.device)
                found[terms] = log_probabilities[torch.from_numpy(row), targets].double().cpu().numpy()
                bar.update(len(batch))
    return found


def _at_masks(model: PreTrainedModel, copies: MaskedCopies, batch: Sequence[int]) -> torch.Tensor:
    """(batch, vocabulary) log-probabilities at the asked position of each copy."""
    input_ids = torch.from_numpy(np.stack([copies.copies[n] for n in batch]).astype(np.int64)).to(model.device)
    positions = torch.from_numpy(copies.positions[list(batch)]).to(model.device)
    hidden = model.base_model(input_ids=input_ids).last_hidden_state
    logits = model.lm_head(hidden[torch.arange(len(batch), device=hidden.device), positions])
    return logits.float().log_softmax(dim=-1)


def pseudo_log_likelihoods(
    model: PreTrainedModel,
    tokenizer: Any,
    sentences: Sequence[str],
    *,
    variant: str = "original",
    batch_tokens: int | None = None,
    progress: bool = False,
) -> tuple[np.ndarray, MaskedCopies]:
    """The score of every sentence, in nats: sum of its tokens' log-probabilities, each masked in turn.

    Args:
        model: a masked-LM model. variant: "original", or "within_word".
        batch_tokens: tokens in one forward pass; None is 2,048 on a CPU, 65,536 on a GPU.

    Returns: (sentences,) float64, and the masked copies that were computed.

    Raises:
        InputError: no sentences, an unknown variant, a sentence longer than the positions or with `<mask>` in it, or a
            tokenizer that does not belong to the model.
    """
    if variant not in VARIANTS:
        raise InputError(f"variant={variant}: give one of {', '.join(VARIANTS)}")
    if not len(sentences):
        raise InputError("no sentences to score")
    distinct = {sentence: number for number, sentence in enumerate(dict.fromkeys(sentences))}
    rows, follows = _rows(model, tokenizer, list(distinct), variant)
    copies = MaskedCopies(rows, special_tokens(tokenizer).mask, follows)
    terms = term_log_probabilities(model, copies, batch_tokens, progress)
    scores = np.bincount(copies.owner, weights=terms, minlength=len(rows))
    return scores[[distinct[sentence] for sentence in sentences]], copies


def _rows(
    model: PreTrainedModel, tokenizer: Any, sentences: list[str], variant: str
) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
    special = special_tokens(tokenizer)
    if special.mask is None:
        raise InputError("the tokenizer names no <mask> token: pseudo-log-likelihoods need one")
    limit = position_limit(model.config)
    encoded = tokenizer(
        [sentence.strip() for sentence in sentences],
        add_special_tokens=False,
        return_attention_mask=False,
        verbose=False,
    )["input_ids"]
    rows = [np.array([special.bos, *ids, special.eos], dtype=np.int32) for ids in encoded]
    for sentence, row in zip(sentences, rows, strict=True):
        if len(row) > limit:
            raise InputError(f"a sentence has {len(row)} tokens, the model's positions hold {limit}: {sentence[:60]!r}")
        if special.mask in row:
            raise InputError(f"a sentence contains the mask token itself: {sentence[:60]!r}")
        if len(row) == 2:
            raise InputError(f"a sentence has no tokens: {sentence!r}")
    check_vocabulary(np.concatenate(rows), model.config.vocab_size)
    if variant == "original":
        return rows, None
    return rows, [_tokens_that_follow(tokenizer.convert_ids_to_tokens(row.tolist())) for row in rows]


def _tokens_that_follow(tokens: Sequence[str]) -> np.ndarray:
    """For each token, how many further tokens its word has; a word begins at a space, or is a special token."""
    begins = np.array([True, *(token.startswith(WORD_START) for token in tokens[1:-1]), True])
    if len(tokens) > 2:
        begins[1] = True  # the first word follows <s> and has no space before it
    following = np.zeros(len(tokens), dtype=np.int64)
    for position in range(len(tokens) - 2, -1, -1):
        following[position] = 0 if begins[position + 1] else following[position + 1] + 1
    return following


def score_paradigm(model: PreTrainedModel, tokenizer: Any, paradigm: Paradigm, **options: Any) -> dict[str, Any]:
    """Accuracy of one paradigm: the share of pairs whose good sentence scores strictly higher. Ties are counted too."""
    scores, copies = pseudo_log_likelihoods(model, tokenizer, [*paradigm.good, *paradigm.bad], **options)
    good, bad = scores[: len(paradigm)], scores[len(paradigm) :]
    return {
        "accuracy": float((good > bad).mean()),
        "pairs": len(paradigm),
        "ties": int((good == bad).sum()),
        "field": paradigm.field,
        "forward_passes": len(copies.copies),
        "shared": round(copies.shared, 4),
    }


def overall(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Mean accuracy over paradigms, and over the paradigms of each field."""
    fields: dict[str, list[float]] = defaultdict(list)
    for result in results.values():
        fields[result["field"]].append(result["accuracy"])
    accuracies = [result["accuracy"] for result in results.values()]
    return {
        "accuracy": float(np.mean(accuracies)),
        "paradigms": {name: dict(result) for name, result in results.items()},
        "fields": {name: float(np.mean(values)) for name, values in fields.items()},
        "pairs": sum(result["pairs"] for result in results.values()),
        "ties": sum(result["ties"] for result in results.values()),
    }


def blimp_accuracy(
    model: PreTrainedModel, tokenizer: Any, paradigms: Sequence[Paradigm] | Mapping[str, Paradigm], **options: Any
) -> dict[str, Any]:
    """Accuracy on every paradigm, and the mean over paradigms (BLiMP's "overall").

    Args:
        options: `variant`, `batch_tokens`, `progress`; see `pseudo_log_likelihoods`.

    Returns: `accuracy`, `paradigms` {name: {accuracy, pairs, ties, ...}}, `fields` {field: accuracy}, `pairs`, `ties`.
    """
    listed = list(paradigms.values()) if isinstance(paradigms, Mapping) else list(paradigms)
    return overall({paradigm.name: score_paradigm(model, tokenizer, paradigm, **options) for paradigm in listed})
