"""From tallied winners to the numbers that are reported: cells, table rows (macro averages), intervals, comparisons.

A cell is one strategy on one set. A row is one strategy on a family of sets, under the column names of the paper's
tables: `nat_acc, nat_agr, neighbor_acc, ..., adv_acc, adv_agr, avg_acc, avg_agr`. An average is there only if all its
sets are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmbar.data import group, is_adversarial
from llmbar.intervals import accuracy_interval, paired_difference
from llmbar.replay import Replay, Tally
from llmbar.scores import macro_average, points

COLUMNS = {
    "Natural": "nat",
    "Neighbor": "neighbor",
    "GPTInst": "gptinst",
    "GPTOut": "gptout",
    "Manual": "manual",
    "Constraint": "constraint",
    "Negation": "negation",
    "Normal": "normal",
    "Base_9": "base9",
    "Base_10": "base10",
    "FairEval": "faireval",
    "LLMEval^2": "llmeval2",
    "MT-Bench": "mtbench",
}
# Families whose sets are averaged (LLMBar, table 2; ours is in the same shape): adversarial = four sets, average =
# five.
AVERAGED = {"LLMBar": 4, "House": 4}


def column(set_name: str) -> str:
    """The table column of a set: "LLMBar/Adversarial/Neighbor" -> "neighbor"; a file of one's own keeps its name."""
    last = set_name.rpartition("/")[2]
    return COLUMNS.get(last, last)


def cells(replay: Replay, intervals: bool = True, seed: int = 0) -> list[dict[str, Any]]:
    """One entry per (strategy, set): the counts, accuracy and agreement in percent, and what to know about them."""
    return [_cell(tally, intervals, seed) for tally in replay.tallies.values()]


def _cell(tally: Tally, intervals: bool, seed: int) -> dict[str, Any]:
    scored = tally.cell()
    entry = {"strategy": tally.strategy, "set": tally.set, **scored.as_dict()}
    # A rating that is no integer counts as a tie, not as an answer without a winner.
    entry |= {"missing": tally.missing, "unparsed_ratings": tally.unparsed_ratings, "filtered": tally.filtered}
    entry |= {"claims_both": tally.claims_both, "last_differs": tally.last_differs}
    compared = tally.answers > 0 and tally.rated == 0
    parsed = tally.answers - tally.unparsed
    entry["first_position"] = tally.first / parsed * 100 if compared and parsed else None
    entry["hedging"] = 100 - scored.agreement if tally.rated else None
    if intervals:
        entry["accuracy_low"], entry["accuracy_high"] = accuracy_interval([points(*tally.winners())], seed)
    return entry


def rows(replay: Replay, intervals: bool = True, seed: int = 0) -> dict[str, dict[str, dict[str, float]]]:
    """family -> strategy -> {column_acc, column_agr, adv_acc, ..., avg_low, avg_high}, all in percent and unrounded."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for (strategy, set_name), tally in replay.tallies.items():
        scored = tally.cell()
        row = table.setdefault(group(set_name), {}).setdefault(strategy, {})
        row[f"{column(set_name)}_acc"], row[f"{column(set_name)}_agr"] = scored.accuracy, scored.agreement
        if tally.rated:
            row[f"{column(set_name)}_hedging"] = 100 - scored.agreement
    for family, strategies in table.items():
        for strategy, row in strategies.items():
            row |= _averages(replay, family, strategy, intervals, seed)
    return table


def _averages(replay: Replay, family: str, strategy: str, intervals: bool, seed: int) -> dict[str, float]:
    tallies = family_tallies(replay, family, strategy)
    adversarial = [tally for tally in tallies if is_adversarial(tally.set)]
    averages: dict[str, float] = {}
    if len(adversarial) != AVERAGED.get(family):
        return averages
    parts = {"nat": [tally for tally in tallies if tally not in adversarial], "adv": adversarial, "avg": tallies}
    for name, part in parts.items():
        if len(part) == {"nat": 1, "adv": len(adversarial), "avg": len(adversarial) + 1}[name]:
            averages[f"{name}_acc"] = macro_average(tally.cell().accuracy for tally in part)
            averages[f"{name}_agr"] = macro_average(tally.cell().agreement for tally in part)
            if intervals:
                low, high = accuracy_interval([points(*tally.winners()) for tally in part], seed)
                averages |= {f"{name}_low": low, f"{name}_high": high}
    return averages


def family_tallies(replay: Replay, family: str, strategy: str) -> list[Tally]:
    """The tallies of one strategy on one family, in the order of the sets."""
    return [
        tally for (name, set_name), tally in replay.tallies.items() if name == strategy and group(set_name) == family
    ]


def compare_judges(
    first: Replay, second: Replay, pairs: Sequence[tuple[str, str]] | None = None, seed: int = 0
) -> list[dict[str, Any]]:
    """First minus second, paired by instance, per family and pair of strategies (default: those both have).

    Each entry: family, first and second strategy, sets, n, difference of the macro average over the sets both have, its
    95% interval, and the p value of a sign-flip test.
    """
    pairs = pairs or [(name, name) for name in first.strategies if name in second.strategies]
    compared = []
    for one, other in pairs:
        for family in dict.fromkeys(group(name) for name in first.sets):
            shared = [t.set for t in family_tallies(first, family, one) if (other, t.set) in second.tallies]
            a = [_all_points(first.tallies[one, name]) for name in shared]
            b = [_all_points(second.tallies[other, name]) for name in shared]
            both = [~np.isnan(x) & ~np.isnan(y) for x, y in zip(a, b, strict=True)]
            if shared and all(seen.any() for seen in both):
                result = paired_difference(
                    [x[seen] for x, seen in zip(a, both, strict=True)],
                    [y[seen] for y, seen in zip(b, both, strict=True)],
                    seed,
                )
                compared.append({"family": family, "first": one, "second": other, "sets": shared, **vars(result)})
    return compared


def _all_points(tally: Tally) -> np.ndarray:
    """(n,) points of every instance, NaN where the file has none."""
    full = np.full(len(tally.labels), np.nan)
    full[tally.seen] = points(*tally.winners())
    return full
