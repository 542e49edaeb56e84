"""Scores of one ranked list against the answers of one question.

`retrieved` is a list of ids, best first; `gold` the ids of the answers. The functions are total: they score a list with
repeats or no answers as the release does, and leave it to `litsearch.runs` to refuse such a list beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def recall_at_k(retrieved: Sequence[int], gold: Sequence[int], k: int | None = None) -> float:
    """|first k of retrieved, as a set, that are answers| / number of answers; 0 where there are none.

    k None takes the whole list, as the release does. A repeated answer counts in the denominator, as in the release.
    """
    if not gold:
        return 0.0
    return len(set(retrieved[:k]) & set(gold)) / len(gold)


def ndcg(retrieved: Sequence[int], gold: Sequence[int], k: int | None = 10) -> float:
    """Normalised discounted cumulative gain with binary relevance and the standard discount, 1 / log2(rank + 1)."""
    answers = set(gold)
    if not answers:
        return 0.0
    gain = sum(1 / math.log2(rank + 1) for rank, paper in enumerate(retrieved[:k], start=1) if paper in answers)
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, _reachable(answers, k) + 1))
    return gain / ideal


def ndcg_released(retrieved: Sequence[int], gold: Sequence[int], k: int | None = None) -> float:
    """What the release calls nDCG: discount 1 / rank, no cut-off (k None), the ideal over all answers.

    With one answer it is the reciprocal rank. A repeated id is counted again, so that it can exceed 1.
    """
    answers = set(gold)
    if not gold:
        return 0.0
    gain = sum(1 / rank for rank, paper in enumerate(retrieved[:k], start=1) if paper in answers)
    return gain / sum(1 / rank for rank in range(1, len(gold) + 1))


def ndcg_graded(retrieved: Sequence[int], gold: Sequence[int], k: int | None = 10) -> float:
    """nDCG as mteb's task LitSearchRetrieval computes it: the i-th answer of the list has relevance i.

    Equal to `ndcg` for one answer. For comparisons with published mteb scores only: the order of a question's answers
    carries no meaning in the data.
    """
    relevance = {paper: grade for grade, paper in enumerate(gold, start=1)}
    if not relevance:
        return 0.0
    gain = sum(relevance.get(paper, 0) / math.log2(rank + 1) for rank, paper in enumerate(retrieved[:k], start=1))
    grades = sorted(relevance.values(), reverse=True)[:k]
    return gain / sum(grade / math.log2(rank + 1) for rank, grade in enumerate(grades, start=1))


def mrr(retrieved: Sequence[int], gold: Sequence[int], k: int | None = 10) -> float:
    """1 / rank of the first answer among the first k, 0 where there is none."""
    answers = set(gold)
    return next((1 / rank for rank, paper in enumerate(retrieved[:k], start=1) if paper in answers), 0.0)


def gold_ranks(retrieved: Sequence[int], gold: Sequence[int]) -> list[int | None]:
    """Rank of every answer, from 1; None where it was not retrieved."""
    rank_of: dict[int, int] = {}
    for rank, paper in enumerate(retrieved, start=1):
        rank_of.setdefault(paper, rank)
    return [rank_of.get(paper) for paper in gold]


def lexical_overlap(query: str, text: str) -> float:
    """The part of the question's distinct words that occur in the text; split at white space, case kept."""
    words = set(query.split())
    return len(words & set(text.split())) / len(words) if words else 0.0


def _reachable(answers: set[int], k: int | None) -> int:
    return len(answers) if k is None else min(len(answers), k)
