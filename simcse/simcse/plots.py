"""The paper's figures as pure functions: numbers in, a matplotlib Figure out, nothing written or shown.

Sized for a README column (about 7 inches). Colours are Okabe and Ito's, told apart with all common kinds of colour
vision; each series also has its own marker, and every axis says what it shows and which way is better.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
UNIFORM = "uniformity (lower is better)"
ALIGN = "alignment (lower is better)"
STS = "STS dev set, Spearman × 100"

Number = float | Mapping[str, object]  # a value, or a summary over seeds {"mean", "std", "n", ...}


def _axes(width: float = 6.8, height: float = 4.4, columns: int = 1, **options) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, **options)[0]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(True, color="#e4e4e4", linewidth=0.7)
        ax.set_axisbelow(True)
    return figure, list(axes)


def _style(index: int) -> tuple[str, str]:
    return COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]


def _mean_std(value: Number) -> tuple[float, float]:
    if isinstance(value, Mapping):
        return float(value["mean"]), float(value["std"] or 0.0)
    return float(value), 0.0


def trajectories(runs: Mapping[str, Sequence[tuple[int, float, float]]]) -> Figure:
    """Alignment against uniformity along training (SimCSE, Fig. 2).

    Args:
        runs: per run, (step, alignment, uniformity) in order of steps. The start is hollow, the end large.
    """
    figure, (ax,) = _axes()
    for index, (label, points) in enumerate(runs.items()):
        colour, marker = _style(index)
        _, align, uniform = np.asarray(points, dtype=float).T
        ax.plot(uniform, align, color=colour, linewidth=1.1, alpha=0.75, zorder=2)
        ax.scatter(uniform[1:-1], align[1:-1], s=12, color=colour, marker=marker, zorder=3)
        ax.scatter(uniform[0], align[0], s=46, facecolor="white", edgecolor=colour, marker=marker, zorder=4)
        label = f"{label} ({int(points[0][0])} to {int(points[-1][0])} steps)"
        ax.scatter(uniform[-1], align[-1], s=70, color=colour, marker=marker, zorder=5, label=label)
    ax.set(xlabel=UNIFORM, ylabel=ALIGN)
    ax.legend(frameon=False, fontsize=9, title="hollow: start, large: end", title_fontsize=9)
    return figure


def alignment_uniformity(models: Sequence[tuple[str, float, float, float]]) -> Figure:
    """Alignment against uniformity of several models, coloured by their STS score (SimCSE, Fig. 3).

    Args:
        models: (name, alignment, uniformity, Spearman on a 0-1 scale).
    """
    figure, (ax,) = _axes()
    names, align, uniform, sts = zip(*models, strict=True)
    score = np.asarray(sts) * 100
    dots = ax.scatter(uniform, align, c=score, cmap="viridis", s=110, edgecolor="#333333", linewidth=0.7)
    ax.margins(0.12)
    ax.set(xlabel=UNIFORM, ylabel=ALIGN)
    figure.draw_without_rendering()  # fixes the scales, so that labels can be kept apart in points
    middle, taken = np.mean(ax.get_xlim()), {False: -np.inf, True: -np.inf}
    for index in np.argsort(align):
        x, y = uniform[index], align[index]
        right = bool(x > middle)  # names point to the middle of the figure, so that none runs out of it
        height = ax.transData.transform((x, y))[1] * 72 / figure.dpi
        taken[right] = max(height, taken[right] + 12)
        ax.annotate(
            f"{names[index]} ({score[index]:.1f})",
            (x, y),
            xytext=(-10 if right else 10, taken[right] - height - 3),
            textcoords="offset points",
            ha="right" if right else "left",
            fontsize=9,
        )
    figure.colorbar(dots, ax=ax, label=STS)
    return figure


def singular_values(spectra: Mapping[str, np.ndarray]) -> Figure:
    """Singular values of the sentence embedding matrix, each divided by the largest (SimCSE, Fig. F.1).

    Args:
        spectra: per model, its singular values (rank,) in descending order.
    """
    figure, (ax,) = _axes()
    for index, (label, values) in enumerate(spectra.items()):
        values = np.asarray(values, dtype=float)
        positions = np.arange(1, len(values) + 1)
        ax.plot(positions, values / values[0], color=_style(index)[0], linewidth=1.8, label=label)
        last = positions[-1], values[-1] / values[0]
        ax.scatter(*last, color=_style(index)[0], marker=_style(index)[1], s=36, zorder=3)
    ax.set(xlabel="index of the singular value", ylabel="singular value / largest", yscale="log")
    ax.set_ylim(bottom=max(1e-3, ax.get_ylim()[0]), top=1.25)
    ax.legend(frameon=False, fontsize=9, title="flatter is more isotropic", title_fontsize=9)
    return figure


def cosine_densities(models: Mapping[str, Sequence[np.ndarray]]) -> Figure:
    """Density of the cosine of STS pairs in five bins of their gold score (SimCSE, Fig. G.1).

    Args:
        models: per model, the cosines (pairs,) of each bin, lowest gold scores first (`alignment.cosine_by_gold_bin`).
            A bin with fewer than 3 pairs, or with one single cosine, has no density and is left empty.
    """
    from scipy.stats import gaussian_kde

    figure, axes = _axes(width=max(5.2, 3.6 * len(models)), height=4.6, columns=len(models), sharey=True, sharex=True)
    grid = np.linspace(-1, 1, 400)
    levels = len(next(iter(models.values())))
    lowest = min(float(np.quantile(np.concatenate(list(bins)), 0.001)) for bins in models.values())
    for ax, (name, bins) in zip(axes, models.items(), strict=True):
        for level, inside in enumerate(bins):
            if len(inside) < 3 or np.ptp(inside) == 0:
                continue
            density = gaussian_kde(inside)(grid)
            height = 0.88 * density / density.max()
            colour = COLOURS[level]
            ax.fill_between(grid, level, level + height, color=colour, alpha=0.35, linewidth=0)
            ax.plot(grid, level + height, color=colour, linewidth=1.4)
            ax.plot([np.median(inside)] * 2, [level, level + 0.88], color=colour, linewidth=1, linestyle=":")
        ax.set(title=name, xlabel="cosine", xlim=(max(-1.0, lowest - 0.1), 1.0))
        ax.set_yticks([level + 0.4 for level in range(levels)], [f"{level}–{level + 1}" for level in range(levels)])
        ax.grid(False, axis="y")
    axes[0].set_ylabel("gold similarity of the pairs")
    return figure


def sts_against(
    setting: str,
    measured: Mapping[float, Number],
    paper: Mapping[float, float] | None = None,
    log: bool = False,
    paper_label: str = "paper, BERT-base",
) -> Figure:
    """The STS dev set against one setting: temperature, dropout rate, weight of hard negatives (Tables D.1, 3, 7).

    Args:
        setting: the axis label, e.g. "temperature". log: a logarithmic axis.
        measured: setting -> Spearman on a 0-1 scale, or a summary over seeds (drawn with its standard deviation).
        paper: setting -> the paper's number x 100.
    """
    figure, (ax,) = _axes(height=4.0)
    positions = sorted(measured)
    means, stds = np.array([_mean_std(measured[x]) for x in positions]).T * 100
    ax.errorbar(positions, means, yerr=stds, color=COLOURS[0], marker="o", capsize=4, linewidth=1.8, label="measured")
    if paper:
        positions = sorted(paper)
        numbers = [paper[x] for x in positions]
        ax.plot(positions, numbers, color=COLOURS[1], marker="s", linestyle="--", linewidth=1.4, label=paper_label)
    if log:
        ax.set_xscale("log")
    ticks = sorted({*measured, *(paper or {})})
    ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
    ax.minorticks_off()
    ax.set(xlabel=setting, ylabel=STS)
    ax.legend(frameon=False, fontsize=9)
    return figure


def training_curves(
    losses: Mapping[str, Sequence[tuple[int, float]]], scores: Mapping[str, Sequence[tuple[int, float]]]
) -> Figure:
    """Training loss and the STS dev set against the optimiser step.

    Args:
        losses: per run, (step, loss). scores: per run, (step, Spearman on a 0-1 scale).
    """
    figure, (left, right) = _axes(width=8.4, height=3.6, columns=2)
    for ax, series, factor in ((left, losses, 1.0), (right, scores, 100.0)):
        for label, points in series.items():
            index = list({**losses, **scores}).index(label)
            steps, values = np.asarray(points, dtype=float).T
            colour, marker = _style(index)
            marker = marker if len(points) < 40 else None
            ax.plot(steps, values * factor, color=colour, marker=marker, markersize=4, linewidth=1.5, label=label)
    left.set(xlabel="optimiser step", ylabel="contrastive loss (nats)")
    right.set(xlabel="optimiser step", ylabel=STS)
    left.legend(frameon=False, fontsize=9)
    return figure


def bars(values: Mapping[str, Number], baselines: Mapping[str, float] | None = None, label: str = STS) -> Figure:
    """Horizontal bars with the standard deviation over seeds, and baselines as dashed lines.

    Args:
        values: name -> value on a 0-1 scale (shown x 100), or a summary over seeds.
        baselines: name -> value on the same scale.
    """
    figure, (ax,) = _axes(height=1.3 + 0.46 * len(values))
    names = list(values)
    means, stds = np.array([_mean_std(values[name]) for name in names]).T * 100
    rows = np.arange(len(names))
    ax.barh(rows, means, color=COLOURS[0], height=0.62, alpha=0.85)
    spread = np.where(stds > 0, stds, np.nan)
    ax.errorbar(means, rows, xerr=spread, fmt="none", ecolor="#222222", capsize=4, zorder=4)
    behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.8}
    for row, mean, std in zip(rows, means, stds, strict=True):
        text = f"{mean:.1f}" + (f" ± {std:.1f}" if std else "")
        ax.text(mean + std + 0.9, row, text, va="center", fontsize=9, bbox=behind, zorder=5)
    for index, (name, value) in enumerate((baselines or {}).items()):
        style = {"color": COLOURS[1 + index], "linestyle": ("--", ":", "-.")[index % 3], "linewidth": 1.6}
        ax.axvline(value * 100, label=f"{name} ({value * 100:.1f})", **style)
    ax.set_yticks(rows, names)
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    ax.set_xlabel(label)
    ax.set_xlim(right=max(means + stds) * 1.16)
    if baselines:
        figure.legend(frameon=False, fontsize=9, loc="outside upper center", ncols=3)
    return figure
