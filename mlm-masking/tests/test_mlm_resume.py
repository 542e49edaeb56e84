"""A pre-training that was killed or stopped goes on where it was, bit by bit; under other settings it does not."""

import json
import shutil
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from mlm_masking.pretrain import pretrain
from shared import InputError
from shared.training import latest_checkpoint, read_metrics

# Dropout is on and the rate changes along the run: random states and progress must come back too.
LONG = (
    "optim.max_steps=60", "optim.save_steps=10", "optim.logging_steps=5", "eval.steps=20", "forward_batch_size=4",
    "model.dropout=0.1", "model.attention_dropout=0.1", "masking.schedule='linear(0.60->0.20)'", "replace=p801010",
)  # fmt: skip


@pytest.fixture(scope="module")
def pretrain_once(tmp_path_factory, compose_pretrain, pretrain_overrides, pretrain_home):
    """A function: overrides -> the folder of a run of this module, and whether it came to its end."""

    def run(*more):
        folder = tmp_path_factory.mktemp("run") / "run"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("REPRO_RUNS", str(pretrain_home))
            patch.setenv("HF_HUB_OFFLINE", "1")
            return folder, pretrain(compose_pretrain(pretrain_overrides(folder, *more))) is not None

    return run


@pytest.fixture(scope="module")
def whole_long(pretrain_once):
    return pretrain_once(*LONG)[0]


@pytest.fixture(scope="module")
def stopped_at_once(pretrain_once):
    folder, ended = pretrain_once("stop_after_minutes=0.0001")
    assert not ended and latest_checkpoint(folder) is not None
    return folder


@pytest.fixture
def unfinished(stopped_at_once, tmp_path):
    """The folder of a run that its time budget ended: a copy of its own for each test."""
    return shutil.copytree(stopped_at_once, tmp_path / "unfinished")


def same_end(one, other):
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (one, other))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    logs = [
        [
            (line["step"], line.get("loss"), line.get("eval_15"), line.get("pred_rate"))
            for line in read_metrics(folder / "metrics.jsonl")
            if "train_runtime" not in line  # at the end of every process
        ]
        for folder in (one, other)
    ]
    assert logs[0] == logs[1]
    metrics = [json.loads((folder / "results.json").read_text())["metrics"] for folder in (one, other)]
    assert len(metrics[0]) > 10 and {**metrics[0], "cost": None} == {**metrics[1], "cost": None}


def test_killed_run_goes_on_and_ends_with_the_same_bits(start_pretrain, pretrain_here, whole_long, tmp_path):
    killed = tmp_path / "killed"
    process = start_pretrain(killed, *LONG)
    deadline = time.monotonic() + 300
    while latest_checkpoint(killed) is None and time.monotonic() < deadline:
        assert process.poll() is None, killed.with_suffix(".log").read_text()[-3000:]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "results.json").exists()
    begun = json.loads((latest_checkpoint(killed) / "trainer_state.json").read_text())["global_step"]
    assert 0 < begun < 60
    pretrain_here(*LONG, output_dir=killed)
    assert json.loads((killed / "results.json").read_text())["metrics"]["cost"]["resumed_at"] == begun
    same_end(killed, whole_long)


def test_time_budget_ends_with_a_checkpoint_and_status_75(command, pretrain_overrides, whole_long, tmp_path):
    stopped = tmp_path / "stopped"
    overrides = pretrain_overrides(stopped, *LONG)
    assert command("pretrain", *overrides, "stop_after_minutes=0.001")[0] == 75
    assert latest_checkpoint(stopped) is not None and not (stopped / "results.json").exists()
    assert command("pretrain", *overrides)[0] == 0
    same_end(stopped, whole_long)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("masking.rate=0.15", "masking.rate: 0.4 -> 0.15"),
        ("masking=span_t5", "masking.strategy: uniform -> span_t5"),
        ("seed=2", "seed: 1 -> 2"),
        ("batch_size=16", "batch_size: 8 -> 16"),
    ],
)
def test_resuming_with_another_setting_is_refused(unfinished, pretrain_here, option, message):
    with pytest.raises(InputError) as refused:
        pretrain_here(option, output_dir=unfinished)
    assert message in str(refused.value) and "resume=restart" in str(refused.value)
    assert latest_checkpoint(unfinished) is not None


def test_restart_and_never_do_as_they_say(unfinished, pretrain_here):
    with pytest.raises(InputError, match="holds a run already"):
        pretrain_here("resume=never", output_dir=unfinished)
    pretrain_here("resume=restart", "seed=2", output_dir=unfinished)
    assert json.loads((unfinished / "run.json").read_text())["seed"] == 2


def test_checkpoint_that_a_kill_left_half_written_is_passed_over(unfinished, pretrain_here, tmp_path):
    whole = latest_checkpoint(unfinished)
    torn = unfinished / "checkpoints" / "checkpoint-11"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes((whole / "model.safetensors").read_bytes()[:100])
    (torn / "trainer_state.json").write_text('{"global_step": 11, "epo')
    pretrain_here(output_dir=unfinished)
    same_end(unfinished, pretrain_here(output_dir=tmp_path / "whole"))


def test_checkpoint_of_another_model_is_refused(unfinished, pretrain_here):
    settings = json.loads((unfinished / "run.json").read_text())
    (unfinished / "run.json").write_text(json.dumps(settings | {"model.intermediate_size": 48}))
    with pytest.raises(InputError, match="is of another model"):
        pretrain_here("model.intermediate_size=48", output_dir=unfinished)
