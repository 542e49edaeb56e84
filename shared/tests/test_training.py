"""Run folders, strict options, whole checkpoints and a metrics log that survives kills."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from shared import InputError
from shared.results import write_atomic
from shared.run_folders import changed_settings, settings_of
from shared.training import (
    MetricsLog,
    deepspeed_config,
    latest_checkpoint,
    read_metrics,
    run_folder,
    seed_everything,
    training_arguments,
)


def test_runs_are_filed_by_paper_scale_and_experiment(monkeypatch, tmp_path):
    monkeypatch.setenv("REPRO_RUNS", str(tmp_path))
    assert run_folder("simcse", "laptop", "unsup") == tmp_path / "simcse" / "laptop" / "unsup"
    assert run_folder("simcse", "laptop", "unsup", tmp_path / "mine") == tmp_path / "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="output_dir"):
        run_folder("simcse", "laptop", "unsup", tmp_path / "file")


def test_a_runs_settings_are_compared_by_their_dotted_names(tmp_path):
    cfg = OmegaConf.create(
        {"lr": 0.1, "launch": {"kind": "local"}, "data": {"k": 16, "files": [], "more": {}}, "seed": 1}
    )
    settings = settings_of(cfg, free=("launch", "see"))
    assert settings == {"lr": 0.1, "data.k": 16, "data.files": [], "data.more": {}, "seed": 1}
    file = tmp_path / "config.json"
    assert changed_settings(settings, file) is None
    file.write_text('{"lr": 0.1')
    assert changed_settings(settings, file) is None
    file.write_text(json.dumps(settings))
    assert changed_settings(settings, file) == []
    cfg.seed, cfg.data.k = 2, None
    assert changed_settings(settings_of(cfg, free=("launch", "lr")), file) == [
        "data.k: 16 -> None", "lr: 0.1 -> None", "seed: 1 -> 2"
    ]  # fmt: skip


def test_options_are_the_librarys_and_a_misspelt_one_is_refused(tmp_path):
    options = OmegaConf.create({"learning_rate": 3e-5, "max_grad_norm": 1.0})
    arguments = training_arguments(options, tmp_path, per_device_train_batch_size=8)
    assert (arguments.learning_rate, arguments.per_device_train_batch_size) == (3e-5, 8)
    assert arguments.report_to == []
    with pytest.raises(InputError, match=r"'learning_rat'.*'learning_rate'"):
        training_arguments({"learning_rat": 1}, tmp_path)
    with pytest.raises(InputError, match="refuse"):
        training_arguments({"lr_scheduler_type": "no such schedule"}, tmp_path)


def test_zero_stages_follow_the_launch_group():
    config = deepspeed_config(3, "cpu")
    assert config["zero_optimization"]["stage"] == 3 and "offload_param" in config["zero_optimization"]
    assert "offload_param" not in deepspeed_config(2, "cpu")["zero_optimization"]
    for bad in ({"zero_stage": 4}, {"zero_stage": 2, "offload": "nvme"}):
        with pytest.raises(InputError, match=r"launch\."):
            deepspeed_config(**bad)


def test_the_latest_checkpoint_is_the_last_whole_one(tmp_path: Path):
    assert latest_checkpoint(tmp_path) is None
    for step in (9, 10, 100):
        folder = tmp_path / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    assert latest_checkpoint(tmp_path).name == "checkpoint-100"
    (tmp_path / "checkpoints" / "checkpoint-100" / "trainer_state.json").write_text('{"global_')
    assert latest_checkpoint(tmp_path).name == "checkpoint-10"


def test_the_metrics_log_has_every_step_once_after_a_kill(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    state = SimpleNamespace(is_world_process_zero=True, global_step=0, epoch=0.0)
    log = MetricsLog(path)
    log.on_train_begin(None, state, None)
    for step in (1, 2, 3, 4):
        state.global_step = step
        log.on_log(None, state, None, {"loss": float(step)})
    with path.open("a") as file:
        file.write('{"step": 5, "lo')  # torn by the kill
    resumed = MetricsLog(path)
    state.global_step = 2
    resumed.on_train_begin(None, state, None)
    state.global_step = 3
    resumed.on_log(None, state, None, {"loss": 30.0})
    lines = read_metrics(path)
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert lines[2]["seconds"] >= lines[1]["seconds"]


def test_atomic_writes_leave_no_temporary_file(tmp_path: Path):
    write_atomic(tmp_path / "a" / "b.json", "new")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.json"]


def test_seeds_are_whole_numbers():
    seed_everything(7)
    first = torch.rand(3)
    seed_everything(7)
    assert torch.equal(first, torch.rand(3))
    for bad in (-1, 1.5, True, "7"):
        with pytest.raises(InputError, match="seed="):
            seed_everything(bad)
