"""Demonstrations: one answered training example of every class behind the query (section 6 of the paper).

Layout: the query's prompt, then for class 0, 1, ... a copy of the template without `*cls*`, with the class's word in
place of the mask, about one training example of that class. Sampling: each class's example is drawn at random from the
training set (without the query itself, in training), anew every time a training example is used, and `num_sample` times
for a dev or test example, whose outputs are then averaged. Filtering: only the half of each class that is most similar
to the query can be drawn.

Everything about all queries and draws is one array operation, and all similarities are one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lm_bff.template import LabelWord, Template
from shared import InputError

SAMPLERS = ("uniform", "permutation")


def layout(template: Template, classes: int, num_sentences: int) -> Template:
    """The template of a query with one demonstration per class.

    The query keeps sentences 0..m-1 (m = `num_sentences`); the demonstration of class c has sentences m + m c ... and
    the word `label_c`. Every copy brings the template's own `sep+`, which is the separator.
    """
    demonstration = template.without_cls()
    whole = template
    for label in range(classes):
        whole += demonstration.shifted(num_sentences * (label + 1)).answered(LabelWord(label))
    return whole


def filter_limit(candidates: int, classes: int, keep: float = 0.5) -> int:
    """How many of each class survive the filter: 8 of 32 candidates of two classes, 7 of 31 (without the query)."""
    return int(candidates // classes * keep)


def select(
    support_classes: Sequence[int],
    num_queries: int,
    num_sample: int,
    rng: np.random.Generator | np.random.RandomState,
    *,
    classes: int,
    similarities: np.ndarray | None = None,
    keep: float = 0.5,
    exclude: Sequence[int] | None = None,
    sampler: str = "uniform",
) -> np.ndarray:
    """Draw demonstrations: (num_sample, num_queries, classes) indices into the support.

    The order is sample-major: all queries for the first draw, then all for the second, ...

    Args:
        support_classes: (s,) class of each support (training) example.
        similarities: (num_queries, s) cosine similarities; with them only the most similar `keep` of each class
            (`filter_limit`; ties in the order of the support) can be drawn.
        exclude: (num_queries,) the query's own place in the support, -1 for none.
        sampler: `uniform` draws an index per class; `permutation` permutes all candidates and takes the first of each
            class, as the release does, so that its draws can be replayed with numpy's RandomState. Both have the same
            distribution.

    Raises:
        InputError: num_sample below 1, similarities of another shape, or a class that no candidate is left of.
    """
    support = np.asarray(support_classes)
    own = np.full(num_queries, -1) if exclude is None else np.asarray(exclude)
    _check(support, num_queries, num_sample, similarities, own, sampler)
    ranked, counts = _pools(support, own, classes, similarities, keep)
    if sampler == "permutation":
        return _permuted(support, own, classes, similarities, keep, num_sample, rng)
    chosen = np.empty((num_sample, num_queries, classes), dtype=np.int64)
    for label in range(classes):
        place = (rng.random((num_sample, num_queries)) * counts[label]).astype(np.int64)
        chosen[:, :, label] = ranked[label][np.arange(num_queries), place]
    return chosen


def pools(
    support_classes: Sequence[int],
    similarities: np.ndarray,
    classes: int,
    keep: float = 0.5,
    exclude: Sequence[int] | None = None,
) -> list[list[np.ndarray]]:
    """What the filter leaves: for every query and class the support indices, most similar first."""
    own = np.full(len(similarities), -1) if exclude is None else np.asarray(exclude)
    ranked, counts = _pools(np.asarray(support_classes), own, classes, similarities, keep)
    return [
        [ranked[label][query, : counts[label][query]] for label in range(classes)] for query in range(len(similarities))
    ]


def _check(support, num_queries, num_sample, similarities, own, sampler) -> None:
    if not isinstance(num_sample, int | np.integer) or num_sample < 1:
        raise InputError(f"num_sample={num_sample}: give 1 or more sets of demonstrations")
    if sampler not in SAMPLERS:
        raise InputError(f"demonstration sampler {sampler!r}: give one of {', '.join(SAMPLERS)}")
    if similarities is not None and similarities.shape != (num_queries, len(support)):
        raise InputError(
            f"demonstration filter: similarities have the shape {similarities.shape}, but there are {num_queries} "
            f"queries and {len(support)} training examples; were the embeddings made from other data?"
        )
    if own.shape != (num_queries,):
        raise InputError(f"exclude has {own.shape} entries for {num_queries} queries")


def _pools(support, own, classes, similarities, keep) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Per class: (queries, members) support indices, candidates first; and (queries,) how many are candidates."""
    excluded = own >= 0
    limit = np.full(len(own), len(support))
    if similarities is not None:
        limit = np.array([filter_limit(len(support) - out, classes, keep) for out in (0, 1)])[excluded.astype(int)]
    ranked, counts = [], []
    for label in range(classes):
        members = np.flatnonzero(support == label)
        is_own = members[None, :] == own[:, None]
        scores = np.zeros(is_own.shape) if similarities is None else similarities[:, members].astype(np.float64)
        order = np.argsort(np.where(is_own, np.inf, -scores), axis=1, kind="stable")
        count = np.minimum(limit, len(members) - is_own.sum(axis=1))
        if len(own) and count.min() < 1:
            raise InputError(
                f"demonstrations: no training example of class {label} is left to draw from "
                f"({len(members)} in the training set, the filter keeps {keep:g}); use a larger k or filter=none"
            )
        ranked.append(members[order])
        counts.append(count)
    return ranked, counts


def _permuted(support, own, classes, similarities, keep, num_sample, rng) -> np.ndarray:
    """`select` as the release draws: one permutation per draw and query, of the candidates in order of similarity."""
    candidates = []
    for query, out in enumerate(own):
        left = np.delete(np.arange(len(support)), out) if out >= 0 else np.arange(len(support))
        if similarities is not None:
            left = left[np.argsort(-similarities[query, left].astype(np.float64), kind="stable")]
            limit, seen = filter_limit(len(left), classes, keep), np.zeros(classes, dtype=int)
            kept = []
            for index in left:
                if seen[support[index]] < limit:
                    kept.append(index)
                    seen[support[index]] += 1
            left = np.array(kept)
        candidates.append((left, support[left]))
    chosen = np.full((num_sample, len(own), classes), -1, dtype=np.int64)
    for draw in range(num_sample):
        for query, (left, labels) in enumerate(candidates):
            order = rng.permutation(len(left))
            walked = labels[order]
            for label in range(classes):
                chosen[draw, query, label] = left[order[np.argmax(walked == label)]]
    return chosen
