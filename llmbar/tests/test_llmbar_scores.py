"""Accuracy, agreement, hedging, kappa, averages."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from llmbar.scores import cohen_kappa, compare, macro_average, mirror, points, score


def test_accuracy_counts_both_orders_and_agreement_counts_equal_winners():
    cell = score(["1", "2", "1", None], ["1", "1", "2", None], [1, 2, 2, 1])
    assert (cell.n, cell.correct_given, cell.correct_swapped, cell.correct_both, cell.equal) == (4, 2, 2, 1, 2)
    assert (cell.accuracy, cell.agreement, cell.unparsed) == (50.0, 50.0, 2)


def test_two_answers_without_a_winner_agree_but_are_never_right():
    cell = score([None], [None], [1])
    assert (cell.accuracy, cell.agreement) == (0.0, 100.0)


def test_always_first_is_exactly_half_right_however_the_labels_lie():
    labels = [1] * 42 + [2] * 58
    cell = score(["1"] * 100, [mirror("1")] * 100, labels)
    assert (cell.accuracy, cell.agreement) == (50.0, 0.0)


@pytest.mark.parametrize(
    ("values", "winners"),
    [
        ((7, 3), ("1", "1")),
        ((3, 7), ("2", "2")),
        ((5, 5), ("2", "1")),
        ((None, 5), ("1", "2")),
        ((5, None), ("1", "2")),
    ],
)
def test_ratings_hedge_with_half_a_point(values, winners):
    assert compare(*values) == winners
    if winners[0] != winners[1]:
        for label in (1, 2):
            cell = score([winners[0]], [winners[1]], [label])
            assert (cell.accuracy, cell.agreement) == (50.0, 0.0)


def test_kappa_equals_scikit_learn_to_the_last_digit_and_the_legacy_one_keeps_its_slip():
    rng = np.random.default_rng(0)
    names = {0: None, 1: "1", 2: "2"}
    for n in (5, 46, 134):
        given, swapped, gold = rng.integers(0, 3, n), rng.integers(0, 3, n), rng.integers(1, 3, n)
        cell = score([names[k] for k in given], [names[k] for k in swapped], gold.tolist())
        assert cell.kappa["given"] == cohen_kappa_score(given, gold)
        assert cell.kappa["orders"] == cohen_kappa_score(given, swapped)
        only_first = np.where(given == 1, 1, 0)
        assert cell.legacy_kappa["given"] == cohen_kappa_score(only_first, gold)


def test_a_right_second_output_counts_for_kappa_and_not_for_the_legacy_kappa():
    cell = score(["1", "2"] * 5, ["1", "2"] * 5, [1, 2] * 5)
    assert cell.kappa["given"] == 1.0
    assert cell.legacy_kappa["given"] < 0.5


def test_kappa_of_two_constant_codings_is_undefined_not_nan():
    assert cohen_kappa(np.ones(4, int), np.ones(4, int)) is None


def test_averages_are_over_sets_never_over_instances():
    assert macro_average([0.0, 100.0, 50.0]) == 50.0
    with pytest.raises(ValueError, match="no sets"):
        macro_average([])


def test_points_are_the_share_of_right_orders():
    assert points(["1", "1", None], ["1", "2", "2"], [1, 1, 1]).tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("winners", "labels", "message"),
    [(["3"], [1], "'3' is not a winner"), (["1"], [3], "3 is not a label"), (["1"], [True], "True is not a label"),
     (["1", "2"], [1], "same length"), ([], [], "without instances")],
)  # fmt: skip
def test_what_is_no_winner_or_label_is_refused(winners, labels, message):
    with pytest.raises(ValueError, match=message):
        score(winners, winners, labels)
