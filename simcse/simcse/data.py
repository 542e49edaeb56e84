"""Training text: files of one, two or three columns, read strictly, every complaint naming file and line.

Column rule (that of the authors' release): the order of columns decides, not their names. One column: unsupervised, the
sentence is its own positive. Two: pairs. Three: pairs with a hard negative. File type by extension: `.txt` one sentence
per line, `.csv` with a header, `.tsv` (or "tsv" in the name) the same with tabs, `.json`/`.jsonl` one object per line.
A null or empty cell becomes one space, as in the release, so that an example keeps its number of sentences.

What differs from the release: blank lines are dropped with a count instead of becoming examples whose two views are
the empty sentence, and a file that is not what its name says is refused instead of being read as one odd column.
"""

import csv
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from shared import InputError

log = logging.getLogger(__name__)

EXTENSIONS = (".txt", ".csv", ".tsv", ".json", ".jsonl")
MAX_COLUMNS = 3
# Longer than any sensible column name, shorter than nearly every sentence.
HEADER_WORDS = 4


@dataclass(frozen=True)
class Examples:
    """Training examples as columns of text: `columns[s][i]` is sentence s of example i.

    `document[i]` numbers the document that example i stands in, in file order, for objectives that need neighbours;
    in a text file blank lines separate documents. `source` says in words where the text is from.
    """

    columns: tuple[list[str], ...]
    source: str
    document: np.ndarray | None = None
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.columns[0])

    def first_columns(self, count: int | None) -> "Examples":
        """Keep the first `count` columns (None = all). Raises InputError if there are fewer."""
        if count is None or count == len(self.columns):
            return self
        if count < 1 or count > len(self.columns):
            raise InputError(
                f"data.columns={count}, but {self.source} has {len(self.columns)} column(s). "
                f"Give 1 (unsupervised), 2 (pairs) or 3 (pairs with a hard negative), as far as the data goes."
            )
        return replace(self, columns=self.columns[:count])

    def head(self, count: int | None) -> "Examples":
        """The first `count` examples (None = all)."""
        if count is None or count >= len(self):
            return self
        if count < 1:
            raise InputError(f"data.max_examples={count}: give 1 or more, or null for all.")
        document = None if self.document is None else self.document[:count]
        return replace(self, columns=tuple(column[:count] for column in self.columns), document=document)


def read_examples(paths: Path | str | Sequence[Path | str]) -> Examples:
    """Read one training file, or several of the same columns after one another.

    Raises:
        InputError: a missing or empty file, another extension, no or more than three columns, a row of another length,
            no header, the wrong delimiter, bytes that are not UTF-8; with the line.
    """
    if isinstance(paths, Path | str):
        paths = [paths]
    parts = [_read_file(Path(path)) for path in paths]
    if not parts:
        raise InputError("no training file given: set data.path, or data.source to a named source.")
    widths = {len(part.columns) for part in parts}
    if len(widths) > 1:
        described = ", ".join(f"{part.source}: {len(part.columns)}" for part in parts)
        raise InputError(f"the training files have different numbers of columns ({described}). Use files of one kind.")
    if len(parts) == 1:
        return parts[0]
    documents = [part.document for part in parts]
    document = None
    if all(numbers is not None for numbers in documents):
        starts = np.cumsum([0] + [int(numbers[-1]) + 1 for numbers in documents[:-1]])
        document = np.concatenate([numbers + start for numbers, start in zip(documents, starts, strict=True)])
    columns = tuple([text for part in parts for text in part.columns[s]] for s in range(widths.pop()))
    source = " + ".join(part.source for part in parts)
    return Examples(columns, source, document, sum(part.dropped for part in parts))


def _read_file(path: Path) -> Examples:
    if not path.exists():
        raise InputError(f"training file {path} does not exist.")
    if not path.is_file():
        raise InputError(f"training file {path} is a folder. Name the file in it.")
    extension = path.suffix.lower()
    if extension not in EXTENSIONS:
        raise InputError(
            f"training file {path.name} has the extension {extension or '(none)'!r}. "
            f"Use one of {', '.join(EXTENSIONS)}."
        )
    text = _decode(path)
    if not text.strip():
        raise InputError(f"training file {path} is empty.")
    reader = {".txt": _read_lines, ".json": _read_json, ".jsonl": _read_json}.get(extension, _read_table)
    examples = reader(path, text)
    if examples.dropped:
        log.warning("%s: dropped %d blank line(s)", path.name, examples.dropped)
    if not len(examples):
        raise InputError(f"training file {path} has no examples below its header.")
    return examples


def _decode(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8. "
            f"Convert the file, e.g. `iconv -f latin1 -t utf-8`."
        ) from None


def _read_lines(path: Path, text: str) -> Examples:
    # Not str.splitlines: it also breaks at form feeds and U+2028, which stand inside sentences of Wikipedia.
    sentences, document, number, pending_break = [], [], 0, False
    lines = text.removesuffix("\n").split("\n")
    for line in lines:
        sentence = line.rstrip("\r").strip()
        if not sentence:
            pending_break = True
            continue
        if pending_break and sentences:
            number += 1
        pending_break = False
        sentences.append(sentence)
        document.append(number)
    return Examples((sentences,), path.name, np.array(document, dtype=np.int64), len(lines) - len(sentences))


