"""What a retriever is: a small interface, and the names under which the configuration finds the ones there are.

    retriever = make_retriever({"name": "bm25"}, key="title_abstract")
    retriever.index(keys)                                       # texts, one per key; read once, in order
    positions, scores = retriever.search(questions, k=20)       # (n_queries, 20) each

A retriever knows keys by their position and nothing of papers, questions' answers or files of runs; `litsearch.keys`
turns key positions into papers. What decides whether two indexes are interchangeable (model, instruction, length, ...)
is in `metadata()`, and `litsearch.storage` refuses an index whose metadata differ from what was asked for.

Dense retrievers add `encode_keys(texts)` and `encode_queries(texts)`, `(n, hidden)` float arrays each.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from shared import InputError

# kind -> where its class is. Imported on demand: BM25 needs no torch.
KINDS = {
    "bm25": "litsearch.lexical:BM25Retriever",
    "tfidf": "litsearch.lexical:TfidfRetriever",
    "random": "litsearch.lexical:RandomWordVectors",
    "dense": "litsearch.dense:DenseRetriever",
    "hybrid": "litsearch.hybrid:HybridRetriever",
}


@runtime_checkable
class Retriever(Protocol):
    """Ranks keys for questions. Ties are broken by ascending key position."""

    name: str

    def index(self, keys: Iterable[str]) -> None:
        """Take in all keys, one text each, in one pass (so that a generator may be given)."""

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the k best keys `(n_queries, k)` int64, best first, and their scores, float32.

        Raises InputError for k < 1 or more than there are keys, for an empty question, and before `index` or `load`.
        """

    def metadata(self) -> dict[str, Any]:
        """JSON values: everything that makes an index what it is, `retriever` (the name) among them."""

    def save(self, folder: Path, about: Mapping[str, Any] | None = None) -> None:
        """Write arrays and metadata into a folder (`litsearch.storage`).

        `about` joins the metadata: what was indexed (`corpus`, its fingerprint, and `dedup_keys`), which
        `litsearch.retrieve` checks before it loads an index.
        """

    def load(self, folder: Path) -> None:
        """Open a saved index, memory-mapped. Raises InputError where its metadata are not this retriever's."""


def make_retriever(config: Mapping[str, Any], key: str = "title_abstract") -> Retriever:
    """The retriever of a `retriever` configuration group.

    Args:
        config: `name` (how it is called in runs and tables), `kind` (one of `KINDS`; default: the name), and the
            arguments of its class.
        key: what is indexed; instructions of dense retrievers depend on it.

    Raises:
        InputError: an unknown kind, or an argument that its class does not take.
    """
    options = {str(option): value for option, value in config.items()}
    name = options.pop("name", None)
    kind = options.pop("kind", None) or name
    if kind not in KINDS:
        raise InputError(f"retriever.kind={kind!r} is not one of {', '.join(KINDS)}")
    module, _, attribute = KINDS[kind].partition(":")
    try:
        build = getattr(importlib.import_module(module), attribute)
        return build(name=name or kind, key=key, **options)
    except TypeError as error:
        raise InputError(f"retriever={name or kind}: {error}") from error


def check_search(queries: Sequence[str], k: int, n_keys: int | None) -> None:
    """Refuse what no retriever can answer; `n_keys` None means that nothing is indexed yet."""
    if n_keys is None:
        raise InputError("search: nothing is indexed yet; call index(keys) or load(folder) first")
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise InputError(f"k={k!r}: give a whole number of at least 1")
    if k > n_keys:
        raise InputError(f"k={k} is more than the {n_keys} keys that are indexed; give at most {n_keys}")
    if isinstance(queries, str):
        raise InputError("queries is one text; give a list of questions")
    for i, query in enumerate(queries):
        if not isinstance(query, str) or not query.strip():
            raise InputError(f"queries[{i}] is {query!r}; a question must be a text that is not empty")
