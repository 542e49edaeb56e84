"""One trial in words: every choice that decides its outcome, checked, and small enough to be the key of a result."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from lm_bff.demonstrations import SAMPLERS
from lm_bff.in_context import InContext
from lm_bff.label_words import Label
from lm_bff.optimizer import FLAVOURS
from lm_bff.prompts import SEGMENT_STYLES
from lm_bff.regression import LOSSES
from lm_bff.tasks import Task
from shared import InputError

METHODS = ("majority", "zero-shot", "icl", "finetune", "prompt", "prompt-demo")
TRAINED = ("finetune", "prompt", "prompt-demo")
STSB_DEMOS = ("authors", "paper")


@dataclass(frozen=True)
class TrialSettings:
    """What a trial does. The defaults are the paper's for one grid point, and the release's conventions.

    template, mapping: None for the task's own. Several templates in one trial: each training example meets one of them
    at random, and dev and test outputs are averaged over all. num_sample: None for the task's own (16, or 4).
    filter: None, or the name or folder of the sentence encoder that demonstrations are filtered with.
    stsb_demos: `authors` appends only the demonstration of the lower half, `paper` one of each half.
    adam_eps, demo_sampler, regression_loss, icl_cls: see the modules optimizer, demonstrations, regression, in_context.
    max_length: None for the task's. eval_every: updates between dev evaluations; the best is kept. micro_batch_size:
    rows per forward pass; None: the whole batch. bf16: products in bfloat16 over float32 weights.
    """

    method: str = "prompt-demo"
    seed: int = 42
    lr: float = 1e-5
    batch_size: int = 8
    micro_batch_size: int | None = None
    max_steps: int = 1000
    eval_every: int = 100
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    template: str | tuple[str, ...] | None = None
    mapping: dict[Label, str] | None = None
    num_sample: int | None = None
    filter: str | None = None
    filter_keep: float = 0.5
    max_length: int | None = None
    first_sent_limit: int | None = None
    other_sent_limit: int | None = None
    truncate_head: bool = False
    segments: str = "n"
    random_segments: bool = False
    freeze_layers: int = 0
    regression_loss: str = "authors"
    stsb_demos: str = "authors"
    adam_eps: str = "authors"
    demo_sampler: str = "permutation"
    icl_examples: int = 32
    icl_max_length: int = 512
    icl_placement: str = "head"
    icl_cls: str = "authors"
    bf16: bool = False
    batch_tokens: int | None = None
    dropout: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.template, list):
            object.__setattr__(self, "template", tuple(self.template))
        for name, allowed in {
            "method": METHODS,
            "stsb_demos": STSB_DEMOS,
            "regression_loss": LOSSES,
            "adam_eps": FLAVOURS,
            "demo_sampler": SAMPLERS,
            "segments": SEGMENT_STYLES,
        }.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name}={getattr(self, name)}: give one of {', '.join(allowed)}")
        for name in ("batch_size", "eval_every", "micro_batch_size", "num_sample", "max_length", "batch_tokens"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"{name}={value}: give a whole number, 1 or more")
        if not isinstance(self.max_steps, int) or self.max_steps < 0:
            raise InputError(f"max_steps={self.max_steps}: give a whole number, 0 or more")
        if not self.lr > 0:
            raise InputError(f"lr={self.lr}: give a number above 0")
        if not 0 < self.filter_keep <= 1:
            raise InputError(f"filter.keep={self.filter_keep}: give a part from above 0 to 1")
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise InputError(
                f"batch_size={self.batch_size} is not divisible by micro_batch_size={self.micro_batch_size}"
            )
        if self.method == "icl" and len(self.templates) > 1:
            raise InputError(
                f"method=icl with {len(self.templates)} templates: in-context learning takes one; give one template"
            )
        self.in_context  # noqa: B018 - checks its own options

    @property
    def templates(self) -> tuple[str, ...]:
        """The templates given, () for the task's own."""
        if self.template is None:
            return ()
        return (self.template,) if isinstance(self.template, str) else self.template

    @property
    def in_context(self) -> InContext:
        return InContext(self.icl_examples, self.icl_max_length, self.icl_placement, self.icl_cls)

    @property
    def trained(self) -> bool:
        return self.method in TRAINED and self.max_steps > 0

    @property
    def demonstrates(self) -> bool:
        return self.method == "prompt-demo"

    def draws(self, task: Task) -> int:
        """Sets of demonstrations per dev and test example."""
        return (self.num_sample or task.num_sample) if self.demonstrates else 1

    def as_dict(self) -> dict[str, Any]:
        """Plain values; the mapping as pairs, because JSON would turn numbers as keys into texts."""
        values = dataclasses.asdict(self)
        values["mapping"] = None if self.mapping is None else [list(pair) for pair in self.mapping.items()]
        values["template"] = list(self.template) if isinstance(self.template, tuple) else self.template
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrialSettings:
        """The settings that `as_dict` wrote."""
        values = dict(values)
        if values.get("mapping") is not None:
            values["mapping"] = dict(values["mapping"])
        return cls(**values)


def digest(values: dict[str, Any]) -> str:
    """A short name for plain values: the same for the same ones, in any order of keys."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
