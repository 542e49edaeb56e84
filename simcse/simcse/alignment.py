"""Alignment and uniformity of sentence embeddings on the unit sphere, and two looks at their shape.

    alignment  = E over positive pairs  || f(x) - f(x+) ||^2                       (SimCSE, eq. 2; Wang and Isola, 2020)
    uniformity = log E over pairs i < j  exp(-2 || f(x_i) - f(x_j) ||^2)           (SimCSE, eq. 3)

Lower is better for both. Positive pairs are STS-B pairs with a gold score above 4 (strictly), the sentences all of
STS-B. Every function L2-normalises its input: raw embeddings can be passed, and the usual mistake (values of several
hundred) cannot happen.

All sums are in float64. STS-B has 17,256 sentences: their distances at once are 1.2 GB (149 M pairs), so the Gram
matrix is formed in tiles of 1,024 x 1,024 (8 MB), upper triangle only.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

POSITIVE_ABOVE = 4.0


def alignment(x: Tensor, y: Tensor) -> float:
    """Mean squared distance of positive pairs after normalisation (SimCSE, eq. 2); 0 is perfect, at most 4.

    Args:
        x: (n, d) embeddings of the anchors.
        y: (n, d) embeddings of their positives, row i belongs to row i of `x`.

    Raises:
        ValueError: shapes differ or are not (n >= 1, d), a vector is zero or not finite.
    """
    x, y = _unit(x, "x"), _unit(y, "y")
    if x.shape != y.shape:
        raise ValueError(
            f"alignment: x is {tuple(x.shape)} but y is {tuple(y.shape)}; row i of y is the positive of row i of x"
        )
    return (x - y).square().sum(dim=1).mean().item()


def uniformity(x: Tensor, t: float = 2.0, tile: int = 1024) -> float:
    """Log mean Gaussian potential over all pairs i < j after normalisation (SimCSE, eq. 3); -t * 4 .. 0, lower is
    more uniform.

    Args:
        x: (n, d) embeddings, n >= 2; repeated sentences count as often as they occur.
        t: sharpness of the potential, 2 in the paper.
        tile: rows and columns of the Gram matrix formed at a time; memory is 8 * tile^2 bytes.

    Raises:
        ValueError: fewer than two rows, `t` or `tile` not positive, a vector is zero or not finite.
    """
    x = _unit(x, "x")
    if len(x) < 2:
        raise ValueError(f"uniformity: x has {len(x)} row; pairs need at least two")
    if not t > 0 or tile < 1:
        raise ValueError(f"uniformity: t={t}, tile={tile}; both must be positive")
    total = 0.0
    for start in range(0, len(x), tile):
        rows = x[start : start + tile]
        inside = _potential(rows, rows, t).triu_(diagonal=1)
        # exp never returns 0 here (exponent >= -4 t), so the zeros triu_ leaves are the only ones and add nothing.
        total += inside.sum().item()
        for other in range(start + tile, len(x), tile):
            total += _potential(rows, x[other : other + tile], t).sum().item()
    return math.log(total / (len(x) * (len(x) - 1) / 2))


def cosine_by_gold_bin(x: Tensor, y: Tensor, gold: Tensor, num_bins: int = 5, highest: float = 5.0) -> list[Tensor]:
    """Cosines of sentence pairs, grouped by gold score into equal bins (SimCSE, figure G.1).

    Args:
        x: (n, d) and y: (n, d) embeddings of the two sides.
        gold: (n,) scores in [0, highest].
        num_bins: bins [0, w), [w, 2w) ... with w = highest / num_bins; the last one includes `highest`.

    Returns:
        `num_bins` float64 tensors of cosines; an empty bin is an empty tensor.

    Raises:
        ValueError: lengths differ, a score lies outside [0, highest], a vector is zero or not finite.
    """
    x, y = _unit(x, "x"), _unit(y, "y")
    gold = torch.as_tensor(gold, dtype=torch.float64, device=x.device)
    if not x.shape == y.shape or gold.shape != (len(x),):
        raise ValueError(
            f"gold: {tuple(gold.shape)} scores for x {tuple(x.shape)} and y {tuple(y.shape)}; one score per pair"
        )
    if not ((gold >= 0) & (gold <= highest)).all():
        raise ValueError(
            f"gold: scores span {gold.min().item()} to {gold.max().item()}; they must lie in [0, {highest}]"
        )
    cosine = (x * y).sum(dim=1)
    bins = (gold * num_bins / highest).long().clamp_(max=num_bins - 1)
    return [cosine[bins == b] for b in range(num_bins)]


def normalized_spectrum(x: Tensor) -> Tensor:
    """Singular values of the embedding matrix, each divided by the largest (SimCSE, figure F.1).

    Taken from the (d, d) Gram matrix in float64, so 17k sentences cost what one does plus a product. Rows are
    normalised like everywhere else in this file; they are not centred.

    Args:
        x: (n, d) embeddings.

    Returns:
        (min(n, d),) float64, descending, first is 1.

    Raises:
        ValueError: not (n >= 1, d), a vector is zero or not finite.
    """
    x = _unit(x, "x")
    gram = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
    values = torch.linalg.eigvalsh(gram).flip(0).clamp_(min=0).sqrt_()
    return values / values[0]


def _potential(rows: Tensor, columns: Tensor, t: float) -> Tensor:
    """exp(-t ||r - c||^2) of unit vectors, from ||r - c||^2 = 2 - 2 r.c."""
    return torch.mm(rows, columns.T).mul_(2 * t).sub_(2 * t).exp_()


def _unit(x: Tensor, name: str) -> Tensor:
    """(n, d) float64 with rows of length 1."""
    x = torch.as_tensor(x)
    if x.ndim != 2 or not len(x):
        raise ValueError(f"{name}: shape {tuple(x.shape)}; embeddings must be (n, d) with n >= 1")
    x = x.detach().double()
    norms = x.norm(dim=1, keepdim=True)
    if not (torch.isfinite(norms) & (norms > 0)).all():
        bad = int((~(torch.isfinite(norms) & (norms > 0))).sum())
        raise ValueError(
            f"{name}: {bad} of {len(x)} embeddings are zero, NaN or inf and have no direction; drop or re-encode them"
        )
    return x / norms
