"""Where documents come from: text files, JSON lines, parquet, data sets of the hub, the offline corpus, any iterable.

A source is cut into units of about a megabyte of text, always at the same places, so that any number of processes makes
the same tokens and an interrupted run knows where to go on. Text and JSON lines are read by the workers themselves (a
unit is a range of bytes); what can only be read from its beginning (parquet, gzip, iterables) is read by the parent,
some 100 MB a second, and sent to them. Either way only a few units are in memory, or the longest document if that is
longer than they are.
"""

import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from shared import InputError

UNIT_BYTES = 2**20
EDGE_BYTES = 2**16
Paths = str | Path | Sequence[str | Path]
JSON_ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


@dataclass
class Batch:
    """Some documents: their texts and, where the source has metadata, a dict for each."""

    texts: list[str]
    metadata: list[dict[str, Any]] | None = None


class Unit(Protocol):
    """A piece of a source that one worker turns into tokens."""

    def read(self) -> Batch:
        """The documents in it."""

    def checksum(self, crc: int) -> int:
        """`crc` carried on over the content, or unchanged where `Source.identity` already vouches for it."""


@dataclass(frozen=True)
class Source:
    """Documents in a fixed order.

    identity   what decides their content, as JSON can hold it: sources that have it equal give the same documents.
    units      begins with the first unit each time it is called.
    columns    names of the metadata that every document has.
    """

    identity: dict[str, Any]
    units: Callable[[], Iterator[Unit]]
    columns: tuple[str, ...] = ()

    def map(self, change: Callable[[str], str]) -> "Source":
        """The same documents with each text changed by a function of a module (workers import it by its name)."""
        identity = {"map": f"{change.__module__}.{change.__qualname__}", "of": self.identity}
        return replace(self, identity=identity, units=lambda: (Mapped(unit, change) for unit in self.units()))

    def __add__(self, other: "Source") -> "Source":
        """These documents, then those of `other`, which must have the same metadata."""
        if self.columns != other.columns:
            raise InputError(f"sources with different metadata, {self.columns} and {other.columns}, make no one source")
        identity = {"first": self.identity, "then": other.identity}
        return Source(identity, lambda: itertools.chain(self.units(), other.units()), self.columns)


def text_files(paths: Paths, split: str = "line") -> Source:
    """UTF-8 text, plain or gzipped: each line is a document (`split="line"`), or each file is, its name as metadata."""
    files = existing_files(paths)
    if split not in ("line", "file"):
        raise InputError(f"split={split!r}: choose line or file")
    identity = {"text_files": [stamp(file) for file in files], "split": split}
    if split == "line":
        return Source(identity, lambda: _pieces(files, Lines()))
    rows = lambda: ({"text": _whole_file(file), "file": file.name} for file in files)  # noqa: E731
    return Source(identity, lambda: _sent(rows(), "text", ("file",), trusted=True), ("file",))


def json_lines(paths: Paths, text: str = "text", metadata: Sequence[str] = ()) -> Source:
    """One JSON object per line, plain or gzipped: `text` names the field of the text, `metadata` those to be kept."""
    files, columns = existing_files(paths), tuple(metadata)
    identity = {"json_lines": [stamp(file) for file in files], "text": text, "metadata": list(columns)}
    return Source(identity, lambda: _pieces(files, JsonLines(text, columns)), columns)


def parquet(paths: Paths, text: str = "text", metadata: Sequence[str] = ()) -> Source:
    """Parquet files: `text` names the column of the text, `metadata` those to be kept."""
    import pyarrow.parquet

    files, columns = existing_files(paths), tuple(metadata)
    for file in files:
        try:
            found = pyarrow.parquet.read_schema(file).names
        except pyarrow.ArrowInvalid as error:
            raise InputError(f"{file} is no parquet file: {error}") from None
        _require_columns(found, (text, *columns), str(file))

    def rows() -> Iterator[dict[str, Any]]:
        for file in files:
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(256, columns=[text, *columns]):
                yield from batch.to_pylist()

    identity = {"parquet": [stamp(file) for file in files], "text": text, "metadata": list(columns)}
    return Source(identity, lambda: _sent(rows(), text, columns, trusted=True), columns)


