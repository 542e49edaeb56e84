"""Records of a file or folder, one at a time, whatever the format: parquet, JSON (a list), JSON lines.

Every record comes with where it is ("corpus.jsonl, line 12"), so that an error about a field can say so.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared import InputError

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".json")
ROWS_PER_BATCH = 256  # a record of corpus_s2orc can be a megabyte

Record = dict[str, Any]


def iter_records(path: str | Path) -> Iterator[tuple[str, Record]]:
    """(where, record) of every record; a folder's files are read in the order of their names.

    Raises InputError: no such path, no readable file, broken content, or a record that is not an object.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"data: {path} does not exist")
    for file in data_files(path):
        if file.suffix == ".parquet":
            yield from _parquet(file)
        elif file.suffix == ".json":
            yield from _json(file)
        else:
            yield from _json_lines(file)


def data_files(path: Path) -> list[Path]:
    """The file itself, or a folder's data files by name. Raises InputError where there is none."""
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise InputError(f"data: {path} is none of {', '.join(SUFFIXES)}")
        return [path]
    found = sorted(file for file in path.iterdir() if file.is_file() and file.name.endswith(SUFFIXES))
    if not found:
        raise InputError(f"data: {path} holds no file that ends in {', '.join(SUFFIXES)}")
    return found


def _parquet(path: Path) -> Iterator[tuple[str, Record]]:
    import pyarrow
    from pyarrow import parquet

    try:
        row = 0
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS_PER_BATCH):
                for record in batch.to_pylist():
                    yield f"{path.name}, row {row}", record
                    row += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"data: {path} cannot be read as parquet ({error})") from None


def _json(path: Path) -> Iterator[tuple[str, Record]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"data: {path} is not UTF-8 ({error.reason} at byte {error.start})") from None
    except json.JSONDecodeError as error:
        hint = "; if it holds one record per line, call it .jsonl" if error.msg == "Extra data" else ""
        raise InputError(f"data: {path} is not JSON ({error.msg}, line {error.lineno}){hint}") from None
    if not isinstance(content, list):
        raise InputError(f"data: {path} must hold a list of records")
    for i, record in enumerate(content):
        yield _checked(record, f"{path.name}, record {i}")


def _json_lines(path: Path) -> Iterator[tuple[str, Record]]:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.isspace():
                continue
            where = f"{path.name}, line {number}"
            try:
                record = json.loads(line)
            except UnicodeDecodeError as error:
                raise InputError(f"{where} is not UTF-8 ({error.reason})") from None
            except json.JSONDecodeError as error:
                raise InputError(f"{where} is not JSON ({error.msg}, column {error.colno})") from None
            yield _checked(record, where)


def _checked(record: Any, where: str) -> tuple[str, Record]:
    if not isinstance(record, dict):
        raise InputError(f"{where}: a record must be an object with named fields, not {type(record).__name__}")
    return where, record
