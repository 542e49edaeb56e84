"""The evaluation entrypoint: the library's numbers, each sentence encoded once, results.json, tables."""

import io
import json
import subprocess
import sys
from pathlib import Path

import hydra
import numpy as np
import pytest
from rich.console import Console

from shared import InputError
from simcse.baselines import bag_of_words
from simcse.embedding import embed_sentences, load_encoder
from simcse.evaluate import RememberingEncode, evaluate, expand_tasks, measure, print_tables
from simcse.senteval import STS_TASKS, TRANSFER_TASKS, evaluate_sts, load_sts

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
DEV_TASKS = ["STSBenchmark", "SICKRelatedness"]


@pytest.fixture
def config():
    """A function: overrides -> the evaluation configuration."""

    def compose(*overrides: str):
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return hydra.compose("evaluate", [*overrides, "~launch"])

    return compose


@pytest.fixture
def tiny(tiny_encoder_folder):
    return load_encoder(str(tiny_encoder_folder), "avg", "cpu")


def test_results_are_those_of_the_library(tmp_path, config, tiny_encoder_folder, tiny, dev_folder):
    cfg = config(
        f"model={tiny_encoder_folder}",
        "pooler=avg",
        "tasks=[sts,geometry]",
        "split=dev",
        f"data_dir={dev_folder}",
        f"output_dir={tmp_path}",
    )
    printed = io.StringIO()
    path = evaluate(cfg, Console(file=printed, width=200))
    result = json.loads(path.read_text())
    assert set(result) >= {"paper", "experiment", "scale", "metrics", "claims", "provenance"}
    metrics = result["metrics"]
    expected = evaluate_sts(lambda s: embed_sentences(*tiny, s), dev_folder, DEV_TASKS, "dev")
    assert metrics["stsb_dev"] == pytest.approx(expected["STSBenchmark"]["all"], abs=1e-6)
    assert metrics["sickr_dev"] == pytest.approx(expected["SICKRelatedness"]["all"], abs=1e-6)
    assert metrics["avg_dev"] == pytest.approx((metrics["stsb_dev"] + metrics["sickr_dev"]) / 2)
    assert metrics["align"] > 0 > metrics["uniform"]
    loaded = load_sts(dev_folder, DEV_TASKS, "dev")
    distinct = {text for task in loaded.values() for pairs in task.values() for text in pairs.sentences}
    assert metrics["sentences_encoded"] == len(distinct)
    assert metrics["sentences_truncated"] == 0
    assert result["experiment"] == f"eval_{tiny_encoder_folder.name}_avg_dev"
    assert f"{100 * metrics['stsb_dev']:.2f}" in printed.getvalue()


def test_pooler_of_the_checkpoint_is_the_default(tmp_path, config, tiny_encoder_folder):
    cfg = config(f"model={tiny_encoder_folder}", "tasks=[graded]", f"output_dir={tmp_path}")
    metrics = json.loads(evaluate(cfg, Console(file=io.StringIO())).read_text())["metrics"]
    assert metrics["pooler"] == "cls"
    assert metrics["graded"]["n"] >= 220


def test_cut_sentences_are_counted(tiny, caplog):
    encode = RememberingEncode(*tiny, max_length=6)
    long, short = "the dog runs in the park today .", "the dog runs ."
    encode([long, short, long])
    encode([short, long])
    assert (encode.encoded, encode.truncated) == (2, 1)
    assert "longer than 6 tokens: truncated" in caplog.text


def test_a_sentence_is_encoded_once_over_all_calls(tiny):
    encode = RememberingEncode(*tiny)
    first = encode(["a dog .", "a cat .", "a dog ."])
    asked = []
    encode._embed = lambda sentences: asked.extend(sentences) or embed_sentences(*tiny, sentences)
    second = encode(["a cat .", "a house .", "a dog ."])
    assert asked == ["a house ."]
    np.testing.assert_array_equal(second[[2, 0]], first[[0, 1]])
    np.testing.assert_allclose(second, embed_sentences(*tiny, ["a cat .", "a house .", "a dog ."]), atol=1e-6)


