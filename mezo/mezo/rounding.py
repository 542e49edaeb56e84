"""Stochastic rounding for half precision weights: an update smaller than a weight's last bit counts in the mean.

With lr 1e-7 and a projected gradient of 1, rounding to nearest changes 0.1 % of bf16 weights and leaves the rest as
they are, whatever the gradient says. Rounding up with the probability of the distance keeps the update's expectation.
"""

from typing import Any

import torch
from torch import Tensor

from mezo.spsa import Mask
from mezo.trajectory import Step


def add_rounded_stochastically(part: Tensor, draw: Any, step: Step, weight_decay: float, mask: Mask | None) -> None:
    """theta <- round(theta (1 - lr wd) - lr g z) for a piece of bf16 or fp16 weights; seeded by the step."""
    wide = part.float()
    if weight_decay:
        wide.mul_(1 - step.lr * weight_decay)
    z = torch.zeros_like(part)
    draw(z, 1.0, mask)
    wide.add_(z.float(), alpha=-step.lr * step.projected_gradient)
    generator = torch.Generator(part.device).manual_seed(
        (step.seed * 2 + 1 + part.storage_offset()) & 0x7FFFFFFFFFFFFFFF
    )
    part.copy_(round_stochastically(wide, part.dtype, generator))


def round_stochastically(wide: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Each fp32 number to one of its two neighbours in `dtype`, the nearer the likelier: unbiased."""
    near = wide.to(dtype)
    rest = wide - near.float()
    # The neighbour on the other side of the exact value.
    toward = torch.where(rest > 0, torch.inf, -torch.inf).to(dtype)
    other = torch.nextafter(near.float(), toward.float()).to(dtype) if dtype == torch.float32 else _next(near, rest > 0)
    gap = (other.float() - near.float()).abs()
    chance = torch.where(gap > 0, rest.abs() / gap, torch.zeros_like(gap))
    draw = torch.rand(wide.shape, generator=generator, device=wide.device)
    return torch.where(draw < chance, other, near)


def _next(x: Tensor, up: Tensor) -> Tensor:
    """The next larger (`up`) or smaller number of a 16-bit type, by its bits."""
    bits = x.view(torch.int16).to(torch.int32)
    ordered = torch.where(bits < 0, -(bits & 0x7FFF), bits)  # sign and magnitude -> a line
    ordered = ordered + torch.where(up, 1, -1)
    back = torch.where(ordered < 0, (-ordered) | -0x8000, ordered)
    return back.to(torch.int16).view(x.dtype)
