"""Analyses of an embedding space: known answers on constructed embeddings, a run on a real encoder, the figures."""

import json
import shutil
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from shared import InputError
from simcse import plots
from simcse.analyze import analyze, analyze_embeddings, label_of, load_pairs, spectrum_summary
from simcse.plan import CONFIGS


@pytest.fixture
def circle():
    """Pairs on a circle whose angle grows as the gold score falls: 60 pairs, 2 dimensions."""
    gold = np.linspace(0, 5, 60)
    angle = (5 - gold) * np.pi / 10
    start = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    first = 3 * np.stack([np.cos(start), np.sin(start)], axis=1)
    second = np.stack([np.cos(start + angle), np.sin(start + angle)], axis=1)
    return first.astype(np.float32), second.astype(np.float32), gold


def test_known_answers_on_a_circle(circle):
    first, second, gold = circle
    found = analyze_embeddings(first, second, gold).metrics
    assert found["spearman"] == pytest.approx(1.0)
    close = gold > 4
    assert found["positive_pairs"] == close.sum() == 12
    # chord of angle t on the unit circle: 2 - 2 cos t, whatever the lengths of the vectors
    assert found["align"] == pytest.approx(np.mean(2 - 2 * np.cos((5 - gold[close]) * np.pi / 10)), abs=1e-6)
    assert found["singular_values"]["normalized"] == pytest.approx([1.0, 1.0], abs=0.35)
    means = [found["cosine_density"][f"gold_{low}_{low + 1}"]["mean_cosine"] for low in range(5)]
    assert means == sorted(means) and sum(b["pairs"] for b in found["cosine_density"].values()) == 60


def test_only_what_was_asked_for_is_measured(circle):
    assert set(analyze_embeddings(*circle, what=["singular_values"]).metrics) == {"spearman", "singular_values"}
    for what in ([], ["align"]):
        with pytest.raises(InputError, match="align_uniform, singular_values, cosine_density"):
            analyze_embeddings(*circle, what=what)


def test_alignment_without_close_pairs_is_an_error_not_a_number(circle):
    first, second, gold = circle
    with pytest.raises(InputError, match="above 4"):
        analyze_embeddings(first, second, np.minimum(gold, 4.0))


def test_spectrum_summary_of_a_flat_and_of_a_one_sided_space():
    assert spectrum_summary(np.ones(8)) == {"top1_share": pytest.approx(1 / 8), "effective_rank": pytest.approx(8)}
    line = spectrum_summary(np.array([5.0, 0.0, 0.0]))
    assert line == {"top1_share": pytest.approx(1), "effective_rank": pytest.approx(1)}


def test_a_runs_model_folder_is_named_after_the_run():
    assert label_of("runs/simcse/paper/unsup_bert_base/model") == "unsup_bert_base"
    assert label_of("princeton-nlp/sup-simcse-bert-base-uncased") == "sup-simcse-bert-base-uncased"
    assert label_of("minilm") == "minilm"


