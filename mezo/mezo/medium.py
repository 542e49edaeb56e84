"""RoBERTa's side of the paper: LM-BFF's splits and prompts, as batches for MeZO (MeZO, sections 3.1 and E.3).

splits     K examples per class for train and for dev; the test set capped at 1,000 as the release caps it
prompt     the label words' logits at the mask (lm_bff.model.PromptModel), without demonstrations
no prompt  a new classification head (lm_bff.model.FineTuneModel): what MeZO cannot train (Table 5)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lm_bff.batches import collate, outputs_of
from lm_bff.data import Example, Splits, class_numbers, load_splits
from lm_bff.label_words import label_words
from lm_bff.metrics import compute
from lm_bff.model import Pretrained
from lm_bff.prompts import PromptBuilder
from lm_bff.tasks import Task, get_task
from lm_bff.template import Rendered
from shared import InputError

TASKS = ("sst-2", "sst-5", "snli", "mnli", "rte", "trec")
MAX_TEST = 1000
CAP_SEED = 42
# Tokens of a prompt and of its first and other sentences, where the paper's differ from LM-BFF's.
LIMITS = {"snli": (256, None, None), "mnli": (256, 240, None), "rte": (256, 240, None)}


@dataclass(frozen=True)
class Row:
    """One example as a masked language model is given it; label: its class."""

    prompt: Rendered
    label: int


def medium_splits(
    name: str, k: int = 16, seed: int = 42, data_dir: str | Path | None = None, max_test: int | None = MAX_TEST
) -> Splits:
    """Train, dev and test of one task, k and seed (`python -m lm_bff.kshot k=512` makes those that are not published).

    Raises InputError where they are not there, or the task is a regression.
    """
    task = get_task(name)
    if task.regression:
        raise InputError(f"task={name} is a regression; MeZO's masked language models are trained on classes")
    # TREC has a class of 86: with k = 512 it has fewer than k, and no dev examples.
    splits = load_splits(task, k, seed, data_dir, strict=k <= 16)
    if max_test is None:
        return splits
    return replace(splits, test={name: capped(task, rows, max_test) for name, rows in splits.test.items()})


def capped(task: Task, examples: Sequence[Example], count: int) -> list[Example]:
    """The release's choice of `count` test examples: the first of a shuffle for tab-separated files, a draw without
    replacement for comma-separated ones, both under seed 42."""
    if len(examples) <= count:
        return list(examples)
    draw = np.random.RandomState(CAP_SEED)
    if task.reader.format == "tsv":
        order = list(range(len(examples)))
        draw.shuffle(order)
        return [examples[number] for number in order[:count]]
    return [examples[number] for number in draw.choice(len(examples), count, replace=False)]


def release_seeds(examples: int, batch_size: int, seed: int = 42) -> Callable[[], int]:
    """The seeds of the release's medium runs, for `MeZO(seeds=...)`: one per step, as long as no dev set is measured.

    There they come from numpy's global generator, which every fetched training example takes a permutation of the
    other examples from, although prompts without demonstrations do not use it; so the large models' runs, which fetch
    nothing that way, have other seeds.
    """
    draw = np.random.RandomState(seed)
    fetched = itertools.cycle([min(batch_size, examples - start) for start in range(0, examples, batch_size)])

    def next_seed() -> int:
        for _ in range(next(fetched)):
            draw.permutation(examples - 1)
        return int(draw.randint(1_000_000_000))

    return next_seed


class MediumEncoder:
    """Examples of one task as rows, for prompts or (prompt=False) for a classification head."""

    def __init__(self, pretrained: Pretrained, task: Task, *, prompt: bool = True, template: str | None = None) -> None:
        self.pretrained, self.task, self.prompt = pretrained, task, prompt
        if template is not None:
            task = replace(task, template=template)
        words = label_words(pretrained.tokenizer, task.mapping, task.labels, task.name).ids if prompt else ()
        self.label_word_ids = tuple(words)
        whole, first, other = LIMITS.get(task.name, (task.max_length, task.first_sent_limit, task.other_sent_limit))
        self.builder = PromptBuilder(
            pretrained.tokenizer,
            task.parsed_template,
            self.label_word_ids,
            task.num_sentences,
            min(whole, pretrained.max_positions),
            first,
            other,
            limit_segments=pretrained.uses_segments,
            max_positions=pretrained.max_positions,
        )

    def model(self, *, seed: int = 0, full_decoder: bool = False) -> nn.Module:
        """A trainable copy of the pre-trained model, in evaluation mode.

        full_decoder: all rows of the untied decoder, as the release perturbs them; else the label words' only, which
        are all that a loss depends on.
        """
        if self.prompt:
            made = self.pretrained.prompt_model(self.label_word_ids, seed=seed, full_decoder=full_decoder)
        else:
            made = self.pretrained.finetune_model(len(self.task.labels), seed=seed)
        return made.eval()

    def encode(self, examples: Sequence[Example]) -> list[Row]:
        """One row per example. Raises InputError where a prompt loses its mask."""
        build = self.builder.plain if self.prompt else self.builder.sequence_pairs
        labels = class_numbers(self.task, examples)
        return [Row(prompt, label) for prompt, label in zip(build(examples), labels, strict=True)]

    def batch(self, rows: Sequence[Row], device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """What `objectives.masked_loss` takes: padded to the longest row."""
        made = collate([row.prompt for row in rows], self.pretrained.tokenizer.pad_token_id, torch.device(device))
        return {**made, "labels": torch.tensor([row.label for row in rows], device=device)}

    def logits(self, model: nn.Module, rows: Sequence[Row], batch_tokens: int | None = None) -> np.ndarray:
        """(rows, classes), in batches of similar lengths."""
        pad = self.pretrained.tokenizer.pad_token_id
        return outputs_of(model, [row.prompt for row in rows], pad, batch_tokens=batch_tokens)

    def evaluate(self, model: nn.Module, rows: Sequence[Row], batch_tokens: int | None = None) -> dict[str, float]:
        """{task.metric: 0 to 1}."""
        predicted = self.logits(model, rows, batch_tokens).argmax(-1)
        return compute((self.task.metric,), predicted, np.array([row.label for row in rows]))
