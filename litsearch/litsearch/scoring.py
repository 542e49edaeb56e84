"""From runs to numbers: scores per question, means per group of questions, differences between runs.

The paper reports broad questions by recall@20 only, and specific ones by recall@5 and @20, for inline-citation and
author-written questions and over both. "Avg." is the mean over the questions of both groups, not of the two columns.
All values are in percent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from litsearch import metrics
from litsearch.data import BREADTHS, Query
from litsearch.runs import Run
from litsearch.significance import bootstrap_means, holm, interval, paired_difference
from shared import InputError

log = logging.getLogger(__name__)

RECALLS = (1, 5, 10, 20, 50, 100)
# Columns of the paper's Table 3, in its order: (group of questions, metric).
COLUMNS = (
    ("inline_broad", "R@20"),
    ("inline_specific", "R@5"),
    ("inline_specific", "R@20"),
    ("author_broad", "R@20"),
    ("author_specific", "R@5"),
    ("author_specific", "R@20"),
    ("avg_broad", "R@20"),
    ("avg_specific", "R@5"),
    ("avg_specific", "R@20"),
)
TESTED = COLUMNS[-3:]

Score = Callable[[Sequence[int], Sequence[int]], float]


def metric_functions(recalls: Sequence[int] = RECALLS) -> dict[str, Score]:
    """Name -> score of one question; recall@k for each of `recalls`, and the others at their customary depth.

    Raises InputError for a k below 1.
    """
    for k in recalls:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise InputError(f"recalls holds {k!r}: k must be a whole number of at least 1")

    def recall(k: int) -> Score:
        return lambda retrieved, gold: metrics.recall_at_k(retrieved, gold, k)

    depths = sorted({5, 20, *recalls})
    return {f"R@{k}": recall(k) for k in depths} | {
        "MRR@10": metrics.mrr,
        "nDCG@10": metrics.ndcg,
        "released_nDCG@10": lambda retrieved, gold: metrics.ndcg_released(retrieved, gold, 10),
        "released_nDCG": metrics.ndcg_released,
        "mteb_nDCG@10": metrics.ndcg_graded,
    }


def per_question(run: Run, functions: Mapping[str, Score]) -> dict[str, np.ndarray]:
    """Metric -> `(n_questions,)` scores in percent."""
    deepest = max(int(name.removeprefix("R@")) for name in functions if name.startswith("R@"))
    short = sum(len(retrieved) < deepest for retrieved in run.retrieved)
    if short:
        log.warning("%s: %d questions have fewer than %d retrieved papers", run.system, short, deepest)
    return {
        name: np.array([100 * score(record.retrieved, record.query.corpusids) for record in run])
        for name, score in functions.items()
    }


def question_groups(queries: Sequence[Query]) -> dict[str, np.ndarray]:
    """Group -> positions of its questions: the paper's columns, all, and by set and by quality."""
    groups: dict[str, list[int]] = {}

    def put(name: str, position: int) -> None:
        groups.setdefault(name, []).append(position)

    for group in ("inline", "author", "avg"):
        for breadth in BREADTHS.values():
            groups[f"{group}_{breadth}"] = []
    groups["all"] = list(range(len(queries)))
    for position, query in enumerate(queries):
        put(f"{query.group}_{query.breadth}", position)
        put(f"avg_{query.breadth}", position)
        put(f"{query.query_set}_{query.breadth}", position)
        put(f"quality_{query.quality}_{query.breadth}", position)
    return {name: np.array(positions, np.int64) for name, positions in groups.items() if positions}


def group_means(
    scores: Mapping[str, np.ndarray], groups: Mapping[str, np.ndarray], seed: int = 0, resamples: int = 1000
) -> dict[str, dict[str, Any]]:
    """Group -> {n, metric: mean in percent, intervals: {metric: [low, high]}}; no intervals for resamples = 0."""
    names = list(scores)
    table = np.stack([scores[name] for name in names], axis=1)
    found: dict[str, dict[str, Any]] = {}
    for group, positions in groups.items():
        values = table[positions]
        row: dict[str, Any] = {"n": len(positions)}
        row |= dict(zip(names, values.mean(axis=0).tolist(), strict=True))
        if resamples:
            means = bootstrap_means(values, resamples, seed)
            row["intervals"] = {name: list(interval(means[:, i])) for i, name in enumerate(names)}
        found[group] = row
    return found


def paired_tests(
    scores: Mapping[str, Mapping[str, np.ndarray]],
    groups: Mapping[str, np.ndarray],
    seed: int = 0,
    against: str | None = None,
) -> list[dict[str, Any]]:
    """Every pair of runs on the paper's three average columns; `p_holm` is adjusted for all tests of this list.

    against: only the pairs of the other runs with this one.
    """
    pairs = combinations(scores, 2) if against is None else [(name, against) for name in scores if name != against]
    tests = [
        {
            "first": first,
            "second": second,
            "group": group,
            "metric": metric,
            **paired_difference(
                scores[first][metric][groups[group]], scores[second][metric][groups[group]], seed
            ).as_dict(),
        }
        for first, second in pairs
        for group, metric in TESTED
        if group in groups
    ]
    for test, p in zip(tests, holm([test["p_randomization"] for test in tests]), strict=True):
        test["p_holm"] = p
    return tests


def rank_histogram(run: Run) -> dict[str, int]:
    """How many answers were found at which ranks."""
    edges = (1, 5, 10, 20, 50, 100, 200)
    ranks = [rank for record in run for rank in metrics.gold_ranks(record.retrieved, record.query.corpusids)]
    counts, low = {}, 0
    for high in edges:
        name = "1" if high == 1 else f"{low + 1}-{high}"
        counts[name] = sum(rank is not None and low < rank <= high for rank in ranks)
        low = high
    counts[f"over {low}"] = sum(rank is not None and rank > low for rank in ranks)
    counts["not found"] = sum(rank is None for rank in ranks)
    return counts
