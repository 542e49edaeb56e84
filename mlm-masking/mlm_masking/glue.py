"""GLUE tasks as data (`configs/task/<name>.yaml`), and their examples from the hub's files, the mirror or one's own.

A task says its columns, labels, metric and grid, and a list of places its data may be: the first at hand is used, and
its name goes into the results. `data.train` and `data.dev` (tsv, csv, jsonl or parquet) go before all of them.
"""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from shared import InputError, hub

PAPER = "mlm-masking"
TASKS = Path(__file__).resolve().parents[1] / "configs" / "task"
KINDS = ("classification", "regression")
FORMATS = ("tsv", "txt", "csv", "jsonl", "json", "parquet")


@dataclass(frozen=True)
class Task:
    """One task. `labels` are the classes' names in the order of their ids, or (lowest, highest) of a regression."""

    name: str
    title: str
    kind: str
    labels: tuple
    text_a: str
    text_b: str | None
    label: str
    metric: str
    train_examples: int | None
    grid: Mapping[str, list]
    data: tuple[Mapping[str, Any], ...]

    @property
    def outputs(self) -> int:
        """Width of the head: one logit per class, or one number."""
        return len(self.labels) if self.kind == "classification" else 1


@dataclass(frozen=True)
class Examples:
    """Texts (`text_b` is None for single sentences) and labels: int64 class ids, or float64 scores."""

    text_a: list[str]
    text_b: list[str] | None
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.text_a)

    def take(self, rows: Sequence[int] | np.ndarray) -> "Examples":
        text_b = None if self.text_b is None else [self.text_b[row] for row in rows]
        return Examples([self.text_a[row] for row in rows], text_b, self.labels[np.asarray(rows, dtype=np.int64)])


@dataclass(frozen=True)
class TaskData:
    """Training examples, the sets that are scored (the first decides between grid points), and where they are from."""

    train: Examples
    dev: dict[str, Examples]
    origin: str


# ------------------------------------------------------------------------------------------------------------ the task


def load_task(name: str) -> Task:
    """The task of `configs/task/<name>.yaml`. Raises InputError with the names there are."""
    path = TASKS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in TASKS.glob("*.yaml")))
        raise InputError(f"task={name}: there is no such task; known: {known}")
    return task_of(OmegaConf.load(path))


def task_of(config: DictConfig | Mapping[str, Any]) -> Task:
    """A task from its configuration. Raises InputError for one that cannot be trained on."""
    values = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else dict(config)
    name = values.get("name")
    if values.get("kind") not in KINDS:
        raise InputError(
            f"task={name} is of kind {values.get('kind')}, not {' or '.join(KINDS)}: it is a task of mlm_masking.probe"
        )
    unknown = sorted(set(values) - set(Task.__dataclass_fields__))
    missing = sorted(set(Task.__dataclass_fields__) - set(values))
    if unknown or missing:
        what = f"unknown field {unknown[0]}" if unknown else f"{missing[0]} is missing"
        raise InputError(f"task={name}: {what}; a task has {', '.join(Task.__dataclass_fields__)}")
    labels = tuple(values["labels"])
    if len(labels) < 2 or (values["kind"] == "regression" and (len(labels) != 2 or labels[0] >= labels[1])):
        wanted = "two or more class names" if values["kind"] == "classification" else "[lowest, highest]"
        raise InputError(f"task.labels={list(labels)}: give {wanted}")
    return Task(**{**values, "labels": labels, "data": tuple(values["data"])})


# ------------------------------------------------------------------------------------------------------------ the data


