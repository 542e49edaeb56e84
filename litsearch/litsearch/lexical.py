"""Retrievers that need no model: BM25, TF-IDF (with or without LSA), and random word vectors as the floor."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from litsearch import storage
from litsearch.bm25 import BM25, EPSILON, K1, B
from litsearch.ranking import top_k
from litsearch.retrievers import check_search
from litsearch.text import terms, tokenizer_version
from shared import InputError


class BM25Retriever:
    """`litsearch.bm25.BM25` behind the retrievers' interface.

    Args:
        processes, cache: how keys are tokenized. folder: where the index is built, for keys that do not fit in memory.
    """

    def __init__(
        self,
        name: str = "bm25",
        key: str = "title_abstract",
        k1: float = K1,
        b: float = B,
        epsilon: float = EPSILON,
        processes: int = 1,
        cache: str | Path | None = None,
        folder: str | Path | None = None,
    ):
        self.name, self.key = name, key
        self.parameters = {"k1": k1, "b": b, "epsilon": epsilon}
        self.processes, self.cache, self.folder = processes, cache, folder
        self.bm25: BM25 | None = None

    def index(self, keys: Iterable[str]) -> None:
        options = {"processes": self.processes, "cache": self.cache, "folder": self.folder, "about": self._about()}
        self.bm25 = BM25(keys, **self.parameters, **options)

    def _about(self) -> dict[str, Any]:
        return {"retriever": self.name, "key": self.key}

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        check_search(queries, k, None if self.bm25 is None else len(self.bm25))
        positions, scores = self.bm25.search_scored(queries, k)
        return positions, scores.astype(np.float32)

    def metadata(self) -> dict[str, Any]:
        return {**self._about(), **self.parameters, "tokenizer": tokenizer_version()}

    def save(self, folder: Path, about: Mapping[str, Any] | None = None) -> None:
        if self.bm25 is None:
            raise InputError("save: nothing is indexed yet; call index(keys) first")
        if self.folder is not None and Path(self.folder).expanduser().resolve() == Path(folder).expanduser().resolve():
            storage.add_metadata(folder, about or {})  # it was built there
        else:
            self.bm25.save(folder, {**self._about(), **(about or {})})

    def load(self, folder: Path) -> None:
        self.bm25 = BM25.load(folder, self.metadata())


class TfidfRetriever:
    """Cosine of TF-IDF vectors (scikit-learn's weights) over BM25's terms; with `components`, of their LSA.

    Args:
        components: dimensions of the truncated SVD (latent semantic analysis); None keeps the sparse vectors.
    """

    def __init__(
        self,
        name: str = "tfidf",
        key: str = "title_abstract",
        components: int | None = None,
        sublinear_tf: bool = True,
        seed: int = 0,
    ):
        if components is not None and (not isinstance(components, int) or components < 1):
            raise InputError(f"retriever.components={components!r}: give a whole number above 0, or null")
        self.name, self.key = name, key
        self.components, self.sublinear_tf, self.seed = components, sublinear_tf, seed
        self.vectors: Any = None

    def index(self, keys: Iterable[str]) -> None:
        from sklearn.decomposition import TruncatedSVD

        self._weights = self._vectorizer()
        try:
            vectors = self._weights.fit_transform(keys)
        except ValueError as error:
            raise InputError(f"keys: {error}") from None
        if self.components is not None:
            largest = min(vectors.shape) - 1
            if self.components > largest:
                raise InputError(f"retriever.components={self.components}: these keys allow at most {largest}")
            reduction = TruncatedSVD(self.components, random_state=self.seed)
            vectors = _unit_rows(reduction.fit_transform(vectors))
            self._axes = reduction.components_
        self.vectors = vectors

    def _vectorizer(self, vocabulary: dict[str, int] | None = None) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        options = {"analyzer": terms, "sublinear_tf": self.sublinear_tf, "dtype": np.float32}
        return TfidfVectorizer(vocabulary=vocabulary, **options)

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        check_search(queries, k, None if self.vectors is None else self.vectors.shape[0])
        found = self._weights.transform(queries)
        if self.components is not None:
            return best_of(_unit_rows(found @ self._axes.T) @ self.vectors.T, k)
        return best_of((found @ self.vectors.T).toarray(), k)

    def metadata(self) -> dict[str, Any]:
        options = {"components": self.components, "sublinear_tf": self.sublinear_tf, "seed": self.seed}
        return {"retriever": self.name, "key": self.key, **options, "tokenizer": tokenizer_version()}

    def save(self, folder: Path, about: Mapping[str, Any] | None = None) -> None:
        if self.vectors is None:
            raise InputError("save: nothing is indexed yet; call index(keys) first")
        arrays = {"idf": self._weights.idf_}
        if self.components is None:
            arrays |= {name: getattr(self.vectors, name) for name in ("data", "indices", "indptr")}
        else:
            arrays |= {"vectors": self.vectors, "axes": self._axes}
        content = {"kind": "tfidf", **self.metadata(), "keys": self.vectors.shape[0], **(about or {})}
        with storage.new_folder(folder, content) as making:
            names = "\n".join(self._weights.get_feature_names_out())
            (making / "terms.txt").write_bytes(names.encode("utf-8", "surrogatepass"))
            for name, array in arrays.items():
                np.save(making / f"{name}.npy", array)

    def load(self, folder: Path) -> None:
        from scipy.sparse import csr_array

        folder = Path(folder).expanduser()
        metadata = storage.read_metadata(folder, {"kind": "tfidf", **self.metadata()})
        try:
            names = (folder / "terms.txt").read_text(encoding="utf-8", errors="surrogatepass").split("\n")
            self._weights = self._vectorizer({name: number for number, name in enumerate(names)})
            self._weights.idf_ = np.array(storage.open_array(folder, "idf"))
        except (OSError, ValueError) as error:
            raise InputError(f"{folder}: its terms cannot be read ({error}); make the index again") from None
        if self.components is None:
            parts = [storage.open_array(folder, name) for name in ("data", "indices", "indptr")]
            self.vectors = csr_array(tuple(map(np.asarray, parts)), shape=(metadata["keys"], len(names)))
        else:
            self._axes = np.asarray(storage.open_array(folder, "axes"))
            self.vectors = np.asarray(storage.open_array(folder, "vectors"))
        if self.vectors.shape[0] != metadata["keys"]:
            raise InputError(f"{folder}: its files do not belong together; make the index again")


class RandomWordVectors:
    """What no learning gives: a fixed random vector per word, averaged. Every retriever should be far above it.

    Words are split at white space and lower-cased; a word's vector is drawn by a generator seeded with its CRC-32.
    """

    def __init__(self, name: str = "random", key: str = "title_abstract", hidden: int = 300):
        self.name, self.key, self.hidden = name, key, hidden
        self.vectors: np.ndarray | None = None
        self._words: dict[str, np.ndarray] = {}
        self._generator = np.random.RandomState()  # seeded anew for each word: making one takes ten times as long

    def encode_keys(self, texts: Iterable[str]) -> np.ndarray:
        """`(n, hidden)` float16."""
        return np.stack([self._encode(text) for text in texts])

    encode_queries = encode_keys

    def _encode(self, text: str) -> np.ndarray:
        words = text.lower().split()
        if not words:
            return np.zeros(self.hidden, np.float16)
        return np.mean([self._vector(word) for word in words], axis=0).astype(np.float16)

    def _vector(self, word: str) -> np.ndarray:
        vector = self._words.get(word)
        if vector is None:
            self._generator.seed(zlib.crc32(word.encode("utf-8", "surrogatepass")))
            vector = self._words[word] = self._generator.standard_normal(self.hidden)
        return vector

    def index(self, keys: Iterable[str]) -> None:
        self.vectors = self.encode_keys(keys)

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        check_search(queries, k, None if self.vectors is None else len(self.vectors))
        keys, found = (_unit_rows(v.astype(np.float64)) for v in (self.vectors, self.encode_queries(queries)))
        return best_of(found @ keys.T, k)

    def metadata(self) -> dict[str, Any]:
        return {"retriever": self.name, "key": self.key, "hidden": self.hidden}

    def save(self, folder: Path, about: Mapping[str, Any] | None = None) -> None:
        if self.vectors is None:
            raise InputError("save: nothing is indexed yet; call index(keys) first")
        with storage.new_folder(folder, {"kind": "random", **self.metadata(), **(about or {})}) as making:
            np.save(making / "vectors.npy", self.vectors)

    def load(self, folder: Path) -> None:
        storage.read_metadata(folder, {"kind": "random", **self.metadata()})
        self.vectors = storage.open_array(folder, "vectors")


def best_of(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions `(n_queries, k)` and float32 scores of the best columns of `(n_queries, n_keys)` scores.

    Ranked as float32: a matrix product may give equal keys different last bits, and then the first is not first.
    """
    scores = scores.astype(np.float32, copy=False)
    positions = np.stack([top_k(row, k) for row in scores])
    return positions, np.take_along_axis(scores, positions, axis=1)


def _unit_rows(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths == 0, 1, lengths)
