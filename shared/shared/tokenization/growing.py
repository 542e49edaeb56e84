"""A token file while it is written: appended to in order, and able to go on after a SIGKILL as if nothing had happened.

What is on disk counts up to the last entry in progress.json, which is replaced after everything before it is safely
written (fsync); a run that goes on cuts the files back to it. The running CRC-32 of the ids is a number in that entry,
so nothing has to be read again. The folder is renamed into place when it is whole.
"""

import fcntl
import json
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from shared import InputError
from shared.results import write_atomic
from shared.tokenization.token_file import (
    DOCUMENTS,
    HEADER,
    METADATA,
    TOKENS,
    file_record,
    partial_folder,
    read_header,
    write_header,
)

LENGTHS, ROWS, PROGRESS, LOCK = "lengths.bin", "metadata.jsonl", "progress.json", "lock"
CHECKPOINT_SECONDS = 5.0
ROWS_PER_BATCH = 10_000
READ_BYTES = 2**20


@dataclass
class Piece:
    """What a worker made of a unit.

    ids bytes of the token type; lengths int64 (documents,) as bytes; metadata JSON lines, one per document, or none;
    largest_id -1 where there are no ids; letters of text that the documents had before encoding.
    """

    ids: bytes
    lengths: bytes
    metadata: bytes
    largest_id: int
    letters: int


@dataclass
class Progress:
    """How far a token file has come: units done, what they amount to, and the checksums so far."""

    fingerprint: str
    units: int = 0
    tokens_bytes: int = 0
    documents: int = 0
    metadata_bytes: int = 0
    largest_id: int = -1
    letters: int = 0
    crc32: int = 0
    source_crc32: int = 0


class GrowingTokenFile:
    """Use as a context; `progress.units` says which unit comes next.

    Raises:
        InputError: another process is writing there, or what is there was made of something else.
    """

    def __init__(self, path: Path, fingerprint: str, dtype: np.dtype, columns: Sequence[str]):
        self.path, self.folder, self.dtype, self.columns = path, partial_folder(path), dtype, tuple(columns)
        self.progress = Progress(fingerprint)
        self.checkpoint_at = 0.0
        self.files: dict[str, BinaryIO] = {}

    def __enter__(self) -> "GrowingTokenFile":
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = (self.folder / LOCK).open("wb")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another process is making {self.path}: wait for it, or choose another place") from None
        self._go_on()
        sizes = {
            TOKENS: self.progress.tokens_bytes,
            LENGTHS: self.progress.documents * 8,
            ROWS: self.progress.metadata_bytes,
        }
        if self.whole:
            return self
        for name, size in sizes.items():
            file = self.files[name] = (self.folder / name).open("ab")
            if file.tell() < size:
                raise InputError(f"{self.folder / name} is shorter than it was: delete {self.folder} and begin anew")
            file.truncate(size)
        return self

    def __exit__(self, *_) -> None:
        for file in self.files.values():
            file.close()
        self.lock.close()

    @property
    def whole(self) -> bool:
        """Whether an earlier run wrote everything and was ended before the renaming."""
        return (self.folder / HEADER).is_file()

    def append(self, piece: Piece, source_crc32: int) -> None:
        """Add the next unit."""
        self.files[TOKENS].write(piece.ids)
        self.files[LENGTHS].write(piece.lengths)
        self.files[ROWS].write(piece.metadata)
        progress = self.progress
        progress.units += 1
        progress.tokens_bytes += len(piece.ids)
        progress.documents += len(piece.lengths) // 8
        progress.metadata_bytes += len(piece.metadata)
        progress.largest_id = max(progress.largest_id, piece.largest_id)
        progress.letters += piece.letters
        progress.crc32 = zlib.crc32(piece.ids, progress.crc32)
        progress.source_crc32 = source_crc32
        if time.monotonic() >= self.checkpoint_at:
            self.checkpoint()

    def checkpoint(self) -> None:
        """From here a run that is killed goes on."""
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        write_atomic(self.folder / PROGRESS, json.dumps(asdict(self.progress)))
        self.checkpoint_at = time.monotonic() + CHECKPOINT_SECONDS

    def discard(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self.folder)

    def finish(self, header: dict[str, Any]) -> None:
        """Write index, metadata and header, and put the folder in its place."""
        if not self.whole:
            self.checkpoint()
            progress = self.progress
            _write_documents(self.folder / LENGTHS, self.folder / DOCUMENTS, progress.documents)
            files = {TOKENS: file_record(self.folder / TOKENS, progress.crc32)}
            files[DOCUMENTS] = file_record(self.folder / DOCUMENTS)
            if self.columns:
                _write_metadata(self.folder / ROWS, self.folder / METADATA, self.columns)
                files[METADATA] = file_record(self.folder / METADATA)
            counts = {
                "dtype": self.dtype.name,
                "tokens": progress.tokens_bytes // self.dtype.itemsize,
                "documents": progress.documents,
                "largest_id": progress.largest_id,
            }
            write_header(self.folder, {**counts, **header, "fingerprint": progress.fingerprint, "files": files})
        # What a killed process was about to rename over progress.json is not part of the file either.
        for path in (*(self.folder / name for name in (LENGTHS, ROWS, PROGRESS, LOCK)), *self.folder.glob(".*.tmp")):
            path.unlink(missing_ok=True)
        self.folder.rename(self.path)

    def _go_on(self) -> None:
        if self.whole:
            known = read_header(self.folder)["fingerprint"]
        elif (self.folder / PROGRESS).is_file():
            content = json.loads((self.folder / PROGRESS).read_text("utf-8"))
            known, found = content["fingerprint"], Progress(**content)
            if known == self.progress.fingerprint:
                self.progress = found
        else:
            return
        if known != self.progress.fingerprint:
            raise InputError(
                f"{self.folder} holds the beginning of a token file of other documents, another tokenizer or other "
                f"settings. Delete it, or choose another place than {self.path}."
            )