def dataset(data: Any, text: str = "text", metadata: Sequence[str] = ()) -> Source:
    """A `datasets.Dataset`, or an `IterableDataset` that begins anew each time it is iterated."""
    columns = tuple(metadata)
    _require_columns(data.column_names or (text, *columns), (text, *columns), "the data set")
    if hasattr(data, "__len__"):
        what = {"dataset": data._fingerprint, "rows": len(data)}
        data = data.with_format(None)
    else:
        what = {"iterable_dataset": [str(data.info.dataset_name), str(data.info.config_name), str(data.split)]}
    data = data.select_columns([text, *columns])
    identity = {**what, "text": text, "metadata": list(columns)}
    return Source(identity, lambda: _sent(data, text, columns, trusted="dataset" in what), columns)


def hub_files(paper: str, name: str, text: str = "text", metadata: Sequence[str] = ()) -> Source:
    """A source named in the paper's sources.yaml: parquet, JSON lines or plain text, by the names of its files.

    Raises:
        InputError: it is nowhere (`shared.hub.NotAvailable`), or holds nothing of these kinds.
    """
    from shared import hub

    path = hub.locate(paper, name)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    files = [file for file in files if file.name != "MIRROR.json"]
    for endings, make in (((".parquet",), parquet), (JSON_ENDINGS, json_lines)):
        chosen = [file for file in files if file.name.endswith(endings)]
        if chosen:
            return make(chosen, text, metadata)
    chosen = [file for file in files if file.name.endswith((".txt", ".txt.gz"))]
    if not chosen:
        raise InputError(f"{paper}: source {name!r} at {path} has no parquet, JSON lines or text files")
    return text_files(chosen)


def offline_corpus(kinds: Sequence[str] | None = None, max_bytes: int | None = None) -> Source:
    """The offline corpus (`shared.corpus`): summary and body; title, origin (a URL), kind and package as metadata."""
    from shared import corpus

    kinds = tuple(kinds or corpus.DEFAULT_KINDS)
    columns = ("title", "origin", "kind", "package")

    def rows() -> Iterator[dict[str, Any]]:
        for document in corpus.documents(kinds, max_bytes=max_bytes):
            text = f"{document.summary}\n\n{document.text}" if document.summary else document.text
            yield {"text": text, **{column: getattr(document, column) for column in columns}}

    versions = json.dumps([(name, package.version) for name, package in corpus.installed().items()])
    identity = {"offline_corpus": list(kinds), "max_bytes": max_bytes, "packages": zlib.crc32(versions.encode())}
    return Source(identity, lambda: _sent(rows(), "text", columns), columns)


def iterable(
    documents: Callable[[], Iterable[str | dict[str, Any]]], name: str, text: str = "text", metadata: Sequence[str] = ()
) -> Source:
    """Any documents that a function gives, the same in the same order at each call: strings, or dicts with `text`.

    A resumed run reads anew what was done and refuses to go on where it is not what it was; a finished token file is
    known by `name` alone, so let the name change with the content.
    """
    columns = tuple(metadata)
    rows = lambda: ({text: item} if isinstance(item, str) else item for item in documents())  # noqa: E731
    identity = {"iterable": name, "text": text, "metadata": list(columns)}
    return Source(identity, lambda: _sent(rows(), text, columns), columns)


@dataclass(frozen=True)
class Lines:
    """A line is a document."""

    def __call__(self, lines: list[bytes], where: Callable[[int], str]) -> Batch:
        return Batch([_decode(line, where, number).rstrip("\r\n") for number, line in enumerate(lines)])


@dataclass(frozen=True)
class JsonLines:
    """A line is a JSON object with a document in it; empty lines are passed over."""

    text: str
    columns: tuple[str, ...]

    def __call__(self, lines: list[bytes], where: Callable[[int], str]) -> Batch:
        batch = Batch([], [] if self.columns else None)
        for number, line in enumerate(lines):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{where(number)}: not JSON ({error})") from None
            _add_row(batch, row, self.text, self.columns, lambda number=number: where(number))
        return batch


@dataclass(frozen=True)
class Range:
    """The lines of a file that begin in [start, stop)."""

    path: Path
    start: int
    stop: int
    parse: Lines | JsonLines

    def read(self) -> Batch:
        with self.path.open("rb") as file:
            if self.start:
                file.seek(self.start - 1)
                file.readline()  # the end of the line that began before
            offset = position = file.tell()
            lines = []
            while position < self.stop and (line := file.readline()):
                lines.append(line)
                position += len(line)
        return self.parse(lines, lambda number: f"{self.path}, byte {offset + sum(map(len, lines[:number]))}")

    def checksum(self, crc: int) -> int:
        return crc


