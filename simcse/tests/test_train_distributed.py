"""Several processes train as one would on the joint batch: torchrun over gloo, and DeepSpeed's ZeRO-2, on the CPU."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from shared.training import read_metrics

# Dropout off: processes draw different masks, and a joint batch on one process draws yet others. 128 sentences make
# four whole batches of 32: of an incomplete one, two processes drop what one process keeps.
SAME = ("dropout.p=0", "batch_size=32", "optim.max_steps=10", "optim.learning_rate=1e-3", "optim.save_steps=100")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, compose_train, train_overrides):
    """The folder of the runs compared here."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def one_process(runs, compose_train, train_overrides) -> Path:
    from simcse.train import train

    return train(compose_train(train_overrides(runs / "one", *SAME)))


def _losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]


def _finish(process, folder: Path) -> dict:
    status = process.wait(600)
    assert status == 0, folder.with_suffix(".log").read_text()[-4000:]
    return json.loads((folder / "results.json").read_text())


def test_two_gloo_processes_lose_as_one_process_with_the_joint_batch(one_process, runs, start_train):
    two = runs / "two"
    results = _finish(start_train(two, *SAME, "launch=torchrun", "launch.processes=2"), two)
    assert results["metrics"]["train"]["processes"] == 2
    assert _losses(two) == pytest.approx(_losses(one_process), abs=1e-4)
    ours, theirs = (load_file(folder / "model/model.safetensors") for folder in (two, one_process))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=1e-3)


def test_zero2_on_two_cpu_processes_trains(one_process, runs, start_train):
    zero = runs / "zero2"
    results = _finish(start_train(zero, *SAME, "launch=deepspeed", "launch.processes=2", "launch.zero_stage=2"), zero)
    assert results["metrics"]["train"]["processes"] == 2
    losses = _losses(zero)
    assert losses[-1] < losses[0]
    assert losses == pytest.approx(_losses(one_process), abs=5e-3)
    trained = AutoModel.from_pretrained(zero / "model", add_pooling_layer=False).state_dict()
    reference = AutoModel.from_pretrained(one_process / "model", add_pooling_layer=False).state_dict()
    for name in reference:
        torch.testing.assert_close(trained[name], reference[name], atol=2e-3, rtol=1e-2)


def test_world_size_that_does_not_divide_the_batch_is_an_error(runs, start_train):
    folder = runs / "uneven"
    process = start_train(folder, "batch_size=15", "launch=torchrun", "launch.processes=2")
    assert process.wait(600) == 2
    assert "batch_size=15 does not divide among 2 processes" in folder.with_suffix(".log").read_text()
