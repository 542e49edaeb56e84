"""Vectors on disk: written chunk by chunk as float16, so that a killed indexing goes on where it was.

    with VectorWriter(folder, about, hidden) as writer:
        for texts in writer.missing(iter(keys), chunk=2048):
            writer.add(texts, encode(texts))
        writer.finish(metadata)                          # the index takes its place, whole

While it grows, an index lives in `<folder>.building`: `vectors.f16` (raw rows), `digests.bin` (8 bytes of each row's
text) and `about.json` (what made them). Rows are kept on resumption as long as they are complete and their texts are
the same, so a corpus that changed behind the first million papers costs only the rest.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from litsearch import storage
from shared import InputError
from shared.results import write_atomic

log = logging.getLogger(__name__)
DIGEST_BYTES = 8
LARGEST = 60_000  # float16 ends at 65,504


def clean(vectors: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Vectors as float16, and how many of them were not finite or zero.

    NaN and infinity become zero vectors, whose cosine with everything is 0. Vectors that float16 cannot hold are scaled
    first, which no cosine sees.
    """
    vectors = np.array(vectors, np.float32)
    broken = ~np.isfinite(vectors).all(1)
    vectors[broken] = 0
    large = np.abs(vectors).max(1, initial=0) > LARGEST
    vectors[large] /= np.linalg.norm(vectors[large].astype(np.float64), axis=1)[:, None].astype(np.float32)
    stored = vectors.astype(np.float16)
    zero = ~stored.any(1)
    return stored, int(broken.sum()), int((zero & ~broken).sum())


def digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


class VectorWriter:
    """An index of vectors that grows; a context manager, because it locks its folder.

    Args:
        folder: where the index will be. about: JSON values that decide the vectors; another `about` starts over.
        hidden: dimensions.
    """

    def __init__(self, folder: str | Path, about: Mapping[str, Any], hidden: int) -> None:
        self.folder = Path(folder).expanduser()
        self.building = self.folder.with_name(self.folder.name + ".building")
        self.about, self.hidden = {**about, "hidden": hidden}, hidden
        self.rows = self.not_finite = self.zero = 0

    def __enter__(self) -> VectorWriter:
        self.building.mkdir(parents=True, exist_ok=True)
        self._lock = (self.building / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise InputError(f"{self.folder} is being made by another process; wait for it, or name another") from None
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._vectors, self._digests, self._lock):
            file.close()
        if not self.rows:
            shutil.rmtree(self.building, ignore_errors=True)  # nothing that could be gone on from

    def _open(self) -> None:
        beside = self.building / "about.json"
        wanted = json.dumps(self.about, indent=1, sort_keys=True)
        if not (beside.is_file() and beside.read_text(encoding="utf-8") == wanted):
            for name in ("vectors.f16", "digests.bin"):
                (self.building / name).unlink(missing_ok=True)
            write_atomic(beside, wanted)
        self._vectors = (self.building / "vectors.f16").open("a+b")
        self._digests = (self.building / "digests.bin").open("a+b")
        self._truncate(min(self._size(self._vectors) // self.row_bytes, self._size(self._digests) // DIGEST_BYTES))

    @property
    def row_bytes(self) -> int:
        return 2 * self.hidden

    @staticmethod
    def _size(file: Any) -> int:
        return os.fstat(file.fileno()).st_size

    def _truncate(self, rows: int) -> None:
        self._vectors.truncate(rows * self.row_bytes)
        self._digests.truncate(rows * DIGEST_BYTES)
        self.rows = rows

    def missing(self, keys: Iterator[str], chunk: int) -> Iterator[list[str]]:
        """Go through all keys; yields those that have no vector yet, in lists of `chunk`. Add each before the next.

        Only whole chunks are kept from before: texts are batched within one, so a resumed index has the same bytes.
        """
        self._digests.seek(0)
        known = self._digests.read(self.rows * DIGEST_BYTES)
        rows, texts = 0, list(islice(keys, chunk))
        while texts:
            there = known[rows * DIGEST_BYTES : (rows + len(texts)) * DIGEST_BYTES]
            if there != b"".join(map(digest, texts)):
                break
            rows, texts = rows + len(texts), list(islice(keys, chunk))
        self._truncate(rows)
        if rows:
            log.info("%s: going on after %d keys", self.folder, rows)
            self._count_kept()
        while texts:
            yield texts
            texts = list(islice(keys, chunk))

    def add(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        """Append one vector per text; NaN, infinity and zeros are counted. Raises InputError for another shape."""
        if vectors.shape != (len(texts), self.hidden):
            raise InputError(f"the model gave vectors of shape {vectors.shape} for {len(texts)} texts")
        stored, not_finite, zero = clean(vectors)
        self._vectors.write(stored.tobytes())
        self._vectors.flush()
        self._digests.write(b"".join(map(digest, texts)))
        self._digests.flush()
        self.rows, self.not_finite, self.zero = self.rows + len(texts), self.not_finite + not_finite, self.zero + zero

    def _count_kept(self) -> None:
        """Zero vectors of an earlier process; what was not finite is stored as zero and counted as such."""
        kept = np.memmap(self.building / "vectors.f16", np.float16, "r", shape=(self.rows, self.hidden))
        self.zero += sum(int((~kept[start : start + 8192].any(1)).sum()) for start in range(0, self.rows, 8192))

    def finish(self, metadata: Mapping[str, Any]) -> Path:
        """The index folder, with `vectors.npy` and this metadata, in place of what was there."""
        for file in (self._vectors, self._digests):
            file.flush()
            os.fsync(file.fileno())
        with storage.new_folder(self.folder, metadata) as making, (making / "vectors.npy").open("wb") as out:
            header = {"descr": "<f2", "fortran_order": False, "shape": (self.rows, self.hidden)}
            np.lib.format.write_array_header_1_0(out, header)
            self._vectors.seek(0)
            shutil.copyfileobj(self._vectors, out, 16 * 2**20)
        shutil.rmtree(self.building, ignore_errors=True)
        return self.folder
