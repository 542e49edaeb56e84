"""What the tables do not show at a glance: recall at every depth, ceilings, where answers are, who profits.

Every function takes what was measured and returns a matplotlib figure; nothing is written here. One colour and one line
style per system throughout (Okabe and Ito's palette, distinguishable for most colour-blind readers).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from litsearch.findings import recalls

STYLES = {
    "bm25": ("#0072B2", "-", "o"),
    "minilm": ("#D55E00", "-", "s"),
    "hybrid": ("#000000", "-", "D"),
    "tfidf": ("#56B4E9", "--", "^"),
    "lsa": ("#009E73", "--", "v"),
    "simcse": ("#CC79A7", "-.", "P"),
    "random": ("#8C8C8C", ":", "X"),
}
OTHERS = ("#E69F00", "#7F3C8D", "#3969AC", "#A5AA99")
NAMES = {
    "bm25": "BM25",
    "minilm": "MiniLM",
    "hybrid": "BM25 + MiniLM",
    "tfidf": "TF-IDF",
    "lsa": "LSA",
    "simcse": "SimCSE, tiny",
    "random": "random vectors",
}


def label(name: str) -> str:
    """How a system is called in figures."""
    first, _, rest = name.removeprefix("offline-").partition("-")
    return f"{NAMES.get(first, first)}{', ' + rest.replace('-', ', ') if rest else ''}"


def style(name: str) -> dict[str, str]:
    color, line, _ = STYLES.get(name.removeprefix("offline-"), (OTHERS[sum(map(ord, name)) % len(OTHERS)], "-", "o"))
    return {"color": color, "linestyle": line}


def recall_curves(curves: Mapping[str, Mapping[str, np.ndarray]], counts: Mapping[str, int]) -> Figure:
    """Recall at every depth, one panel per subset. curves: subset -> system -> `(depth,)` percent."""
    figure, panels = plt.subplots(
        1, len(curves), figsize=(4.4 * len(curves), 3.9), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, (subset, systems) in zip(panels[0], curves.items(), strict=True):
        depth = 1
        for name, values in sorted(systems.items(), key=lambda item: -item[1][-1]):
            axes.plot(range(1, len(values) + 1), values, lw=1.7, label=label(name), **style(name))
            depth = len(values)
        for k in (5, 20):
            axes.axvline(k, color="#BBBBBB", lw=0.8, zorder=0)
        axes.set(title=f"{subset} ({counts[subset]} questions)", xlabel="k (log scale)", ylim=(0, 101), xscale="log")
        axes.set_xlim(1, max(depth, 2))
        axes.xaxis.set_major_locator(FixedLocator([k for k in (1, 2, 5, 10, 20, 50, 100, 200) if k <= depth]))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
    panels[0][0].set_ylabel("recall@k (%)")
    panels[0][-1].legend(frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _plain(figure)


def expansion_ceilings(rows: Mapping[str, Mapping[str, Any]], kept: int) -> Figure:
    """Answers among the candidates before and after one-hop, and among as many papers of the first stage itself."""
    figure, axes = plt.subplots(figsize=(7.6, 3.6), layout="constrained")
    bars = (
        ("first", f"first {kept}", "#9DB8CC"),
        ("after", "expanded by citations", "#0072B2"),
        ("as_many", "as many without citations", "#E0A267"),
    )
    for k, (key, text, color) in enumerate(bars):
        at = np.arange(len(rows)) + (k - 1) * 0.27
        values = [row[key] for row in rows.values()]
        drawn = axes.bar(at, values, 0.25, label=text, color=color)
        axes.bar_label(drawn, fmt="%.1f", fontsize=8, padding=1)
    names = [f"{label(name)}\n({row['candidates']:.0f} candidates)" for name, row in rows.items()]
    axes.set_xticks(range(len(rows)), names)
    axes.set(ylabel="answers among the candidates (%)", ylim=(0, 112), yticks=range(0, 101, 20))
    _legend_outside(axes)
    return _plain(figure)


def candidate_ceilings(rows: Mapping[str, Mapping[str, float]]) -> Figure:
    """What a faultless reranker of the first k could reach, per first stage."""
    figure, axes = plt.subplots(figsize=(7.6, 3.6), layout="constrained")
    depths: list[str] = []
    for name, row in rows.items():
        depths = [key.removeprefix("top") for key in row]
        marker = STYLES.get(name, ("", "", "o"))[2]
        axes.plot(range(len(row)), list(row.values()), lw=1.7, marker=marker, ms=6, label=label(name), **style(name))
        axes.annotate(
            f"{row['top100']:.1f}",
            (depths.index("100"), row["top100"]),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    axes.set_xticks(range(len(depths)), depths)
    axes.set(xlabel="candidates that are reranked", ylabel="ceiling of recall (%)", ylim=(0, 105))
    _legend_outside(axes)
    return _plain(figure)


def gold_ranks(histograms: Mapping[str, Mapping[str, int]]) -> Figure:
    """Where the answers stand: share of all answers per range of ranks."""
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    bins = [name for name in next(iter(histograms.values())) if not name.startswith("over")]
    width = 0.82 / len(histograms)
    for k, (name, counts) in enumerate(histograms.items()):
        total = sum(counts.values())
        at = np.arange(len(bins)) + (k - (len(histograms) - 1) / 2) * width
        values = [100 * counts[one] / total for one in bins]
        axes.bar(at, values, width * 0.92, label=label(name), color=style(name)["color"])
    axes.set_xticks(range(len(bins)), [name.replace("-", "–") for name in bins])
    axes.set(xlabel="rank of an answer", ylabel="answers (%)")
    _legend_outside(axes)
    return _plain(figure)


def overlap_against_recall(runs: Mapping[str, Any], overlap: np.ndarray, k: int = 20, bins: int = 5) -> Figure:
    """Every question as a point, and the mean of fifths of the questions, ordered by overlap."""
    figure, axes = plt.subplots(figsize=(7.6, 4), layout="constrained")
    order = np.argsort(overlap, kind="stable")
    parts = [part for part in np.array_split(order, min(bins, len(order))) if len(part)]
    for number, (name, run) in enumerate(runs.items()):
        values = recalls(run, k)
        shown = style(name)
        # Most recalls are 0 or 100: points are moved aside, each system in a band of its own.
        aside = np.random.default_rng(number).uniform(-1.3, 1.3, len(values)) + 4.2 * (number - (len(runs) - 1) / 2)
        axes.scatter(overlap, values + aside, s=13, alpha=0.38, color=shown["color"], linewidths=0)
        centres = [overlap[part].mean() for part in parts]
        means = [values[part].mean() for part in parts]
        marker = STYLES.get(name, ("", "", "o"))[2]
        axes.plot(centres, means, lw=2, marker=marker, ms=7, label=label(name), **shown)
    axes.set(xlabel="part of the question's words that occur in its answer", ylabel=f"recall@{k} (%)", ylim=(-9, 109))
    axes.set_yticks(range(0, 101, 20))
    _legend_outside(axes)
    return _plain(figure)


def reranker_gains(gains: Mapping[str, np.ndarray]) -> Figure:
    """Change of nDCG@10 of every question, sorted: who profits from reranking and who loses."""
    figure, axes = plt.subplots(figsize=(7.6, 3.6), layout="constrained")
    for number, (name, values) in enumerate(gains.items()):
        values = np.sort(values)[::-1]
        better, worse = int((values > 1e-9).sum()), int((values < -1e-9).sum())
        text = f"{name}: {better} gain, {worse} lose, mean {values.mean():+.1f}"
        axes.step(range(1, len(values) + 1), values, where="mid", lw=1.8, label=text, color=_ORDER[number % 3])
    axes.axhline(0, color="#666666", lw=0.8)
    axes.set(xlabel="questions, each curve in its own order", ylabel="change of nDCG@10 (points)", ylim=(-105, 105))
    axes.legend(frameon=False, fontsize=8.5, loc="lower left")
    return _plain(figure)


_ORDER = ("#0072B2", "#D55E00", "#8C8C8C")


def systems(rows: Mapping[str, Mapping[str, Any]], columns: Sequence[tuple[str, str]]) -> Figure:
    """Every system with its 95 % interval over questions, one panel per column (group, metric)."""
    figure, panels = plt.subplots(
        1, len(columns), figsize=(3.1 * len(columns) + 1.2, 0.33 * len(rows) + 1.2), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    names = list(rows)[::-1]
    for axes, (group, metric) in zip(panels[0], columns, strict=True):
        for at, name in enumerate(names):
            row = rows[name][group]
            low, high = row["intervals"][metric]
            color = style(name)["color"]
            axes.plot([low, high], [at, at], color=color, lw=2, solid_capstyle="butt")
            axes.plot(row[metric], at, "o", color=color, ms=5.5)
            axes.annotate(f"{row[metric]:.1f}", (row[metric], at), xytext=(0, 4), textcoords="offset points",
                          ha="center", fontsize=7.5)  # fmt: skip
        breadth = group.removeprefix("avg_")
        axes.set(title=f"{breadth}, {metric.replace('R@', 'recall@')}", xlim=(0, 100), xlabel="%")
        axes.set_yticks(range(len(names)), [label(name) for name in names])
        axes.set_ylim(-0.6, len(names) - 0.3)
    return _plain(figure, "x")


def _legend_outside(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _plain(figure: Figure, grid: str = "y") -> Figure:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis=grid, lw=0.4, color="#DDDDDD")
        axes.set_axisbelow(True)
    return figure
