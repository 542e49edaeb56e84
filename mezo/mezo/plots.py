"""The paper's figures as pure functions: numbers in, a matplotlib Figure out. Colours are Okabe and Ito's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def _quiet(ax: Axes) -> Axes:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, color="#e4e4e4", linewidth=0.7)
    ax.set_axisbelow(True)
    return ax


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, _quiet(figure.subplots())


def loss_and_gradient(lines: Sequence[Mapping[str, Any]], window: int = 10) -> Figure:
    """Loss at theta + eps z and projected gradient against the step, each with a running mean.

    Args:
        lines: of steps.jsonl, with step, loss, projected_gradient.
    """
    steps = np.array([line["step"] for line in lines])
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    for ax, key, label, colour in zip(
        figure.subplots(2, 1, sharex=True),
        ("loss", "projected_gradient"),
        ("loss", "projected gradient"),
        COLOURS,
        strict=False,
    ):
        values = np.array([line[key] for line in lines], dtype=float)
        _quiet(ax).plot(steps, values, color=colour, alpha=0.3, linewidth=1)
        width = min(window, len(values))
        if width:
            mean = np.convolve(values, np.ones(width) / width, mode="valid")
            ax.plot(steps[width - 1 :], mean, color=colour, linewidth=2)
        ax.set_ylabel(label)
    figure.axes[-1].set_xlabel("step")
    return figure


def forward_pass_efficiency(curves: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Dev accuracy (0..1) against forward passes, a line per method."""
    figure, ax = _axes(6.4, 4.2)
    for number, (name, points) in enumerate(curves.items()):
        passes, values = zip(*points, strict=True)
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        ax.plot(passes, 100 * np.array(values), color=colour, marker=marker, markersize=5, label=name)
    ax.set(xlabel="forward passes of the batch", ylabel="dev accuracy × 100")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def memory_against_size(
    measured: Mapping[str, Sequence[tuple[int, int]]], formula: Mapping[str, Sequence[float]]
) -> Figure:
    """Peak bytes against parameters: dots are measured, lines by formula.

    Args:
        measured: way -> (parameters, bytes) by size; formula: way -> bytes at the same sizes.
    """
    figure, ax = _axes(6.4, 4.2)
    for number, (name, points) in enumerate(measured.items()):
        sizes, bytes_ = (np.array(values, dtype=float) for values in zip(*points, strict=True))
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        ax.scatter(sizes / 1e6, bytes_ / 1e6, color=colour, marker=marker, s=44, zorder=3, label=name)
        ax.plot(sizes / 1e6, np.array(formula[name]) / 1e6, color=colour, linewidth=1.4, alpha=0.8)
    ax.set(xlabel="parameters, millions (fp32)", ylabel="peak memory, MB")
    ax.set_ylim(bottom=0)
    ax.set_xlim(0, 1.05 * max(size for points in measured.values() for size, _ in points) / 1e6)
    ax.legend(frameon=False, title="dots measured, lines by formula", alignment="left")
    return figure


def trajectory_size(record: int, runs: Mapping[str, tuple[int, float]]) -> Figure:
    """Bytes of a trajectory and of the weights it stands for, logarithmic.

    Args:
        record: bytes of a step. runs: name -> (steps, bytes of the weights).
    """
    figure, ax = _axes(6.4, 2.8)
    names = list(runs)
    places = np.arange(len(names))
    sizes = {
        "trajectory": [record * steps for steps, _ in runs.values()],
        "weights": [weights for _, weights in runs.values()],
    }
    for number, (what, values) in enumerate(sizes.items()):
        bars = ax.barh(places + (0.2 - 0.4 * number), values, height=0.36, color=COLOURS[number], label=what)
        ax.bar_label(bars, [_human(value) for value in values], padding=4, fontsize=9)
    ax.set_yticks(places, names)
    ax.set_xscale("log")
    ax.set_xlim(1e3, 30 * max(sizes["weights"]))
    ax.set_xlabel("bytes")
    ax.grid(False, axis="y")
    ax.legend(frameon=False, loc="lower right")
    return figure


def _human(value: float) -> str:
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"