def test_groups_expand_in_table_order():
    assert expand_tasks(["full"], "test") == [*STS_TASKS, *TRANSFER_TASKS]
    assert expand_tasks(["MR", "STS12", "MR", "graded"], "test") == ["STS12", "MR", "graded"]
    assert expand_tasks(["sts", "CR"], "dev") == ["STSBenchmark", "SICKRelatedness", "CR"]


@pytest.mark.parametrize(
    ("tasks", "split", "message"),
    [
        (["stz"], "test", "tasks: stz; give a list out of sts, transfer"),
        ([], "test", "tasks: "),
        ("sts", "test", r"tasks: 'sts'; give a list"),
        (["sts"], "train", "split: 'train' is not one of test, dev"),
        (["sts", "STS12"], "dev", "STS12 have no dev set"),
    ],
)
def test_unknown_tasks_and_splits_are_refused(tasks, split, message):
    with pytest.raises(InputError, match=message):
        expand_tasks(tasks, split)


def test_an_unknown_protocol_is_refused_before_anything_is_encoded(dev_folder):
    with pytest.raises(InputError, match="protocol: 'slow' is not one of test, fast"):
        measure(None, dev_folder, ["sts", "MR"], "dev", protocol="slow")


def table_lines(metrics: dict) -> list[list[str]]:
    printed = io.StringIO()
    print_tables(metrics, Console(file=printed, width=200, no_color=True))
    return [[cell.strip() for cell in line.split("│")] for line in printed.getvalue().splitlines() if "│" in line]


def test_tasks_that_were_not_run_are_a_dash_and_leave_the_average_empty():
    entry = {"all": 0.7, "wmean": 0.7, "pearson_all": None}
    (row, *_, pearson) = table_lines({"sts": {"STS12": entry, "SICKRelatedness": entry}})
    assert row == ["", "all", "70.00", "-", "-", "-", "-", "-", "70.00", "", ""]
    assert pearson[2] == "undefined"


def test_the_average_is_of_the_rounded_numbers():
    values = dict(zip(STS_TASKS, [0.7530, 0.8467, 0.8019, 0.8540, 0.8082, 0.8425, 0.8039], strict=True))
    entries = {task: {"all": value, "wmean": value, "pearson_all": value} for task, value in values.items()}
    assert table_lines({"sts": entries})[0][-2] == "81.57"


@pytest.mark.mirror
def test_metrics_have_the_names_that_paper_yaml_reads(mirror):
    data_dir = mirror / "simcse/SentEval/data/downstream"
    metrics = measure(bag_of_words, data_dir, ["sts"])
    assert metrics["sts"]["avg"]["all"] == pytest.approx(0.4902, abs=5e-4)
    assert metrics["sts"]["STS12"]["all"] == pytest.approx(0.351366, abs=5e-4)
    partial = measure(lambda s: bag_of_words(s, 64), data_dir, ["CR", "STSBenchmark"], "dev")
    assert set(partial) == {"sts_dev", "stsb_dev", "transfer_fast"}
    assert set(partial["transfer_fast"]) == {"CR"}


@pytest.mark.parametrize("path", sorted((CONFIGS / "evaluation").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_row_of_the_papers_tables_has_a_valid_configuration(path, config):
    cfg = config(f"evaluation={path.stem}")
    assert cfg.experiment == path.stem and cfg.scale == "paper"
    assert expand_tasks(cfg.tasks, cfg.split)
    assert cfg.pooler == "cls_before_pooler" if "unsup" in path.stem else cfg.pooler


def test_command_ends_with_one_message_and_status_2(tmp_path):
    command = [sys.executable, "-m", "simcse.evaluate", "model=minilm", "tasks=[sst]", f"output_dir={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "tasks: sst; give a list out of sts, transfer, full" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
