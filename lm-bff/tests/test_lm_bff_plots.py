"""Figures: what is drawn is what was given."""

import io

import numpy as np
import pytest

from lm_bff.candidates import Candidate
from lm_bff.plots import box_over_seeds, demonstration_heat_map, k_curve, label_words, seed_scores, top_candidates

SCORES = {
    "SST-2": {"fine-tuning": [0.6, 0.62, 0.58], "prompt": [0.8, 0.81, 0.83]},
    "MR": {"fine-tuning": [0.5, 0.52, 0.55], "prompt": [0.7, 0.71, 0.76]},
}


def drawn(figure, kind="png"):
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind)
    return buffer.getvalue()


def test_a_box_plot_has_a_box_and_a_dot_per_seed_for_every_task_and_method():
    figure = box_over_seeds(SCORES, chance={"SST-2": 0.509, "MR": 0.5})
    (ax,) = figure.axes
    dots = [collection.get_offsets() for collection in ax.collections]
    assert sorted(len(points) for points in dots) == [3, 3, 3, 3]
    assert sorted(points[0][1] for points in dots) == [50.0, 60.0, 70.0, 80.0]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["SST-2", "MR"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fine-tuning", "prompt", "majority"]
    assert drawn(figure)[:4] == b"\x89PNG" and b"<svg" in drawn(figure, "svg")


def test_a_k_curve_shows_means_over_seeds_on_a_doubling_axis():
    figure = k_curve({"prompt": {32: [0.8, 0.9], 16: [0.6, 0.8]}}, {"full data": 0.95})
    (ax,) = figure.axes
    assert ax.lines[0].get_xdata().tolist() == [16, 32]
    assert ax.lines[0].get_ydata().tolist() == pytest.approx([70, 85])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["16", "32"]
    drawn(figure)


def test_a_heat_map_marks_what_was_drawn_in_proportion():
    similarities = np.arange(12, dtype=float).reshape(2, 6) / 12
    chosen = np.array([[[0, 3], [1, 4]], [[0, 5], [2, 4]]])  # two draws, two queries, two classes
    figure = demonstration_heat_map(similarities, [0, 0, 0, 1, 1, 1], chosen, ["terrible", "great"], ["a", "b" * 60])
    ax = figure.axes[0]
    dots = ax.collections[0]
    # Columns are sorted by falling mean similarity within a class: 2, 1, 0 and 5, 4, 3.
    assert sorted(map(tuple, dots.get_offsets().tolist())) == [(0, 1), (1, 1), (2, 0), (3, 0), (4, 1), (5, 0)]
    sizes = {tuple(o): s for o, s in zip(dots.get_offsets().tolist(), dots.get_sizes(), strict=True)}
    assert sizes[2, 0] == sizes[4, 1] == 2 * sizes[0, 1]
    drawn(figure)


def test_the_best_candidates_stand_at_the_top():
    found = [Candidate(f"*cls**sent_0*_t{n}*mask*.*sep+*", {"0": "bad", "1": "[good"}, 1 - n / 50) for n in range(30)]
    figure = top_candidates(found, count=20)
    names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert len(names) == 20 and "_t0" in names[0] and "bad / [good" in names[0]
    drawn(figure)


def test_label_words_are_shown_per_class():
    words = {"0": [("bad", 3.0), ("dull", 2.5)], "1": [("good", 4.0), ("fine", 4.0), ("warm", 1.0)]}
    figure = label_words(words, count=2)
    assert [ax.get_title() for ax in figure.axes] == ["0", "1"]
    assert [tick.get_text() for tick in figure.axes[1].get_yticklabels()] == ["good", "fine"]
    drawn(figure)


def test_scores_of_records_are_those_that_dev_chose():
    def record(seed, dev, test):
        return {
            "task": "mr",
            "seed": seed,
            "metric": "acc",
            "key": "",
            "dev": {"acc": dev},
            "test": {"mr": {"acc": test}},
        }

    assert seed_scores([record(13, 0.5, 0.1), record(13, 0.6, 0.2), record(21, 0.4, 0.3)]) == {13: 0.2, 21: 0.3}
