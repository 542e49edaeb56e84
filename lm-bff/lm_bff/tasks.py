"""The fifteen tasks as data: `TASKS["sst-2"]` is what configs/task_definitions/sst-2.yaml says.

A task names its labels in the order of the logits' columns, the manual template and label words of the paper, the
metric, how its files are read, and its limits in tokens. STS-B is a regression: its two labels are the words that a
score between `bounds` is interpolated between.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from lm_bff.label_words import Label, check_mapping, parse_mapping
from lm_bff.metrics import METRICS
from lm_bff.template import Template, parse
from shared import InputError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FORMATS = ("tsv", "csv")


@dataclass(frozen=True)
class Reader:
    """Where a line of a task's file has its sentences and its label (columns from 0; -1 is the last)."""

    format: str
    header: bool
    sentences: tuple[int, ...]
    label: int
    numeric_labels: bool = False


@dataclass(frozen=True)
class Task:
    """One task.

    max_length, first_sent_limit, other_sent_limit: tokens of the prompt, of sentence 0, of every other sentence (those
    of demonstrations included); `double_demo`: twice max_length with demonstrations. num_sample: sets of demonstrations
    per test example. majority: the most frequent label of the full training set.
    """

    name: str
    folder: str
    labels: tuple[Label, ...]
    template: str
    mapping: dict[Label, str]
    metric: str
    reader: Reader
    metrics: tuple[str, ...] = ()
    bounds: tuple[float, float] | None = None
    majority: Label | None = None
    max_length: int = 128
    first_sent_limit: int | None = None
    other_sent_limit: int | None = None
    double_demo: bool = False
    num_sample: int = 16
    files: dict[str, str] = field(default_factory=lambda: {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"})
    extra_tests: dict[str, str] = field(default_factory=dict)

    @property
    def regression(self) -> bool:
        """Whether the label is a score (STS-B)."""
        return self.bounds is not None

    @property
    def num_sentences(self) -> int:
        return len(self.reader.sentences)

    @property
    def parsed_template(self) -> Template:
        return parse(self.template)

    @property
    def tests(self) -> dict[str, str]:
        """Test set -> file: the task's own, and MNLI's mismatched one."""
        return {self.name: self.files["test"], **self.extra_tests}

    def length_limit(self, demonstrations: bool) -> int:
        """The most tokens of a prompt."""
        return self.max_length * (2 if demonstrations and self.double_demo else 1)

    def context_class(self, label: Label | float) -> int:
        """The column a demonstration of this label stands for; for scores the halves: up to the middle 0, above 1."""
        if self.bounds is not None:
            return int(float(label) > sum(self.bounds) / 2)
        return self.labels.index(label)


def task_from(values: Mapping[str, Any], where: str = "task") -> Task:
    """A Task from plain values (a yaml file, a Hydra group); raises InputError naming the field that is wrong."""
    values = dict(values)
    if with_ := values.get("tested_with"):
        raise InputError(
            f"task={values['name']} cannot be trained: it is a second test set of {with_}. "
            f"Use task={with_}, whose results have both"
        )
    known = {f.name: f for f in fields(Task)}
    for name in values:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise InputError(f"{where}: unknown field {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    for name, f in known.items():
        if name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise InputError(f"{where}: field {name!r} is missing")
    try:
        values["reader"] = Reader(**{**values["reader"], "sentences": tuple(values["reader"]["sentences"])})
    except (TypeError, KeyError) as error:
        raise InputError(f"{where}: reader is {values['reader']!r}: {error}") from None
    for name in ("labels", "metrics", "bounds"):
        if values.get(name) is not None:
            values[name] = tuple(values[name])
    values["metrics"] = values.get("metrics") or (values["metric"],)
    task = Task(**{**values, "mapping": parse_mapping(values["mapping"])})
    _check(task, where)
    return task


def _check(task: Task, where: str) -> None:
    if task.reader.format not in FORMATS:
        raise InputError(f"{where}: reader.format is {task.reader.format!r}, not one of {', '.join(FORMATS)}")
    if unknown := {task.metric, *task.metrics} - set(METRICS):
        raise InputError(f"{where}: metric {sorted(unknown)[0]!r} is not one of {', '.join(METRICS)}")
    if len(task.labels) < 2 or len(set(task.labels)) != len(task.labels):
        raise InputError(f"{where}: labels are {list(task.labels)}; give two or more different ones")
    if task.regression and len(task.labels) != 2:
        raise InputError(f"{where}: a regression is between two labels, not {len(task.labels)}")
    check_mapping(task.mapping, task.labels, task.name)
    if task.parsed_template.num_sentences > task.num_sentences:
        raise InputError(
            f"{where}: template {task.template!r} asks for sentence {task.parsed_template.num_sentences - 1}, but "
            f"examples have {task.num_sentences} (numbered from 0)"
        )
    if task.majority is not None and task.majority not in task.labels:
        raise InputError(f"{where}: majority is {task.majority!r}, which is not one of {list(task.labels)}")
    for name in ("max_length", "num_sample"):
        if not isinstance(getattr(task, name), int) or getattr(task, name) < 1:
            raise InputError(f"{where}: {name} is {getattr(task, name)!r}: give 1 or more")


def load_tasks(folder: Path = CONFIGS / "task_definitions") -> dict[str, Task]:
    """Every task of a folder of yaml files by name, in the order of the paper's Table 3 for its fifteen."""
    found = {}
    for path in folder.glob("*.yaml"):
        values = yaml.safe_load(path.read_text("utf-8"))
        if "tested_with" not in values:
            task = task_from(values, f"configs/task_definitions/{path.name}")
            found[task.name] = task
    return {name: found[name] for name in sorted(found, key=lambda n: (ORDER.index(n) if n in ORDER else 99, n))}


ORDER = (
    *("sst-2", "sst-5", "mr", "cr", "mpqa", "subj", "trec", "cola"),  # one sentence
    *("mnli", "snli", "qnli", "rte", "mrpc", "qqp", "sts-b"),  # two
)
TASKS: dict[str, Task] = {name: task for name, task in load_tasks().items() if name in ORDER}


def get_task(name: str) -> Task:
    """TASKS[name], or another definition; an InputError that names the nearest for an unknown name."""
    if name in TASKS:
        return TASKS[name]
    if (path := CONFIGS / "task_definitions" / f"{name}.yaml").is_file():
        return task_from(yaml.safe_load(path.read_text("utf-8")), path.name)
    near = get_close_matches(str(name).lower(), TASKS, n=1)
    raise InputError(
        f"task={name} is unknown" + (f"; did you mean {near[0]}?" if near else "") + f" Tasks: {', '.join(TASKS)}"
    )
