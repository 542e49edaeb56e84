"""AdamW as the release's library had it: epsilon is added before the bias correction.

torch divides the first moment by sqrt(v) / sqrt(1 - beta2^t) + eps. transformers' AdamW of 2020 divided by
(sqrt(v) + eps) / sqrt(1 - beta2^t), so that its epsilon is effectively eps / sqrt(1 - beta2^t): 32 times as large in
the first step, the same after some thousand. That is all the difference where weight decay is 0, as in the paper, and
so torch's own (fused) implementation runs with that epsilon.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from shared import InputError

FLAVOURS = ("authors", "torch")


class BiasCorrectedAfterEpsilon(torch.optim.AdamW):
    """`torch.optim.AdamW` with eps / sqrt(1 - beta2^t) in step t."""

    def __init__(self, params: Iterable[Tensor], lr: float, eps: float = 1e-8, **options):
        super().__init__(params, lr=lr, eps=eps, **options)
        self.base_eps, self.steps_done = eps, 0

    def step(self, closure=None):
        self.steps_done += 1
        for group in self.param_groups:
            group["eps"] = self.base_eps / (1 - group["betas"][1] ** self.steps_done) ** 0.5
        return super().step(closure)


def adamw(parameters: Iterable[Tensor], lr: float, flavour: str, weight_decay: float = 0.0) -> torch.optim.AdamW:
    """AdamW with betas 0.9, 0.999 and eps 1e-8 over the parameters that want a gradient; `flavour` authors | torch."""
    if flavour not in FLAVOURS:
        raise InputError(f"adam_eps={flavour}: give one of {', '.join(FLAVOURS)}")
    kind = BiasCorrectedAfterEpsilon if flavour == "authors" else torch.optim.AdamW
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    fused = all(parameter.is_floating_point() for parameter in trainable)
    return kind(trainable, lr=lr, eps=1e-8, betas=(0.9, 0.999), weight_decay=weight_decay, fused=fused)


def linear_decay(lr: float, step: int, max_steps: int) -> float:
    """The learning rate of update `step` (from 0): lr at first, on its way to 0 after `max_steps`, without warm-up."""
    return lr * max(0.0, (max_steps - step) / max_steps)
