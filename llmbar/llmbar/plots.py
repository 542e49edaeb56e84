"""What the tables do not show at a glance: accuracy against agreement, the pull of the first position, and of length.

Every function takes what was measured and returns a matplotlib figure; nothing is written here. One colour per judge
throughout (Okabe and Ito's palette, distinguishable for most colour-blind readers), and a marker per judge as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llmbar.data import Sets
from llmbar.findings import COMPARISON, JUDGES, JudgeRows
from llmbar.heuristics import word_counts
from llmbar.replay import Replay
from llmbar.scores import points

PALETTE = ("#0072B2", "#D55E00", "#CC79A7", "#009E73", "#E69F00", "#56B4E9", "#7F7F7F")
MARKERS = ("o", "s", "P", "^", "v", "D", "X")
SUBSETS = {"nat": "Natural", "neighbor": "Neighbor", "gptinst": "GPTInst", "gptout": "GPTOut", "manual": "Manual"}
HUMAN = {"nat": 90.0, "adversarial": 95.0}


def style(judge: str, judges: Sequence[str]) -> dict[str, str]:
    """Colour and marker of a judge: fixed for the paper's six, by position for others."""
    place = JUDGES.index(judge) if judge in JUDGES else len(JUDGES) + list(judges).index(judge)
    return {"color": PALETTE[place % len(PALETTE)], "marker": MARKERS[place % len(MARKERS)]}


def accuracy_per_subset(rows: JudgeRows, family: str = "LLMBar", strategy: str = "Metrics_Reference") -> Figure:
    """Grouped bars per subset, with the paper's human agreement."""
    judges = [judge for judge in rows if strategy in rows[judge].get(family, {})]
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    width = 0.8 / max(1, len(judges))
    for k, judge in enumerate(judges):
        values = [rows[judge][family][strategy][f"{name}_acc"] for name in SUBSETS]
        at = np.arange(len(SUBSETS)) + (k - (len(judges) - 1) / 2) * width
        axes.bar(at, values, width * 0.92, label=judge, color=style(judge, judges)["color"])
    _chance(axes)
    if family == "LLMBar":
        axes.plot([-0.45, 0.45], [HUMAN["nat"]] * 2, color="black", lw=1.5, label="human agreement")
        axes.plot([0.55, len(SUBSETS) - 0.55], [HUMAN["adversarial"]] * 2, color="black", lw=1.5)
    axes.set_xticks(range(len(SUBSETS)), SUBSETS.values())
    axes.set(ylabel="accuracy (%)", ylim=(0, 100), title=f"{strategy} on {family}")
    _legend_outside(axes)
    return _plain(figure)


