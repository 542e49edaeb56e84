"""Reading the tasks' files: tab-separated GLUE files and the comma-separated ones, with line numbers in every error.

    k-shot/<task folder>/<k>-<seed>/{train,dev}.*    and the test set, there or (the same for all seeds) one level up

Tab-separated files know no quoting, and a first byte order mark is dropped; comma-separated ones are read as pandas
reads them without a header, except that a text such as "null" stays a text.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lm_bff.label_words import Label
from lm_bff.tasks import Reader, Task
from shared import InputError, hub

PAPER = "lm-bff"
MODES = ("k-shot", "k-shot-10x")
SEEDS = (13, 21, 42, 87, 100)
HOUSE = "house-"  # tasks of this project, whose files are written on the spot


@dataclass(frozen=True)
class Example:
    """One labelled example. `label` is one of the task's labels, or a score; `name` says where it comes from."""

    sentences: tuple[str, ...]
    label: Label | float
    name: str = "the example"


@dataclass(frozen=True)
class Splits:
    """Train, dev, and test sets by name ("mnli" and "mnli-mm" for MNLI); `missing`: test files that are not there."""

    train: list[Example]
    dev: list[Example]
    test: dict[str, list[Example]]
    missing: tuple[str, ...] = ()


def rows(path: Path, reader: Reader) -> list[tuple[int, list[str]]]:
    """(line number, columns) of every line but the header; raises InputError where the file cannot be read."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if reader.format == "tsv":
        lines = text.split("\n")
        if lines and not lines[-1]:
            lines.pop()
        found = [(number, line.split("\t")) for number, line in enumerate(lines, start=1) if line]
    else:
        parsed = csv.reader(io.StringIO(text, newline=""))
        found = []
        try:
            for row in parsed:
                if row:
                    found.append((parsed.line_num, row))
        except csv.Error as error:
            raise InputError(f"{path}, line {parsed.line_num}: not comma-separated values ({error})") from None
    return found[1:] if reader.header else found


def read_label(task: Task, text: str, where: str) -> Label | float:
    """A label as the task has it; raises InputError for one that is not in the task's set, or a score out of bounds."""
    if task.bounds is not None:
        low, high = task.bounds
        try:
            score = float(text)
        except ValueError:
            score = math.nan
        if not low <= score <= high:
            raise InputError(f"{where}: the score {text!r} is not a number from {low:g} to {high:g}")
        return score
    label: Label = text
    if task.reader.numeric_labels:
        try:
            label = int(text)
        except ValueError:
            label = text
    if label not in task.labels:
        raise InputError(f"{where}: the label {text!r} is not one of {list(task.labels)}")
    return label


def read_examples(path: Path, task: Task) -> list[Example]:
    """All examples of a file.

    Raises:
        InputError: no such file, an empty one, a line with too few columns, a wrong label; the line is named.
    """
    reader = task.reader
    needed = max(*reader.sentences, reader.label, -reader.label - 1) + 1
    examples = []
    for number, row in rows(path, reader):
        where = f"{path.name}, line {number}"
        if len(row) < needed:
            raise InputError(f"{path}, line {number}: {len(row)} columns, but task {task.name} needs {needed}")
        sentences = tuple(row[column] for column in reader.sentences)
        examples.append(Example(sentences, read_label(task, row[reader.label], f"{path}, line {number}"), where))
    if not examples:
        raise InputError(f"{path} has no examples")
    return examples


def few_shot_folder(data_dir: str | Path | None, mode: str = "k-shot") -> Path:
    """The folder that holds the tasks' few-shot splits: `data_dir`, or the source of that name."""
    if mode not in MODES:
        raise InputError(f"mode={mode}: give one of {', '.join(MODES)}")
    if data_dir is None:
        return hub.locate(PAPER, mode)
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise InputError(f"data_dir={data_dir} is not a folder; make the splits with `python -m lm_bff.kshot`")
    return folder


def load_splits(
    task: Task,
    k: int = 16,
    seed: int = 42,
    data_dir: str | Path | None = None,
    mode: str = "k-shot",
    strict: bool = True,
) -> Splits:
    """Train, dev and test of one task, k and seed.

    Raises:
        InputError: the splits are not there; with `strict` also where they do not hold k examples of each class, or dev
            shares an example with train (large k meet classes that are too small, and repeats of the original data).
    """
    if data_dir is None and task.name.startswith(HOUSE):
        from lm_bff.offline_tasks import house_splits  # late: it reads packages, and few tasks are written here

        data_dir = house_splits(k=k, seeds=(seed,), tasks=(task.name,))
    root = few_shot_folder(data_dir, mode) / task.folder
    folder = root / f"{k}-{seed}"
    if not folder.is_dir():
        there = ", ".join(sorted(p.name for p in root.glob("*-*") if p.is_dir())) or "none"
        raise InputError(
            f"task={task.name} k={k} seed={seed}: no splits at {folder} (there: {there}); make them with "
            f"`python -m lm_bff.kshot k={k} seeds=[{seed}]`"
        )
    train = read_examples(folder / task.files["train"], task)
    dev = read_examples(folder / task.files["dev"], task)
    if strict:
        check_splits(task, train, dev, k)
    test, missing = {}, []
    for name, file in task.tests.items():
        path = next((p for p in (folder / file, root / file) if p.is_file()), None)
        if path is None:
            missing.append(name)
        else:
            test[name] = read_examples(path, task)
    return Splits(train, dev, test, tuple(missing))


def check_splits(task: Task, train: Sequence[Example], dev: Sequence[Example], k: int | None) -> None:
    """Raise InputError where train has fewer than k examples of a class, or an example of dev is also in train."""
    if k is not None:
        counts = Counter(split_class(task, example.label) for example in train)
        for label in task.labels:
            if counts[label] < k:
                raise InputError(
                    f"task={task.name}: the training set has {counts[label]} examples of {label!r}, fewer than k={k}"
                )
    where = {example.sentences: example.name for example in train}
    labels = {example.sentences: example.label for example in train}
    for example in dev:
        if example.sentences in where and labels[example.sentences] == example.label:
            raise InputError(
                f"task={task.name}: {example.name} of dev is also in train ({where[example.sentences]}): "
                f"{' | '.join(example.sentences)}"
            )


def split_class(task: Task, label: Label | float) -> Label:
    """The class that K-shot sampling counts: the label, or for scores the half below or from the middle on."""
    if task.bounds is None:
        return label
    return task.labels[int(float(label) >= sum(task.bounds) / 2)]


def class_numbers(task: Task, examples: Sequence[Example]) -> list[float] | list[int]:
    """The gold column of every example, or its score."""
    if task.regression:
        return [float(example.label) for example in examples]
    numbers = {label: number for number, label in enumerate(task.labels)}
    return [numbers[example.label] for example in examples]
