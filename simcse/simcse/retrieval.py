"""A retrieval task that needs no download: find the documentation whose first sentence this is.

Every question is the summary line of a document of the offline corpus (`shared.corpus`), its one answer the rest of
that document, the candidates the bodies of all chosen documents. The documents are the tenth of the corpus that
training never sees (`text_sources.is_held_out`), so a model trained on the corpus has not read them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from shared import InputError
from shared.corpus import Document, documents
from simcse.text_sources import is_held_out

CUTOFFS = (1, 5, 20)
# One document in ten is held out and nearly all of those are suitable; the corpus reads no more files than these need.
DOCUMENTS_PER_QUESTION = 12
MIN_SUMMARY_WORDS, MIN_BODY_WORDS = 4, 20


@dataclass(frozen=True)
class RetrievalTask:
    """Question i belongs to body i; both are lists of n strings."""

    summaries: list[str]
    bodies: list[str]

    def __len__(self) -> int:
        return len(self.bodies)


def corpus_task(count: int, source: Iterable[Document] | None = None) -> RetrievalTask:
    """The first `count` held-out documents with a summary and a body of some length, each summary and body once.

    Raises:
        InputError: the installed environment has fewer such documents (at least two are needed).
    """
    summaries: dict[str, str] = {}
    bodies: set[str] = set()
    source = documents(("docstring",), max_documents=DOCUMENTS_PER_QUESTION * count) if source is None else source
    for document in source:
        summary = " ".join((document.summary or "").split())
        body = " ".join(document.text.split())
        long_enough = len(summary.split()) >= MIN_SUMMARY_WORDS and len(body.split()) >= MIN_BODY_WORDS
        # A body that repeats its summary would make the question a copy of its answer.
        if not is_held_out(document) or not long_enough or summary in body or summary in summaries or body in bodies:
            continue
        summaries[summary] = body
        bodies.add(body)
        if len(summaries) == count:
            break
    if len(summaries) < max(2, count):
        raise InputError(
            f"retrieval.documents={count}: this environment's documentation holds {len(summaries)} suitable documents. "
            f"Use retrieval.documents={len(summaries)} or fewer (at least 2)."
        )
    return RetrievalTask(list(summaries), list(summaries.values()))


def recall_at_k(
    encode: Callable[[list[str]], np.ndarray], task: RetrievalTask, cutoffs: Sequence[int] = CUTOFFS
) -> dict[str, float]:
    """Share of questions whose own body is among the k nearest by cosine, `{"recall_at_1": ..., ...}` on a 0-1 scale.

    `encode` maps n strings to `(n, dim)`. A tie counts against the answer: a model that maps everything to one point
    scores 0, not 1.
    """
    questions, bodies = _unit(encode(task.summaries)), _unit(encode(task.bodies))
    scores = questions @ bodies.T
    own = scores.diagonal()[:, None]
    ahead = (scores >= own).sum(axis=1) - 1
    return {f"recall_at_{k}": float((ahead < k).mean()) for k in cutoffs}


def _unit(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, dtype=np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
