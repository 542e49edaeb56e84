"""How sure a number is: bootstrap intervals over instances, and two judges compared instance by instance.

The subsets have 46 to 134 instances, so an accuracy has a standard error of 3 to 7 points and many differences in the
paper's tables are within it. Not in the paper. An instance's points are 0, 0.5 or 1 (right in none, one or both
orders), so resampling instances is a multinomial draw over at most a handful of values: exact, and a thousand times
cheaper than drawing indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """First minus second judge, in points of accuracy: the difference, its interval, and a two-sided p value."""

    difference: float
    low: float
    high: float
    p: float
    n: int


def accuracy_interval(points: Sequence[np.ndarray], seed: int = 0, samples: int = SAMPLES) -> tuple[float, float]:
    """95% percentile interval, in percent, of the unweighted mean over sets of the sets' mean points.

    points: one array (n_set,) per set, values in [0, 1]; instances are resampled within their set, so the average stays
    the paper's (macro) average. Raises ValueError for no sets or a set without instances.
    """
    means = _resampled_means(points, np.random.default_rng(seed), samples)
    return tuple(float(x) for x in np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) * 100)


def paired_difference(
    first: Sequence[np.ndarray], second: Sequence[np.ndarray], seed: int = 0, samples: int = SAMPLES
) -> Difference:
    """Two judges on the same instances: bootstrap interval of the difference and a sign-flip permutation test.

    first, second: one array (n_set,) per set, the same instances in the same order. Pairing removes what both judges
    find hard alike. Raises ValueError where the sets do not match.
    """
    if len(first) != len(second) or any(a.shape != b.shape for a, b in zip(first, second, strict=True)):
        raise ValueError("paired_difference: both judges need the same sets with the same instances")
    differences = [a - b for a, b in zip(first, second, strict=True)]
    rng = np.random.default_rng(seed)
    means = _resampled_means(differences, rng, samples)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) * 100
    observed = float(np.mean([d.mean() for d in differences]))
    flipped = _flipped_means(differences, rng, samples)
    # The observed labelling is one of the permutations, hence the 1s; the tolerance is for sums in another order.
    p = (1 + int((np.abs(flipped) >= abs(observed) - 1e-12).sum())) / (1 + samples)
    return Difference(observed * 100, float(low), float(high), p, sum(len(d) for d in differences))


def _resampled_means(points: Sequence[np.ndarray], rng: np.random.Generator, samples: int) -> np.ndarray:
    """(samples,) means over sets of the means of resampled sets."""
    if not points or any(len(one) == 0 for one in points):
        raise ValueError("a bootstrap needs at least one set, and instances in each")
    total = np.zeros(samples)
    for one in points:
        values, counts = np.unique(one, return_counts=True)
        total += rng.multinomial(len(one), counts / len(one), size=samples) @ values / len(one)
    return total / len(points)


def _flipped_means(differences: Sequence[np.ndarray], rng: np.random.Generator, samples: int) -> np.ndarray:
    """(samples,) the same mean with every instance's difference given a random sign."""
    total = np.zeros(samples)
    for one in differences:
        sizes, counts = np.unique(np.abs(one), return_counts=True)
        for size, count in zip(sizes, counts, strict=True):
            total += (2 * rng.binomial(count, 0.5, size=samples) - count) * size / len(one)
    return total / len(differences)
