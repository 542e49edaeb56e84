"""From a stream of tokens to postings sorted by term, in bounded memory.

A batch of documents is reduced to sorted (term, document) pairs with their counts at once. While these are few they
stay in memory; beyond `MEMORY_POSTINGS` they wait in temporary files, and the merge reads a range of terms at a time
from all of them. 64,000 generated texts of 6,000 words are 144 million postings, 1.7 GB on disk, never in memory at
once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from litsearch.text import Tokens

MEMORY_POSTINGS = 24_000_000  # about 300 MB
BLOCK_POSTINGS = 8_000_000  # merged at a time, about 130 MB
DOCUMENT_BITS = 32


class Postings:
    """Counts of terms in documents, collected batch by batch.

    After `add`ing all tokens: `frequencies` is the number of documents of each term, `lengths` that of terms in each
    document (both int64), and `blocks()` yields the postings themselves.
    """

    def __init__(self, folder: Path | None = None):
        """`folder` is where temporary files go (default: the system's)."""
        self._folder = folder
        self._files: tempfile.TemporaryDirectory | None = None
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        self._in_memory = 0
        self._lengths: list[np.ndarray] = []
        self.documents = 0
        self.frequencies = np.zeros(0, np.int64)

    @property
    def lengths(self) -> np.ndarray:
        return np.concatenate(self._lengths) if self._lengths else np.zeros(0, np.int64)

    def add(self, tokens: Tokens) -> None:
        """Add the next documents."""
        documents = np.repeat(np.arange(self.documents, self.documents + len(tokens)), tokens.lengths)
        pairs = np.sort((tokens.ids.astype(np.int64) << DOCUMENT_BITS) | documents)
        starts = np.flatnonzero(np.concatenate([[True], pairs[1:] != pairs[:-1]])) if len(pairs) else np.zeros(0, int)
        counts = np.diff(np.append(starts, len(pairs))).astype(np.int32)
        pairs = pairs[starts]
        self.documents += len(tokens)
        self._lengths.append(tokens.lengths.astype(np.int64))
        seen = np.bincount(pairs >> DOCUMENT_BITS)
        if len(seen) > len(self.frequencies):
            self.frequencies = np.concatenate([self.frequencies, np.zeros(len(seen) - len(self.frequencies), np.int64)])
        self.frequencies[: len(seen)] += seen
        self._parts.append((pairs, counts))
        self._in_memory += len(pairs)
        if self._in_memory > MEMORY_POSTINGS:
            self._spill()

    def _spill(self) -> None:
        """Merge what is in memory into one part on disk, so that there are few of them to read at the end."""
        if self._files is None:
            self._files = tempfile.TemporaryDirectory(prefix=".postings-", dir=self._folder)
        resident = [part for part in self._parts if not isinstance(part[0], np.memmap)]
        kept = [part for part in self._parts if isinstance(part[0], np.memmap)]
        pairs = np.concatenate([part[0] for part in resident])
        order = np.argsort(pairs)  # all different, so that any sort will do
        names = [Path(self._files.name) / f"{what}-{len(kept)}.npy" for what in ("pairs", "counts")]
        np.save(names[0], pairs[order])
        np.save(names[1], np.concatenate([part[1] for part in resident])[order])
        mapped = tuple(np.load(name, mmap_mode="r") for name in names)
        self._parts, self._in_memory = [*kept, mapped], 0

    def blocks(self) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        """(first term, term after the last, documents int32, counts int32) for consecutive ranges of terms.

        Within a block postings are sorted by term, then by document.
        """
        ends = np.cumsum(self.frequencies)
        first = 0
        while first < len(ends):
            before = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + BLOCK_POSTINGS, side="right")))
            yield first, last, *self._block(first, last)
            first = last

    def _block(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        limits = np.array([first, last], np.int64) << DOCUMENT_BITS
        slices = [(part, *np.searchsorted(part[0], limits)) for part in self._parts]
        pairs = np.concatenate([part[0][start:end] for part, start, end in slices])
        counts = np.concatenate([part[1][start:end] for part, start, end in slices])
        if len(slices) > 1:
            order = np.argsort(pairs, kind="stable")  # a merge of sorted runs
            pairs, counts = pairs[order], counts[order]
        return (pairs & ((1 << DOCUMENT_BITS) - 1)).astype(np.int32), counts

    def close(self) -> None:
        """Forget everything and delete the temporary files."""
        self._parts = []
        if self._files is not None:
            self._files.cleanup()
            self._files = None
