"""Documents to a token file, on several processes.

    tokenize_documents(json_lines("wiki.jsonl", metadata=("url",)), tokenizer, "wiki.tokens", before="bos", processes=8)

Workers turn units (`shared.tokenization.documents`) into ids, this process writes them in the order of the source. So
the file is the same, byte for byte, for any number of processes and however often the run was killed; and memory is a
few units for each process, whatever the size of the corpus.
"""

import collections
import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from shared import InputError
from shared.tokenization.documents import Source, Unit
from shared.tokenization.encoding import Encoder, TokenizerFacts, backend, tokenizer_facts
from shared.tokenization.growing import GrowingTokenFile, Piece
from shared.tokenization.token_file import TokenFile, read_header, token_dtype

log = logging.getLogger(__name__)

THREADS_SWITCH = "TOKENIZERS_PARALLELISM"
UNITS_ALONE = 4  # are done here before other processes are started, which takes longer than these
UNITS_PER_PROCESS = 3  # in flight: one being worked on, one waiting, one done and not yet written


@dataclass(frozen=True)
class Framing:
    """What is put around the ids of a text: before and after a document, or, `by_line`, before and after each line.

    With `by_line` a text is cut at line feeds and each line stripped; an empty line is `before` and `after` alone.
    """

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    by_line: bool = False


def tokenize_documents(
    documents: Source,
    tokenizer: Any,
    path: str | Path,
    *,
    before: str | None = None,
    after: str | None = "eos",
    by_line: bool = False,
    processes: int | None = None,
    progress: bool = False,
) -> TokenFile:
    """Make the token file `path`, or go on making it, or open it if it is there already.

    Args:
        documents: see `shared.tokenization.documents`.
        tokenizer: a fast tokenizer of transformers, or a `tokenizers.Tokenizer`.
        before, after: the roles ("bos", "eos", ...) of the special tokens put around each document; None for none.
        by_line: put them around each line of a document instead.
        processes: how many tokenize; default: one for each core this process may use.
    Raises:
        InputError: documents that cannot be read; no text at all; a role the tokenizer does not have; a token file that
            was made of something else in that place.
    """
    path, facts = Path(path), tokenizer_facts(tokenizer)
    framing = Framing(_special(facts, before, "before"), _special(facts, after, "after"), by_line)
    processes = len(os.sched_getaffinity(0)) if processes is None else processes
    if processes < 1:
        raise InputError(f"processes={processes}: give at least 1")
    settings = {"before": framing.before, "after": framing.after, "by_line": by_line}
    described = json.dumps([documents.identity, documents.columns, facts.sha256, settings], sort_keys=True)
    fingerprint = hashlib.sha256(described.encode("utf-8", "surrogatepass")).hexdigest()
    if path.exists():
        return _finished(path, fingerprint)
    dtype = token_dtype(facts.vocab_size)
    with GrowingTokenFile(path, fingerprint, dtype, documents.columns) as growing:
        if not growing.whole:
            units, crc = _units_left(documents, growing)
            work = Work(backend(tokenizer).to_str(), dtype.str, framing, documents.columns)
            with contextlib.closing(_pieces(units, crc, work, processes)) as pieces:
                _append(pieces, growing, progress)
        growing.finish({"tokenizer": facts.as_dict(), "settings": settings, "source": documents.identity})
    return TokenFile.open(path)


@dataclass(frozen=True)
class Work:
    """All that a worker needs to know, once."""

    tokenizer: str
    dtype: str
    framing: Framing
    columns: tuple[str, ...]


class Worker:
    """Units to pieces, in one process."""

    def __init__(self, work: Work):
        self.encoder, self.work = Encoder(work.tokenizer, np.dtype(work.dtype)), work
        self.before, self.after = (
            np.array(ids, work.dtype).tobytes() for ids in (work.framing.before, work.framing.after)
        )

    def __call__(self, unit: Unit) -> Piece:
        with _single_threaded():
            return self._piece(unit)

    def _piece(self, unit: Unit) -> Piece:
        batch = unit.read()
        texts, lines = batch.texts, None
        if self.work.framing.by_line:
            texts, lines = [], []
            for text in batch.texts:
                parts = text.split("\n")
                texts += map(str.strip, parts)
                lines.append(len(parts))
        ids, lengths = self._framed(self.encoder(texts))
        if lines is not None:
            bounds = np.cumsum([0, *lengths])
            lengths = np.diff(bounds[np.cumsum([0, *lines])])
        rows = "".join(json.dumps(row) + "\n" for row in batch.metadata or ()).encode()
        largest = int(np.frombuffer(ids, self.work.dtype).max()) if ids else -1
        return Piece(ids, lengths.astype("<i8").tobytes(), rows, largest, sum(map(len, texts)))

    def _framed(self, encoded: list[bytes]) -> tuple[bytes, np.ndarray]:
        before, after = self.before, self.after
        framed = [before + ids + after for ids in encoded] if before or after else encoded
        lengths = np.fromiter(map(len, framed), np.int64, len(framed)) // np.dtype(self.work.dtype).itemsize
        return b"".join(framed), lengths


