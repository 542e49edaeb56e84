"""Scoring of pairings of label words against the plain loops it stands for."""

import itertools

import numpy as np
import pytest

from lm_bff import label_scores
from lm_bff.label_scores import Survivors, best_pairings, best_regression_pairings, nearest, proposals
from shared import InputError


def loop_over_pairings(logits, labels, words, n):
    """The plain form: one argmax per pairing, a stable sort."""
    scored = []
    for pairing in itertools.product(*words):
        predicted = logits[:, list(pairing)].argmax(axis=1)
        scored.append((pairing, (predicted == labels).mean()))
    scored.sort(key=lambda one: -one[1])
    return [pairing for pairing, _ in scored[:n]], [score for _, score in scored[:n]]


def problem(sizes, per_class, seed=0, vocabulary=60, ties=False):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), per_class)
    logits = rng.standard_normal((len(labels), vocabulary)).astype(np.float32)
    if ties:
        logits = np.round(logits)
    words = [rng.permutation(vocabulary)[:size] for size in sizes]
    return logits, labels, words


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("sizes", "per_class"), [((20, 20), 16), ((7, 5, 6), 16), ((4, 3, 5, 4), 3), ((6, 6), 70)])
def test_the_ranking_is_that_of_a_loop_over_pairings(sizes, per_class, ties):
    logits, labels, words = problem(sizes, per_class, ties=ties)
    ids, scores = best_pairings(logits, labels, words, n=50)
    expected_ids, expected_scores = loop_over_pairings(logits, labels, words, 50)
    assert [tuple(row) for row in ids] == expected_ids
    np.testing.assert_allclose(scores, expected_scores)


def test_small_blocks_give_the_same_ranking(monkeypatch):
    logits, labels, words = problem((9, 8, 7), 4, ties=True)
    whole = best_pairings(logits, labels, words, n=40)
    for block in (1, 7, 60):
        monkeypatch.setattr(label_scores, "BLOCK", block)
        ids, scores = best_pairings(logits, labels, words, n=40)
        assert (ids == whole[0]).all()
        assert (scores == whole[1]).all()


def test_more_pairings_asked_for_than_there_are_gives_all():
    logits, labels, words = problem((3, 4), 5)
    ids, _ = best_pairings(logits, labels, words, n=100)
    assert len(ids) == 12


def test_sampled_pairings_are_distinct_and_scored_as_in_the_whole():
    logits, labels, words = problem((6, 7, 8), 5)
    every = dict(
        zip(*[map(tuple, part) for part in [best_pairings(logits, labels, words, n=336)[0]]], [0] * 336, strict=False)
    )
    ids, scores = best_pairings(logits, labels, words, n=50, sample=200, seed=3)
    assert len({tuple(row) for row in ids}) == 50
    assert set(map(tuple, ids)) <= set(every)
    for pairing, score in zip(ids, scores, strict=True):
        assert score == (logits[:, pairing].argmax(axis=1) == labels).mean()
    assert list(scores) == sorted(scores, reverse=True)


def test_a_sample_as_large_as_the_product_is_the_product():
    logits, labels, words = problem((5, 5), 6)
    assert (best_pairings(logits, labels, words, 25, sample=25)[0] == best_pairings(logits, labels, words, 25)[0]).all()


def test_too_many_pairings_are_refused_with_the_ways_out():
    logits, labels, words = problem((50,) * 5, 2)
    with pytest.raises(InputError, match=r"312,500,000 pairings.*k_likely"):
        best_pairings(logits, labels, words)


def test_right_answers_of_a_whole_product_of_five_classes_are_counted():
    logits, labels, words = problem((5,) * 5, 16, seed=4)
    counted = np.concatenate([right for _, right in Survivors(logits, labels, words).blocks()])
    assert len(counted) == 5**5
    for number in (0, 17, 3124):
        pairing = [words[c][i] for c, i in enumerate(np.unravel_index(number, (5,) * 5))]
        assert counted[number] == (logits[:, pairing].argmax(axis=1) == labels).sum()


def test_proposals_are_the_likeliest_allowed_tokens_with_ties_by_id():
    logits = np.array([[1, 5, 3, 3, 0], [1, 5, 3, 3, 0], [9, 0, 0, 0, 9]], dtype=np.float32)
    allowed = np.array([True, False, True, True, True])
    first, second = proposals(logits, np.array([0, 0, 1]), 2, allowed, 3)
    assert first.tolist() == [2, 3, 0]
    assert second.tolist() == [0, 4, 2]


def test_a_class_without_examples_is_named():
    with pytest.raises(InputError, match="class number 1"):
        proposals(np.zeros((1, 3)), np.array([0]), 2, np.ones(3, bool), 1)


def test_nearest_words_are_sorted_by_cosine_not_by_product():
    rows = np.array([[1.0, 0.0], [10.0, 10.0], [0.1, 0.0], [0.0, 1.0]])
    assert nearest([1, 2, 3], rows, seed=0, keep=2).tolist() == [2, 1]


def test_regression_pairs_are_ranked_by_pearson_of_the_second_words_probability():
    rng = np.random.default_rng(5)
    logits, gold = rng.standard_normal((20, 12)).astype(np.float32), rng.uniform(0, 5, 20)
    words = [np.arange(6), np.arange(4, 12)]
    ids, scores = best_regression_pairings(logits, gold, words, n=48)
    for (low, high), score in zip(ids, scores, strict=True):
        if low == high:
            assert score == -1
            continue
        two = np.exp(logits[:, [low, high]].astype(np.float64))
        expected = np.corrcoef(two[:, 1] / two.sum(axis=1), gold)[0, 1]
        assert score == pytest.approx(expected)
    assert list(scores) == sorted(scores, reverse=True)
