"""What a run's steps were like: the size of the move, the projected gradients, and updates that rounding swallowed.

A move of eps z has the length eps sqrt(d), whatever the model; beside the length of the weights it says whether eps is
large or small here. A projected gradient that is exactly 0, or equal to another one, says that the losses are too
coarse for eps; weights that do not change in an update say that lr g is below their last bit.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mezo.spsa import pieces
from mezo.torch_stream import PIECE
from mezo.trajectory import Step

log = logging.getLogger(__name__)

FLAT = 0.05
SWALLOWED = 0.5
SAMPLE = 4096  # weights per tensor that are watched
WATCHED = 32  # tensors


@torch.no_grad()
def length_of_move(named: Sequence[tuple[str, Tensor]], seed: int, eps: float, rng: str) -> float:
    """eps ||z|| of one direction, drawn piece by piece."""
    total = 0.0
    params = [tensor for _, tensor in named]
    for _, part, draw in pieces(params, seed, rng, PIECE):
        z = torch.zeros_like(part)
        draw(z, 1.0, None)
        total += float(z.double().square().sum())
    return eps * math.sqrt(total)


@torch.no_grad()
def length_of_weights(named: Sequence[tuple[str, Tensor]]) -> float:
    """||theta|| of the trained weights."""
    return math.sqrt(sum(float(tensor.detach().double().square().sum()) for _, tensor in named))


class SwallowedUpdates:
    """Counts, on a sample of half precision weights, how many an update changes. Nothing is watched in fp32."""

    def __init__(self, named: Sequence[tuple[str, Tensor]]) -> None:
        halves = [t for _, t in named if t.dtype in (torch.float16, torch.bfloat16)]
        every = max(1, len(halves) // WATCHED)
        self.parts = [t.detach().view(-1)[:SAMPLE] for t in halves[::every] if t.is_contiguous()]
        self.changed, self.seen, self.before = 0, 0, None

    def note(self) -> None:
        """Before an update."""
        self.before = [part.clone() for part in self.parts]

    def count(self) -> None:
        """After it."""
        for part, before in zip(self.parts, self.before or (), strict=False):
            self.changed += int((part != before).sum())
            self.seen += part.numel()

    @property
    def moved(self) -> float | None:
        """The share of watched weights that an update changed; None in fp32."""
        return self.changed / self.seen if self.seen else None

    def warn(self, dtype: torch.dtype, lr: float) -> None:
        moved = self.moved
        if moved is not None and moved < SWALLOWED:
            log.warning(
                "an update changes %.2f %% of the %s weights: lr=%g times the projected gradient is below the last bit "
                "of the others. Use zo.rounding=stochastic or zo.master=true",
                100 * moved, str(dtype).removeprefix("torch."), lr,
            )  # fmt: skip


def summary(steps: Sequence[Step]) -> dict[str, Any]:
    """Statistics of the projected gradients of a run; {} without steps."""
    gradients = [step.projected_gradient for step in steps]
    if not gradients:
        return {}
    count = len(gradients)
    mean = math.fsum(gradients) / count
    spread = math.sqrt(math.fsum((g - mean) ** 2 for g in gradients) / (count - 1)) if count > 1 else None
    zero = sum(g == 0 for g in gradients) / count
    equal = 1 - len(set(gradients)) / count
    if max(zero, equal) > FLAT:
        log.warning("%.0f %% of the projected gradients are 0 and %.0f %% equal to another one: the loss is too coarse "
                    "for this eps", 100 * zero, 100 * equal)  # fmt: skip
    sizes = sorted(abs(g) for g in gradients)
    return {
        "count": count,
        "mean": mean,
        "std": spread,
        "median_size": sizes[count // 2],
        "largest": sizes[-1],
        "zero": zero,
        "equal": equal,
    }
