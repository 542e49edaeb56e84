"""The quantities that the paper's claims are about, from the replayed judges that are at hand.

Each finding lists the judges it covers, so that a verdict says over whom it was reached: where a recorded judge is
missing, "every base model" means every one in the list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmbar.replay import Replay
from llmbar.summary import compare_judges

JudgeRows = Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]  # judge -> family -> strategy -> column
# As the release names them; the order of the paper's tables.
JUDGES = ("GPT-4", "ChatGPT", "ChatGPT-0301", "LLaMA2", "PaLM2", "Falcon")
COMPARISON = ("Vanilla_NoRules", "Vanilla", "CoT", "Swap", "Swap_CoT", "Metrics", "Reference", "Metrics_Reference")
RATING_PAIRS = {
    "Rating_NoRules": "Vanilla_NoRules",
    "Rating": "Vanilla",
    "Rating_Metrics": "Metrics",
    "Rating_Reference": "Reference",
    "Rating_Metrics_Reference": "Metrics_Reference",
}


def findings(rows: JudgeRows, replays: Mapping[str, Replay], seed: int = 0) -> dict[str, Any]:
    """Finding -> {"judges", "values", ...}; a finding for which nothing was recorded is left out."""
    llmbar = {judge: rows[judge]["LLMBar"] for judge in JUDGES if "LLMBar" in rows.get(judge, {})}
    found: dict[str, Any] = {
        "best_adversarial": _best(llmbar, "adv_acc"),
        "metrics_reference_gain": _gains(llmbar, "Metrics_Reference", "Vanilla_NoRules", "adv_acc"),
        "rules_gain": _gains(llmbar, "Vanilla", "Vanilla_NoRules", "adv_acc"),
        "cot_gain": _gains(llmbar, "CoT", "Vanilla", "adv_acc"),
        "swap_agreement_gain": _gains(llmbar, "Swap", "CoT", "avg_agr"),
        "swap_cot_agreement_gain": _gains(llmbar, "Swap_CoT", "CoT", "avg_agr"),
        "swap_accuracy_gain": _gains(llmbar, "Swap", "CoT", "avg_acc"),
        "swap_cot_accuracy_gain": _gains(llmbar, "Swap_CoT", "CoT", "avg_acc"),
        "spread": _spreads(rows),
        "rating_minus_comparison": _rating_gaps(llmbar.get("GPT-4", {})),
        "chatgpt_hedging": _hedging(llmbar.get("ChatGPT", {})),
        "few_shot": _few_shot(replays, seed),
    }
    return {name: finding for name, finding in found.items() if finding}


def _best(rows: Mapping[str, Mapping[str, Mapping[str, float]]], column: str) -> dict[str, Any]:
    """judge -> the highest value over the comparison strategies, and which strategy has it."""
    best: dict[str, Any] = {}
    for judge, strategies in rows.items():
        values = {name: strategies[name][column] for name in COMPARISON if column in strategies.get(name, {})}
        if values:
            name = max(values, key=values.__getitem__)
            best[judge] = {"strategy": name, "value": values[name]}
    return best


def _gains(rows: Mapping[str, Any], better: str, base: str, column: str) -> dict[str, Any]:
    """`better` minus `base` in one column, for each judge that has both."""
    gains = {
        judge: strategies[better][column] - strategies[base][column]
        for judge, strategies in rows.items()
        if column in strategies.get(better, {}) and column in strategies.get(base, {})
    }
    return {"by_judge": gains, "judges": list(gains), "values": list(gains.values())} if gains else {}


def _spreads(rows: JudgeRows) -> dict[str, Any]:
    """Highest minus lowest accuracy over judges under Vanilla_NoRules: the older sets against Adversarial.

    Only judges that were recorded on both; two at least, or there is no spread.
    """
    columns = {"adversarial": ("LLMBar", "adv_acc"), "faireval": ("Processed", "faireval_acc"),
               "llmeval2": ("Processed", "llmeval2_acc"), "mtbench": ("Processed", "mtbench_acc")}  # fmt: skip
    values: dict[str, dict[str, float]] = {}
    for judge in JUDGES:
        found = {
            name: rows.get(judge, {}).get(family, {}).get("Vanilla_NoRules", {}).get(column)
            for name, (family, column) in columns.items()
        }
        if None not in found.values():
            values[judge] = found
    if len(values) < 2:
        return {}
    spread = {name: max(v[name] for v in values.values()) - min(v[name] for v in values.values()) for name in columns}
    return {"judges": list(values), **spread}


def _rating_gaps(strategies: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    gaps = {
        rating: strategies[rating]["avg_acc"] - strategies[comparison]["avg_acc"]
        for rating, comparison in RATING_PAIRS.items()
        if "avg_acc" in strategies.get(rating, {}) and "avg_acc" in strategies.get(comparison, {})
    }
    return {"by_strategy": gaps, "values": list(gaps.values())} if gaps else {}


def _hedging(strategies: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    rates = [
        value
        for name in ("Rating_NoRules", "Rating")
        for column, value in strategies.get(name, {}).items()
        if column.endswith("_hedging") and not column.startswith(("adv", "avg"))
    ]
    return {"values": rates} if rates else {}


def _few_shot(replays: Mapping[str, Replay], seed: int) -> dict[str, Any]:
    """Few-shot minus Vanilla in average accuracy, paired by instance: differences and how many are clear of zero."""
    compared: list[dict[str, Any]] = []
    for judge in JUDGES:
        if judge in replays and {"Vanilla", "Vanilla_1shot", "Vanilla_2shot"} <= set(replays[judge].strategies):
            pairs = [("Vanilla_1shot", "Vanilla"), ("Vanilla_2shot", "Vanilla")]
            entries = compare_judges(replays[judge], replays[judge], pairs, seed)
            compared += [{"judge": judge, **entry} for entry in entries if entry["family"] == "LLMBar"]
    if not compared:
        return {}
    return {
        "compared": compared,
        "judges": list(dict.fromkeys(entry["judge"] for entry in compared)),
        "values": [entry["difference"] for entry in compared],
        "clear_of_zero": sum(entry["low"] > 0 or entry["high"] < 0 for entry in compared),
        "rows": len(compared),
    }


def paired_strategies(replays: Mapping[str, Replay], pairs: Sequence[tuple[str, str]], seed: int = 0) -> list[dict]:
    """The strategies of each judge compared with each other on the LLMBar family, for the report."""
    compared = []
    for judge, replay in replays.items():
        there = [pair for pair in pairs if set(pair) <= set(replay.strategies)]
        if there:
            entries = compare_judges(replay, replay, there, seed)
            compared += [{"judge": judge, **entry} for entry in entries if entry["family"] in ("LLMBar", "House")]
    return compared
