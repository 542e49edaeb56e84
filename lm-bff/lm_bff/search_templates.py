"""Automatic templates (section 5.1 of the paper): `python -m lm_bff.search_templates task=sst-2 seed=42 t5=t5-3b`.

T5 is shown every training example with its label word and a blank on either side of it, and one beam search over all
examples together (`template_beam`) fills the blanks; what it wrote becomes templates (`template_text`). For single
sentences the word stands once after the sentence and once before it, and each form gives half of the templates.
`python -m lm_bff.rank` then fine-tunes each template and sorts by dev score: the first is the paper's "auto".

A hypothesis that is not finished after `max_tokens`, or that is no template, is never written; a template that two
tokenisations spell is written once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase, T5ForConditionalGeneration

from lm_bff.candidates import Candidate, write_candidates
from lm_bff.data import Example, load_splits
from lm_bff.search_labels import output_path
from lm_bff.tasks import Task, get_task
from lm_bff.template import encode, parse
from lm_bff.template_beam import search_texts
from lm_bff.template_text import Form, forms, to_template
from shared import InputError, hub
from shared.launch import entrypoint

log = logging.getLogger(__name__)


def load_t5(name: str, bf16: bool = False) -> tuple[T5ForConditionalGeneration, PreTrainedTokenizerBase]:
    """A T5 by name (`tiny`, a folder, t5-3b, any hub id) and its tokenizer; raises InputError for another model."""
    if name == "tiny":
        from lm_bff.tiny_t5 import tiny_t5

        path = tiny_t5()
    else:
        path = Path(hub.model_path(name, "lm-bff"))
    try:
        kind = AutoConfig.from_pretrained(path, trust_remote_code=False).model_type
        if kind != "t5":
            raise InputError(f"t5={name} is a {kind} model; templates are written by T5 (t5-3b, t5-large, ...)")
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        dtype = torch.bfloat16 if bf16 else torch.float32
        model = T5ForConditionalGeneration.from_pretrained(path, dtype=dtype, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"t5={name} cannot be loaded: {str(error).splitlines()[0]}") from None
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def shown_inputs(
    task: Task, examples: Sequence[Example], form: Form, tokenizer: PreTrainedTokenizerBase, mapping: dict | None = None
) -> list[list[int]]:
    """What T5 reads: one example per row as token ids, its own label word between the blanks."""
    template = parse(form.shown, fill_in=True)
    words = mapping or task.mapping
    rows = []
    for example in examples:
        label = task.labels[task.context_class(example.label)]
        rendered = template.render(
            tokenizer,
            example.sentences,
            own_label_ids=encode(tokenizer, " " + words[label]),
            max_length=form.max_length,
            truncate_head=form.truncate_head,
            name=example.name,
        )
        rows.append(rendered.input_ids)
    return rows


def search(
    model: T5ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    train: Sequence[Example],
    *,
    beam: int = 100,
    max_tokens: int = 18,
    mapping: dict | None = None,
) -> list[Candidate]:
    """The templates T5 finds, best first within each form; of two forms each gives half, the first form's first.

    Raises:
        InputError: a beam too small, or no hypothesis that is a template.
    """
    kinds = forms(task.num_sentences)
    if beam < len(kinds):
        raise InputError(f"beam={beam}: give {len(kinds)} or more")
    found: list[Candidate] = []
    for form in kinds:
        hypotheses = search_texts(
            model, tokenizer, shown_inputs(task, train, form, tokenizer, mapping), beam, max_tokens
        )
        texts = {}
        for one in hypotheses:
            template = to_template(tokenizer.convert_ids_to_tokens(list(one.tokens)), form) if one.finished else None
            if template is not None:
                texts.setdefault(template, one.score)
        log.info("form %s: %d templates of %d hypotheses", form.name, len(texts), len(hypotheses))
        found += [Candidate(template, None, score) for template, score in list(texts.items())[: beam // len(kinds)]]
    if not found:
        raise InputError(
            f"task={task.name}: none of {beam} hypotheses became a template within max_tokens={max_tokens}; "
            "raise it, or take a larger T5"
        )
    return found


@entrypoint(config_name="search_templates")
def main(cfg: DictConfig) -> None:
    task = get_task(cfg.task)
    train = load_splits(task, cfg.k, cfg.seed, cfg.data_dir).train
    model, tokenizer = load_t5(cfg.t5, cfg.bf16)
    found = search(model, tokenizer, task, train, beam=cfg.beam, max_tokens=cfg.max_tokens)
    path = write_candidates(output_path(cfg, "template", task), found)
    console = Console(soft_wrap=True)
    for one in found[: cfg.show]:
        console.print(f"{one.score:8.3f}  {one.template}", highlight=False, markup=False)
    console.print(f"{len(found)} templates: {path}", highlight=False)


if __name__ == "__main__":
    main()
