"""The store and the command line: one line per trial, none run twice, nothing torn, clear refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import hydra
import numpy as np
import pytest

from lm_bff import run as run_module
from lm_bff import trials
from lm_bff.data import Example, Splits
from lm_bff.ensemble import average, ensemble_metrics
from lm_bff.run import run, spread
from lm_bff.settings import TrialSettings
from lm_bff.store import Store
from lm_bff.tasks import CONFIGS, TASKS
from lm_bff.trials import data_digest, stored_trial, trial_identity
from shared import InputError

QUICK = ["lr=0.003", "max_steps=4", "eval_every=2", "num_sample=2"]


@pytest.fixture
def splits(sentiment) -> Splits:
    return Splits(sentiment(8), sentiment(8, seed=1), {"sst-2": sentiment(10, seed=2)})


@pytest.fixture
def few_shot(tmp_path, sentiment):
    """A folder of few-shot splits of sst-2, k=4, seeds 13 and 42."""
    root = tmp_path / "k-shot"
    for seed in (13, 42):
        for name, count, draw in (("train", 8, seed), ("dev", 8, seed + 100), ("test", 11, 7)):
            rows = [f"{e.sentences[0]} {name}\t{e.label}" for e in sentiment(count, seed=draw)]
            path = root / "SST-2" / f"4-{seed}" / f"{name}.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    return root


@pytest.fixture
def arguments(few_shot, model_folder, tmp_path):
    return [
        "task=sst-2",
        "k=4",
        "seed=13",
        f"data_dir={few_shot}",
        f"model={model_folder('roberta')}",
        f"store={tmp_path / 'trials.jsonl'}",
        *QUICK,
    ]


def compose(*overrides: str):
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose("config", list(overrides))


# -------------------------------------------------------------------------------------------------------------- store


def test_a_finished_trial_is_found_and_not_run_again(pretrained, splits, tmp_path, monkeypatch):
    store = Store(tmp_path / "deep" / "trials.jsonl")
    settings = TrialSettings(method="prompt", max_steps=2, eval_every=1)
    first = stored_trial(store, pretrained("roberta"), "tiny", TASKS["sst-2"], splits, settings)
    monkeypatch.setattr(trials, "run_trial", lambda *_, **__: pytest.fail("run again"))
    assert stored_trial(store, None, "tiny", TASKS["sst-2"], splits, settings) == first
    assert stored_trial(Store(store.path), None, "tiny", TASKS["sst-2"], splits, settings) == first
    assert store.outputs(first)["test:sst-2"].shape == (10, 2)


def test_what_decides_a_result_changes_its_key(splits, sentiment):
    settings = TrialSettings()
    task = TASKS["sst-2"]
    keys = {
        trial_identity(task, splits, "tiny", settings, 16)["key"],
        trial_identity(task, splits, "other", settings, 16)["key"],
        trial_identity(task, splits, "tiny", TrialSettings(lr=2e-5), 16)["key"],
        trial_identity(task, splits, "tiny", TrialSettings(regression_loss="kl"), 16)["key"],
        trial_identity(task, splits, "tiny", settings, 8)["key"],
        trial_identity(TASKS["cola"], splits, "tiny", settings, 16)["key"],
        trial_identity(task, Splits(splits.train, sentiment(8, seed=9), splits.test), "tiny", settings, 16)["key"],
    }
    assert len(keys) == 7
    assert data_digest(splits) == data_digest(Splits(list(splits.train), list(splits.dev), dict(splits.test)))


def test_many_writers_leave_whole_lines(tmp_path):
    path = tmp_path / "trials.jsonl"

    def write(number: int) -> None:
        Store(path).append({"key": f"k{number % 20}", "task": "mr", "text": "x" * 5000, "number": number})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(60)))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 20 == len(Store(path).records(task="mr")), "one line per key"


def test_a_torn_line_is_passed_over_and_not_glued_to_the_next(tmp_path):
    path = tmp_path / "trials.jsonl"
    Store(path).append({"key": "a", "task": "mr"})
    with path.open("a") as file:
        file.write('{"key": "b", "ta')
    store = Store(path)
    assert [r["key"] for r in store.records()] == ["a"]
    store.append({"key": "c", "task": "mr"})
    assert [r["key"] for r in Store(path).records()] == ["a", "c"]
    assert [r["key"] for r in store.records()] == ["a", "c"]


def test_a_store_sees_what_others_append(tmp_path):
    path = tmp_path / "trials.jsonl"
    one, other = Store(path), Store(path)
    one.append({"key": "a", "seed": 13})
    assert other.get("a") == {"key": "a", "seed": 13}
    assert other.records(seed=13) and not other.records(seed=21)


def test_what_cannot_be_stored(tmp_path):
    store = Store(tmp_path / "trials.jsonl")
    with pytest.raises(InputError, match=r"trial.dev.acc is nan"):
        store.append({"key": "a", "dev": {"acc": float("nan")}}, {"dev": np.zeros((1, 2))})
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="is a folder"):
        Store(tmp_path)
    with pytest.raises(InputError, match="has no outputs"):
        store.outputs({"key": "a"})


# ----------------------------------------------------------------------------------------------------------- ensemble


def test_ensembles_average_logits_and_scores():
    members = [np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([[0.0, 1.0], [0.0, 3.0]])]
    assert average(members).tolist() == [[1.0, 0.5], [0.0, 2.0]]
    with pytest.raises(InputError, match="no members"):
        average([])
    with pytest.raises(InputError, match="tested on other data"):
        average([np.zeros((2, 2)), np.zeros((3, 2))])


def test_a_regression_ensemble_is_measured_by_its_mean_scores():
    examples = [Example(("a", "b"), score) for score in (0.0, 2.0, 5.0)]
    members = [np.array([[0.0], [3.0], [4.0]]), np.array([[2.0], [1.0], [6.0]])]
    assert ensemble_metrics(TASKS["sts-b"], members, examples)["pearson"] == pytest.approx(31 / (38 * 26) ** 0.5)


# ------------------------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize("method", ["majority", "zero-shot", "icl", "finetune", "prompt", "prompt-demo"])
def test_every_method_runs_from_its_config(arguments, method):
    (record,) = run(compose(*arguments, f"method={method}"))
    assert record["method"] == method and record["compat"] == "authors"
    assert 0 <= record["test"]["sst-2"]["acc"] <= 1
    assert (record["best_step"] is None) == (method in ("majority", "zero-shot", "icl"))


def test_compat_reaches_the_settings_and_the_record(arguments):
    (record,) = run(compose(*arguments, "method=prompt-demo", "compat=fixed", "filter=minilm"))
    assert record["compat"] == "fixed" and record["filter"] == "minilm"
    found = record["settings"]
    assert (found["regression_loss"], found["stsb_demos"], found["adam_eps"]) == ("kl", "paper", "torch")
    assert (found["demo_sampler"], found["icl_cls"], found["filter"]) == ("uniform", "front", "minilm")


def test_an_ensemble_is_made_of_stored_members(arguments, tmp_path):
    file = tmp_path / "templates.txt"
    file.write_text(
        "*cls**sent_0*_It_was*mask*.*sep+*\n*cls**sent_0*_This_is*mask*.*sep+*\n*cls**mask*:*+sent_0**sep+*\n"
    )
    records = run(compose(*arguments, "method=prompt", f"templates={file}", "top=2"))
    assert len(records) == 3 and records[-1]["method"] == "ensemble of 2 prompt"
    assert records[-1]["members"] == [record["key"] for record in records[:2]]
    assert len(Store(tmp_path / "trials.jsonl").records()) == 2
    (mixture,) = run(compose(*arguments, "method=prompt", f"templates={file}", "top=2", "several=mixture"))
    assert len(mixture["settings"]["template"]) == 2


def test_prompt_files_bring_their_label_words(arguments, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("*cls**sent_0*_It_was*mask*.*sep+*\t{'0':'bad','1':'good'}\n")
    (record,) = run(compose(*arguments, "method=zero-shot", f"templates={file}"))
    assert record["settings"]["mapping"] == [["0", "bad"], ["1", "good"]]


def test_label_words_on_the_command_line_need_no_quotes(arguments):
    (record,) = run(compose(*arguments, "method=zero-shot", "mapping={0: bad, 1: good}"))
    assert record["settings"]["mapping"] == [["0", "bad"], ["1", "good"]]


def test_mnli_has_two_test_sets(tmp_path, model_folder, sentiment):
    header = "\t".join(f"c{n}" for n in range(12))
    for name, count in (("train", 6), ("dev_matched", 6), ("test_matched", 5), ("test_mismatched", 7)):
        rows = [
            "\t".join(["x"] * 8 + [f"{name} text {n} .", f"{name} other {n}.", "x", TASKS["mnli"].labels[n % 3]])
            for n in range(count)
        ]
        path = tmp_path / "MNLI" / "2-13" / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([header, *rows]) + "\n")
    arguments = [f"data_dir={tmp_path}", f"store={tmp_path / 't.jsonl'}", f"model={model_folder('roberta')}", *QUICK]
    (record,) = run(compose("task=mnli", "k=2", "seed=13", "method=prompt-demo", *arguments))
    assert set(record["test"]) == {"mnli", "mnli-mm"}


def test_a_part_of_the_test_set_is_spread_over_it(arguments, sentiment):
    assert [e.name for e in spread(sentiment(10), 3)] == ["line 0", "line 3", "line 6"]
    assert len(spread(sentiment(4), 9)) == 4
    (record,) = run(compose(*arguments, "method=zero-shot", "max_test=5"))
    assert Store(run_module.store_of(compose(*arguments)).path).outputs(record)["test:sst-2"].shape == (5, 2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=sst2"], "did you mean sst-2"),
        (["task=mnli-mm"], "second test set of mnli"),
        (["seed=14"], r"no splits at .*\(there: 4-13, 4-42\)"),
        (["method=prompt", "template=*cls**sent_0*"], "has 0 .mask."),
        (["method=prompt", 'mapping=\'{0: "terrible", 1: "great"}\''], "texts in quotes"),
        (["method=prompt", "mapping={0: unbelievable, 1: great}"], "'unbelievable' is not one token"),
        (["method=prompt", "mapping={0: bad, 2: great}"], r"keys \['0', 2\]"),
        (["micro_batch_size=3"], "not divisible"),
        (["max_test=0"], "max_test=0"),
        (["templates=nowhere.txt"], "nowhere.txt cannot be read"),
        (["templates=x.txt", "template=*mask*"], "give one of them"),
        (["model=nowhere/model/at/all"], "nowhere"),
        (["filter.model=./nowhere", "method=prompt-demo"], "nowhere"),
        (["max_length=4", "method=zero-shot"], "removed the mask"),
    ],
)
def test_bad_requests_are_named_and_leave_nothing(arguments, tmp_path, overrides, message):
    with pytest.raises(InputError, match=message):
        run(compose(*arguments, *overrides))
    assert not (tmp_path / "trials.jsonl").exists()


def test_icl_takes_one_template(arguments, tmp_path):
    file = tmp_path / "templates.txt"
    file.write_text("*cls**sent_0*_It_was*mask*.*sep+*\n*cls**mask*:*+sent_0**sep+*\n")
    with pytest.raises(InputError, match="method=icl with 2 templates"):
        run(compose(*arguments, "method=icl", f"templates={file}"))


def command(arguments: list[str], *more: str) -> list[str]:
    return [sys.executable, "-m", "lm_bff.run", *arguments, *more]


def test_bad_input_ends_with_status_2_and_one_message(arguments):
    done = subprocess.run(command(arguments, "bach_size=2"), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "Did you mean batch_size?" in done.stderr and "Traceback" not in done.stderr


def test_a_killed_trial_leaves_no_line_and_can_be_run_again(arguments, tmp_path):
    store = tmp_path / "trials.jsonl"
    long = [*arguments, "method=prompt", "max_steps=100000", "eval_every=1"]
    process = subprocess.Popen(command(long), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    for line in process.stdout:
        if "step 2:" in line or time.monotonic() > deadline:
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert Store(store).records() == []
    (record,) = run(compose(*arguments, "method=prompt"))
    before = store.read_bytes()
    assert run(compose(*arguments, "method=prompt")) == [record]
    assert store.read_bytes() == before and len(Store(store).records()) == 1
