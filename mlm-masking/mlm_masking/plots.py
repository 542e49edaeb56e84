"""The paper's figures as pure functions: numbers in, a matplotlib Figure out, nothing written or shown.

Colours are Okabe and Ito's, told apart with all common kinds of colour vision; series also differ in their markers.
A value is a summary over seeds (`shared.results.over_seeds`); bars are its standard deviation.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
RATE = "masking rate in training (%)"
GREY = "#666666"

Curve = Mapping[float, Mapping[str, Any]]  # rate -> summary over seeds


def _axes(width: float, height: float, columns: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(1, columns, squeeze=False, **options)[0])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(True, color="#e4e4e4", linewidth=0.7)
        ax.set_axisbelow(True)
    return figure, axes


def _draw(ax: Axes, curve: Curve, index: int, label: str, scale: float = 1.0, alone: bool = False) -> None:
    """A curve with bars over seeds; `alone`: its points are not joined."""
    rates = sorted(curve)
    mean = np.array([curve[rate]["mean"] for rate in rates]) * scale
    std = np.array([curve[rate]["std"] or 0.0 for rate in rates]) * scale
    ax.errorbar(
        [100 * rate for rate in rates], mean, std, color=COLOURS[index], marker=MARKERS[index], markersize=5.5,
        linewidth=0 if alone else 1.6, elinewidth=1.1, capsize=2.5, label=label, zorder=3,
    )  # fmt: skip


def _percent_axis(ax: Axes, curves: Sequence[Curve]) -> None:
    rates = sorted({round(100 * rate, 4) for curve in curves for rate in curve})
    ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
    ax.set_xlabel(RATE)


def quality_by_rate(panels: Mapping[str, Mapping[str, Curve]], ylabel: str, points: Sequence[str] = ()) -> Figure:
    """Held-out quality against the rate: a panel per comparison (sizes, strategies), a curve per member.

    Args:
        panels: title -> {label: curve}. points: labels whose points stand alone.
    """
    figure, axes = _axes(4.1 * len(panels) + 0.4, 3.9, len(panels))
    for ax, (title, curves) in zip(axes, panels.items(), strict=True):
        for index, (label, curve) in enumerate(curves.items()):
            _draw(ax, curve, index, label, alone=label in points)
        ax.set_title(title, fontsize=10, loc="left")
        _percent_axis(ax, list(curves.values()))
        ax.legend(frameon=False, fontsize=9)
    axes[0].set_ylabel(ylabel)
    return figure


def losses_by_rate(curves: Mapping[str, Curve], unigram: float, title: str = "") -> Figure:
    """Held-out losses of the same models at the fixed rates and at their own, against the rate they were trained at.

    Args:
        curves: label -> curve in nats. unigram: the loss of token frequencies alone, a dashed line.
    """
    figure, (ax,) = _axes(6.8, 4.2)
    for index, (label, curve) in enumerate(curves.items()):
        _draw(ax, curve, index, label)
    ax.axhline(unigram, color=GREY, linestyle="--", linewidth=1.2, label="token frequencies alone")
    ax.set_ylabel("held-out loss (nats per token, lower is better)")
    ax.set_title(title, fontsize=10, loc="left")
    _percent_axis(ax, list(curves.values()))
    ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def decoupling(
    losses: Mapping[tuple[float, float], Mapping[str, Any]], compute: Mapping[tuple[float, float], float], label: str
) -> Figure:
    """Corruption against prediction rate: the loss as colour and number, its deviation, and what an update costs.

    Args:
        losses: (corruption, prediction) -> summary over seeds. compute: FLOPs of a run, as a multiple of the least.
    """
    corruption, prediction = (sorted({pair[axis] for pair in losses}) for axis in (0, 1))
    table = np.full((len(corruption), len(prediction)), np.nan)
    for (c, p), value in losses.items():
        table[corruption.index(c), prediction.index(p)] = value["mean"]
    figure = Figure(figsize=(1.6 + 1.45 * len(prediction), 1.3 + 1.0 * len(corruption)), layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(table, cmap="viridis_r", aspect="auto")
    middle = (np.nanmin(table) + np.nanmax(table)) / 2
    for (c, p), value in losses.items():
        spread = "" if value["std"] is None else f" ± {value['std']:.2f}"
        row, column = corruption.index(c), prediction.index(p)
        colour = "white" if value["mean"] > middle else "black"
        text = f"{value['mean']:.2f}{spread}\n{compute[c, p]:.1f} × FLOPs"
        ax.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
    ax.set_xticks(range(len(prediction)), [f"{100 * rate:g}" for rate in prediction])
    ax.set_yticks(range(len(corruption)), [f"{100 * rate:g}" for rate in corruption])
    ax.set(xlabel="prediction rate (%)", ylabel="corruption rate (%)")
    figure.colorbar(image, ax=ax, label=label)
    return figure


def compute_against_loss(points: Mapping[str, Sequence[tuple[float, Mapping[str, Any]]]], ylabel: str) -> Figure:
    """The same cells against their compute: equal updates are not equal cost.

    Args:
        points: corruption rate's label -> [(FLOPs, summary)], one per prediction rate, ascending.
    """
    figure, (ax,) = _axes(6.0, 3.9)
    for index, (label, line) in enumerate(points.items()):
        flops = [each for each, _ in line]
        mean, std = (np.array([value[key] or 0.0 for _, value in line]) for key in ("mean", "std"))
        ax.errorbar(
            flops, mean, std, color=COLOURS[index], marker=MARKERS[index], markersize=5.5, linewidth=1.6,
            elinewidth=1.1, capsize=2.5, label=label, zorder=3,
        )  # fmt: skip
    ax.set(xlabel="FLOPs of the run", ylabel=ylabel)
    every = [each for line in points.values() for each, _ in line]
    if max(every) > 10 * min(every):  # within a decade, a logarithmic axis has no ticks but crowded minor ones
        ax.set_xscale("log")
    ax.legend(frameon=False, fontsize=9)
    return figure


def probes_by_rate(panels: Mapping[str, tuple[Curve, Mapping[str, float]]], metric: str = "accuracy × 100") -> Figure:
    """A panel per probe: its score against the rate of pre-training, with horizontal lines to compare with.

    Args:
        panels: title -> (curve of scores in [0, 1], {label: level}) with levels such as chance and the untrained model.
    """
    figure, axes = _axes(3.4 * len(panels) + 0.4, 3.7, len(panels))
    for ax, (title, (curve, levels)) in zip(axes, panels.items(), strict=True):
        _draw(ax, curve, 0, "pre-trained", scale=100)
        for number, (label, level) in enumerate(levels.items()):
            ax.axhline(100 * level, color=GREY, linestyle=("--", ":", "-.")[number % 3], linewidth=1.3, label=label)
        ax.set_title(title, fontsize=10, loc="left")
        _percent_axis(ax, [curve])
        ax.legend(framealpha=0.85, edgecolor="none", fontsize=8.5)  # the level lines may run below it
    axes[0].set_ylabel(metric)
    return figure