def _delimiter(path: Path, header_line: str) -> str:
    named_tsv = path.suffix.lower() == ".tsv" or "tsv" in path.name
    # The release looks for "tsv" in the whole path; a folder's name decides here only if the header has tabs too.
    if named_tsv or ("tsv" in str(path.parent) and "\t" in header_line):
        return "\t"
    return ","


def _read_table(path: Path, text: str) -> Examples:
    delimiter = _delimiter(path, text.lstrip("\r\n").split("\n", 1)[0])
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    columns: tuple[list[str], ...] = ()
    dropped = 0
    try:
        for row in reader:
            if not any(cell.strip() for cell in row):
                dropped += 1
            elif header is None:
                header = row
                _check_header(path, header, delimiter, reader.line_num)
                columns = tuple([] for _ in header)
            elif len(row) != len(header):
                raise InputError(
                    f"{path}, line {reader.line_num}: {len(row)} column(s), but the header has {len(header)} "
                    f"({', '.join(header)}). Quote cells that hold the delimiter."
                )
            else:
                for column, cell in zip(columns, row, strict=True):
                    column.append(cell if cell.strip() else " ")
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}. Check the quotes.") from None
    return Examples(columns, path.name, dropped=dropped)


def _check_header(path: Path, header: list[str], delimiter: str, line: int) -> None:
    other, other_name, fix = (
        ("\t", "tab", "name it .tsv") if delimiter == "," else (",", "comma", "name it .csv, without tsv in the name")
    )
    if len(header) == 1 and other in header[0]:
        raise InputError(f"{path} looks {other_name} separated: {fix}, or convert it.")
    _check_width(path, len(header))
    for name in header:
        if len(name.split()) > HEADER_WORDS or name.rstrip().endswith((".", "?", "!")) or not name.strip():
            raise InputError(
                f"{path}, line {line}: {name!r} does not look like a column name. The first line must be a header, "
                f"such as sent0,sent1,hard_neg."
            )
    if len(set(header)) < len(header):
        raise InputError(f"{path}, line {line}: two columns have the same name in the header {', '.join(header)}.")


def _check_width(path: Path, width: int) -> None:
    if not 1 <= width <= MAX_COLUMNS:
        raise InputError(
            f"{path} has {width} columns. Give 1 (unsupervised), 2 (pairs) or 3 (pairs with a hard negative)."
        )


def _read_json(path: Path, text: str) -> Examples:
    records, dropped = _json_records(path, text)
    names: list[str] | None = None
    columns: tuple[list[str], ...] = ()
    for place, record in records:
        if not isinstance(record, dict):
            raise InputError(f"{path}, {place}: a {type(record).__name__}. Give one object per example.")
        if names is None:
            names = list(record)
            _check_width(path, len(names))
            columns = tuple([] for _ in names)
        if set(record) != set(names):
            raise InputError(f"{path}, {place}: fields {', '.join(record)}; the first example has {', '.join(names)}.")
        for column, name in zip(columns, names, strict=True):
            cell = record[name]
            if cell is not None and not isinstance(cell, str):
                raise InputError(f"{path}, {place}: field {name!r} is a {type(cell).__name__}. Give a string or null.")
            column.append(cell if cell and cell.strip() else " ")
    return Examples(columns, path.name, dropped=dropped)


def _json_records(path: Path, text: str) -> tuple[list[tuple[str, object]], int]:
    if path.suffix.lower() == ".json" and text.lstrip().startswith("["):
        try:
            return [(f"example {i}", record) for i, record in enumerate(json.loads(text), start=1)], 0
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {error.lineno}: not JSON ({error.msg}).") from None
    records, dropped = [], 0
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        if not line.strip():
            dropped += 1
            continue
        try:
            records.append((f"line {number}", json.loads(line)))
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: not JSON ({error.msg}). Give one object per line.") from None
    return records, dropped


def check_examples(examples: Examples, batch_size: int) -> None:
    """Refuse data that cannot train: fewer examples than one batch, or nothing but one sentence.

    Raises:
        InputError: with the counts.
    """
    if len(examples) < batch_size:
        raise InputError(
            f"{examples.source} has {len(examples)} example(s), fewer than one batch (batch_size={batch_size}). "
            f"Give more text or a smaller batch_size."
        )
    first = examples.columns[0][0]
    if len(examples) > 1 and all(text == first for column in examples.columns for text in column):
        raise InputError(f"all {len(examples)} examples of {examples.source} are the same sentence: {first[:80]!r}.")


def sentence_numbers(sentences: Sequence[str]) -> np.ndarray:
    """Number the distinct sentences in order of appearance: (n,) int64, equal numbers for equal texts."""
    numbers: dict[str, int] = {}
    return np.fromiter((numbers.setdefault(text, len(numbers)) for text in sentences), np.int64, len(sentences))


def repeats_in_batches(numbers: np.ndarray, order: np.ndarray, batch_size: int) -> tuple[int, int]:
    """Count sentences that meet their own copy in a batch: false negatives of the unsupervised objective.

    Args:
        numbers: (n,) from `sentence_numbers`. order: the epoch's example order. batch_size: global batch.

    Returns:
        (repeated sentences, batches that hold some).
    """
    repeats = batches = 0
    for start in range(0, len(order), batch_size):
        batch = numbers[order[start : start + batch_size]]
        extra = len(batch) - len(np.unique(batch))
        repeats += extra
        batches += extra > 0
    return repeats, batches