@dataclass(frozen=True)
class SentLines:
    """Lines that the parent has read from a compressed file."""

    path: Path
    first: int
    lines: list[bytes]
    parse: Lines | JsonLines

    def read(self) -> Batch:
        return self.parse(self.lines, lambda number: f"{self.path}, line {self.first + number + 1}")

    def checksum(self, crc: int) -> int:
        return crc


@dataclass(frozen=True)
class Sent:
    """Documents that the parent has read; `trusted` where the source's identity vouches for their content."""

    batch: Batch
    trusted: bool

    def read(self) -> Batch:
        return self.batch

    def checksum(self, crc: int) -> int:
        for text in () if self.trusted else self.batch.texts:
            crc = zlib.crc32(text.encode("utf-8", "surrogatepass"), crc)
        return crc


@dataclass(frozen=True)
class Mapped:
    """A unit with its texts changed."""

    unit: Unit
    change: Callable[[str], str]

    def read(self) -> Batch:
        batch = self.unit.read()
        return Batch(list(map(self.change, batch.texts)), batch.metadata)

    def checksum(self, crc: int) -> int:
        return self.unit.checksum(crc)


def existing_files(paths: Paths) -> list[Path]:
    """The files given, one or several. Raises InputError for none, a missing one, or a folder."""
    files = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if not files:
        raise InputError("no files given: name at least one")
    for file in files:
        if not file.is_file():
            raise InputError(f"{file} {'is a folder: name the files in it' if file.is_dir() else 'does not exist'}")
    return files


def stamp(path: Path) -> list[Any]:
    """Name, size and the CRC-32 of both ends of a file: enough to see that it is another, at no cost for large ones."""
    size = path.stat().st_size
    with path.open("rb") as file:
        crc = zlib.crc32(file.read(EDGE_BYTES))
        file.seek(max(size - EDGE_BYTES, 0))
        crc = zlib.crc32(file.read(EDGE_BYTES), crc)
    return [path.name, size, crc]


def _pieces(files: Sequence[Path], parse: Lines | JsonLines) -> Iterator[Unit]:
    for file in files:
        if file.suffix != ".gz":
            size = file.stat().st_size
            for start in range(0, size, UNIT_BYTES):
                yield Range(file, start, min(start + UNIT_BYTES, size), parse)
            continue
        first = 0
        try:
            with gzip.open(file, "rb") as stream:
                while lines := stream.readlines(UNIT_BYTES):
                    yield SentLines(file, first, lines, parse)
                    first += len(lines)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{file} is no whole gzip file: {error}") from None


def _sent(rows: Iterable[dict[str, Any]], text: str, columns: tuple[str, ...], trusted: bool = False) -> Iterator[Sent]:
    batch, size = Batch([], [] if columns else None), 0
    for number, row in enumerate(rows):
        _add_row(batch, row, text, columns, lambda number=number: f"document {number}")
        size += len(batch.texts[-1])
        if size >= UNIT_BYTES:
            yield Sent(batch, trusted)
            batch, size = Batch([], [] if columns else None), 0
    if batch.texts:
        yield Sent(batch, trusted)


def _add_row(batch: Batch, row: Any, text: str, columns: tuple[str, ...], where: Callable[[], str]) -> None:
    if not isinstance(row, dict) or not isinstance(row.get(text), str):
        kind = f"field {text!r} is {type(row.get(text)).__name__}" if isinstance(row, dict) else type(row).__name__
        fields = f"; its fields: {', '.join(map(str, row))}" if isinstance(row, dict) else ""
        raise InputError(f"{where()}: needs a string in field {text!r}, but {kind}{fields}")
    batch.texts.append(row[text])
    if columns:
        batch.metadata.append({column: row.get(column) for column in columns})


def _decode(line: bytes, where: Callable[[int], str], number: int) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where(number)}: byte 0x{line[error.start]:02x} is not UTF-8. Convert the file, e.g. "
            "`iconv -f latin1 -t utf-8`."
        ) from None


def _whole_file(path: Path) -> str:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return _decode(content, lambda _: str(path), 0)


def _require_columns(found: Sequence[str], wanted: Sequence[str], where: str) -> None:
    for column in wanted:
        if column not in found:
            raise InputError(f"{where} has no column {column!r}; it has: {', '.join(found)}")
