"""Bootstrap intervals and paired comparisons."""

import numpy as np
import pytest

from llmbar.intervals import accuracy_interval, paired_difference


def test_the_interval_of_one_set_is_that_of_a_binomial():
    points = np.repeat([0.0, 1.0], [40, 60])
    low, high = accuracy_interval([points])
    half = 196 * np.sqrt(0.6 * 0.4 / 100)
    assert low == pytest.approx(60 - half, abs=1.2)
    assert high == pytest.approx(60 + half, abs=1.2)


def test_the_interval_matches_a_bootstrap_that_draws_indices():
    rng = np.random.default_rng(1)
    sets = [rng.choice([0, 0.5, 1], n) for n in (46, 134)]
    drawn = [np.mean([one[rng.integers(0, len(one), len(one))].mean() for one in sets]) * 100 for _ in range(4000)]
    assert accuracy_interval(sets) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.7)


def test_pairing_finds_a_small_steady_difference_that_separate_intervals_hide():
    rng = np.random.default_rng(2)
    base = rng.choice([0.0, 1.0], 200)
    better = base.copy()
    better[np.flatnonzero(base == 0)[:12]] = 1.0
    result = paired_difference([better], [base])
    assert result.difference == pytest.approx(6.0)
    assert result.low > 0
    assert result.p < 0.01
    assert accuracy_interval([base])[1] > accuracy_interval([better])[0]


def test_equal_judges_differ_by_nothing():
    points = np.array([0.0, 0.5, 1.0])
    result = paired_difference([points], [points])
    assert (result.difference, result.low, result.high, result.p) == (0.0, 0.0, 0.0, 1.0)


def test_judges_on_different_instances_cannot_be_paired():
    with pytest.raises(ValueError, match="same instances"):
        paired_difference([np.zeros(3)], [np.zeros(4)])
    with pytest.raises(ValueError, match="at least one set"):
        accuracy_interval([])
