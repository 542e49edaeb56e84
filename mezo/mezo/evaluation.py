"""Zero-shot, in-context learning and trained models, measured alike (MeZO, section 4 of the sheet's protocol).

    classification, multiple choice   argmax over candidates of mean log p; accuracy (right if among the right ones)
    generation                        greedy, to a line break or the end, blanks stripped; F1

Calibration (`sfc`, `icl_sfc`): the sum of log p minus the sum under the content-free prompt, without or with the
demonstrations: what a candidate has beyond being likely anyway. Everything runs in batches of similar lengths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lm_bff.batches import default_batch_tokens, length_batches
from mezo.data import Splits, demonstrations
from mezo.encoding import Encoded, Encoder, Prompt
from mezo.generating import LoadedModel, continue_prompts, score_with_generator
from mezo.metrics import accuracy, f1
from mezo.objectives import Objective
from mezo.scoring import can_share, candidate_scores, lay_out, refuse_unsupported
from mezo.tasks import Sample, Task
from shared import InputError
from shared.generation import Generator

CALIBRATIONS = ("none", "sfc", "icl_sfc")
DEMOS = ("per_item", "shared")


def evaluate(
    model: nn.Module | Generator,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    samples: Sequence[Sample],
    *,
    splits: Splits | None = None,
    num_demos: int = 0,
    demos: str = "per_item",
    seed: int = 0,
    calibration: str = "none",
    bos: str = "authors",
    max_length: int = 2048,
    batch_tokens: int | None = None,
    journal: Path | None = None,
    model_type: str | None = None,
) -> dict[str, float]:
    """{task.metric: 0 to 1, "count": examples}.

    Args:
        model: a causal language model, in any training state; or a generator of `shared.generation` (vLLM).
        splits: where demonstrations come from; num_demos: 0 for zero-shot.
        demos: "per_item" (each test example its own, as the paper), "shared" (the same, drawn under `seed`).
        batch_tokens: of a forward pass; None: 32,768 on a GPU, 2,048 on a CPU.
        journal: for a generator: a file of finished answers.
        model_type: of a generator's model, for `bos`.
    Raises:
        InputError: no samples, an unknown choice, demonstrations without splits or fewer than asked for.
    """
    _refuse_nonsense(task, samples, splits, num_demos, demos, calibration)
    if journal is not None and not isinstance(model, Generator):
        raise InputError(f"journal={journal}: answers of a model in memory are not kept, its weights may change")
    model_type = model_type or getattr(getattr(model, "config", None), "model_type", None)
    encoder = Encoder(task, tokenizer, bos=bos, max_length=max_length, model_type=model_type)
    sets: Sequence[Sequence[Sample]] = [()] * len(samples)
    if num_demos:
        sets = demonstrations(splits, num_demos, len(samples), shared=demos == "shared", seed=seed)
    with evaluating(model):
        if task.kind == "generation":
            prompts = [encoder.prompt(sample, own) for sample, own in zip(samples, sets, strict=True)]
            score = mean_f1(model, tokenizer, prompts, task.max_new_tokens, batch_tokens, journal)
            return {"f1": score, "count": len(samples)}
        asked = [encoder.candidates(sample, own) for sample, own in zip(samples, sets, strict=True)]
        scores = scores_of(model, asked, mean=calibration == "none", batch_tokens=batch_tokens, journal=journal)
        if calibration != "none":
            free = [
                encoder.candidates(sample, own, content_free=calibration)
                for sample, own in zip(samples, sets, strict=True)
            ]
            base = scores_of(model, free, mean=False, batch_tokens=batch_tokens, journal=journal)
            scores = [one - other for one, other in zip(scores, base, strict=True)]
    predicted = [int(np.argmax(score)) for score in scores]
    return {"accuracy": accuracy(predicted, [example.gold for example in asked]), "count": len(samples)}


def _refuse_nonsense(task, samples, splits, num_demos, demos, calibration) -> None:
    if not samples:
        raise InputError(f"task={task.name}: no example to evaluate")
    for name, value, known in (("calibration", calibration, CALIBRATIONS), ("demos", demos, DEMOS)):
        if value not in known:
            raise InputError(f"{name}={value!r} is unknown: choose {', '.join(known)}")
    if calibration != "none" and task.kind == "generation":
        raise InputError(f"calibration={calibration}: task {task.name} is generated; only candidates are calibrated")
    if isinstance(num_demos, bool) or not isinstance(num_demos, int) or num_demos < 0:
        raise InputError(f"num_demos={num_demos!r}: give a whole number, 0 for zero-shot")
    if num_demos and splits is None:
        raise InputError(f"num_demos={num_demos}: demonstrations need splits= to be drawn from")


@contextmanager
def evaluating(model: nn.Module | Generator) -> Iterator[None]:
    """Evaluation mode, no gradients; the training state comes back."""
    was_training = getattr(model, "training", False)
    if was_training:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if was_training:
            model.train()


def scores_of(
    model: nn.Module | Generator,
    examples: Sequence[Encoded],
    *,
    mean: bool = True,
    batch_tokens: int | None = None,
    journal: Path | None = None,
) -> list[np.ndarray]:
    """Each example's candidates' scores, (candidates,) float64, computed in batches of similar lengths."""
    if isinstance(model, Generator):
        return score_with_generator(model, examples, mean=mean, journal=journal)
    found: list[np.ndarray | None] = [None] * len(examples)
    pending: list[tuple[list[int], list[Tensor]]] = []
    for rows, laid in batches(model, examples, batch_tokens):
        pending.append((rows, candidate_scores(model, laid, mean=mean)))
    for rows, scores in pending:
        for row, score in zip(rows, scores, strict=True):
            found[row] = score.double().cpu().numpy()
    return found


def batches(model: nn.Module, examples: Sequence[Encoded], batch_tokens: int | None, *, whole: bool = False):
    """(example numbers, their layout): longest first, so that what does not fit in memory shows at once."""
    refuse_unsupported(model)
    device = next(model.parameters()).device
    longest = [max(map(len, example.candidates)) for example in examples]
    # A common beginning runs once: what is left of the other candidates is little more than their options.
    lengths = [n + sum(example.option_lens) for n, example in zip(longest, examples, strict=True)]
    for rows in length_batches(lengths, batch_tokens or default_batch_tokens(device)):
        share = can_share(model, max(longest[row] for row in rows))
        yield rows, lay_out([examples[row] for row in rows], share=share, layout="rows", whole=whole, device=device)


def dev_loss(objective: Objective, model: nn.Module, encoded: Sequence[Any], batch_tokens: int | None = None) -> float:
    """The objective over a whole development set, which is what the paper selects by."""
    with evaluating(model):
        if objective.kind == "f1":
            return float(objective.loss(model, encoded))
        whole = objective.kind == "lm" and not objective.only_train_option
        found = [objective.total(model, laid) for _, laid in batches(model, encoded, batch_tokens, whole=whole)]
    return float(sum(float(total) for total, _ in found) / sum(weight for _, weight in found))


# --------------------------------------------------------------------------------------------------------- generation


def mean_f1(
    model: nn.Module | Generator,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    batch_tokens: int | None = None,
    journal: Path | None = None,
) -> float:
    """Mean F1 of what the model generates after the prompts."""
    generator = model if isinstance(model, Generator) else LoadedModel(model, tokenizer, batch_tokens)
    texts = continue_prompts(generator, prompts, max_new_tokens, journal)
    return sum(f1(text, prompt.answers) for text, prompt in zip(texts, prompts, strict=True)) / len(prompts)
