"""The release's Adam and its learning rates.

    m <- b1 m + (1 - b1) g          v <- b2 v + (1 - b2) g^2
    p <- p - lr wd p                (all parameters, biases and LayerNorms too)
    p <- p - lr sqrt(1 - b2^t) / (1 - b1^t)  m / (sqrt(v) + eps)

torch.optim.AdamW adds eps to sqrt(v / (1 - b2^t)), after bias correction; here it is added before. With b2 = 0.98 the
first updates' correction is sqrt(0.02) = 0.14, so that the same eps weighs seven times as much there: where gradients
are as small as eps the two optimisers part. Both are the same formula but for eps / sqrt(1 - b2^t) in place of eps,
which is how the fused kernel is used for both.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from shared import InputError

KINDS = ("release", "adamw")


class ReleaseAdam(torch.optim.AdamW):
    """Adam with decoupled weight decay and eps added before bias correction (the authors' release).

    Arguments and states are those of `torch.optim.AdamW`, so checkpoints of either are of one form.
    """

    def __init__(self, params, lr: float, betas=(0.9, 0.98), eps: float = 1e-6, weight_decay: float = 0.01, **options):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **options)
        self._updates: int | None = None

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        """One update of every parameter that has a gradient."""
        self._updates = 1 + (self._updates_so_far() if self._updates is None else self._updates)
        given = [group["eps"] for group in self.param_groups]
        for group in self.param_groups:
            group["eps"] = group["eps"] / math.sqrt(1 - group["betas"][1] ** self._updates)
        try:
            return super().step(closure)
        finally:
            for group, eps in zip(self.param_groups, given, strict=True):
                group["eps"] = eps

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self._updates = None

    def _updates_so_far(self) -> int:
        """Of the states, read once after they were made or loaded: they may be on a GPU."""
        return max((int(state["step"]) for state in self.state.values() if "step" in state), default=0)


def build_optimizer(
    parameters: Iterable[nn.Parameter] | Iterable[dict],
    kind: str = "release",
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.98),
    eps: float = 1e-6,
    weight_decay: float = 0.01,
) -> torch.optim.AdamW:
    """The optimiser over parameters that all decay alike, with torch's fused kernel.

    Args:
        kind: "release" or "adamw" (torch's own placing of eps).
    Raises:
        InputError: an unknown kind, or a number out of range.
    """
    if kind not in KINDS:
        raise InputError(f"optimizer={kind}: give one of {', '.join(KINDS)}")
    for name, value, good in (
        ("learning_rate", lr, lr >= 0),
        ("adam_beta1", betas[0], 0 <= betas[0] < 1),
        ("adam_beta2", betas[1], 0 <= betas[1] < 1),
        ("adam_epsilon", eps, eps >= 0),
        ("weight_decay", weight_decay, weight_decay >= 0),
    ):
        if not good:
            raise InputError(f"optim.{name}={value} is out of range")
    options = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "fused": True}
    return (ReleaseAdam if kind == "release" else torch.optim.AdamW)(parameters, **options)


def learning_rate_factor(update: int, warmup: int, total: int) -> float:
    """Share of the peak rate at update 1, 2, ..., total: linear up to 1 at `warmup`, linear down to 0 at `total`.

    The last update therefore has a rate of 0, as in the release.
    """
    if update <= warmup:
        return update / warmup
    return max(0.0, (total - update) / max(1, total - warmup))


def linear_schedule(optimizer: torch.optim.Optimizer, warmup: int, total: int) -> torch.optim.lr_scheduler.LambdaLR:
    """`learning_rate_factor` as a scheduler. Raises InputError where the warm-up is no part of the run."""
    if not 0 <= warmup <= total or total < 1:
        raise InputError(f"warm-up of {warmup} updates in a run of {total}: give 0 to {total}")
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: learning_rate_factor(done + 1, warmup, total))
