"""Re-scoring recorded judgements without any model: one streaming pass over a gzipped JSONL file.

Winners are not stored in such a file; they follow from the texts by the rules of `parsing` and `scores`, so every
number can be traced to the sentence that made it. The pass keeps two winners per instance and never a text: memory is
that of the instances, whatever the size of the file. Two things are checked on the way, because a file that breaks
them was not made by the protocol: a second stage is there if and only if the first stage's orders disagree, and its
prompt, rebuilt from the data and the first stage's texts, hashes to the recorded digest.

A line (the format in which our own runs are written too) has `set`, `i`, `strategy` and one of
    "stages": [{"out": [[text, finish], [text, finish]], "prompt_sha256": [hex, hex]}, ...]   given, swapped order
    "scores": [[text, finish], [text, finish]]                                                output_1, output_2
    "values": [number, number]                      a judge that gives each output a number (a reward model, a length)
and, where the strategy makes helper texts, "aux": [[text, finish], ...].
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmbar.data import HOUSE, RELEASED, Instance, Sets, group
from llmbar.parsing import claims_both, last_claim, parse_rating
from llmbar.prompts import Template, sha256_16
from llmbar.scores import Cell, compare, score
from llmbar.stages import Verdict, needs_second_stage, read_stage, second_stage_prompts
from llmbar.strategies import Strategy
from shared import InputError

# Judges that value each output on its own; they have no prompting strategy, so their kind stands in its place.
VALUE_STRATEGIES = ("Longer", "Shorter", "Preference_Model", "Embedding", "Reward_Model")
CONTENT_FILTER = ("content management policy", "content_filter")
UNSEEN = "unseen"


@dataclass
class Tally:
    """What one judge said with one strategy on one set: a pair of winners per instance, and counts of oddities."""

    strategy: str
    set: str
    labels: list[int]
    given: list[str | None] = field(default_factory=list)
    swapped: list[str | None] = field(default_factory=list)
    answers: int = 0  # answers read for the verdict: two per instance
    rated: int = 0  # ... of which are ratings
    unparsed: int = 0  # answers without a winner
    unparsed_ratings: int = 0  # ratings that are no integer; the pair then counts like a tie, so it does have winners
    first: int = 0  # parsed answers that chose what stood first in the prompt
    claims_both: int = 0  # answers with a verdict for both outputs
    last_differs: int = 0  # ... of which the verdict named last is another than the one that counts
    filtered: int = 0

    def __post_init__(self) -> None:
        self.given = self.given or [UNSEEN] * len(self.labels)
        self.swapped = self.swapped or [UNSEEN] * len(self.labels)

    @property
    def seen(self) -> list[int]:
        return [i for i, winner in enumerate(self.given) if winner != UNSEEN]

    @property
    def missing(self) -> int:
        return self.given.count(UNSEEN)

    def winners(self) -> tuple[list[str | None], list[str | None], list[int]]:
        """(given, swapped, labels) over the instances seen."""
        seen = self.seen
        return [self.given[i] for i in seen], [self.swapped[i] for i in seen], [self.labels[i] for i in seen]

    def cell(self) -> Cell:
        return score(*self.winners())


@dataclass
class Replay:
    """One judge's file, scored. `tallies` are ordered as the selected sets are, strategies as they first appear."""

    judge: str
    tallies: dict[tuple[str, str], Tally]
    lines: int = 0
    lines_elsewhere: int = 0  # lines of known sets that were not selected
    prompts_checked: int = 0
    prompts_unchecked: int = 0

    @property
    def strategies(self) -> list[str]:
        return list(dict.fromkeys(strategy for strategy, _ in self.tallies))

    @property
    def sets(self) -> list[str]:
        return list(dict.fromkeys(name for _, name in self.tallies))


@dataclass(frozen=True)
class Rules:
    """How a file is read: whose answers they are, by which parsing, with which strategies and prompts."""

    judge: str
    strategies: Mapping[str, Strategy]
    templates: Mapping[str, Template] = field(default_factory=dict)
    parsing: str = "released"
    only: frozenset[str] | None = None  # score these strategies; None: all that the file has

    def __post_init__(self) -> None:
        if self.parsing not in ("released", "corrected"):
            raise InputError(f"parsing={self.parsing!r} is unknown; use released or corrected")


