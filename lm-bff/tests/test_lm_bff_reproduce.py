"""The laptop reproduction: what it measures and draws, that every claim is judged, and that a cut run is completed."""

import json
import subprocess
import sys

import pytest

from lm_bff.data import Example, Splits
from lm_bff.offline_tasks import sentiment_rows
from lm_bff.reproduce import first_of_each_class
from lm_bff.tiny import TinySettings, tiny_mlm
from lm_bff.tiny_text import SENTIMENT_TEMPLATES, SENTIMENT_WORDS, Text, put_into_words, task_words
from shared.claims import FAILS, HOLDS

METHODS = {"majority", "zero-shot", "icl", "finetune", "prompt", "prompt-demo"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model that has learned next to nothing, in its folder with training.json."""
    rows = [(text, label) for pair in sentiment_rows()[:60] for label, text in enumerate(pair)]
    said = put_into_words(*zip(*rows, strict=True), SENTIMENT_TEMPLATES, SENTIMENT_WORDS)
    settings = TinySettings(vocab_size=600, hidden_size=16, intermediate_size=32, steps=8, batch_size=8)
    return tiny_mlm(
        tmp_path_factory.mktemp("tiny"), text=Text((), tuple(said), task_words(), "test"), settings=settings
    )


def reproduce(model, folder):
    command = [sys.executable, "-m", "lm_bff.reproduce", f"model={model}", f"output_dir={folder}", "seeds=[13,21]"]
    command += ["tasks=[house-sentiment]", "max_test=20", "num_sample=1", "words=4", "pairs=2", "ks=[2,16]"]
    command += ["demo_filter=none", "processes=1", "max_steps=2", "eval_every=1"]
    command += ["templates=['*cls**sent_0*_It_was*mask*.*sep+*','*cls**sent_0**mask*.*sep+*']"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "results.json").read_text()), done.stdout


def test_everything_is_measured_judged_and_drawn_and_a_cut_run_is_completed_alike(model, tmp_path):
    result, shown = reproduce(model, tmp_path)
    metrics = result["metrics"]
    assert set(metrics["average"]) == METHODS and metrics["average"]["prompt"]["n"] == 2
    assert set(metrics["words"]) >= {"own", "swapped", "unrelated", "searched"}
    assert set(metrics["k"]["prompt"]) == {"2", "16"} and len(metrics["templates"]["ranked"]) == 2
    assert {plot["name"] for plot in result["plots"]} == {"methods", "label_words", "templates", "k_curve"}
    assert all((tmp_path / plot["file"]).stat().st_size > 5000 for plot in result["plots"])
    for claim in result["claims"]:
        assert claim["verdict"] in (HOLDS, FAILS) or "was not measured" not in claim["verdict"], claim
    assert "prompt-based fine-tuning" in shown and "claim" in shown

    store = tmp_path / "trials.jsonl"
    lines = store.read_text().splitlines(keepends=True)
    store.write_text("".join(lines[: len(lines) // 2]) + lines[-1][:30])
    again, _ = reproduce(model, tmp_path)
    assert again["metrics"] == metrics
    assert len(store.read_text().splitlines()) == len(lines) + 1  # the torn one stays, and is passed over


def test_the_first_examples_of_every_class_are_kept_in_their_order():
    examples = [Example((f"s{n}",), n % 2) for n in range(8)]
    cut = first_of_each_class(Splits(examples, examples[4:], {"t": examples}), 1)
    assert [one.sentences[0] for one in cut.train] == ["s0", "s1"]
    assert [one.sentences[0] for one in cut.dev] == ["s4", "s5"]
    assert len(cut.test["t"]) == 8