def _write_documents(lengths: Path, out: Path, documents: int) -> None:
    """documents.npy from the lengths, a part at a time."""
    with out.open("wb") as file, lengths.open("rb") as source:
        np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (documents + 1,)})
        end = np.int64(0)
        file.write(end.tobytes())
        while block := source.read(READ_BYTES):
            ends = np.cumsum(np.frombuffer(block, "<i8")) + end
            file.write(ends.tobytes())
            end = ends[-1]
        _sync(file)


def _write_metadata(rows: Path, out: Path, columns: tuple[str, ...]) -> None:
    """metadata.arrow from JSON lines: one pass to see which types there are, one to write."""
    import pyarrow

    kinds: dict[str, set[type]] = {column: set() for column in columns}
    for batch in _row_batches(rows):
        for column in columns:
            kinds[column].update(type(row[column]) for row in batch)
    schema = pyarrow.schema([(column, _arrow_type(kinds[column])) for column in columns])
    with out.open("wb") as file:
        with pyarrow.ipc.new_stream(file, schema) as writer:
            for batch in _row_batches(rows):
                arrays = [
                    pyarrow.array([_as(row[field.name], field.type) for row in batch], field.type) for field in schema
                ]
                writer.write_batch(pyarrow.record_batch(arrays, schema=schema))
        _sync(file)


def _row_batches(rows: Path) -> Iterator[list[dict[str, Any]]]:
    with rows.open("rb") as file:
        batch = []
        for line in file:
            batch.append(json.loads(line))
            if len(batch) == ROWS_PER_BATCH:
                yield batch
                batch = []
        if batch:
            yield batch


def _arrow_type(kinds: set[type]):
    """int, float, bool and str are kept; what is mixed or nested becomes JSON text."""
    import pyarrow

    kinds = kinds - {type(None)}
    if kinds in ({int}, {bool}):
        return pyarrow.int64() if kinds == {int} else pyarrow.bool_()
    return pyarrow.float64() if kinds and kinds <= {int, float} else pyarrow.string()


def _as(value: Any, wanted: Any) -> Any:
    if value is None or not str(wanted).startswith("string") or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