def accuracy_against_agreement(rows: JudgeRows, family: str = "LLMBar") -> Figure:
    """One point per judge and comparison strategy: a judge may be consistent and wrong."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    judges = [judge for judge in rows if family in rows[judge]]
    for judge in judges:
        named = {n: r for n, r in rows[judge][family].items() if n in COMPARISON and "adv_acc" in r}
        x, y = [r["adv_agr"] for r in named.values()], [r["adv_acc"] for r in named.values()]
        axes.scatter(x, y, s=46, label=judge, alpha=0.9, edgecolors="white", linewidths=0.6, **style(judge, judges))
        if {"CoT", "Swap_CoT"} <= set(named):
            start, end = ((named[name]["adv_agr"], named[name]["adv_acc"]) for name in ("CoT", "Swap_CoT"))
            arrow = {"arrowstyle": "->", "color": style(judge, judges)["color"], "lw": 1.2}
            axes.annotate("", end, start, arrowprops=arrow)
    _chance(axes)
    axes.set(xlabel="positional agreement (%)", ylabel="accuracy (%)", ylim=(0, 100), xlim=(0, 102))
    axes.set_title("Adversarial average, one point per strategy; arrows from CoT to Swap_CoT")
    _legend_outside(axes)
    return _plain(figure)


def first_position(replays: Mapping[str, Replay], family: str = "LLMBar") -> Figure:
    """Share of parsed answers that chose what stood first, per judge and strategy: 50 % without position bias."""
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    names = [*COMPARISON, "Vanilla_1shot", "Vanilla_2shot"]
    for judge, replay in replays.items():
        share = {name: _first_share(replay, name, family) for name in names}
        there = {name: value for name, value in share.items() if value is not None}
        axes.plot(
            [names.index(n) for n in there],
            there.values(),
            "--",
            lw=0.7,
            ms=7,
            label=judge,
            **style(judge, list(replays)),
        )
    axes.axhline(50, color="#666666", lw=1, ls=":")
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right")
    axes.set(ylabel="answers for what stood first (%)", ylim=(0, 100))
    _legend_outside(axes)
    return _plain(figure)


def _first_share(replay: Replay, strategy: str, family: str) -> float | None:
    tallies = [t for (name, where), t in replay.tallies.items() if name == strategy and where.startswith(f"{family}/")]
    parsed = sum(t.answers - t.unparsed for t in tallies)
    return sum(t.first for t in tallies) / parsed * 100 if parsed else None


def length_and_error(replays: Mapping[str, Replay], sets: Sets, strategies: Sequence[str] = ("Vanilla",)) -> Figure:
    """Accuracy by how much longer the right output is: a judge that likes length fails where the right one is short."""
    edges = np.array([-np.inf, -2.0, -1.0, -0.25, 0.25, 1.0, 2.0, np.inf])
    labels = ["< 1/4", "1/4 - 1/2", "1/2 - 0.84", "alike", "1.2 - 2", "2 - 4", "> 4"]
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 5), height_ratios=(4, 1), sharex=True, layout="constrained")
    names = [name for name in sets if name.startswith("LLMBar/")]
    ratios = {name: _log_length_ratio(sets, name) for name in names}
    for judge, replay in replays.items():
        bins: list[list[float]] = [[] for _ in labels]
        for name in names:
            for strategy in strategies:
                if (strategy, name) in replay.tallies:
                    tally = replay.tallies[strategy, name]
                    for i, value in zip(tally.seen, points(*tally.winners()), strict=True):
                        bins[int(np.searchsorted(edges, ratios[name][i], side="right")) - 1].append(value * 100)
        means = [np.mean(values) if values else np.nan for values in bins]
        above.plot(range(len(labels)), means, lw=1.3, ms=6, label=judge, **style(judge, list(replays)))
    counts = np.histogram(np.concatenate(list(ratios.values())), bins=edges)[0] if names else np.zeros(len(labels))
    below.bar(range(len(labels)), counts, color="#BBBBBB")
    below.set(ylabel="instances", xlabel="words of the right output / words of the wrong output")
    below.set_xticks(range(len(labels)), labels)
    _chance(above)
    above.set(
        ylabel="accuracy (%)", ylim=(0, 100), title=f"{', '.join(strategies)} on LLMBar, by length of the right output"
    )
    _legend_outside(above)
    return _plain(figure)


def _log_length_ratio(sets: Sets, name: str) -> np.ndarray:
    """(n,) log2 of the right output's words over the wrong one's."""
    counts = word_counts(sets[name]) + 1
    right = np.array([one.label - 1 for one in sets[name]])
    at = np.arange(len(right))
    return np.log2(counts[at, right] / counts[at, 1 - right])


def natural_and_adversarial(rows: JudgeRows, family: str = "LLMBar") -> Figure:
    """The paper's figure 4: Natural and Adversarial averages of Vanilla and Metrics+Reference*."""
    judges = [j for j in rows if {"Vanilla_NoRules", "Metrics_Reference"} <= set(rows[j].get(family, {}))]
    figure, both = plt.subplots(1, 2, figsize=(8, 3.8), sharey=True, layout="constrained")
    for axes, key, title in zip(both, ("nat_acc", "adv_acc"), ("Natural", "Adversarial"), strict=True):
        for k, (strategy, label) in enumerate(
            (("Vanilla_NoRules", "Vanilla"), ("Metrics_Reference", "Metrics+Reference*"))
        ):
            values = [rows[judge][family][strategy][key] for judge in judges]
            axes.bar(
                np.arange(len(judges)) + (k - 0.5) * 0.4, values, 0.38, label=label, color=("#9DB8CC", "#0072B2")[k]
            )
        axes.axhline(
            HUMAN["nat" if key == "nat_acc" else "adversarial"], color="black", lw=1.5, label="human agreement"
        )
        _chance(axes)
        axes.set_xticks(range(len(judges)), judges, rotation=20, ha="right")
        axes.set(title=title, ylim=(0, 100))
    both[0].set_ylabel("accuracy (%)")
    both[1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _plain(figure)


def older_sets(rows: JudgeRows) -> Figure:
    """The paper's figure 5: the same judges on FairEval, LLMEval^2, MT-Bench and the Adversarial average."""
    sets = {
        "faireval_acc": "FairEval",
        "llmeval2_acc": "LLMEval^2",
        "mtbench_acc": "MT-Bench",
        "adv_acc": "Adversarial",
    }
    judges = [judge for judge in rows if {"LLMBar", "Processed"} <= set(rows[judge])]
    figure, both = plt.subplots(1, 2, figsize=(8, 3.8), sharey=True, layout="constrained")
    for axes, strategy in zip(both, ("Vanilla_NoRules", "Metrics_Reference"), strict=True):
        for judge in judges:
            merged = rows[judge]["Processed"].get(strategy, {}) | rows[judge]["LLMBar"].get(strategy, {})
            values = [merged.get(name, np.nan) for name in sets]
            axes.plot(range(len(sets)), values, lw=1.3, ms=6, label=judge, **style(judge, judges))
        _chance(axes)
        axes.set_xticks(range(len(sets)), sets.values(), rotation=20, ha="right")
        axes.set(title=strategy, ylim=(0, 100))
    both[0].set_ylabel("accuracy (%)")
    both[1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _plain(figure)


def model_free(rows: Mapping[str, Mapping[str, float]]) -> Figure:
    """Judges without a language model: Natural against Adversarial, with 95 % intervals over instances."""
    figure, axes = plt.subplots(figsize=(8, 3.4), layout="constrained")
    names = list(rows)
    for k, (key, label, color) in enumerate((("nat", "Natural", "#9DB8CC"), ("adv", "Adversarial", "#D55E00"))):
        values = np.array([rows[name][f"{key}_acc"] for name in names])
        low = np.array([rows[name].get(f"{key}_low", np.nan) for name in names])
        high = np.array([rows[name].get(f"{key}_high", np.nan) for name in names])
        at = np.arange(len(names)) + (k - 0.5) * 0.38
        axes.bar(
            at, values, 0.36, yerr=(values - low, high - values), capsize=3, label=label, color=color, ecolor="#333333"
        )
    _chance(axes)
    axes.set_xticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set(ylabel="accuracy (%)", ylim=(0, 100))
    _legend_outside(axes)
    return _plain(figure)


def _chance(axes: Axes) -> None:
    axes.axhline(50, color="#666666", lw=1, ls=":", label="chance")


def _legend_outside(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _plain(figure: Figure) -> Figure:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", lw=0.4, color="#DDDDDD")
        axes.set_axisbelow(True)
    return figure
