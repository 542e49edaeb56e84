"""Sweeps over seeds and a grid: planned whole, stored trial by trial, resumed after a kill."""

import json
import os
import signal
import subprocess
import sys
import time

import hydra
import pytest

from lm_bff import sweep as sweep_module
from lm_bff.store import Store
from lm_bff.sweep import named, plan, scores_of, sweep
from lm_bff.tasks import CONFIGS
from shared import InputError

QUICK = ["k=4", "ks=[4]", "max_steps=4", "eval_every=2", "num_sample=2", "grid.lr=[0.001,0.003]"]


def compose(*overrides: str):
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose("sweep", list(overrides))


@pytest.fixture
def arguments(few_shot_folder, model_folder, tmp_path):
    return [
        "task=sst-2",
        "seeds=[13,42]",
        f"data_dir={few_shot_folder()}",
        f"model={model_folder('roberta')}",
        f"store={tmp_path / 'trials.jsonl'}",
        *QUICK,
    ]


def test_a_sweep_is_methods_times_seeds_times_the_grid(arguments, tmp_path):
    records = sweep(compose(*arguments, "methods=[zero-shot,prompt,finetune]"), progress=False)
    points = [(r["method"], r["seed"], r["settings"]["lr"]) for r in records]
    assert points == [
        (method, seed, lr)
        for seed in (13, 42)
        for method in ("zero-shot", "prompt", "finetune")
        for lr in ((0.001,) if method == "zero-shot" else (0.001, 0.003))
    ]
    assert len(Store(tmp_path / "trials.jsonl").records()) == len(records) == 10
    by_method = {one.method: one for one in scores_of(records)}
    assert set(by_method) == {"zero-shot", "prompt", "finetune"}
    assert set(by_method["prompt"].by_seed) == {13, 42}


def test_finished_trials_are_not_run_again(arguments, monkeypatch):
    cfg = compose(*arguments)
    first = sweep(cfg, progress=False)
    monkeypatch.setattr(sweep_module, "stored_trial", lambda *_, **__: pytest.fail("run again"))
    assert sweep(cfg, progress=False) == first


def test_a_larger_sweep_runs_only_what_is_new(arguments, monkeypatch):
    sweep(compose(*arguments, "seeds=[13]"), progress=False)
    ran = []
    real = sweep_module.stored_trial
    monkeypatch.setattr(sweep_module, "stored_trial", lambda *a, **k: ran.append(a[5].seed) or real(*a, **k))
    sweep(compose(*arguments), progress=False)
    assert ran == [42, 42]


def test_another_name_copies_the_line_instead_of_running(arguments, tmp_path, monkeypatch):
    first = sweep(compose(*arguments, "seeds=[13]"), progress=False)
    monkeypatch.setattr(sweep_module, "stored_trial", lambda *_, **__: pytest.fail("run again"))
    again = sweep(compose(*arguments, "seeds=[13]", "experiment=auto-t"), progress=False)
    assert [r["experiment"] for r in again] == ["auto-t"] * 2
    assert [r["test"] for r in again] == [r["test"] for r in first]
    store = Store(tmp_path / "trials.jsonl")
    assert len(store.records(experiment="auto-t")) == 2 and len(store.records()) == 4
    assert named(store, again[0], "auto-t") == again[0]


def test_two_processes_give_the_same_records_as_one(arguments, tmp_path):
    alone = sweep(compose(*arguments, f"store={tmp_path / 'alone.jsonl'}"), progress=False)
    together = sweep(compose(*arguments, "processes=2"), progress=False)
    assert [(r["key"], r["dev"], r["test"]) for r in together] == [(r["key"], r["dev"], r["test"]) for r in alone]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seeds=[13,13]", "each once"),
        ("seeds=[]", "at least one"),
        ("methods=[promt]", "promt"),
        ("task=[sst-2,sst-3]", "sst-3"),
        ("task=mnli-mm", "second test set of mnli"),
        ("grid.lr=[-1.0]", "lr=-1.0"),
        ("grid.batch_size=[0]", "batch_size=0"),
        ("processes=0", "processes=0"),
        ("seeds=[13,7]", "no splits"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_runs(arguments, tmp_path, override, message):
    with pytest.raises(InputError, match=message):
        sweep(compose(*arguments, override), progress=False)
    assert not (tmp_path / "trials.jsonl").exists()


def test_the_papers_grid_has_45_trials_a_row():
    assert len(plan(compose("task=sst-2", "scale=paper", "grid=paper"))) == 45


def test_a_killed_sweep_goes_on_where_it_was(arguments, tmp_path):
    store = tmp_path / "trials.jsonl"
    more = ["max_steps=30", "eval_every=10", "grid.lr=[0.0005,0.001,0.002]"]
    command = [sys.executable, "-m", "lm_bff.sweep", *arguments, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (store.is_file() and store.read_bytes().count(b"\n") >= 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = [line for line in store.read_text().split("\n") if line]
    assert len(before) >= 2
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = store.read_text().split("\n")[:-1]
    assert len(after) == 6
    assert after[:2] == before[:2]
    whole = sweep(compose(*arguments, *more, f"store={tmp_path / 'whole.jsonl'}"), progress=False)
    resumed = {record["key"]: record for record in map(json.loads, after)}
    for record in whole:
        assert resumed[record["key"]]["test"] == record["test"]
        assert resumed[record["key"]]["dev"] == record["dev"]