def replay(path: Path, sets: Sets, rules: Rules, allow_partial: bool = False) -> Replay:
    """Score a recorded file on the given sets.

    Raises InputError naming the line, the field and the fix for anything that is not a judgement of these sets, and,
    unless `allow_partial`, for a (strategy, set) of which instances are missing: an average over fewer is another
    number.
    """
    result = Replay(rules.judge, {})
    for number, record in read_lines(path):
        result.lines += 1
        where = f"recorded: {path.name}, line {number}"
        instance = _instance(where, record, sets)
        strategy = _strategy_name(where, record, rules)
        if instance is None or (rules.only is not None and strategy not in rules.only):
            result.lines_elsewhere += 1
            continue
        key = (strategy, instance.set)
        if key not in result.tallies:
            result.tallies[key] = Tally(*key, labels=[one.label for one in sets[instance.set]])
        _add(where, record, instance, result.tallies[key], rules, result)
    _check_complete(path, result, sets, allow_partial)
    order = {name: position for position, name in enumerate(sets)}
    result.tallies = dict(sorted(result.tallies.items(), key=lambda item: order[item[0][1]]))
    return result


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of a JSONL file, gzipped or plain, one line in memory at a time."""
    number = 0
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if packed or path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                record = json.loads(line.decode("utf-8"))
                if not isinstance(record, dict):
                    raise InputError(f"recorded: {path}, line {number}: not a JSON object")
                yield number, record
    except FileNotFoundError:
        raise InputError(f"recorded: {path} does not exist") from None
    except IsADirectoryError:
        raise InputError(f"recorded: {path} is a folder; give one .jsonl.gz file in it") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(
            f"recorded: {path} is a broken gzip file after line {number} ({error}); fetch it again"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"recorded: {path}, line {number}: not UTF-8 ({error.reason} at byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise InputError(f"recorded: {path}, line {number}: not JSON ({error.msg})") from None
    if number == 0:
        raise InputError(f"recorded: {path} is empty")


# ------------------------------------------------------------------------------------------------------------- one line


def _instance(where: str, record: Mapping[str, Any], sets: Sets) -> Instance | None:
    """The line's instance, or None if its set exists but was not selected."""
    name, i = record.get("set"), record.get("i")
    if name not in sets and name not in RELEASED and name not in HOUSE:
        raise InputError(
            f"{where}: set={name!r} is unknown; known here are {', '.join(dict.fromkeys([*sets, *RELEASED]))}"
        )
    size = len(sets[name]) if name in sets else {**RELEASED, **HOUSE}[name]
    if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < size:
        raise InputError(f"{where}: i={i!r} is out of range; {name} has instances 0 to {size - 1}")
    return sets[name][i] if name in sets else None


def _strategy_name(where: str, record: Mapping[str, Any], rules: Rules) -> str:
    name = record.get("strategy")
    if name not in rules.strategies and name not in VALUE_STRATEGIES:
        known = ", ".join([*rules.strategies, *VALUE_STRATEGIES])
        raise InputError(f"{where}: strategy={name!r} is unknown; known are {known}")
    return name


def _add(where: str, record: Mapping[str, Any], instance: Instance, tally: Tally, rules: Rules, result: Replay) -> None:
    if tally.given[instance.i] != UNSEEN:
        raise InputError(f"{where}: {instance.id} with {tally.strategy} is there twice; keep one")
    if tally.strategy in VALUE_STRATEGIES:
        winners = compare(*_values(where, record))
    elif rules.strategies[tally.strategy].is_rating:
        winners = _rated(where, record, tally)
    else:
        winners = _compared(where, record, instance, tally, rules, result)
    tally.given[instance.i], tally.swapped[instance.i] = winners


def _values(where: str, record: Mapping[str, Any]) -> tuple[float, float]:
    values = record.get("values")
    numbers = (
        isinstance(values, list)
        and len(values) == 2
        and all(
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in values
        )
    )
    if not numbers:
        raise InputError(f"{where}: `values` is {values!r}; it must hold two finite numbers, one per output")
    return values[0], values[1]


def _rated(where: str, record: Mapping[str, Any], tally: Tally) -> tuple[str, str]:
    texts = _pair(where, record.get("scores"), "scores", tally)
    ratings = [parse_rating(text) for text in texts]
    tally.answers += 2
    tally.rated += 2
    tally.unparsed_ratings += ratings.count(None)
    return compare(*ratings)


