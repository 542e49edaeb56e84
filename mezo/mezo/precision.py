"""What half precision does to projected gradients: the loss, not the weights, is what has to be kept in fp32.

Two losses that differ by 2 eps pg stand at about 1: with eps = 1e-3 and a projected gradient of 1 they differ by 2e-3,
where fp16 has steps of 1e-3 and bf16 of 8e-3. So in the weights' own precision many projected gradients come out as
zero or as one of a few values; with logits taken to fp32 first they are nearly those of fp32 weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mezo.modes import trainable
from mezo.on_the_fly import OnTheFly
from mezo.spsa import projected_gradient

KINDS = (
    ("float32", "fp32"),
    ("float16", "native"),
    ("float16", "fp32"),
    ("bfloat16", "native"),
    ("bfloat16", "fp32"),
)


@torch.no_grad()
def projected_gradients(model: nn.Module, loss: Callable[[], Tensor], seeds: Sequence[int], eps: float) -> np.ndarray:
    """`(len(seeds),)` float64: one estimate per direction, the same directions for every type of weights."""
    fly = OnTheFly(model, [tensor for _, tensor in trainable(model)], "counter")
    found = []
    for seed in seeds:
        losses = []
        for scale in (eps, -eps):
            with fly.at(seed, scale):
                losses.append(float(loss()))
        found.append(projected_gradient(*losses, eps))
    return np.array(found)


def compare(found: Mapping[tuple[str, str], np.ndarray]) -> list[dict[str, Any]]:
    """A line per kind: distinct values, zeros, the smallest that is not zero, correlation with fp32's."""
    reference = found["float32", "fp32"]
    lines = []
    for (weights, loss), values in found.items():
        moving = np.abs(values[values != 0])
        lines.append(
            {
                "weights": weights,
                "loss": loss,
                "distinct": len(set(values.tolist())),
                "zero": int((values == 0).sum()),
                "smallest": float(moving.min()) if len(moving) else None,
                "correlation": float(np.corrcoef(values, reference)[0, 1]) if np.ptp(values) else 0.0,
            }
        )
    return lines
