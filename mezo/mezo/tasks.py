"""The eleven tasks of the OPT experiments as data: `get_task("rte")` is what configs/task_definitions/rte.yaml says.

    prompt      text with {column|filter|...} in it: what a model reads
    answered    the same with a candidate in it; default "{prompt}{candidate}"
    candidates  fixed words, columns of the row, or one column that holds a list; generation tasks have none
    gold        which candidate is right (or which are: ReCoRD), or which answers are (SQuAD, DROP)

Templates are the benchmark's definition (MeZO, Table 14): every blank and line break of them counts. What happens to
the text around them (blanks stripped, demonstrations, cuts) is in `mezo.encoding`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from shared import InputError

DEFINITIONS = Path(__file__).resolve().parents[1] / "configs" / "task_definitions"
KINDS = ("classification", "multiple_choice", "generation")
METRICS = ("accuracy", "f1")
LOSSES = ("candidates", "lm")
HOUSE = "house"
ELEVEN = ("sst2", "rte", "cb", "boolq", "wsc", "wic", "multirc", "copa", "record", "squad", "drop")
VARIABLE = re.compile(r"\{([a-z0-9_]+)((?:\|[a-z_]+)*)\}")


def _first_word_lower(text: str) -> str:
    first, blank, rest = text.partition(" ")
    return text if first == "I" else first.lower() + blank + rest


FILTERS: dict[str, Callable[[str], str]] = {
    "strip": str.strip,
    "lower": str.lower,
    "capitalise": lambda text: text[:1].upper() + text[1:],
    "question_mark": lambda text: text if text.endswith("?") else text + "?",
    "no_full_stop": lambda text: text.rstrip().removesuffix("."),
    "first_word_lower": _first_word_lower,
    "highlights": lambda text: text.replace("@highlight\n", "- "),
}
FILL, PLACEHOLDER = "fill", "@placeholder"  # the one filter that needs the candidate


@dataclass(frozen=True)
class Sample:
    """One example of a task.

    id: where it comes from. fields: the row's texts. prompt: which prompt it takes (COPA has two, others one).
    candidates: their texts; gold: the right ones' numbers, the one that is trained on first. answers: of a generation
    task, all that count as right.
    """

    id: str
    fields: Mapping[str, Any] = field(hash=False)
    prompt: str = ""
    candidates: tuple[str, ...] = ()
    gold: tuple[int, ...] = ()
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """One task; see the module for `prompt`, `answered`, `candidates`, `gold`.

    source: an entry of sources.yaml. loss: "candidates" (cross-entropy over the candidates' scores) or "lm" (of the
    right one's tokens). num_dev: development examples, taken from the training file. max_new_tokens: of an answer.
    content_free_keeps: columns that stay in the content-free prompt of calibration, where all others are empty.
    """

    name: str
    title: str
    source: str
    kind: str
    metric: str
    loss: str
    prompt: str | Mapping[str, str]
    answered: str = "{prompt}{candidate}"
    candidates: tuple[str, ...] | Mapping[str, Any] = ()
    gold: Mapping[str, Any] = field(default_factory=dict)
    answers: str | None = None
    num_dev: int = 500
    max_new_tokens: int = 50
    content_free_keeps: tuple[str, ...] = ()

    # ----------------------------------------------------------------------------------------------------- the texts

    def encode(self, sample: Sample) -> str:
        """The prompt, as the template has it."""
        return render(self.prompt if isinstance(self.prompt, str) else self.prompt[sample.prompt], sample.fields)

    def verbalise(self, sample: Sample, candidate: str) -> str:
        """The prompt with an answer."""
        return render(self.answered, {**sample.fields, "prompt": self.encode(sample), "candidate": candidate})

    def gold_text(self, sample: Sample) -> str:
        """The prompt with the right answer (the first of several)."""
        right = sample.answers[0] if self.kind == "generation" else sample.candidates[sample.gold[0]]
        return self.verbalise(sample, right)

    def content_free(self, sample: Sample) -> Sample:
        """The sample without its content: what a candidate's probability is compared with (calibration)."""
        kept = {
            name: value if name in self.content_free_keeps else ""
            for name, value in sample.fields.items()
            if name in self.columns
        }
        return Sample(f"{sample.id} (content-free)", kept, sample.prompt, sample.candidates, sample.gold)

    # ---------------------------------------------------------------------------------------------------- the columns

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that stand in the templates."""
        texts = [self.prompt] if isinstance(self.prompt, str) else [self.prompt[k] for k in self.prompt_kinds]
        found = [name for text in (*texts, self.answered) for name, _ in VARIABLE.findall(text)]
        return tuple(dict.fromkeys(name for name in found if name not in ("prompt", "candidate")))

    @property
    def prompt_kinds(self) -> tuple[str, ...]:
        return () if isinstance(self.prompt, str) else tuple(k for k in self.prompt if k != "column")

    def sample(self, row: Mapping[str, Any], where: str) -> Sample:
        """A Sample from a row of the data. Raises InputError naming `where`, the column and what is wrong with it."""
        missing = [name for name in self.columns if not isinstance(row.get(name), str)]
        if missing:
            raise InputError(
                f"{where}: task {self.name} needs a text in column {missing[0]!r}, found {row.get(missing[0])!r} "
                f"(columns: {', '.join(map(str, row))})"
            )
        kind = ""
        if not isinstance(self.prompt, str):
            kind = _from(row, self.prompt["column"], where)
            if kind not in self.prompt_kinds:
                raise InputError(
                    f"{where}: {self.prompt['column']} is {kind!r}, not one of {', '.join(self.prompt_kinds)}"
                )
        texts = {name: row[name] for name in self.columns}
        if self.kind == "generation":
            return Sample(where, texts, kind, answers=_texts(row, self.answers, where))
        candidates = self._candidates(row, where)
        return Sample(where, texts, kind, candidates, self._gold(row, candidates, where))

    def _candidates(self, row: Mapping[str, Any], where: str) -> tuple[str, ...]:
        if not isinstance(self.candidates, Mapping):
            return self.candidates
        if "column" in self.candidates:
            found = _texts(row, self.candidates["column"], where)
        else:
            found = tuple(_from(row, column, where) for column in self.candidates["columns"])
        if any(not isinstance(text, str) or not text.strip() for text in found):
            raise InputError(f"{where}: a candidate of task {self.name} is empty or no text: {found!r}")
        return found

    def _gold(self, row: Mapping[str, Any], candidates: tuple[str, ...], where: str) -> tuple[int, ...]:
        if "texts" in self.gold:
            right = _texts(row, self.gold["texts"], where)
            lost = [text for text in right if text not in candidates]
            if lost:
                raise InputError(f"{where}: the right answer {lost[0]!r} is not among the candidates {candidates!r}")
            found = [number for text in right for number, other in enumerate(candidates) if other == text]
            return tuple(dict.fromkeys(found))
        label = _from(row, self.gold["column"], where)
        values = self.gold.get("values")
        number = values.get(label) if values is not None else label
        if values is None and isinstance(number, bool):
            number = int(number)
        if not isinstance(number, int) or not 0 <= number < len(candidates):
            known = list(values) if values is not None else list(range(len(candidates)))
            raise InputError(f"{where}: the label {self.gold['column']}={label!r} is not one of {known}")
        return (number,)


def render(template: str, values: Mapping[str, str]) -> str:
    """Fill a template in one pass, so that braces in the data stay what they are."""

    def fill(match: re.Match) -> str:
        text = values[match[1]]
        for name in match[2].split("|")[1:]:
            text = text.replace(PLACEHOLDER, values["candidate"]) if name == FILL else FILTERS[name](text)
        return text

    return VARIABLE.sub(fill, template)


def _from(row: Mapping[str, Any], path: str, where: str) -> Any:
    """row["a"]["b"] for the path a.b."""
    value: Any = row
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise InputError(f"{where}: no column {path!r} (columns: {', '.join(map(str, row))})")
        value = value[part]
    return value


def _texts(row: Mapping[str, Any], path: str, where: str) -> tuple[str, ...]:
    values = _from(row, path, where)
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        values = [values]
    values = tuple(values)
    if not values or not all(isinstance(value, str) for value in values):
        raise InputError(f"{where}: {path} must hold one text or more, found {values!r}")
    return values


# ------------------------------------------------------------------------------------------------------ definitions


def task_from(values: Mapping[str, Any], where: str) -> Task:
    """A Task from plain values; raises InputError naming the field that is wrong."""
    known = {f.name: f for f in fields(Task)}
    for name in values:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise InputError(f"{where}: unknown field {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    for name, f in known.items():
        if name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise InputError(f"{where}: field {name!r} is missing")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    task = Task(**values)
    for name, allowed in (("kind", KINDS), ("metric", METRICS), ("loss", LOSSES)):
        if getattr(task, name) not in allowed:
            raise InputError(f"{where}: {name} is {getattr(task, name)!r}, not one of {', '.join(allowed)}")
    _check(task, where)
    return task


def _check(task: Task, where: str) -> None:
    if task.kind == "generation":
        if task.loss == "candidates" or not task.answers:
            raise InputError(f"{where}: a generation task has answers and loss: lm; there are no candidates")
    elif not task.candidates or not task.gold:
        raise InputError(f"{where}: a {task.kind} task needs candidates and gold")
    texts = [task.prompt] if isinstance(task.prompt, str) else [task.prompt[k] for k in task.prompt_kinds]
    for text in (*texts, task.answered):
        for match in VARIABLE.finditer(text):
            for name in match[2].split("|")[1:]:
                if name != FILL and name not in FILTERS:
                    raise InputError(f"{where}: filter {name!r} is not one of {', '.join((*FILTERS, FILL))}")
        if VARIABLE.sub("", text).count("{"):
            raise InputError(f"{where}: {text!r} has a brace that is no variable; write {{column|filter}}")
    for name in ("num_dev", "max_new_tokens"):
        value = getattr(task, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InputError(f"{where}: {name} is {value!r}: give a whole number, 0 or more")


def get_task(name: str) -> Task:
    """The task of that name ("SST-2" and "sst2" are one); InputError with the nearest name for an unknown one."""
    known = {path.stem.replace("-", ""): path for path in DEFINITIONS.glob("*.yaml")}
    wanted = str(name).lower().replace("-", "").replace("_", "")
    if wanted not in known:
        near = get_close_matches(wanted, known, n=1)
        names = sorted(path.stem for path in known.values())
        raise InputError(
            f"task={name} is unknown"
            + (f"; did you mean {known[near[0]].stem}?" if near else "")
            + f" Tasks: {', '.join(names)}"
        )
    path = known[wanted]
    return task_from(yaml.safe_load(path.read_text("utf-8")), f"configs/task_definitions/{path.name}")


TASKS: dict[str, Task] = {name: get_task(name) for name in ELEVEN}