def _compared(
    where: str, record: Mapping[str, Any], instance: Instance, tally: Tally, rules: Rules, result: Replay
) -> tuple[str | None, str | None]:
    strategy = rules.strategies[tally.strategy]
    stages = record.get("stages")
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise InputError(
            f"{where}: `stages` is missing or not a list of objects; {strategy.name} is a comparison strategy"
        )
    if not 1 <= len(stages) <= len(strategy.stages):
        raise InputError(f"{where}: {len(stages)} stages; {strategy.name} has {_at_most(len(strategy.stages))}")
    texts = [_pair(where, stage.get("out"), f"stages[{k}].out", tally) for k, stage in enumerate(stages)]
    verdicts = [
        read_stage(stage, pair, rules.judge, rules.parsing) for stage, pair in zip(strategy.stages, texts, strict=False)
    ]
    _check_stages(where, strategy, verdicts[0], stages)
    if len(stages) == 2:
        template = rules.templates.get(strategy.stages[1].prompt)
        _check_second_prompt(where, stages[1], texts[0], verdicts[0], instance, template, result)
    _count(tally, verdicts[-1], texts[-1], strategy.stages[len(stages) - 1].rule_for(rules.judge, rules.parsing))
    return verdicts[-1].winners


def _check_stages(where: str, strategy: Strategy, first: Verdict, stages: list[Any]) -> None:
    conflict = needs_second_stage(strategy, first.winners)
    if conflict and len(stages) == 1:
        raise InputError(f"{where}: the first stage's orders disagree, but there is no second stage")
    if not conflict and len(stages) == 2:
        raise InputError(f"{where}: a second stage without a conflict (the first stage's winners are {first.winners})")


def _at_most(stages: int) -> str:
    return "exactly one" if stages == 1 else f"one or {stages}"


def _pair(where: str, pair: Any, name: str, tally: Tally) -> tuple[str, str]:
    """The two texts of `[[text, finish], [text, finish]]`, stripped as completions are."""
    if not isinstance(pair, list) or len(pair) != 2:
        found = "missing" if pair is None else f"{len(pair)} answers" if isinstance(pair, list) else repr(pair)
        raise InputError(f"{where}: `{name}` must hold two answers (both orders, or both outputs), found {found}")
    for answer in pair:
        if not isinstance(answer, list) or len(answer) != 2 or not isinstance(answer[0], str):
            raise InputError(f"{where}: `{name}`: an answer is [text, finish reason], not {answer!r}")
        tally.filtered += answer[1] in CONTENT_FILTER
    return pair[0][0].strip(), pair[1][0].strip()


def _check_second_prompt(
    where: str,
    stage: Mapping[str, Any],
    first: tuple[str, str],
    verdict: Verdict,
    instance: Instance,
    template: Template | None,
    result: Replay,
) -> None:
    recorded = stage.get("prompt_sha256")
    if recorded is None or template is None:
        result.prompts_unchecked += 2
        return
    rebuilt = [sha256_16(prompt) for prompt in second_stage_prompts(instance, template, first, verdict.winners)]
    if rebuilt != recorded:
        raise InputError(
            f"{where}: the second stage's prompts, rebuilt from {instance.id} and the first stage's texts, hash to "
            f"{rebuilt}, not to {recorded}: the file was made with other data or another {template.name}"
        )
    result.prompts_checked += 2


def _count(tally: Tally, verdict: Verdict, texts: Sequence[str], rule: str) -> None:
    tally.answers += 2
    tally.unparsed += verdict.winners.count(None)
    tally.first += verdict.positions.count("1")
    for text, position in zip(texts, verdict.positions, strict=True):
        # A second verdict can only be there if the text is longer than one "Output (a)" (saves most of the work).
        if len(text) > 20 and claims_both(rule, text):
            tally.claims_both += 1
            tally.last_differs += last_claim(rule, text) != position


def _check_complete(path: Path, result: Replay, sets: Sets, allow_partial: bool) -> None:
    if not result.tallies:
        raise InputError(f"recorded: {path.name} has no line for the selected sets and strategies ({', '.join(sets)})")
    gaps = {
        f"{strategy} on {name}": tally.missing for (strategy, name), tally in result.tallies.items() if tally.missing
    }
    for strategy in result.strategies:
        groups = {group(name) for judged, name in result.tallies if judged == strategy}
        for name, instances in sets.items():
            if group(name) in groups and (strategy, name) not in result.tallies:
                gaps[f"{strategy} on {name}"] = len(instances)
    if gaps and not allow_partial:
        first = next(iter(gaps))
        more = f", and {len(gaps) - 1} more such sets" if len(gaps) > 1 else ""
        raise InputError(
            f"recorded: {path.name} is incomplete: {sum(gaps.values())} judgements are missing "
            f"({gaps[first]} of {first}{more}); averages over fewer instances are other numbers. "
            "Complete it, or say allow_partial=true"
        )
