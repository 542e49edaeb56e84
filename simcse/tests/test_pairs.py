"""Positives of Table 2: whose neighbour, never across documents, and the same again after a resume."""

import numpy as np
import pytest

from shared import InputError
from simcse.pairs import positives, uniform

DOCUMENTS = np.array([0, 0, 0, 0, 0, 1, 2, 2, 2])


def _all(chosen, epoch: int = 0) -> tuple[list[int], list[int]]:
    index = np.arange(len(chosen))
    anchor, positive = chosen.pick(np.full_like(index, epoch), index)
    return anchor.tolist(), positive.tolist()


def test_same_sentence_is_its_own_positive():
    assert _all(positives("same_sentence", None, 4, 42)) == ([0, 1, 2, 3], [0, 1, 2, 3])


def test_next_sentence_stays_in_its_document():
    anchor, positive = _all(positives("next_sentence", DOCUMENTS, 9, 42))
    assert anchor == [0, 1, 2, 3, 6, 7] and positive == [1, 2, 3, 4, 7, 8]


def test_one_of_the_next_three_reaches_all_three_and_no_further():
    chosen = positives("next_3_sentences", DOCUMENTS, 9, 42)
    steps: dict[int, set[int]] = {}
    for epoch in range(60):
        for anchor, positive in zip(*_all(chosen, epoch), strict=True):
            steps.setdefault(anchor, set()).add(positive - anchor)
    assert steps == {0: {1, 2, 3}, 1: {1, 2, 3}, 2: {1, 2}, 3: {1}, 6: {1, 2}, 7: {1}}


def test_draws_depend_on_seed_epoch_and_example_alone():
    index = np.arange(1000)
    epoch = np.zeros_like(index)
    draws = uniform(42, epoch, index)
    assert np.array_equal(draws[::-1], uniform(42, epoch, index[::-1]))
    assert np.array_equal(draws[500:], uniform(42, epoch[500:], index[500:]))
    for other in (uniform(43, epoch, index), uniform(42, epoch + 1, index)):
        assert abs(np.corrcoef(draws, other)[0, 1]) < 0.1
    counts = np.histogram(uniform(42, np.zeros(100_000), np.arange(100_000)), bins=10, range=(0, 1))[0]
    assert abs(counts - 10_000).max() < 500 and draws.min() >= 0 and draws.max() < 1


def test_neighbours_need_document_order():
    with pytest.raises(InputError, match="needs sentences in document order"):
        positives("next_sentence", None, 4, 42)
    with pytest.raises(InputError, match="no document has two sentences"):
        positives("next_sentence", np.arange(4), 4, 42)
    with pytest.raises(InputError, match="objective=previous: give one of same_sentence"):
        positives("previous", None, 4, 42)
