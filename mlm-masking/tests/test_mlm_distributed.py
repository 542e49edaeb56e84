"""Several processes train as one on the joint batch: torchrun over gloo, on the CPU."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shared.training import read_metrics

# Bernoulli masks: no two processes predict equally many tokens, so a mean of means would be another loss.
SAME = ("masking=bernoulli", "masking.rate=0.3", "optim.max_steps=8", "batch_size=8", "eval.steps=4")


def losses(folder: Path) -> list[float]:
    lines = read_metrics(folder / "metrics.jsonl")
    return [line[name] for line in lines for name in ("loss", "eval_own", "eval_15") if name in line]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def assert_as(one: Path, other: Path, atol: float) -> None:
    assert losses(one) == pytest.approx(losses(other), abs=1e-4)
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=atol, rtol=1e-3, msg=name)


def test_two_gloo_processes_train_as_one_on_the_joint_batch(start_pretrain, pretrain_here, tmp_path):
    two = tmp_path / "two"
    process = start_pretrain(two, *SAME, "forward_batch_size=2", "launch=torchrun", "launch.processes=2")
    one = pretrain_here(*SAME, output_dir=tmp_path / "one")
    assert process.wait(600) == 0, two.with_suffix(".log").read_text()[-4000:]
    assert json.loads((two / "results.json").read_text())["metrics"]["cost"]["processes"] == 2
    assert_as(two, one, atol=5e-5)


def test_batch_that_does_not_divide_among_processes_is_refused(start_pretrain, tmp_path):
    folder = tmp_path / "uneven"
    process = start_pretrain(folder, "batch_size=9", "launch=torchrun", "launch.processes=2")
    assert process.wait(600) == 2
    assert "batch_size=9 does not divide among 2 processes" in folder.with_suffix(".log").read_text()
