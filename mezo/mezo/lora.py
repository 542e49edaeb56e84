"""LoRA: W x + (alpha / r) B A x with W fixed, on the query and value projections (MeZO, section 3; r 8, alpha 16).

A is drawn from kaiming_uniform(a = sqrt 5), B is zero, so training starts at the base model. Nothing is ever merged
into W. A library that merges on `model.eval()` makes the forward pass blind to A and B: both evaluations of a step
agree, the projected gradient is exactly 0 and nothing is learned. `mezo.preflight` refuses such a model.
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared import InputError


class LoRALinear(nn.Linear):
    """A linear layer (weight and bias under their old names) with `lora_A` (r, in) and `lora_B` (out, r)."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, generator: torch.Generator | None = None) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.weight.requires_grad_(False)
        if self.bias is not None:
            self.bias.requires_grad_(False)
        like = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, **like))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, **like))
        self.scaling = alpha / rank
        if not base.weight.is_meta:
            # Drawn on the CPU in fp32: the same start on every device and in every precision.
            start = torch.empty(rank, base.in_features)
            nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
            with torch.no_grad():
                self.lora_A.copy_(start)
        self.train(base.training)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        low = F.linear(F.linear(input, self.lora_A), self.lora_B)
        return F.linear(input, self.weight, self.bias) + low * self.scaling


def add_lora(attentions: Iterable[nn.Module], names: tuple[str, ...], rank: int, alpha: float, seed: int) -> None:
    """Replace the projections `names` of every attention, in place and at their places (the order of parameters stays).

    Raises InputError for a rank or alpha that makes no sense, and for projections that are no plain linear layers.
    """
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise InputError(f"mode.rank={rank}: give a whole number, 1 or more")
    if not alpha > 0:
        raise InputError(f"mode.alpha={alpha}: give a number above 0")
    generator = torch.Generator().manual_seed(seed)
    for attention in attentions:
        # In the order of registration, which is the order of z.
        for name in [key for key, _ in attention.named_children() if key in names]:
            base = getattr(attention, name)
            if isinstance(base, LoRALinear):
                raise InputError("mode=lora: the model has LoRA already; load the base model")
            if type(base) is not nn.Linear or not base.weight.is_floating_point():
                raise InputError(
                    f"mode=lora: {name} is a {type(base).__name__}; LoRA is put beside plain linear layers of floating "
                    "point numbers (load the model unquantised)"
                )
            setattr(attention, name, LoRALinear(base, rank, alpha, generator))
