"""SimCSE's objective: tell each sentence's positive from everything else in the batch (SimCSE, eq. 1, 4, 5 and 8).

For anchors z1, positives z2 and, in the supervised case, hard negatives z3, all `(B, H)`:

    S      = cos(z1_i, z2_j) / tau                       (B, B)
    S'     = [S | cos(z1_i, z3_j) / tau]                 (B, 2B), with hard negatives
    S'_{i, B+i} += w                                     w = log(alpha) of eq. 8: only the anchor's own hard negative
    loss   = mean_i cross_entropy(S'_i, target i)

The loss runs in one direction: anchors look for positives, and are never negatives of each other.

Cost. Broadcasting `(B, 1, H)` against `(1, B, H)` through a cosine materialises B*B*H numbers per intermediate, 0.8 GB
at B = 512, H = 768. Here every row is normalised once and one `(B, H) x (H, 2B)` product gives all the logits, so that
memory is O(B*H + B*B): bench/contrastive_loss.py measures both side by side.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SIMILARITIES = ("cos", "dot")
COSINE_EPS = 1e-8  # torch.nn.CosineSimilarity's default: each norm is at least this


def contrastive_loss(
    anchor: Tensor,
    positive: Tensor,
    hard_negative: Tensor | None = None,
    *,
    temperature: float = 0.05,
    hard_negative_weight: float = 0.0,
    similarity: str = "cos",
) -> Tensor:
    """Cross-entropy of every anchor's positive against the batch (SimCSE, eq. 1; with hard negatives eq. 5 and 8).

    Args:
        anchor, positive: `(batch, hidden)`, row i of one belongs to row i of the other.
        hard_negative: None, or `(batch, hidden)` with the contradiction of anchor i in row i, or `(kinds, batch,
            hidden)` for several per anchor (the paper's Table 7 adds the neutral hypothesis); every block joins the
            denominator.
        temperature: tau, > 0. Not used by `dot` (the paper's Table D.1 gives it as "N/A").
        hard_negative_weight: w = log(alpha), a logit added to the anchor's own hard negative after the division by tau.
        similarity: "cos", or "dot" for the raw dot product.

    Returns: a scalar, in float32 (float64 for float64 input) whatever the input's dtype and under autocast.

    Raises: ValueError on a bad shape, temperature, weight or similarity.
    """
    logits = similarity_logits(
        anchor,
        positive,
        hard_negative,
        temperature=temperature,
        hard_negative_weight=hard_negative_weight,
        similarity=similarity,
    )
    return loss_from_logits(logits)


def similarity_logits(
    anchor: Tensor,
    positive: Tensor,
    hard_negative: Tensor | None = None,
    *,
    temperature: float = 0.05,
    hard_negative_weight: float = 0.0,
    similarity: str = "cos",
) -> Tensor:
    """S `(batch, batch)`, or with hard negatives S' `(batch, (1 + kinds) * batch)`, of the module's docstring.

    Arguments and errors are those of `contrastive_loss`. The diagonal of the first block holds the positives.
    """
    _check(anchor, positive, hard_negative, temperature, hard_negative_weight, similarity)
    # Half-precision cosines have about 3 digits; divided by tau = 0.05 their error is as large as the differences
    # that matter.
    with torch.autocast(anchor.device.type, enabled=False):
        batch = anchor.shape[0]
        candidates = positive if hard_negative is None else torch.cat([positive, hard_negative.flatten(0, -2)])
        queries, candidates = _at_least_float32(anchor), _at_least_float32(candidates)
        if similarity == "cos":
            # Scaling the (batch, hidden) queries is cheaper than scaling the (batch, 2 batch) logits.
            queries = F.normalize(queries, dim=-1, eps=COSINE_EPS) / temperature
            candidates = F.normalize(candidates, dim=-1, eps=COSINE_EPS)
        logits = queries @ candidates.T
        if hard_negative is not None and hard_negative_weight != 0.0:
            for offset in range(batch, candidates.shape[0], batch):
                logits.diagonal(offset=offset).add_(hard_negative_weight)
    return logits


def loss_from_logits(logits: Tensor) -> Tensor:
    """Mean cross-entropy with target i for row i; logits: `(batch, at least batch)`."""
    targets = torch.arange(logits.shape[0], device=logits.device)
    with torch.autocast(logits.device.type, enabled=False):
        return F.cross_entropy(logits, targets)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check(anchor, positive, hard_negative, temperature, hard_negative_weight, similarity) -> None:
    check_objective(temperature, hard_negative_weight, similarity)
    if anchor.dim() != 2 or anchor.shape[0] == 0:
        raise ValueError(f"anchor must be (batch, hidden) with at least one row, but is {tuple(anchor.shape)}")
    if positive.shape != anchor.shape:
        raise ValueError(f"positive is {tuple(positive.shape)}, but must have the anchor's shape {tuple(anchor.shape)}")
    if hard_negative is not None and (hard_negative.dim() not in (2, 3) or hard_negative.shape[-2:] != anchor.shape):
        raise ValueError(
            f"hard_negative is {tuple(hard_negative.shape)}, but must have the anchor's shape {tuple(anchor.shape)}, "
            "or (kinds, *that shape)"
        )
    if hard_negative is None and hard_negative_weight != 0.0:
        raise ValueError(
            f"hard_negative_weight is {hard_negative_weight}, but there are no hard negatives: "
            "give triplets (three columns), or set hard_negative_weight to 0"
        )


def check_objective(temperature: float, hard_negative_weight: float, similarity: str) -> None:
    """Raise ValueError where one of the objective's settings cannot be used, before any data is seen."""
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity is {similarity!r}, but must be one of {', '.join(SIMILARITIES)}")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature is {temperature}, but must be a number above 0 (the paper uses 0.05)")
    if not math.isfinite(hard_negative_weight):
        raise ValueError(
            f"hard_negative_weight is {hard_negative_weight}, but must be finite: it is log(alpha) of eq. 8"
        )
