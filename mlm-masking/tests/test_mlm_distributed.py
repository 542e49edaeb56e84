"""Several processes train as one on the joint batch: torchrun over gloo and DeepSpeed's three stages, on the CPU."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shared.launch import launched_environment, torchrun_command
from shared.training import read_metrics

# Bernoulli masks: no two processes predict equally many tokens, so a mean of means would be another loss.
MASKS = ("masking=bernoulli", "masking.rate=0.3", "batch_size=8")
SAME = (*MASKS, "optim.max_steps=8", "eval.steps=4")
ONE_UPDATE = (*MASKS, "optim.max_steps=1", "optim.learning_rate=0", "eval.steps=null", "+optim.save_strategy=no")
TWO = ("forward_batch_size=2", "launch.processes=2")
STAGES = (1, 2, 3)


@pytest.fixture(scope="module")
def launched(tmp_path_factory, pretrain_overrides, pretrain_home, compose_pretrain):
    """The folder of all runs of two processes, and what they printed."""
    root = tmp_path_factory.mktemp("two processes")
    jobs = []

    def job(name: str, *more: str, gradient: Path | None = None) -> None:
        overrides = pretrain_overrides(f"'{root / name}'", *TWO, *more)
        jobs.append({"overrides": overrides, "gradient": gradient and str(gradient)})

    job("gradient", *ONE_UPDATE, "launch=torchrun", gradient=root / "gradient.safetensors")
    job("ddp", *SAME, "launch=torchrun", "stop_after_minutes=0.0001")
    job("ddp", *SAME, "launch=torchrun")
    job("uneven", *SAME, "launch=torchrun", "batch_size=9")
    for stage in STAGES:
        zero = ("launch=deepspeed", f"launch.zero_stage={stage}")
        if stage > 1:
            job(f"zero{stage}", *SAME, *zero, "stop_after_minutes=0.0001")
        job(f"zero{stage}", *SAME, *zero)
    (root / "jobs.json").write_text(json.dumps(jobs))
    launch = compose_pretrain(["launch=deepspeed", "launch.processes=2"]).launch
    command = torchrun_command(launch, str(Path(__file__).with_name("mlm_worker.py")), [str(root / "jobs.json")])
    environment = launched_environment(launch) | {"REPRO_RUNS": str(pretrain_home), "OMP_NUM_THREADS": "1"}
    with (root / "log").open("wb") as log:
        done = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=900)
    printed = (root / "log").read_text()
    assert done.returncode == 0, printed[-6000:]
    return root, printed


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, pretrain_overrides, pretrain_home, compose_pretrain):
    from mlm_masking.pretrain import pretrain

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPRO_RUNS", str(pretrain_home))
        return pretrain(compose_pretrain(pretrain_overrides(tmp_path_factory.mktemp("one") / "run", *SAME)))


def test_gradient_of_unequal_micro_batches_on_two_processes_is_that_of_the_joint_batch(
    launched, worker, compose_pretrain, pretrain_overrides, home, tmp_path
):
    joint = worker.first_gradient(compose_pretrain(pretrain_overrides(tmp_path, *ONE_UPDATE)), tmp_path)
    two = load_file(launched[0] / "gradient.safetensors")
    assert joint.keys() == two.keys() and len(joint) > 30
    for name in joint:
        torch.testing.assert_close(two[name], joint[name], atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("name", ["ddp", *(f"zero{stage}" for stage in STAGES)])
def test_two_processes_have_the_loss_curve_and_weights_of_one_also_after_a_stop(launched, one_process, name):
    folder = launched[0] / name
    cost = json.loads((folder / "results.json").read_text())["metrics"]["cost"]
    assert (cost["processes"], cost["resumed_at"] > 0) == (2, name != "zero1")
    assert losses(folder) == pytest.approx(losses(one_process), abs=1e-4)
    ours, theirs = (load_file(one / "model" / "model.safetensors") for one in (folder, one_process))
    assert ours.keys() == theirs.keys()
    for tensor in ours:
        torch.testing.assert_close(ours[tensor], theirs[tensor], atol=2e-4, rtol=1e-3, msg=tensor)


def losses(folder: Path) -> list[float]:
    """Of every update, and of every evaluation."""
    lines = read_metrics(folder / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))
    return [line[name] for line in lines for name in ("loss", "eval_own", "eval_15") if name in line]


def test_a_batch_that_two_processes_do_not_divide_is_refused_by_both(launched):
    root, printed = launched
    assert printed.count("REFUSED batch_size=9 does not divide among 2 processes. Use batch_size=8 or 10.") == 2
    assert not (root / "uneven").exists()
