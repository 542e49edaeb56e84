"""What a reproduction says beyond the table: ceilings of candidates, what one-hop adds, what word overlap explains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from litsearch.data import Corpus
from litsearch.keys import title_abstract
from litsearch.metrics import lexical_overlap, ndcg, recall_at_k
from litsearch.runs import Run
from litsearch.significance import paired_difference

DEPTHS = (5, 10, 20, 50, 100, 200)
# Papers and questions of the small corpus, for which paper.yaml has reference values.
REFERENCE_SIZE = (7636, 136)
REFERENCE_METRICS = ("R@5", "R@20", "released_nDCG@10", "nDCG@10")


def reference_values(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """A run's values in the columns of the reference table (paper.yaml, `mini`): percent, to its four decimals."""
    return {
        f"{breadth}_{metric}": round(float(groups[f"avg_{breadth}"][metric]), 4)
        for breadth in ("broad", "specific")
        for metric in REFERENCE_METRICS
    }


def recalls(run: Run, k: int | Sequence[int] | None = None) -> np.ndarray:
    """`(n_questions,)` percent of each question's answers among its first k papers; k may differ by question."""
    depths = k if isinstance(k, Sequence) else [k] * len(run)
    return np.array(
        [100 * recall_at_k(r.retrieved, r.query.corpusids, depth) for r, depth in zip(run, depths, strict=True)]
    )


def ceilings(run: Run) -> dict[str, float]:
    """What a faultless reranker of the first k would reach, mean over all questions, percent."""
    return {f"top{k}": float(recalls(run, k).mean()) for k in DEPTHS}


def recall_curve(run: Run, positions: np.ndarray, depth: int = 200) -> np.ndarray:
    """`(depth,)` mean recall@k in percent of some questions, k = 1 .. depth."""
    found = np.zeros(depth)
    for i in positions:
        record = run.records[i]
        gold = set(record.query.corpusids)
        hits = np.array([corpusid in gold for corpusid in record.retrieved[:depth]], float)
        found[: len(hits)] += np.cumsum(hits) / len(gold)
        found[len(hits) :] += hits.sum() / len(gold)
    return 100 * found / len(positions)


def expansion(before: Run, after: Run, seed: int = 0) -> dict[str, Any]:
    """What one-hop did to the candidates of one first stage.

    first: ceiling of the papers it keeps; after: of the expanded list; as_many: of the first stage's own list, as many
    papers as the expanded one has. Percent, over all questions.
    """
    about = after.metadata["onehop"]
    sizes = [len(retrieved) for retrieved in after.retrieved]
    kept, found, as_many = recalls(before, about["cutoff_count"]), recalls(after), recalls(before, sizes)
    return {
        "first": float(kept.mean()),
        "after": float(found.mean()),
        "as_many": float(as_many.mean()),
        "gain": float((found - kept).mean()),
        "over_as_many": paired_difference(found, as_many, seed).as_dict(),
        "candidates": float(np.mean(sizes)),
        "added": about["added"],
        "outside": about["outside"],
    }


def overlaps(run: Run, corpus: Corpus) -> np.ndarray:
    """`(n_questions,)` part of each question's words that its answers hold, the best of its answers."""
    return np.array(
        [
            max(lexical_overlap(r.query.query, title_abstract(corpus.paper(paper))) for paper in r.query.corpusids)
            for r in run
        ]
    )


def by_overlap(run: Run, overlap: np.ndarray, k: int = 20) -> dict[str, float]:
    """Mean recall@k of the third of questions with the least and the most overlap, and the difference, in points."""
    order = np.argsort(overlap, kind="stable")
    third = max(1, len(order) // 3)
    values = recalls(run, k)
    low, high = float(values[order[:third]].mean()), float(values[order[-third:]].mean())
    return {"least": low, "most": high, "gap": high - low}


def gains(before: Run, after: Run) -> np.ndarray:
    """`(n_questions,)` change of nDCG@10, in points."""
    values = [[100 * ndcg(record.retrieved, record.query.corpusids) for record in run] for run in (before, after)]
    return np.array(values[1]) - np.array(values[0])
