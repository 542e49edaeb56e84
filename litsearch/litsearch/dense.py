"""Dense retrieval: keys and questions as vectors, the nearest by cosine.

    retriever = make_retriever({"name": "minilm", "kind": "dense", "model": "minilm"}, key="title_abstract")
    retriever.index(keys)
    positions, scores = retriever.search(questions, k=20)

Keys are encoded once, in chunks, and kept in float16 as in the release; with `folder` they go to disk as they come, so
that memory stays bounded and a killed run goes on where it was. Vectors with NaN (which GritLM is known to produce)
become zero vectors and are counted in the index's metadata; a question whose vector is not usable is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from litsearch import storage
from litsearch.cosine import CosineSearch
from litsearch.embedders import Embedder, make_embedder
from litsearch.retrievers import check_search
from litsearch.vectors import VectorWriter, clean
from shared import InputError

log = logging.getLogger(__name__)

CHUNK = 2048  # texts that are sorted by length together; what a kill can cost
REMEMBERED = 10_000  # questions whose vectors are kept: deeper searches ask for the same ones again


class DenseRetriever:
    """An embedder, its vectors of the keys, and the search among them.

    Args:
        embedder: a kind of `litsearch.embedders.EMBEDDERS`, or an object with its methods; options: its arguments.
        folder: where the index is made; None keeps it in memory until `save`.
        search_device: of the search; None is CUDA where there is one.
    """

    def __init__(
        self,
        name: str = "dense",
        key: str = "title_abstract",
        embedder: str | Embedder = "transformer",
        folder: str | Path | None = None,
        search_device: str | None = None,
        **options: Any,
    ) -> None:
        self.name, self.key = name, key
        self.embedder = make_embedder(embedder, key, **options) if isinstance(embedder, str) else embedder
        self.folder = Path(folder).expanduser() if folder is not None else None
        self.search_device = search_device
        self.counts = {"not_finite": 0, "zero": 0}
        self._search: CosineSearch | None = None
        self._questions: dict[str, np.ndarray] = {}

    def encode_keys(self, texts: Sequence[str]) -> np.ndarray:
        """`(n, hidden)` float32."""
        return self.embedder.encode_keys(texts)

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """`(n, hidden)` float32, finite and not zero. Raises InputError naming the question where that is not so."""
        vectors = np.asarray(self.embedder.encode_queries(texts), np.float32)
        for text, vector in zip(texts, vectors, strict=True):
            if not np.isfinite(vector).all():
                raise InputError(f"{self.name}: the vector of {text!r} has NaN or infinity in it; try float32")
            if not vector.any():
                raise InputError(f"{self.name}: the vector of {text!r} is zero, so nothing can be ranked by it")
        return vectors

    # ------------------------------------------------------------------------------------------------------- indexing

    def index(self, keys: Iterable[str]) -> None:
        self.counts = dict.fromkeys(self.counts, 0)
        if self.folder is not None:
            self._index_on_disk(iter(keys))
            return
        chunks, stored = _chunks(iter(keys), CHUNK), []
        for texts in tqdm(chunks, desc=self.name, unit=" chunks", disable=None):
            vectors, not_finite, zero = clean(self.encode_keys(texts))
            stored.append(vectors)
            self._count(not_finite, zero)
        if not stored:
            raise InputError("keys: there is nothing to index")
        self._check_counts(sum(map(len, stored)))
        self._set(np.concatenate(stored))

    def _index_on_disk(self, keys: Iterator[str]) -> None:
        with VectorWriter(self.folder, self.metadata(), self.embedder.hidden) as writer:
            for texts in tqdm(writer.missing(keys, CHUNK), desc=self.name, unit=" chunks", disable=None):
                writer.add(texts, self.encode_keys(texts))
            if not writer.rows:
                raise InputError("keys: there is nothing to index")
            self._count(writer.not_finite, writer.zero)
            self._check_counts(writer.rows)  # before it takes the place of another index
            writer.finish(self._about(writer.rows, writer.hidden))
        self._set(storage.open_array(self.folder, "vectors"))

    def _count(self, not_finite: int, zero: int) -> None:
        self.counts["not_finite"] += not_finite
        self.counts["zero"] += zero

    def _check_counts(self, vectors: int) -> None:
        useless = sum(self.counts.values())
        if useless >= vectors:
            raise InputError(f"{self.name}: all {vectors} vectors are zero or not finite; the model is broken here")
        if useless:
            log.warning("%s: %s of %d vectors; they are never near anything", self.name, self.counts, vectors)

    def _set(self, vectors: np.ndarray) -> None:
        self._search = CosineSearch(vectors, self.search_device)
        self._report_lengths()
        log.info("%s: %d vectors; %s", self.name, len(vectors), _settings(self.metadata()))

    def _report_lengths(self) -> None:
        full = getattr(self.embedder, "full", 0)
        if full:
            log.warning("%s: %d texts fill max_length; what is beyond it is not seen", self.name, full)

    # ------------------------------------------------------------------------------------------------------- searching

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        check_search(queries, k, None if self._search is None else len(self._search))
        new = [query for query in dict.fromkeys(queries) if query not in self._questions]
        if new:
            if len(self._questions) + len(new) > REMEMBERED:
                self._questions = {q: v for q, v in self._questions.items() if q in set(queries)}
            self._questions |= zip(new, self.encode_queries(new), strict=True)
        if not len(queries):
            return np.empty((0, k), np.int64), np.empty((0, k), np.float32)
        return self._search.search(np.stack([self._questions[query] for query in queries]), k)

    # ------------------------------------------------------------------------------------------------- saving, loading

    def metadata(self) -> dict[str, Any]:
        return {"retriever": self.name, "key": self.key, **self.embedder.metadata()}

    def _about(self, keys: int, hidden: int) -> dict[str, Any]:
        return {"kind": "dense", **self.metadata(), "keys": keys, "hidden": hidden, **self.counts}

    def save(self, folder: Path, about: Mapping[str, Any] | None = None) -> None:
        if self._search is None:
            raise InputError("save: nothing is indexed yet; call index(keys) first")
        if self.folder is not None and self.folder.resolve() == Path(folder).expanduser().resolve():
            storage.add_metadata(folder, about or {})  # it was made there
            return
        vectors = self._search.vectors
        with storage.new_folder(folder, {**self._about(*vectors.shape), **(about or {})}) as making:
            np.save(making / "vectors.npy", vectors)

    def load(self, folder: Path) -> None:
        metadata = storage.read_metadata(folder, {"kind": "dense", **self.metadata()})
        vectors = storage.open_array(folder, "vectors")
        if vectors.shape != (metadata["keys"], metadata["hidden"]) or vectors.dtype != np.float16:
            raise InputError(
                f"{folder}/vectors.npy holds {vectors.dtype} {vectors.shape}, but metadata.json says float16 "
                f"{(metadata['keys'], metadata['hidden'])}; make the index again"
            )
        self.counts = {name: metadata[name] for name in self.counts}
        self._set(vectors)


def _chunks(keys: Iterator[str], size: int) -> Iterator[list[str]]:
    while chunk := list(islice(keys, size)):
        yield chunk


def _settings(metadata: Mapping[str, Any]) -> str:
    """The lines that explain a difference between two runs of one model."""
    shown = ("model", "max_length", "query_dtype", "key_dtype", "pooler")
    return ", ".join(f"{name} {metadata[name]}" for name in shown if metadata.get(name) is not None)
