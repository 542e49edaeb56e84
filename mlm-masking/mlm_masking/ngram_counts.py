"""Counting the word n-grams of a corpus that does not fit in memory: hashes, sorted runs on disk, one merge.

    text files -> words.u64 (a hash per word, 0 at the end of a line) -> runs of (n-gram hash, count) -> the frequent
    ones

Memory is bounded by a budget whatever the corpus; disk takes 8 bytes per word, and 12 per distinct n-gram of a run
while one length is counted. Every stage goes on where it was killed: the word file is cut back to the last recorded
position, and a run or a table either is there, whole, or is made again.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mlm_masking.ngrams import WORD, ngram_hashes, word_hashes
from shared import InputError
from shared.results import write_atomic

log = logging.getLogger(__name__)

TEXT_BYTES = 2**21  # of text hashed between two recorded positions
KNOWN_WORDS = 2**20  # the most words whose hash is remembered
# Peak bytes per word of a chunk being counted: hashes, their sorted copy, flags and counts.
BYTES_PER_COUNTED = 48
BYTES_PER_MERGED = 64


class WordHashes:
    """Hashes of words, remembered for the frequent ones (all, until there are too many)."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def of_lines(self, lines: list[str]) -> np.ndarray:
        """`(n,)` uint64: the words of each line in lower case, and 0 after each line that has any."""
        parts: list[str | None] = []
        for line in lines:
            if found := WORD.findall(line):
                parts += [word.lower() for word in found]
                parts.append(None)
        new = [word for word in set(parts) if word is not None and word not in self._known]
        if len(self._known) > KNOWN_WORDS:
            self._known.clear()
            new = [word for word in set(parts) if word is not None]
        self._known.update(zip(new, word_hashes(new).tolist(), strict=True))
        return np.array([0 if word is None else self._known[word] for word in parts], dtype=np.uint64)


def write_words(files: list[Path], folder: Path) -> np.ndarray:
    """Hash every word of `files` (UTF-8, a line is a unit of text) into `folder`/words.u64; returns it memory-mapped.

    Raises:
        InputError: no word in any file, a file that is not UTF-8, or a folder that holds another corpus's words.
    """
    target, record = folder / "words.u64", folder / "words.json"
    corpus = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    state = fresh = {"corpus": corpus, "file": 0, "offset": 0, "words": 0}
    if record.is_file():
        state = json.loads(record.read_text())
        if state["corpus"] != corpus:
            raise InputError(f"{folder} was begun with other text; delete it, or give another work_dir")
        if not target.is_file() or target.stat().st_size < 8 * state["words"]:
            state = fresh
    hashes = WordHashes()
    with target.open("ab") as out:
        out.truncate(8 * state["words"])
        while state["file"] < len(files):
            lines, offset = read_lines(files[state["file"]], state["offset"])
            found = hashes.of_lines(lines)
            out.write(found.tobytes())
            out.flush()
            state["words"] += len(found)
            state["offset"] = offset
            if not lines:
                state["file"], state["offset"] = state["file"] + 1, 0
            write_atomic(record, json.dumps(state))
    if not state["words"]:
        raise InputError(f"no word in {', '.join(map(str, files[:3]))}: give files of text")
    return np.memmap(target, np.uint64, mode="r")


def read_lines(path: Path, offset: int) -> tuple[list[str], int]:
    """About TEXT_BYTES of whole lines from byte `offset` on, and where they end; no lines at the end of the file."""
    with path.open("rb") as stream:
        stream.seek(offset)
        raw = stream.readlines(TEXT_BYTES)
    try:
        return b"".join(raw).decode("utf-8").splitlines(), offset + sum(map(len, raw))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {offset + error.start}): convert it first") from None


