"""What MeZO minimises on causal and masked language models (MeZO, section 3 and appendix E; the sheet's names).

    candidates   cross-entropy over the candidates' scores, score_c = mean log p of its option tokens
    lm           cross-entropy of the right answer's tokens, mean over all option tokens of the batch
    accuracy     minus the accuracy of the batch: no gradient, and none needed
    f1           minus the mean F1 of generated answers: likewise

The loss is computed in fp32 whatever the weights' type: with eps = 1e-3 the two losses differ in their fourth digit,
and in half precision a tenth or more of the projected gradients come out as zero. `loss_dtype="native"` is the
release's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from mezo.encoding import Encoded, Encoder, Prompt
from mezo.scoring import (
    LAYOUTS,
    Sequences,
    asked_logits,
    can_share,
    candidate_scores,
    lay_out,
    refuse_unsupported,
    token_logprobs,
)
from mezo.tasks import Sample, Task
from shared import InputError

KINDS = ("auto", "candidates", "lm", "accuracy", "f1")
LOSS_DTYPES = ("fp32", "native")


@dataclass(frozen=True)
class Objective:
    """A loss of a task's examples. Made by `objective_for`.

    differentiable: whether backpropagation through `loss` means something.
    """

    task: Task
    encoder: Encoder
    kind: str
    only_train_option: bool = True
    loss_dtype: str = "fp32"
    layout: str = "auto"
    share: bool = True

    @property
    def differentiable(self) -> bool:
        return self.kind in ("candidates", "lm")

    @property
    def dtype(self) -> torch.dtype | None:
        return torch.float32 if self.loss_dtype == "fp32" else None

    def encode(self, samples: Sequence[Sample]) -> list[Encoded] | list[Prompt]:
        """Once before training. Raises InputError for a sample that cannot be encoded."""
        if self.kind == "f1":
            return [self.encoder.prompt(sample) for sample in samples]
        if self.kind == "lm":
            return [self.encoder.right(sample) for sample in samples]
        return [self.encoder.candidates(sample) for sample in samples]

    def lay_out(self, model: nn.Module, batch: Sequence[Encoded]) -> Sequences:
        """The batch as the inputs of one forward pass; it may be laid out once and scored many times."""
        refuse_unsupported(model)
        longest = max(len(ids) for example in batch for ids in example.candidates)
        share = self.share and can_share(model, longest)
        whole = self.kind == "lm" and not self.only_train_option
        layout = self.layout if share else "rows"
        return lay_out(batch, share=share, layout=layout, whole=whole, device=next(model.parameters()).device)

    def loss(self, model: nn.Module, batch: Sequence[Encoded] | Sequences | Sequence[Prompt]) -> Tensor:
        """A number, in fp32 unless native, on the model's device."""
        if self.kind == "f1":
            from mezo.evaluation import mean_f1  # late: evaluation measures objectives too

            return torch.tensor(-mean_f1(model, self.encoder.tokenizer, batch, self.task.max_new_tokens))
        total, weight = self.total(model, batch if isinstance(batch, Sequences) else self.lay_out(model, batch))
        return total / weight

    def total(self, model: nn.Module, laid: Sequences) -> tuple[Tensor, int]:
        """(sum, number) whose ratio is the loss: over examples, or over tokens for lm."""
        if self.kind == "lm":
            return -token_logprobs(asked_logits(model, laid), laid.targets, self.dtype).sum(), len(laid.targets)
        scores = candidate_scores(model, laid, dtype=self.dtype)
        if self.kind == "accuracy":
            right = [int(score.argmax()) in gold for score, gold in zip(scores, laid.gold, strict=True)]
            return torch.tensor(-float(sum(right))), len(right)
        return _cross_entropy(scores, [gold[0] for gold in laid.gold]), len(scores)


def _cross_entropy(scores: Sequence[Tensor], gold: Sequence[int]) -> Tensor:
    """Sum over examples of the cross-entropy over each one's own candidates."""
    if len({len(score) for score in scores}) == 1:
        right = torch.tensor(gold, device=scores[0].device)
        return F.cross_entropy(torch.stack(list(scores)), right, reduction="sum")
    return torch.stack([-score.log_softmax(-1)[right] for score, right in zip(scores, gold, strict=True)]).sum()


def objective_for(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    kind: str = "auto",
    model_type: str | None = None,
    only_train_option: bool = True,
    max_length: int = 2048,
    bos: str = "authors",
    loss_dtype: str = "fp32",
    layout: str = "auto",
    share: bool = True,
) -> Objective:
    """The objective of a task.

    Args:
        kind: "auto" is the task's own loss.
        model_type: of the model's config; OPT's beginning of a sequence depends on it.
        only_train_option: lm: of the option's tokens; False: of the whole sequence.
        layout, share: see `scoring.lay_out`.
    Raises:
        InputError: an unknown choice, or an objective that the task has no answers for.
    """
    for name, value, known in (
        ("objective", kind, KINDS), ("loss_dtype", loss_dtype, LOSS_DTYPES), ("layout", layout, LAYOUTS),
    ):  # fmt: skip
        if value not in known:
            raise InputError(f"{name}={value!r} is unknown: choose {', '.join(known)}")
    kind = task.loss if kind == "auto" else kind
    if task.kind == "generation" and kind in ("candidates", "accuracy"):
        raise InputError(f"objective={kind}: task {task.name} is generated and has no candidates; use lm or f1")
    if task.kind != "generation" and kind == "f1":
        raise InputError(f"objective=f1: task {task.name} has no answers to compare texts with; use accuracy")
    encoder = Encoder(task, tokenizer, bos=bos, max_length=max_length, model_type=model_type)
    return Objective(task, encoder, kind, only_train_option, loss_dtype, layout, share)


def masked_loss(
    model: nn.Module, batch: dict[str, Any], *, kind: str = "cross_entropy", loss_dtype: str = "fp32"
) -> Tensor:
    """Loss of a masked language model with LM-BFF's prompts, or of a classifier without them.

    Args:
        model: `lm_bff.model.PromptModel` or `FineTuneModel`: (batch, classes) logits.
        batch: what `lm_bff.batches.collate` makes, and "labels" (batch,).
        kind: "cross_entropy" (over the label words at the mask) or "accuracy" (minus the batch's).
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits, labels = model(**inputs), batch["labels"]
    if kind == "accuracy":
        return -(logits.argmax(-1) == labels).float().mean()
    if kind != "cross_entropy":
        raise InputError(f"objective={kind!r} is unknown for a masked language model: choose cross_entropy, accuracy")
    return F.cross_entropy(logits.float() if loss_dtype == "fp32" else logits, labels)
