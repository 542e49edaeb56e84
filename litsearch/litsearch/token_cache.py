"""Texts that were tokenized before, on disk: term ids by the text's hash and the tokenizer's version.

A cache folder holds one folder per tokenizer version, and in it segments, each complete in itself: hashes of texts
(sorted, for a binary search), the texts' term ids one after the other, and the terms those ids stand for. A segment is
written under another name and renamed, so a kill leaves the cache as it was, and two processes may add to it at once.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from litsearch import storage
from litsearch.text import LocalTokens, Numbering, Tokens
from shared import InputError

log = logging.getLogger(__name__)

SEGMENT_TOKENS = 4_000_000  # written when so many are waiting


def text_hashes(texts: Sequence[str]) -> np.ndarray:
    """(n,) array of 16-byte BLAKE2b digests."""
    digests = [hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts]
    return np.frombuffer(b"".join(digests), dtype=np.dtype((np.void, 16))) if digests else np.empty(0, "V16")


class Segment:
    """One folder of the cache, memory-mapped."""

    def __init__(self, folder: Path):
        storage.read_metadata(folder)
        self.hashes = storage.open_array(folder, "hashes").view("S16").ravel()
        self.starts = storage.open_array(folder, "starts")
        self.ids = storage.open_array(folder, "ids")
        self.folder = folder
        self._terms: list[str] | None = None

    def rows(self, hashes: np.ndarray) -> np.ndarray:
        """Row of each hash, -1 where it is not here."""
        wanted = hashes.view("S16").ravel()
        rows = np.searchsorted(self.hashes, wanted).clip(max=len(self.hashes) - 1)
        return np.where(self.hashes[rows] == wanted, rows, -1)

    def terms(self, row: int) -> list[str]:
        if self._terms is None:
            self._terms = (self.folder / "terms.txt").read_text(encoding="utf-8", errors="surrogatepass").split("\n")
        ids = self.ids[self.starts[row] : self.starts[row + 1]]
        return list(map(self._terms.__getitem__, ids.tolist()))


@dataclass(frozen=True)
class Known:
    """What the cache has of a batch: (segment, row) per text, None where it is missing."""

    hashes: np.ndarray
    places: list[tuple[Segment, int] | None]

    @property
    def missing(self) -> list[int]:
        return [i for i, place in enumerate(self.places) if place is None]


class TokenCache:
    """A cache folder, opened. New texts wait in memory until there are enough of them or the cache is closed."""

    def __init__(self, folder: Path, version: str):
        self.folder = folder.expanduser() / version
        self.segments: list[Segment] = []
        for path in sorted(self.folder.glob("segment-*")):
            try:
                self.segments.append(Segment(path))
            except InputError as error:
                log.warning("token cache: %s is left out (%s)", path, error)
        self._waiting: list[tuple[np.ndarray, LocalTokens]] = []

    def __enter__(self) -> TokenCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def look_up(self, texts: Sequence[str]) -> Known:
        hashes = text_hashes(texts)
        places: list[tuple[Segment, int] | None] = [None] * len(texts)
        for segment in self.segments:
            for i, row in enumerate(segment.rows(hashes).tolist()):
                if row >= 0:
                    places[i] = (segment, row)
        return Known(hashes, places)

    def merge(self, known: Known, fresh: Callable[[], LocalTokens]) -> LocalTokens:
        """All texts of a batch in order; what was missing is remembered."""
        missing = known.missing
        made = fresh() if missing else None
        if made is not None:
            self._remember(known.hashes[missing], made)
            if len(missing) == len(known.places):
                return made
        numbering, per_text = Numbering(), []
        new = iter(_split(made)) if made is not None else iter(())
        for place in known.places:
            found = next(new) if place is None else place[0].terms(place[1])
            per_text.append(list(map(numbering.__getitem__, found)))
        return _pack(numbering, per_text)

    def _remember(self, hashes: np.ndarray, made: LocalTokens) -> None:
        self._waiting.append((hashes, made))
        if sum(len(waiting.tokens.ids) for _, waiting in self._waiting) >= SEGMENT_TOKENS:
            self.flush()

    def flush(self) -> None:
        """Write what waits as one segment."""
        if not self._waiting:
            return
        hashes = np.concatenate([hashes for hashes, _ in self._waiting])
        numbering = Numbering()
        parts = [made.numbered(numbering) for _, made in self._waiting]
        self._waiting = []
        ids, lengths = (np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "lengths"))
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        _, kept = np.unique(hashes.view("S16").ravel(), return_index=True)  # sorted, and each text once
        pieces = [ids[starts[i] : starts[i + 1]] for i in kept]
        folder = self.folder / f"segment-{hashlib.sha256(hashes[kept].tobytes()).hexdigest()[:24]}"
        with storage.new_folder(folder, {"texts": len(kept), "terms": len(numbering)}) as making:
            np.save(making / "hashes.npy", hashes[kept].view(np.uint8).reshape(-1, 16))
            np.save(making / "starts.npy", np.concatenate([[0], np.cumsum(lengths[kept], dtype=np.int64)]))
            np.save(making / "ids.npy", np.concatenate(pieces) if pieces else ids[:0])
            (making / "terms.txt").write_bytes("\n".join(numbering).encode("utf-8", "surrogatepass"))
        self.segments.append(Segment(folder))


def _split(made: LocalTokens) -> list[list[str]]:
    ends = np.cumsum(made.tokens.lengths).tolist()
    words = list(map(made.terms.__getitem__, made.tokens.ids.tolist()))
    return [words[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _pack(numbering: Numbering, per_text: list[list[int]]) -> LocalTokens:
    ids = np.fromiter(chain.from_iterable(per_text), np.int32, sum(map(len, per_text)))
    return LocalTokens(list(numbering), Tokens(ids, np.array(list(map(len, per_text)), np.int32)))