def _units_left(documents: Source, growing: GrowingTokenFile) -> tuple[Iterator[Unit], int]:
    """The units that are still to be done, and the checksum of what the others held."""
    units, done, crc = documents.units(), growing.progress.units, 0
    for unit in itertools.islice(units, done):
        crc = unit.checksum(crc)
    if crc != growing.progress.source_crc32:
        raise InputError(
            f"the documents for {growing.path.name} are not what they were when it was begun: "
            f"delete {growing.folder} and begin anew"
        )
    if done:
        log.info("%s: going on after %d units", growing.path.name, done)
    return units, crc


def _append(pieces: Iterator[tuple[Piece, int]], growing: GrowingTokenFile, progress: bool) -> None:
    size = growing.dtype.itemsize
    with tqdm(unit="token", unit_scale=True, disable=not progress, desc=growing.path.name) as bar:
        bar.update(growing.progress.tokens_bytes // size)
        try:
            for piece, crc in pieces:
                growing.append(piece, crc)
                bar.update(len(piece.ids) // size)
            if not growing.progress.letters:
                name = growing.path.name
                raise InputError(f"nothing to tokenize: the documents for {name} are empty, or empty lines alone")
        except InputError:
            growing.discard()  # the input has to be changed, and then this is not its beginning
            raise


def _pieces(units: Iterator[Unit], crc: int, work: Work, processes: int) -> Iterator[tuple[Piece, int]]:
    """Pieces in the source's order, each with the checksum of all that was read up to it."""
    worker = Worker(work)
    for unit in units if processes == 1 else itertools.islice(units, UNITS_ALONE):
        crc = unit.checksum(crc)
        yield worker(unit), crc
    more = next(units, None)
    if more is not None:
        yield from _in_parallel(itertools.chain([more], units), work, processes, crc)


def _in_parallel(units: Iterator[Unit], work: Work, processes: int, crc: int) -> Iterator[tuple[Piece, int]]:
    # Spawned, not forked: the caller may have threads running, which a fork would freeze in any state.
    pool = concurrent.futures.ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(work,)
    )
    waiting: collections.deque[tuple[concurrent.futures.Future, int]] = collections.deque()
    try:
        for unit in units:
            crc = unit.checksum(crc)
            waiting.append((pool.submit(_work, unit), crc))
            if len(waiting) >= UNITS_PER_PROCESS * processes:
                future, seen = waiting.popleft()
                yield future.result(), seen
        while waiting:
            future, seen = waiting.popleft()
            yield future.result(), seen
    except concurrent.futures.process.BrokenProcessPool as error:
        raise RuntimeError(
            "a tokenization worker died (memory?); a script that tokenizes needs `if __name__ == '__main__':`"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker: Worker | None = None


def _start_worker(work: Work) -> None:
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = Worker(work)


def _work(unit: Unit) -> Piece:
    return _worker(unit)


@contextlib.contextmanager
def _single_threaded() -> Iterator[None]:
    """Keep the library's threads out: processes do the work, and a process that has used them must not fork later."""
    before = os.environ.get(THREADS_SWITCH)
    os.environ[THREADS_SWITCH] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[THREADS_SWITCH]
        else:
            os.environ[THREADS_SWITCH] = before


def _end_with_parent() -> None:
    """A worker waits for work for ever; when its parent was killed nobody tells it that there will be none."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _special(facts: TokenizerFacts, role: str | None, name: str) -> tuple[int, ...]:
    if role is None:
        return ()
    if role not in facts.special_ids:
        has = ", ".join(facts.special_ids) or "none (a plain tokenizers.Tokenizer does not name them)"
        raise InputError(f"{name}={role!r}: no such special token; the tokenizer has: {has}")
    return (facts.special_ids[role],)


def _finished(path: Path, fingerprint: str) -> TokenFile:
    if read_header(path).get("fingerprint") != fingerprint:
        raise InputError(
            f"{path} is there already, made of other documents, with another tokenizer or other settings. "
            "Delete it, or choose another place."
        )
    return TokenFile.open(path)
