"""Sentences and their vectors, searched exactly or by faiss, on disk as a folder.

Exact search is a float32 product of a block of queries with a block of keys; of each block only the best `top_k` stay
(`argpartition`), so memory is bounded by the block and not by queries times keys. faiss is asked only for neighbours
and scores: threshold, order and output are the same code, so the flat index gives the same answer as the exact search.

An index can only be searched by the encoder that made it. It therefore keeps the vector of one fixed sentence, the
probe: whoever brings vectors to it encodes the probe along with them (one more short row in the batch), and other
weights, another tokenizer or another pooler show at once, in memory and after loading from disk alike.
"""

import importlib.util
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shared import InputError
from simcse.embedding import check_sentences

logger = logging.getLogger(__name__)

BACKENDS = ("exact", "faiss", "faiss_fast")
PROBE = "The quick brown fox jumps over the lazy dog."
# Another device or batch moves a cosine by 1e-6, bfloat16 by 1e-3; other weights or another pooler by far more.
PROBE_COSINE = 0.995
# Keys and queries per product: 32,768 x 256 scores are 32 MB.
KEY_BLOCK, QUERY_BLOCK = 32768, 256
# faiss wants this many points per cell to train an inverted file well, and fails below one.
POINTS_PER_CELL = 39


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Each row of `(rows, hidden)` divided by its length; a zero row stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def read_sentences(source: str | Path | Sequence[str], field: str = "sentences_or_file_path") -> list[str]:
    """A list as a new list, or the lines of the UTF-8 text file whose path is given; blank lines are dropped, counted.

    Raises: InputError on a missing or empty file, a line that is not UTF-8 (named), an empty list, or a non-string.
    """
    if not isinstance(source, str | Path):
        check_sentences(source, field)
        return list(source)
    path = Path(source).expanduser()
    if not path.is_file():
        raise InputError(
            f"{field} is {str(source)[:200]!r}, and there is no such file: a string is the PATH of a file with one "
            "sentence per line; to index one sentence, give a list of it"
        )
    sentences, blank = [], 0
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            sentence = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise InputError(f"{path}, line {number} is not UTF-8 ({error.reason}): convert the file") from None
        if sentence:
            sentences.append(sentence)
        else:
            blank += 1
    if blank:
        logger.warning(f"{path}: {blank} blank lines dropped")
    if not sentences:
        raise InputError(f"{field}: the file {path} holds no sentence")
    return sentences


