"""The prompting strategies, read from YAML (configs/strategy/): prompts, stages, token limits, parse rules, bias sets.

A strategy is data, so a new one is a new file and no code. The release keeps 65 JSON files (model x strategy) that
repeat the same fifteen; here a strategy is written once, and the one place where a model is read by another rule says
so by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from llmbar.parsing import COMPARISON_RULES, RATING_RULE
from shared import InputError

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "strategy"
BIAS_SETS = ("avoid", "favor")


@dataclass(frozen=True)
class Auxiliary:
    """A text the judge writes beforehand (metrics, a reference): once per instance, shared by orders and strategies."""

    prompt: str
    max_new_tokens: int


@dataclass(frozen=True)
class Stage:
    """One question in both orders (or, for a rating, one per output)."""

    prompt: str
    max_new_tokens: int
    rule: str
    bias: tuple[str, ...] = ()
    decide_by: str = "text"  # or "logprob": the more probable of the two answers, nothing generated
    released_rule: Mapping[str, str] = field(default_factory=dict)

    def rule_for(self, judge: str, parsing: str) -> str:
        """The parse rule; `parsing="released"` honours the release's exception for one model, "corrected" does not."""
        return self.released_rule.get(judge, self.rule) if parsing == "released" else self.rule


@dataclass(frozen=True)
class Strategy:
    """A released strategy (or one's own). A second stage runs only where the first stage's orders disagree."""

    name: str
    title: str
    stages: tuple[Stage, ...]
    auxiliary: tuple[Auxiliary, ...] = ()

    @property
    def is_rating(self) -> bool:
        return self.stages[0].rule == RATING_RULE

    @property
    def prompt_files(self) -> tuple[str, ...]:
        return tuple(part.prompt for part in (*self.auxiliary, *self.stages))


def from_config(config: Mapping[str, Any], origin: str = "strategy") -> dict[str, Strategy]:
    """name -> Strategy, checked. Raises InputError naming the strategy, the field and the value."""
    return {str(name): _strategy(str(name), fields, origin) for name, fields in config.items()}


@cache
def all_strategies() -> dict[str, Strategy]:
    """Every strategy with a file in configs/strategy/: what a recorded file may name."""
    found: dict[str, Strategy] = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        content.pop("defaults", None)  # a list of strategies, not a strategy
        found |= from_config(content, origin=path.name)
    return found


def _strategy(name: str, fields: Any, origin: str) -> Strategy:
    where = f"{origin}: strategy {name}"
    _check_keys(where, fields, {"title", "auxiliary", "stages"})
    stages = tuple(_stage(f"{where}, stages[{k}]", stage) for k, stage in enumerate(fields.get("stages") or ()))
    auxiliary = tuple(
        _auxiliary(f"{where}, auxiliary[{k}]", aux) for k, aux in enumerate(fields.get("auxiliary") or ())
    )
    if len(stages) not in (1, 2):
        raise InputError(
            f"{where}: {len(stages)} stages; give one, or two where the second settles a conflict of the first"
        )
    if len(stages) == 2 and any(stage.rule == RATING_RULE or stage.decide_by != "text" for stage in stages):
        raise InputError(f"{where}: only written comparisons can have a second stage; give one stage")
    return Strategy(name=name, title=str(fields.get("title", name)), stages=stages, auxiliary=auxiliary)


def _auxiliary(where: str, fields: Any) -> Auxiliary:
    _check_keys(where, fields, {"prompt", "max_new_tokens"}, required={"prompt", "max_new_tokens"})
    return Auxiliary(str(fields["prompt"]), _limit(where, fields))


def _stage(where: str, fields: Any) -> Stage:
    known = {"prompt", "max_new_tokens", "rule", "bias", "decide_by", "released_rule"}
    _check_keys(where, fields, known, required={"prompt", "max_new_tokens", "rule"})
    rules = (*COMPARISON_RULES, RATING_RULE)
    released = {str(model): str(rule) for model, rule in (fields.get("released_rule") or {}).items()}
    for rule in (fields["rule"], *released.values()):
        if rule not in rules:
            raise InputError(f"{where}: rule={rule!r} is unknown; use one of {', '.join(rules)}")
    bias = tuple(fields.get("bias") or ())
    if unknown := set(bias) - set(BIAS_SETS):
        raise InputError(f"{where}: bias={sorted(unknown)} is unknown; use {' and/or '.join(BIAS_SETS)}")
    decide_by = fields.get("decide_by", "text")
    if decide_by not in ("text", "logprob"):
        raise InputError(f"{where}: decide_by={decide_by!r} is unknown; use text or logprob")
    return Stage(str(fields["prompt"]), _limit(where, fields), fields["rule"], bias, decide_by, released)


def _limit(where: str, fields: Mapping[str, Any]) -> int:
    limit = fields["max_new_tokens"]
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise InputError(f"{where}: max_new_tokens={limit!r}; give a whole number above 0")
    return limit


def _check_keys(where: str, fields: Any, known: set[str], required: set[str] = frozenset()) -> None:
    if not isinstance(fields, Mapping):
        raise InputError(f"{where}: expected fields, found {fields!r}")
    if unknown := set(map(str, fields)) - known:
        raise InputError(f"{where}: unknown field {sorted(unknown)[0]!r}; known are {', '.join(sorted(known))}")
    if missing := set(required) - set(fields):
        raise InputError(f"{where}: the field {sorted(missing)[0]!r} is missing")
