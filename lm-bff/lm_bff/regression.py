"""A score between two label words (section 4.1 of the paper): y in [low, high] as the mixture of "No" and "Yes".

The two logits give q = softmax; the score is low + (high - low) q(Yes), and training pulls q to the mixture
t = (1 - u, u), u = (y - low) / (high - low).

The paper's loss is the Kullback-Leibler divergence KL(t || q). The authors' release computes another one: it tells
torch's `kl_div` that the target is given as logarithms, but passes probabilities, so that the loss is the mean of
e^t (t - log q) over all elements. Its minimum is at q(Yes) = e^u / (e^u + e^(1-u)), which never leaves [0.269, 0.731].
Both are here; which one ran is part of every result.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from shared import InputError

LOSSES = ("authors", "kl")


def check_loss(kind: str) -> None:
    if kind not in LOSSES:
        raise InputError(f"regression_loss={kind}: give one of {', '.join(LOSSES)}")


def mixture(scores: Tensor, bounds: tuple[float, float]) -> Tensor:
    """(n,) scores -> (n, 2) weights of the two words."""
    low, high = bounds
    upper = (scores - low) / (high - low)
    return torch.stack([1 - upper, upper], dim=-1)


def regression_loss(logits: Tensor, scores: Tensor, bounds: tuple[float, float], kind: str = "authors") -> Tensor:
    """The loss of (n, 2) logits for (n,) scores: `authors` (mean over 2n elements) or `kl` (mean over n rows)."""
    check_loss(kind)
    log_q = F.log_softmax(logits.float(), dim=-1)
    target = mixture(scores.float(), bounds)
    if kind == "authors":
        return (target.exp() * (target - log_q)).mean()
    return F.kl_div(log_q, target, reduction="batchmean")


def predicted_scores(logits: Tensor, bounds: tuple[float, float]) -> Tensor:
    """(n, 2) logits -> (n,) scores within the bounds."""
    low, high = bounds
    return low + (high - low) * logits.float().softmax(dim=-1)[..., 1]
