"""The two inner loops of BM25, compiled: add up the columns of a question's terms, keep the k best keys.

Imported when the first question is asked: compiling takes a second or two, once, and is kept beside this file.
"""

from __future__ import annotations

import numba

BLOCK = 64  # scores compared at once with the worst of the k best


@numba.njit(nogil=True, cache=True)
def add_columns(numbers, starts, documents, impacts, scores) -> None:
    """scores[:] = the sum over `numbers` of their columns, term after term, in float64.

    The order of the additions is that of rank-bm25, so that every score is its score to the last bit.
    """
    scores[:] = 0.0
    for number in numbers:
        for place in range(starts[number], starts[number + 1]):
            scores[documents[place]] += impacts[place]


@numba.njit(nogil=True, cache=True)
def keep_best(scores, positions, best) -> None:
    """The len(best) largest scores and their positions, best first, equal ones by ascending position."""
    k, n = len(best), len(scores)
    for position in range(k):
        _insert(scores[position], position, positions, best, position)
    position = k
    while position < n:
        end = min(position + BLOCK, n)
        # Nearly every block holds nothing of interest, and this loop is one that a compiler turns into vector code.
        worst, found = best[k - 1], False
        for place in range(position, end):
            found |= scores[place] > worst
        if found:
            for place in range(position, end):
                if scores[place] > best[k - 1]:
                    _insert(scores[place], place, positions, best, k - 1)
        position = end


@numba.njit(nogil=True, cache=True)
def _insert(score, position, positions, best, place) -> None:
    """Into its rank among the first `place` ones, behind its equals."""
    while place > 0 and best[place - 1] < score:
        best[place], positions[place] = best[place - 1], positions[place - 1]
        place -= 1
    best[place], positions[place] = score, position


@numba.njit(nogil=True, cache=True)
def search(numbers, ends, starts, documents, impacts, scores, positions, best) -> None:
    """The k best keys of many questions.

    Args:
        numbers, ends: the numbers of all questions' terms, int64, and where each question ends among them.
        starts, documents, impacts: the matrix by columns: `starts` `(n_terms + 1,)`.
        scores: `(n_keys,)` float64, room to work in.
        positions, best: `(n_questions, k)` int64 and float64, filled.
    """
    first = 0
    for question in range(len(ends)):
        add_columns(numbers[first : ends[question]], starts, documents, impacts, scores)
        keep_best(scores, positions[question], best[question])
        first = ends[question]