def load_data(
    task: Task,
    *,
    train: str | Path | None = None,
    dev: str | Path | Mapping[str, str] | None = None,
    source: str | None = None,
) -> TaskData:
    """The examples of a task.

    Args:
        train, dev: files of one's own; `dev` may be a mapping {name: file}.
        source: one of the task's sources; None is the first that is on this machine (or can be fetched).

    Raises:
        InputError: no data at hand, or data that cannot be used (the message says file, row and value).
    """
    if (train is None) != (dev is None):
        raise InputError("data.train and data.dev belong together: give both, or neither")
    if train is not None:
        files = dict(dev) if isinstance(dev, Mapping) else {"dev": dev}
        return TaskData(
            read_examples(task, [Path(train).expanduser()]),
            {name: read_examples(task, [Path(path).expanduser()]) for name, path in files.items()},
            f"own files ({Path(train).name})",
        )
    places = [place for place in task.data if source in (None, place["source"])]
    if not places:
        known = ", ".join(place["source"] for place in task.data) or "none: give data.train and data.dev"
        raise InputError(f"data.source={source}: task={task.name} has the sources {known}")
    place, folder = _at_hand(places)
    sets = {name: _matching(folder, patterns) for name, patterns in place["dev"].items()}
    columns = place.get("columns")
    return TaskData(
        read_examples(task, _matching(folder, place["train"]), columns),
        {name: read_examples(task, files, columns) for name, files in sets.items()},
        place["source"],
    )


def load_unlabelled(task: Task, name_or_file: str, source: str | None = None) -> Examples:
    """Examples to predict only: a set in the task's `test` mapping, or a file; hidden labels (-1) are no error."""
    path = Path(name_or_file).expanduser()
    if path.is_file():
        return read_examples(task, [path], labelled=False)
    places = [
        place for place in task.data if source in (None, place["source"]) and name_or_file in place.get("test", {})
    ]
    if not places:
        raise InputError(f"predict={name_or_file}: neither a file nor a test set of task={task.name}")
    place, folder = _at_hand(places)
    return read_examples(task, _matching(folder, place["test"][name_or_file]), place.get("columns"), labelled=False)


def _at_hand(places: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], Path]:
    complaints = []
    for place in places:
        try:
            return place, hub.locate(PAPER, place["source"])
        except hub.NotAvailable as error:
            complaints.append(str(error))
    raise hub.NotAvailable("\n".join(complaints))


def _matching(folder: Path, patterns: str | Sequence[str]) -> list[Path]:
    found = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        files = sorted(folder.glob(pattern))
        if not files:
            raise InputError(f"{folder / pattern}: no such file")
        found += files
    return found


def subsample(examples: Examples, *, size: int | None = None, fraction: float | None = None, seed: int = 0) -> Examples:
    """A random part of the training set, `size` examples or a `fraction` of them, drawn with a seed of its own.

    Raises:
        InputError: both are given, or more is asked for than there is.
    """
    if size is None and fraction is None:
        return examples
    if size is not None and fraction is not None:
        raise InputError("data.size and data.fraction: give one of them")
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise InputError(f"data.fraction={fraction}: give a number in (0, 1]")
        size = max(1, round(fraction * len(examples)))
    if not 1 <= size <= len(examples):
        raise InputError(f"data.size={size}: give 1 to {len(examples)}, the size of the training set")
    rows = np.random.Generator(np.random.Philox(key=[seed, 0])).permutation(len(examples))[:size]
    return examples.take(np.sort(rows))


# ------------------------------------------------------------------------------------------------------------- reading


def read_examples(
    task: Task, files: Sequence[Path], columns: Sequence[str] | None = None, labelled: bool = True
) -> Examples:
    """Read and check one set of a task from its files.

    Args:
        columns: column names of tables without a header line.
        labelled: whether labels are needed; else a missing or hidden one (-1) is taken as the first.

    Raises:
        InputError: an unreadable or empty file, a missing column, a missing text, a label outside the task's.
    """
    text_a: list[str] = []
    text_b: list[str] = []
    labels: list[float] = []
    for file in files:
        table = read_table(file, columns)
        rows = len(next(iter(table.values()), []))
        text_a += _texts(table, task.text_a, file)
        text_b += _texts(table, task.text_b, file) if task.text_b else []
        if not labelled:
            labels += [task.labels[0] if task.kind == "regression" else 0] * rows
            continue
        given = _column(table, task.label, file)
        labels += [_label(task, value, f"{file}, row {row + 1}") for row, value in enumerate(given)]
    if not text_a:
        raise InputError(f"{', '.join(map(str, files))}: no examples")
    dtype = np.int64 if task.kind == "classification" else np.float64
    return Examples(text_a, text_b if task.text_b else None, np.array(labels, dtype=dtype))