def test_graded_pairs_stand_in_for_missing_sts_data_and_say_so(monkeypatch, tmp_path):
    monkeypatch.setenv("REPRO_MIRROR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("shared.hub.cache_folder", lambda paper: tmp_path / "cache")
    pairs, source = load_pairs("all")
    assert source == "graded pairs of this project" and len(pairs) >= 200
    with pytest.raises(InputError, match="split=tset"):
        load_pairs("tset")


@pytest.mark.mirror
def test_reference_values_of_random_word_vectors_on_the_whole_of_sts_b(mirror):
    """Mean of one fixed random vector per word, 300 dimensions; expected values computed with independent code."""
    pairs, source = load_pairs("all")
    assert source == "STS-B all" and len(pairs) == 8_628

    vectors = {}

    def vector(word):
        if word not in vectors:
            vectors[word] = np.random.RandomState(zlib.crc32(word.encode())).standard_normal(300)
        return vectors[word]

    def embed(texts):
        return np.stack([np.mean([vector(w) for w in t.lower().split()], axis=0) for t in texts]).astype(np.float32)

    found = analyze_embeddings(embed(pairs.first), embed(pairs.second), pairs.gold, ["align_uniform"]).metrics
    assert found["positive_pairs"] == 1_491
    assert found["align"] == pytest.approx(0.568222, abs=1e-5)
    assert found["uniform"] == pytest.approx(-3.359940, abs=1e-5)


def configuration(*overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("analyze", [str(override) for override in overrides])


def test_two_encoders_are_compared_and_the_figures_drawn(tmp_path, tiny_encoder_folder, dev_folder):
    other = tmp_path / "other"
    shutil.copytree(tiny_encoder_folder, other)
    models = f"model=[{tiny_encoder_folder},{other}]"
    path = analyze(configuration(models, "pooler=avg", f"data_dir={dev_folder}", f"output_dir={tmp_path / 'out'}"))
    result = json.loads(path.read_text())
    assert result["experiment"] == "analyze_tiny_other" and result["metrics"]["sts_data"] == "STS-B dev"
    tiny, same = result["metrics"]["tiny"], result["metrics"]["other"]
    assert tiny == same and tiny["pooler"] == "avg" and tiny["uniform"] < 0 < tiny["align"]
    assert len(tiny["singular_values"]["normalized"]) == 32
    assert [plot["name"] for plot in result["plots"]] == ["alignment_uniformity", "singular_values", "cosine_density"]
    for plot in result["plots"]:
        assert (tmp_path / "out" / plot["file"]).stat().st_size > 5_000 and plot["alt"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "model is missing"),
        (["model=./nowhere"], "./nowhere"),
        (["model=minilm", "what=[spectra]"], "align_uniform, singular_values, cosine_density"),
        (["model=[minilm,minilm]"], "same name"),
    ],
)
def test_a_wrong_option_is_an_error_before_anything_is_written(tmp_path, overrides, message):
    with pytest.raises(InputError, match=message):
        analyze(configuration(*overrides, f"output_dir={tmp_path / 'out'}"))
    assert not (tmp_path / "out").exists()


def test_the_command_ends_with_status_2_and_one_message(tmp_path):
    command = [sys.executable, "-m", "simcse.analyze", "model=minilm", "splt=dev"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "splt" in done.stderr and "Traceback" not in done.stderr


def summary(mean, std):
    return {"mean": mean, "std": std, "n": 3}


FIGURES = {
    "trajectories": lambda: plots.trajectories({"a": [(0, 0.2, -1.6), (10, 0.2, -2.0), (20, 0.21, -2.5)]}),
    "alignment_uniformity": lambda: plots.alignment_uniformity([("a", 0.2, -2.5, 0.8), ("b", 0.2, -2.4, 0.7)]),
    "singular_values": lambda: plots.singular_values({"a": np.array([2.0, 1.0, 0.5])}),
    "cosine_densities": lambda: plots.cosine_densities({"a": [np.linspace(0, 1, 9)] * 4 + [np.empty(0)]}),
    "sts_against": lambda: plots.sts_against("temperature", {0.05: summary(0.7, 0.01), 1: 0.4}, {0.05: 86.2}, log=True),
    "training_curves": lambda: plots.training_curves({"a": [(1, 3.0), (2, 2.0)]}, {"a": [(2, 0.6)]}),
    "bars": lambda: plots.bars({"a": summary(0.7, 0.01), "b": 0.6}, {"bag of words": 0.56}),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_labelled_axes_and_inputs_untouched_by_pyplot(name):
    from matplotlib import pyplot

    figure = FIGURES[name]()
    figure.draw_without_rendering()
    drawn = [ax for ax in figure.axes if ax.has_data()]
    assert drawn and all(ax.get_xlabel() or ax.get_ylabel() for ax in drawn)
    assert pyplot.get_fignums() == []


def test_bars_show_the_spread_over_seeds_and_the_baselines():
    (ax,) = plots.bars({"a": summary(0.7, 0.01), "b": 0.6}, {"bag of words": 0.56}).axes
    assert [text.get_text() for text in ax.texts] == ["70.0 ± 1.0", "60.0"]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([70, 60])
    assert [line.get_xdata()[0] for line in ax.lines if "bag" in str(line.get_label())] == pytest.approx([56])


def test_singular_values_are_drawn_relative_to_the_largest():
    (ax,) = plots.singular_values({"a": np.array([4.0, 2.0, 1.0])}).axes
    assert list(ax.lines[0].get_ydata()) == [1.0, 0.5, 0.25]
