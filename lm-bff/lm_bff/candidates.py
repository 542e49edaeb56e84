"""Templates, mappings and prompts in files: what the searches write, ranking sorts, and the release has published.

    template file   one template a line
    mapping file    one mapping a line, {'0':'terrible','1':'great'} in Python's or JSON's spelling
    prompt file     template, tab, mapping

A line may end in a tab and the dev score that ranking gave it; then the best stands first. Labels keep their type: a
mapping of a task whose labels are numbers has numbers as keys (JSON would turn them into texts, which then belong to no
label).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lm_bff.label_words import Label, check_mapping, parse_mapping
from lm_bff.tasks import Task
from lm_bff.template import parse
from shared import InputError
from shared.results import write_atomic

KINDS = ("template", "mapping", "prompt")


@dataclass(frozen=True)
class Candidate:
    """A template, a mapping, or both (a prompt), with the score that a search or the ranking gave it."""

    template: str | None = None
    mapping: dict[Label, str] | None = None
    score: float | None = None

    def line(self, with_score: bool = True) -> str:
        """As it stands in a file."""
        parts = [] if self.template is None else [self.template]
        if self.mapping is not None:
            parts.append("{" + ",".join(f"{label!r}:{word!r}" for label, word in self.mapping.items()) + "}")
        if with_score and self.score is not None:
            parts.append(f"{self.score:.5f}")
        return "\t".join(parts)


def write_candidates(path: Path, candidates: Sequence[Candidate], with_score: bool = False) -> Path:
    """One a line; the file appears whole or not at all. Raises InputError where there is none to write."""
    if not candidates:
        raise InputError(f"{path.name}: no candidate to write")
    return write_atomic(path, "".join(one.line(with_score) + "\n" for one in candidates))


def read_candidates(path: str | Path, kind: str, task: Task, top: int | None = None) -> list[Candidate]:
    """The candidates of a file, in its order.

    Args:
        kind: template, mapping or prompt. top: the first so many.
    Raises:
        InputError: no such file, an empty one, a line that is not of this kind or does not fit the task; the line is
            named.
    """
    if kind not in KINDS:
        raise InputError(f"kind={kind}: give one of {', '.join(KINDS)}")
    if top is not None and (not isinstance(top, int) or top < 1):
        raise InputError(f"top={top}: give 1 or more, or null for all")
    path = Path(path).expanduser()
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    found: list[Candidate] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            found.append(_candidate(line.rstrip("\r"), kind, task))
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        if len(found) == top:
            break
    if not found:
        raise InputError(f"{path} has no {kind}s")
    return found


def candidate_at(path: str | Path, kind: str, task: Task, number: int) -> Candidate:
    """Line `number` (from 0) of a file, as the release's `template_id`. Raises InputError past the file's end."""
    found = read_candidates(path, kind, task)
    if not 0 <= number < len(found):
        raise InputError(f"{path} has {len(found)} {kind}s; number {number} (from 0) is not among them")
    return found[number]


def _candidate(line: str, kind: str, task: Task) -> Candidate:
    parts = line.split("\t")
    if kind == "prompt" and len(parts) < 2:
        raise InputError(f"{line!r} has no tab: a prompt is a template, a tab, and a mapping")
    wanted = 2 if kind == "prompt" else 1
    if len(parts) > wanted + 1:
        raise InputError(f"{line!r} has {len(parts)} columns, but a {kind} has {wanted} (and a score)")
    score = None
    if len(parts) == wanted + 1:
        try:
            score = float(parts.pop())
        except ValueError:
            raise InputError(f"{line!r}: the last column is not a score") from None
    template = _template(parts[0].strip(), task) if kind != "mapping" else None
    mapping = _mapping(parts[-1], task) if kind != "template" else None
    return Candidate(template, mapping, score)


def _template(text: str, task: Task) -> str:
    parsed = parse(text)
    if parsed.num_sentences > task.num_sentences:
        raise InputError(
            f"template {text!r} asks for sentence {parsed.num_sentences - 1}, but examples of {task.name} have "
            f"{task.num_sentences} (numbered from 0)"
        )
    return text


def _mapping(text: str, task: Task) -> dict[Label, str]:
    """A mapping in the task's order. Numbers that a JSON file has as texts are read as the numbers they were."""
    mapping = parse_mapping(text)
    if isinstance(task.labels[0], int) and _is_json(text):
        mapping = {
            int(label) if isinstance(label, str) and label.isdecimal() else label: w for label, w in mapping.items()
        }
    check_mapping(mapping, task.labels, task.name)
    return {label: mapping[label] for label in task.labels}


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def ranked(candidates: Sequence[Candidate], scores: Sequence[float]) -> list[Candidate]:
    """The candidates with their scores, best first; equal scores keep the order they came in."""
    scored = [replace(one, score=score) for one, score in zip(candidates, scores, strict=True)]
    return sorted(scored, key=lambda one: -one.score)