class SentenceIndex:
    """Unit vectors and their sentences.

    Args:
        sentences: N of them; the list is copied.
        vectors: `(N, hidden)` float32, of length one.
        probe: `(hidden,)`, the unit vector of PROBE by the same encoder.
        pooler: its name, for the message when it changes.
        backend: one of BACKENDS.
        num_cells, num_cells_in_search: of the inverted file; lowered to what N can train.
    """

    def __init__(
        self,
        sentences: Sequence[str],
        vectors: np.ndarray,
        probe: np.ndarray,
        pooler: str,
        backend: str = "exact",
        num_cells: int = 100,
        num_cells_in_search: int = 10,
    ):
        self.check_backend(backend)
        self.sentences, self.vectors = list(sentences), vectors
        self.probe, self.pooler, self.backend = probe, pooler, backend
        self.num_cells, self.num_cells_in_search = num_cells, num_cells_in_search
        self._faiss = None if backend == "exact" else self._new_faiss()

    @staticmethod
    def check_backend(backend: str) -> None:
        """Raise InputError for an unknown backend, or faiss where it is not installed."""
        if backend not in BACKENDS:
            raise InputError(f"backend is {backend!r}, but must be one of {', '.join(BACKENDS)}")
        if backend != "exact" and importlib.util.find_spec("faiss") is None:
            raise InputError("faiss is asked for, but is not installed: pip install faiss-cpu, or leave use_faiss out")

    def __len__(self) -> int:
        return len(self.sentences)

    def check_encoder(self, probe: np.ndarray, pooler: str) -> None:
        """Raise InputError unless `probe`, PROBE's vector by the encoder at hand, is that of the index."""
        if pooler != self.pooler:
            raise InputError(
                f"pooler is {pooler!r}, but the index was built with {self.pooler!r}: set it back, or build it anew"
            )
        if probe.shape != self.probe.shape:
            raise InputError(
                f"the model has vectors of {probe.shape[0]} numbers, but the index of {self.probe.shape[0]}: "
                "load the model it was built with, or build it anew"
            )
        if (cosine := float(probe @ self.probe)) < PROBE_COSINE:
            raise InputError(
                f"the model is not the one the index was built with (a known sentence has cosine {cosine:.3f} with its "
                "indexed self): load that model, or build the index anew"
            )

    def add(self, sentences: Sequence[str], vectors: np.ndarray) -> None:
        """Append sentences and their `(rows, hidden)` unit vectors; an inverted file keeps its cells."""
        self.vectors = np.concatenate([self.vectors, vectors])
        self.sentences.extend(sentences)
        if self._faiss is not None:
            self._faiss.add(np.ascontiguousarray(vectors))

    def search(self, queries: np.ndarray, threshold: float, top_k: int) -> list[list[tuple[str, float]]]:
        """For each row of `(queries, hidden)` unit vectors its sentences with cosine >= threshold, best first."""
        self.check_request(threshold, top_k)
        if self._faiss is None:
            scores, rows = exact_top_k(queries, self.vectors, top_k)
        else:
            scores, rows = self._faiss.search(np.ascontiguousarray(queries), top_k)
        return [self._above(threshold, *neighbours) for neighbours in zip(scores, rows, strict=True)]

    def check_request(self, threshold: float, top_k: int) -> None:
        """Raise InputError unless -1 <= threshold <= 1 and 1 <= top_k <= len(self)."""
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
            raise InputError(f"top_k is {top_k!r}, but must be a whole number of at least 1")
        if top_k > len(self):
            raise InputError(f"top_k is {top_k}, but the index holds {len(self)} sentences: give at most that")
        if not isinstance(threshold, int | float) or not -1 <= threshold <= 1:
            raise InputError(f"threshold is {threshold!r}, but a cosine is between -1 and 1")

    def _above(self, threshold: float, scores: np.ndarray, rows: np.ndarray) -> list[tuple[str, float]]:
        # faiss fills what an inverted file did not find with row -1. Equal scores come in the order of the index.
        kept = [(float(s), int(r)) for s, r in zip(scores, rows, strict=True) if r >= 0 and s >= threshold]
        return [(self.sentences[row], score) for score, row in sorted(kept, key=lambda hit: (-hit[0], hit[1]))]

    def _new_faiss(self):
        import faiss

        count, hidden = self.vectors.shape
        flat = faiss.IndexFlatIP(hidden)
        index = flat
        if self.backend == "faiss_fast":
            cells = max(1, min(self.num_cells, count // POINTS_PER_CELL))
            if cells < self.num_cells:
                logger.warning(f"{count} sentences train {cells} cells, not num_cells={self.num_cells}: using {cells}")
            index = faiss.IndexIVFFlat(flat, hidden, cells, faiss.METRIC_INNER_PRODUCT)
            index.train(np.ascontiguousarray(self.vectors))
            index.nprobe = min(self.num_cells_in_search, cells)
        index.add(np.ascontiguousarray(self.vectors))
        return index

    def save(self, folder: str | Path) -> Path:
        """Write `index.json`, `sentences.jsonl` and `vectors.npy` into a new folder, or in place of an index there."""
        folder = Path(folder)
        if folder.exists() and not (folder / "index.json").is_file():
            raise InputError(f"{folder} exists and is not an index: give another folder, it would be overwritten")
        folder.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "count": len(self),
            "hidden_size": self.vectors.shape[1],
            "pooler": self.pooler,
            "backend": self.backend,
            "num_cells": self.num_cells,
            "num_cells_in_search": self.num_cells_in_search,
            "probe": [float(value) for value in self.probe],
        }
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            new = Path(temporary) / "new"
            new.mkdir()
            np.save(new / "vectors.npy", self.vectors)
            lines = (json.dumps(sentence, ensure_ascii=False) for sentence in self.sentences)
            (new / "sentences.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            (new / "index.json").write_text(json.dumps(about, indent=2), encoding="utf-8")
            if folder.exists():
                folder.rename(Path(temporary) / "old")
            new.rename(folder)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "SentenceIndex":
        """Read what `save` wrote, the vectors as a memory map. Raises InputError if files are missing or disagree."""
        folder = Path(folder)
        for name in ("index.json", "sentences.jsonl", "vectors.npy"):
            if not (folder / name).is_file():
                raise InputError(f"{folder} is not an index: {name} is missing; save_index writes one")
        about = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        with (folder / "sentences.jsonl").open(encoding="utf-8") as lines:
            sentences = [json.loads(line) for line in lines]
        vectors = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
        if vectors.shape != (about["count"], about["hidden_size"]) or len(sentences) != about["count"]:
            raise InputError(
                f"{folder} is damaged: index.json says {about['count']} vectors of {about['hidden_size']}, vectors.npy "
                f"has shape {vectors.shape}, and there are {len(sentences)} sentences; build the index anew"
            )
        probe = np.asarray(about["probe"], dtype=np.float32)
        keys = ("pooler", "backend", "num_cells", "num_cells_in_search")
        return cls(sentences, vectors, probe, **{key: about[key] for key in keys})


def exact_top_k(queries: np.ndarray, keys: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `top_k` largest products of each query with the keys, unordered.

    Args:
        queries: `(queries, hidden)` float32. keys: `(keys, hidden)` float32. top_k: at most the number of keys.

    Returns: scores `(queries, top_k)` float32 and rows of `keys` `(queries, top_k)` int64.
    """
    found = [_top_k_of_block(queries[i : i + QUERY_BLOCK], keys, top_k) for i in range(0, len(queries), QUERY_BLOCK)]
    return np.concatenate([scores for scores, _ in found]), np.concatenate([rows for _, rows in found])


def _top_k_of_block(queries: np.ndarray, keys: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    scores, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(keys), KEY_BLOCK):
        new_scores, new_rows = _largest(queries @ keys[start : start + KEY_BLOCK].T, top_k)
        scores, rows = np.hstack([scores, new_scores]), np.hstack([rows, new_rows + start])
        best_scores, columns = _largest(scores, top_k)
        scores, rows = best_scores, np.take_along_axis(rows, columns, axis=1)
    return scores, rows


def _largest(scores: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    if scores.shape[1] <= top_k:
        return scores, np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    columns = np.argpartition(scores, -top_k, axis=1)[:, -top_k:]
    return np.take_along_axis(scores, columns, axis=1), columns