def _column(table: Mapping[str, list], name: str, file: Path) -> list:
    if name not in table:
        raise InputError(f"{file}: there is no column {name!r}; there are {', '.join(map(repr, table))}")
    return table[name]


def _texts(table: Mapping[str, list], name: str, file: Path) -> list[str]:
    texts = _column(table, name, file)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{file}, row {row + 1}: {name} is {text!r}, but must be a text")
    return texts


def _label(task: Task, value: Any, where: str) -> float:
    if task.kind == "regression":
        lowest, highest = task.labels
        try:
            score = float(value)
        except (TypeError, ValueError):
            score = float("nan")
        if not lowest <= score <= highest:
            raise InputError(f"{where}: {task.label} is {value!r}, but {task.title} scores lie in {lowest}..{highest}")
        return score
    if value in task.labels:
        return task.labels.index(value)
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = None
    if number == -1:
        raise InputError(
            f"{where}: label -1 marks a test split whose labels are hidden: it cannot be scored, only predicted "
            "(predict=<set or file>)"
        )
    if number is None or number != float(value) or not 0 <= number < len(task.labels):
        names = ", ".join(map(str, task.labels))
        raise InputError(f"{where}: {task.label} is {value!r}, not one of {names} (or 0 to {len(task.labels) - 1})")
    return number


def read_table(file: Path, columns: Sequence[str] | None = None) -> dict[str, list]:
    """A file as {column: values}; the format is the ending's. Tab separated files are read without quoting.

    Raises:
        InputError: the file is missing, empty, or not of its format.
    """
    kind = file.suffix.lstrip(".").lower()
    if kind not in FORMATS:
        raise InputError(f"{file}: format {kind or 'unknown'}; known endings: {', '.join(FORMATS)}")
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        table = READERS[kind](file, columns)
    except (ValueError, OSError, csv.Error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} cannot be read as {kind}: {error}") from None
    if not table or not len(next(iter(table.values()))):
        raise InputError(f"{file}: no rows")
    return table


def _separated(separator: str, quoting: int) -> Callable[[Path, Sequence[str] | None], dict[str, list]]:
    def read(file: Path, columns: Sequence[str] | None) -> dict[str, list]:
        # newline="" keeps carriage returns inside quotes; utf-8-sig drops the mark some editors put in front.
        text = io.StringIO(file.read_text(encoding="utf-8-sig"), newline="")
        rows = [row for row in csv.reader(text, delimiter=separator, quoting=quoting) if row]
        header = list(columns) if columns else rows.pop(0) if rows else []
        for number, row in enumerate(rows):
            if len(row) != len(header):
                names = ", ".join(header)
                raise InputError(f"{file}, row {number + 1}: {len(row)} fields, expected {len(header)}: {names}")
        return {name: [row[index] for row in rows] for index, name in enumerate(header)}

    return read


def _jsonl(file: Path, columns: Sequence[str] | None) -> dict[str, list]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{file}: expected one JSON object per line")
    return {name: [row.get(name) for row in rows] for name in (rows[0] if rows else {})}


def _parquet(file: Path, columns: Sequence[str] | None) -> dict[str, list]:
    import pyarrow.parquet as parquet

    return parquet.read_table(file).to_pydict()


READERS: dict[str, Callable[[Path, Sequence[str] | None], dict[str, list]]] = {
    "tsv": _separated("\t", csv.QUOTE_NONE),
    "txt": _separated("\t", csv.QUOTE_NONE),
    "csv": _separated(",", csv.QUOTE_MINIMAL),
    "jsonl": _jsonl,
    "json": _jsonl,
    "parquet": _parquet,
}
