"""What is checked once before the first step: that two losses differ by the weights alone, and that they do differ.

SPSA reads the gradient off the fourth digit of two losses. Dropout between them drowns it; a forward pass that does not
use the trained weights (LoRA merged into the matrix by `eval()`, a frozen copy, a cached output) makes it exactly zero.
Neither raises an error by itself, and a run of 20,000 steps would end where it began.
"""

import logging
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mezo.on_the_fly import OnTheFly
from mezo.spsa import perturb
from shared import InputError

log = logging.getLogger(__name__)

# Multiples of eps at which the loss must have moved at the latest. LoRA begins with B = 0, so small moves are felt too.
REACHES = (1.0, 30.0, 1000.0)


def check_model(model: nn.Module) -> None:
    """Raises InputError for a model in train mode with dropout, or one that checkpoints activations."""
    active = [
        (name or type(m).__name__)
        for name, m in model.named_modules()
        if isinstance(m, nn.Dropout | nn.AlphaDropout) and m.training and m.p > 0
    ]
    config = getattr(getattr(model, "backbone", model), "config", None)
    rates = {
        key: value
        for key, value in (vars(config) if config is not None else {}).items()
        if "drop" in key and isinstance(value, float) and value > 0
    }
    if active or (model.training and rates):
        what = active[0] if active else f"{next(iter(rates))}={next(iter(rates.values()))}"
        raise InputError(
            f"trainer=zo: the model is in train mode with dropout ({what}), so that two evaluations differ by more "
            "than the weights; call model.eval()"
        )
    if getattr(model, "is_gradient_checkpointing", False) and model.training:
        raise InputError("trainer=zo: there are no activations to checkpoint; set gradient_checkpointing=false")


def check_response(
    closure: Callable[[], object], named: Sequence[tuple[str, Tensor]], eps: float, rng: str, *,
    model: nn.Module | None = None, seed: int = 0,
) -> None:  # fmt: skip
    """Raises InputError where the loss is bit for bit the same however far the trained weights are moved.

    Args:
        closure: computes the loss, or (loss, number of examples).
        model: evaluates without writing the weights; without it they are moved, and put back from a copy.
    """
    with torch.no_grad():
        before = _number(closure())
    if not math.isfinite(before):
        raise InputError(
            f"the loss of the base model is {before}: compute it in fp32 (loss_dtype=fp32), check the data"
        )
    fly = OnTheFly(model, [tensor for _, tensor in named], rng) if model is not None else None
    copies = None if fly else [tensor.detach().clone() for _, tensor in named]
    with torch.no_grad():
        for reach in REACHES:
            if fly:
                with fly.at(seed, reach * eps):
                    moved = _number(closure())
            else:
                perturb(named, seed, reach * eps, rng=rng)
                try:
                    moved = _number(closure())
                finally:
                    for (_, tensor), copy in zip(named, copies, strict=True):
                        tensor.copy_(copy)
            if moved != before:
                return
    raise InputError(
        f"the loss stays {before} bit for bit when the {len(named)} trained tensors ({named[0][0]}, ...) are moved by "
        f"up to {REACHES[-1] * eps:g} z: the forward pass does not use them. LoRA that is merged by model.eval() does "
        "this (loralib 0.1.2; keep it unmerged), and so does a frozen or cached copy"
    )


def _number(loss: object) -> float:
    return float(loss[0] if isinstance(loss, tuple) else loss)
