"""How sure a mean over questions is, and a difference between two runs on the same questions.

With 35 broad questions by authors, one question more or less is 2.9 points of recall. Not in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

RESAMPLES = 1_000
PERMUTATIONS = 10_000
LEVEL = 0.95
CELLS_AT_ONCE = 4_000_000


def bootstrap_means(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Means of `resamples` samples of questions, drawn with replacement.

    Args:
        values: `(n,)` or `(n, m)` scores per question; columns are resampled together.

    Returns: `(resamples,)` or `(resamples, m)`.
    """
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    if n == 0:
        raise ValueError("there are no questions to resample")
    generator = np.random.default_rng(seed)
    # How often each question is drawn decides the mean, so that resampling is one matrix product.
    draws = generator.multinomial(n, np.full(n, 1 / n), size=resamples)
    return draws @ values / n


def interval(means: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The percentile interval of bootstrap means."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """First run minus second: the mean difference, its bootstrap interval, and two p values.

    p_randomization: two-sided, signs of the questions' differences flipped at random. p_t: paired t test. Both are 1
    where the runs do not differ on any question.
    """

    difference: float
    low: float
    high: float
    p_randomization: float
    p_t: float
    n: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    seed: int = 0,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
) -> Difference:
    """Compare two runs question by question. Raises ValueError for different numbers of questions, or none."""
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} scores are not pairs")
    differences = first - second
    low, high = interval(bootstrap_means(differences, resamples, seed))
    p = randomization_p(differences, permutations, seed)
    return Difference(float(differences.mean()), low, high, p, paired_t_p(differences), len(differences))


def randomization_p(differences: np.ndarray, permutations: int = PERMUTATIONS, seed: int = 0) -> float:
    """Two-sided p of a mean difference under random signs (Fisher's test, Monte Carlo; never 0)."""
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    observed = abs(differences.sum())
    generator = np.random.default_rng(seed)
    as_large, left = 0, permutations
    while left:
        count = min(left, max(1, CELLS_AT_ONCE // len(differences)))
        signs = generator.integers(0, 2, size=(count, len(differences)), dtype=np.int8) * 2 - 1
        # Sums of the same numbers in another order may differ in the last bits.
        as_large += int((np.abs(signs @ differences) >= observed * (1 - 1e-12)).sum())
        left -= count
    return (as_large + 1) / (permutations + 1)


def paired_t_p(differences: np.ndarray) -> float:
    """Two-sided p of Student's paired t test; 1 for no differences, 0 for a constant one."""
    from scipy.special import stdtr

    n = len(differences)
    if n < 2 or not differences.any():
        return 1.0
    deviation = float(differences.std(ddof=1))
    if deviation == 0:
        return 0.0
    return float(2 * stdtr(n - 1, -abs(float(differences.mean())) / (deviation / math.sqrt(n))))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for their number (Holm's step-down procedure), in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, p_values[i] * (len(p_values) - rank)))
        adjusted[i] = largest
    return adjusted