def chunks(words: np.ndarray, length: int, size: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(position, word hashes, n-gram hashes) of stretches of the corpus; every n-gram is in exactly one."""
    for start in range(0, len(words) - length + 1, size):
        part = np.array(words[start : start + size + length - 1])
        yield start, part, ngram_hashes(part, length)


def inside_lines(part: np.ndarray, length: int) -> np.ndarray:
    """Which n-grams of these words cross no end of line."""
    ends = np.concatenate([[0], np.cumsum(part == 0)])
    return ends[length:] == ends[: len(ends) - length]


def count_ngrams(words: np.ndarray, length: int, folder: Path, min_count: int, memory: int) -> "Counts":
    """The n-grams of `length` words that occur more than `min_count` times.

    Args:
        memory: bytes that may be used.
    """
    table, chunk = folder / f"counts-{length}-over-{min_count}.npz", max(1024, memory // BYTES_PER_COUNTED)
    if not table.is_file():
        runs = []
        for number, (_, part, hashes) in enumerate(chunks(words, length, chunk)):
            runs.append(folder / f"run-{length}-of-{chunk}-{number}.npy")
            if not runs[-1].is_file():
                found, counts = np.unique(hashes[inside_lines(part, length)], return_counts=True)
                _save(runs[-1], np.stack([found, counts.astype(np.uint64)]))
        merged = list(_merge(runs, min_count, memory))
        hashes, counts, totals = (np.concatenate(each) for each in zip(*merged, strict=True))
        _save(table, hashes=hashes, counts=counts, total=totals.sum())
        for run in runs:
            run.unlink()
    with np.load(table, allow_pickle=False) as stored:
        return Counts(stored["hashes"], stored["counts"], int(stored["total"]))


def _merge(runs: list[Path], min_count: int, memory: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Sum the runs' counts, one range of hashes after another, so that a range of all runs fits in memory."""
    opened = [np.load(run, mmap_mode="r", allow_pickle=False) for run in runs]
    entries = sum(run.shape[1] for run in opened)
    ranges = max(1, -(-entries * BYTES_PER_MERGED // memory))
    edges = [2**64 * part // ranges for part in range(ranges)]
    places = [[*np.searchsorted(run[0], np.array(edges, np.uint64)), run.shape[1]] for run in opened]
    for part in range(ranges):
        both = np.concatenate(
            [run[:, place[part] : place[part + 1]] for run, place in zip(opened, places, strict=True)], axis=1
        )
        order = np.argsort(both[0], kind="stable")
        hashes, counts = both[0][order], both[1][order]
        first = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]])) if len(hashes) else order
        sums = np.add.reduceat(counts, first).astype(np.int64) if len(first) else np.empty(0, np.int64)
        often = sums > min_count
        yield hashes[first][often], sums[often], np.array([sums.sum()])


def _save(path: Path, array: np.ndarray | None = None, **arrays: np.ndarray) -> None:
    """np.save or np.savez to a temporary file, then renamed."""
    partial = path.with_name(f"partial-{path.name}")
    if array is None:
        np.savez(partial, **arrays)
    else:
        np.save(partial, array)
    partial.replace(path)


def remove_intermediate(folder: Path) -> None:
    """Delete what this module wrote into `folder`, and the folder if nothing else is in it."""
    for pattern in ("words.u64", "words.json", "counts-*.npz", "run-*.npy", "partial-*"):
        for path in folder.glob(pattern):
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


class Counts:
    """Frequent n-grams of one length. hashes ascending, counts alike; total: n-grams in the corpus, rare ones too."""

    def __init__(self, hashes: np.ndarray, counts: np.ndarray, total: int):
        self.hashes, self.counts, self.total = hashes, counts, total

    def __len__(self) -> int:
        return len(self.hashes)

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """Where each n-gram is in the table, -1 where it is not."""
        if not len(self):
            return np.full(len(hashes), -1)
        place = np.searchsorted(self.hashes, hashes).clip(max=len(self) - 1)
        return np.where(self.hashes[place] == hashes, place, -1)

    def log_probability(self, hashes: np.ndarray) -> np.ndarray:
        """Natural logarithm of each n-gram's share of the corpus; all must be frequent."""
        return np.log(self.counts[self.find(hashes)] / self.total)
