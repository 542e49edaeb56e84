"""The benchmark's instances: the released sets, the instances written for this project, or one's own file.

An instance has no id of its own; its id is (set, position in the file), which is also how recorded judgements name it.
Labels are not balanced inside a set (Natural: 42 / 58), which is why every judge is asked in both orders.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmbar.prompts import END, START
from shared import InputError

log = logging.getLogger(__name__)

# Sizes of the released sets: a recorded line for a set that is not loaded can still be checked against them.
RELEASED = {
    "LLMBar/Natural": 100,
    "LLMBar/Adversarial/Neighbor": 134,
    "LLMBar/Adversarial/GPTInst": 92,
    "LLMBar/Adversarial/GPTOut": 47,
    "LLMBar/Adversarial/Manual": 46,
    "CaseStudy/Constraint": 89,
    "CaseStudy/Negation": 59,
    "CaseStudy/Normal": 59,
    "CaseStudy/Base_9": 54,
    "CaseStudy/Base_10": 54,
    "Processed/FairEval": 66,
    "Processed/LLMEval^2": 200,
    "Processed/MT-Bench": 200,
}
# Written for this project (llmbar/data/), in the shape of the five LLMBar subsets.
HOUSE = {
    "House/Natural": 20,
    "House/Adversarial/Neighbor": 5,
    "House/Adversarial/GPTInst": 5,
    "House/Adversarial/GPTOut": 5,
    "House/Adversarial/Manual": 5,
}
HOUSE_FOLDER = Path(__file__).resolve().parents[1] / "data"
FIELDS = ("input", "output_1", "output_2", "label")


@dataclass(frozen=True, slots=True)
class Instance:
    """One instruction with two outputs; `label` (1 or 2) says which output follows it."""

    set: str
    i: int
    input: str
    output_1: str
    output_2: str
    label: int
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.set}[{self.i}]"


Sets = dict[str, list[Instance]]


def group(set_name: str) -> str:
    """The family a set belongs to ("LLMBar", "CaseStudy", "Processed", "House", or a file of one's own)."""
    return set_name.partition("/")[0]


def short_name(set_name: str) -> str:
    """ "LLMBar/Adversarial/Neighbor" -> "neighbor", "CaseStudy/Base_9" -> "base9": a table's column."""
    return set_name.rpartition("/")[2].lower().replace("_", "")


def is_adversarial(set_name: str) -> bool:
    return "/Adversarial/" in set_name


def load_sets(folder: Path, names: Sequence[str]) -> Sets:
    """Set name -> instances, from `folder/<set>/dataset.json`. Raises InputError (see `load_file`)."""
    return {name: load_file(folder / name / "dataset.json", name) for name in names}


def load_file(path: Path, set_name: str) -> list[Instance]:
    """The instances of one file: a JSON list of objects with texts `input`, `output_1`, `output_2` and `label` 1 or 2.

    Other keys are kept in `extra`. An empty text is warned about and kept (one released instance has one). Raises
    InputError naming file, position, field, value and fix.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"data: {path} does not exist") from None
    except UnicodeDecodeError as error:
        raise InputError(f"data: {path} is not UTF-8 ({error.reason} at byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise InputError(f"data: {path} is not JSON ({error.msg}, line {error.lineno})") from None
    if not isinstance(content, list):
        raise InputError(f"data: {path} holds {_kind(content)}; it must hold a list of instances")
    if not content:
        raise InputError(f"data: {path} holds no instances")
    return [_instance(path, set_name, i, record) for i, record in enumerate(content)]


def _instance(path: Path, set_name: str, i: int, record: Any) -> Instance:
    where = f"data: {path}, instance {i}"
    if not isinstance(record, dict):
        raise InputError(f"{where} is {_kind(record)}; it must be an object with {', '.join(FIELDS)}")
    for name in FIELDS:
        if name not in record:
            raise InputError(f"{where} has no `{name}`; it must have {', '.join(FIELDS)}")
    for name in FIELDS[:3]:
        text = record[name]
        if not isinstance(text, str):
            raise InputError(f"{where}: `{name}` is {_kind(text)}; it must be text")
        if not text.strip():
            log.warning("%s: `%s` is empty; it is kept as it is", where, name)
        for marker in (START, END):
            if marker in text:
                raise InputError(f"{where}: `{name}` contains {marker}, which separates chat messages; take it out")
    label = record["label"]
    if isinstance(label, bool) or not isinstance(label, int) or label not in (1, 2):
        raise InputError(f"{where}: `label` is {label!r}; it must be the number 1 or 2 (the better output)")
    extra = {key: value for key, value in record.items() if key not in FIELDS}
    return Instance(set_name, i, record["input"], record["output_1"], record["output_2"], label, extra)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true/false", int: "a number", float: "a number"}
    return names.get(type(value), "null" if value is None else type(value).__name__)
