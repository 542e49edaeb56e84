"""A page to read: the instances most judges get wrong, with their texts, everybody's verdicts and what CoT said.

One self-contained file, no script and nothing fetched; all texts are escaped (they are data and model outputs). The CoT
texts are read in a second pass over the recorded files, for the shown instances only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from llmbar.data import Instance, Sets, group
from llmbar.replay import Replay, read_lines
from llmbar.scores import points


@dataclass
class Missed:
    """One instance: the share of right answers (percent) over strategies and both orders, per judge and on average."""

    instance: Instance
    share: float
    by_judge: dict[str, float]
    winners: dict[str, dict[str, tuple[str | None, str | None]]] = field(default_factory=dict)
    cot: dict[str, list[str]] = field(default_factory=dict)

    @property
    def anchor(self) -> str:
        return f"{self.instance.set}-{self.instance.i}".replace("/", "-").replace("^", "")


def commonly_missed(
    replays: Mapping[str, Replay], sets: Sets, families: Sequence[str] = ("LLMBar",), most: int = 60
) -> list[Missed]:
    """The instances with the lowest average share of right answers, hardest first.

    Every judge weighs the same, whatever the number of its strategies. Only instances that a majority gets wrong (<
    50 %).
    """
    missed = []
    for name, instances in sets.items():
        if group(name) not in families:
            continue
        shares = {judge: _share(replay, name, len(instances)) for judge, replay in replays.items()}
        shares = {judge: values for judge, values in shares.items() if not np.isnan(values).all()}
        for one in instances:
            here = {
                judge: float(values[one.i]) * 100 for judge, values in shares.items() if not np.isnan(values[one.i])
            }
            average = sum(here.values()) / len(here) if here else 100.0
            if average < 50:
                missed.append(Missed(one, average, here))
    missed = sorted(missed, key=lambda m: (m.share, m.instance.set, m.instance.i))[:most]
    for one in missed:
        one.winners = {judge: _winners(replay, one.instance) for judge, replay in replays.items()}
    return missed


def _share(replay: Replay, set_name: str, n: int) -> np.ndarray:
    """(n,) mean points over the strategies, NaN where nothing was said."""
    rows = []
    for (_, name), tally in replay.tallies.items():
        if name == set_name:
            row = np.full(n, np.nan)
            row[tally.seen] = points(*tally.winners())
            rows.append(row)
    if not rows:
        return np.full(n, np.nan)
    stacked = np.array(rows)
    said = ~np.isnan(stacked)
    return np.divide(np.nansum(stacked, axis=0), said.sum(axis=0), out=np.full(n, np.nan), where=said.any(axis=0))


def _winners(replay: Replay, one: Instance) -> dict[str, tuple[str | None, str | None]]:
    return {
        strategy: (tally.given[one.i], tally.swapped[one.i])
        for (strategy, name), tally in replay.tallies.items()
        if name == one.set and one.i in tally.seen
    }


def add_explanations(missed: Sequence[Missed], recorded: Mapping[str, Path], strategy: str = "CoT") -> None:
    """Put each judge's CoT texts (given and swapped order) beside the instances; one streaming pass per file."""
    wanted = {(one.instance.set, one.instance.i): one for one in missed}
    for judge, path in recorded.items():
        for _, record in read_lines(path):
            one = wanted.get((record["set"], record["i"]))
            if one is not None and record["strategy"] == strategy:
                one.cot[judge] = [text for text, _ in record["stages"][0]["out"]]


def render(missed: Sequence[Missed], judges: Sequence[str], total: int, note: str = "") -> str:
    """The page as HTML. total: how many instances were looked at."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    sets = list(dict.fromkeys(one.instance.set for one in missed))
    return environment.get_template("page.html.j2").render(
        missed=missed, judges=judges, sets=sets, total=total, note=note, verdict=_verdict
    )


def _verdict(winners: tuple[str | None, str | None], label: int) -> dict[str, Any]:
    """How a pair of winners is shown: a mark per order and a word for both."""
    right = [winner == str(label) for winner in winners]
    marks = ["✓" if ok else "–" if winner is None else "✗" for ok, winner in zip(right, winners, strict=True)]
    kind = "right" if all(right) else "wrong" if not any(right) else "split"
    return {"marks": " ".join(marks), "kind": kind}
