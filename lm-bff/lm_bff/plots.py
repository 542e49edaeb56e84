"""The paper's figures as pure functions: numbers or records of the store in, a matplotlib Figure out.

Nothing is written or shown here (`shared.results.Run.save_plot` does that; `savefig` with .png or .svg works too).
Colours are Okabe and Ito's, told apart with all common kinds of colour vision; series also differ in their markers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lm_bff.candidates import Candidate
from lm_bff.tables import choose

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LONGEST_TEXT = 60


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    ax = figure.subplots()
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, color="#e4e4e4", linewidth=0.7)
    ax.set_axisbelow(True)
    return figure, ax


def seed_scores(records: Sequence[Mapping[str, Any]], test: str | None = None) -> dict[int, float]:
    """Seed -> test score (0..1) of the trial that dev chose, from the records of one task and method."""
    chosen = choose(records)
    found = {}
    for seed in sorted(chosen):
        tests = chosen[seed]["test"]
        found[seed] = tests[test or next(iter(tests))][chosen[seed]["metric"]]
    return found


def box_over_seeds(
    scores: Mapping[str, Mapping[str, Sequence[float]]],
    chance: Mapping[str, float] | None = None,
    label: str = "test score × 100",
) -> Figure:
    """A box per task and method over the seeds, each seed a dot.

    Args:
        scores: task -> method -> scores (0..1), one per seed. Methods have the same colour in every task.
        chance: task -> the majority class's score (0..1), a dashed line.
    """
    methods = list(dict.fromkeys(method for of_task in scores.values() for method in of_task))
    figure, ax = _axes(max(5.6, 1.1 + 0.42 * len(methods) * len(scores) + 0.5 * len(scores)), 4.2)
    width = 0.8 / len(methods)
    for position, (task, of_task) in enumerate(scores.items()):
        for number, method in enumerate(methods):
            if method not in of_task:
                continue
            values = 100 * np.asarray(of_task[method], dtype=float)
            x = position + (number - (len(methods) - 1) / 2) * width
            colour = COLOURS[number % len(COLOURS)]
            box = ax.boxplot([values], positions=[x], widths=0.78 * width, patch_artist=True, showfliers=False)
            for part in ("boxes", "whiskers", "caps", "medians"):
                for line in box[part]:
                    line.set(color=colour, linewidth=1.2)
            box["boxes"][0].set(facecolor=colour, alpha=0.25)
            spread = np.linspace(-0.16, 0.16, len(values)) * width if len(values) > 1 else np.zeros(1)
            marker = MARKERS[number % len(MARKERS)]
            ax.scatter(
                x + spread, values, s=20, color=colour, marker=marker, zorder=3, label=None if position else method
            )
        if chance and task in chance:
            ends = position - 0.45, position + 0.45
            name = "majority" if not position else None
            ax.plot(ends, [100 * chance[task]] * 2, color="#555555", linestyle="--", linewidth=1.2, label=name)
    ax.set_xticks(range(len(scores)), list(scores))
    ax.set_xlim(-0.55, len(scores) - 0.45)
    ax.grid(False, axis="x")
    ax.set_ylabel(label)
    figure.legend(frameon=False, fontsize=9, loc="outside upper center", ncols=min(4, len(methods) + bool(chance)))
    return figure


def k_curve(
    series: Mapping[str, Mapping[int, Sequence[float]]],
    lines: Mapping[str, float] | None = None,
    label: str = "test score × 100",
) -> Figure:
    """Score against the number of examples per class, mean and standard deviation over the seeds (Figure 3).

    Args:
        series: method -> K -> scores (0..1), one per seed. lines: name -> score (0..1), such as full-data fine-tuning.
    """
    figure, ax = _axes(6.4, 4.0)
    for number, (method, by_k) in enumerate(series.items()):
        ks = sorted(by_k)
        means = np.array([100 * np.mean(by_k[k]) for k in ks])
        stds = np.array([100 * np.std(by_k[k]) for k in ks])
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        ax.fill_between(ks, means - stds, means + stds, color=colour, alpha=0.15, linewidth=0)
        ax.plot(ks, means, color=colour, marker=marker, linewidth=1.8, label=method)
    for number, (name, value) in enumerate((lines or {}).items()):
        ax.axhline(100 * value, color="#555555", linestyle=("--", ":", "-.")[number % 3], linewidth=1.3, label=name)
    ticks = sorted({k for by_k in series.values() for k in by_k})
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [str(k) for k in ticks])
    ax.minorticks_off()
    ax.set(xlabel="K, training examples per class", ylabel=label)
    ax.legend(frameon=False, fontsize=9)
    return figure


def demonstration_heat_map(
    similarities: np.ndarray,
    support_classes: Sequence[int],
    chosen: np.ndarray,
    class_names: Sequence[str],
    query_names: Sequence[str] | None = None,
) -> Figure:
    """Similarity of queries and training examples, those that were drawn as demonstrations marked.

    Args:
        similarities: (queries, support) cosines. support_classes: (support,) class numbers; columns are sorted by
            class, and within a class by their mean similarity.
        chosen: (draws, queries, classes) or (queries, classes) support numbers, from `demonstrations.select`. The area
            of a dot is in proportion to how often an example was drawn.
        class_names: the label words, for instance.
    """
    similarities, classes = np.asarray(similarities), np.asarray(support_classes)
    queries, support = similarities.shape
    drawn = np.asarray(chosen).reshape(-1, queries, np.asarray(chosen).shape[-1])
    counts = np.zeros((queries, support))
    for query in range(queries):
        np.add.at(counts[query], drawn[:, query].reshape(-1), 1)
    order = np.lexsort((-similarities.mean(axis=0), classes))
    figure, ax = _axes(max(5.6, 1.8 + 0.2 * support), max(2.8, 1.6 + 0.22 * queries))
    image = ax.imshow(similarities[:, order], cmap="viridis", aspect="auto")
    rows, columns = np.nonzero(counts[:, order])
    areas = counts[:, order][rows, columns] / counts.max() * 46
    ax.scatter(columns, rows, s=areas, facecolor="white", edgecolor="black", linewidth=0.6)
    edges = np.flatnonzero(np.diff(classes[order])) + 0.5
    for edge in edges:
        ax.axvline(edge, color="white", linewidth=2.5)
    middles = [np.flatnonzero(classes[order] == label).mean() for label in range(len(class_names))]
    ax.set_xticks(middles, list(class_names))
    ax.set_yticks(range(queries), [_short(name, 34) for name in query_names] if query_names else [""] * queries)
    ax.tick_params(length=0, labelsize=9)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set(xlabel="training examples by class; a dot: drawn as demonstration, larger: more often", ylabel="queries")
    figure.colorbar(image, ax=ax, label="cosine similarity")
    return figure


def top_candidates(candidates: Sequence[Candidate], count: int = 20, label: str = "dev score × 100") -> Figure:
    """The best templates, label words or prompts with their scores, best at the top.

    Args:
        candidates: with scores (0..1), as `rank` or a search gives them.
    """
    shown = list(candidates[:count])
    names = [_short(_words(one), LONGEST_TEXT) for one in shown]
    scores = 100 * np.array([one.score for one in shown], dtype=float)
    figure, ax = _axes(7.2, 1.0 + 0.3 * len(shown))
    rows = np.arange(len(shown))
    ax.barh(rows, scores, color=COLOURS[0], alpha=0.85, height=0.66)
    for row, score in zip(rows, scores, strict=True):
        ax.text(score, row, f" {score:.1f}", va="center", fontsize=8)
    ax.set_yticks(rows, names, fontsize=8, family="monospace")
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    low = min(0.0, scores.min())
    ax.set_xlim(low, max(scores.max(), low + 1) * 1.1)
    ax.set_xlabel(label)
    return figure


def label_words(per_class: Mapping[str, Sequence[tuple[str, float]]], count: int = 20) -> Figure:
    """The likeliest words of each class and their mean logits (step 2 of the label search).

    Args:
        per_class: class -> (word, mean logit at the mask over the class's examples), best first.
    """
    figure = Figure(
        figsize=(max(4.4, 2.6 * len(per_class)), 0.9 + 0.24 * min(count, max(map(len, per_class.values())))),
        layout="constrained",
    )
    axes = figure.subplots(1, len(per_class), squeeze=False)[0]
    for number, (ax, (name, words)) in enumerate(zip(axes, per_class.items(), strict=True)):
        shown = list(words[:count])
        values = np.array([value for _, value in shown])
        rows = np.arange(len(shown))
        ax.hlines(rows, values.min() - 0.05 * (np.ptp(values) or 1), values, color="#d8d8d8", linewidth=1.2)
        ax.scatter(
            values, rows, color=COLOURS[number % len(COLOURS)], marker=MARKERS[number % len(MARKERS)], s=24, zorder=3
        )
        ax.set_yticks(rows, [_short(word, 18) for word, _ in shown], fontsize=8)
        ax.invert_yaxis()
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_title(name, fontsize=10)
        ax.set_xlabel("mean logit", fontsize=9)
    return figure


def _words(one: Candidate) -> str:
    words = "" if one.mapping is None else " / ".join(one.mapping.values())
    return "   ".join(part for part in (one.template, words) if part)


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
