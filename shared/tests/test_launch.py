"""Entrypoints as a user meets them: run in subprocesses, judged by exit status, message and what they left on disk."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from shared import InputError
from shared.launch import process_count, split_batch, torchrun_command

PROGRAM = """
import json, os, sys
from pathlib import Path
import torch
import torch.distributed as dist
from shared import InputError
from shared.launch import entrypoint

@entrypoint(config_path="configs")
def main(cfg):
    if cfg.fail == "input":
        raise InputError("lr=-1: give a positive learning rate.")
    if cfg.fail == "bug":
        raise RuntimeError("a defect")
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
        total = torch.ones(1)
        dist.all_reduce(total)
        dist.barrier()
        if dist.get_rank() == 0:
            Path(cfg.out).write_text(json.dumps({"world": int(total), "lr": cfg.optim.lr}))
        dist.destroy_process_group()
    else:
        Path(cfg.out).with_suffix(f".{cfg.optim.lr}.json").write_text(json.dumps({"world": 1, "lr": cfg.optim.lr}))

if __name__ == "__main__":
    main()
"""
CONFIG = """
defaults:
  - _self_
  - launch: local
optim:
  lr: 0.1
fail: null
out: ???
"""


@pytest.fixture
def program(tmp_path: Path):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "config.yaml").write_text(CONFIG)

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "program.py", f"out={tmp_path / 'out.json'}", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "REPRO_RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1", **environment},
        )

    run.folder = tmp_path
    return run


def test_one_process_runs_and_hydra_leaves_nothing_behind(program):
    result = program("optim.lr=0.5")
    assert result.returncode == 0, result.stderr
    assert json.loads((program.folder / "out.0.5.json").read_text()) == {"world": 1, "lr": 0.5}
    assert {path.name for path in program.folder.iterdir()} == {"program.py", "configs", "out.0.5.json"}


def test_a_misspelt_key_is_one_message_with_the_nearest_key_and_status_2(program):
    result = program("optim.lrr=0.5")
    assert result.returncode == 2
    assert "optim.lrr" in result.stderr and "Did you mean optim.lr?" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_group_choice_lists_the_choices(program):
    result = program("launch=turchrun")
    assert result.returncode == 2
    assert "torchrun" in result.stderr and "deepspeed" in result.stderr and "Traceback" not in result.stderr


def test_a_missing_mandatory_value_is_status_2(program):
    result = subprocess.run(
        [sys.executable, "program.py"], cwd=program.folder, capture_output=True, text=True, env=dict(os.environ)
    )
    assert result.returncode == 2 and "out" in result.stderr and "Traceback" not in result.stderr


def test_bad_input_is_a_message_and_a_bug_keeps_its_traceback(program):
    bad = program("fail=input")
    assert (bad.returncode, bad.stderr) == (2, "error: lr=-1: give a positive learning rate.\n")
    bug = program("fail=bug")
    assert bug.returncode == 1 and "Traceback" in bug.stderr and "a defect" in bug.stderr


def test_multirun_visits_every_value(program):
    result = program("optim.lr=0.1,0.2", "--multirun")
    assert result.returncode == 0, result.stderr
    assert {path.name for path in program.folder.glob("out.*.json")} == {"out.0.1.json", "out.0.2.json"}


def test_torchrun_starts_two_processes_with_the_same_overrides(program):
    result = program("launch=torchrun", "launch.processes=2", "optim.lr=0.25")
    assert result.returncode == 0, result.stderr
    assert json.loads((program.folder / "out.json").read_text()) == {"world": 2, "lr": 0.25}


def test_bad_input_in_a_launched_process_is_still_one_message_and_status_2(program):
    result = program("launch=torchrun", "launch.processes=2", "fail=input")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == "error: lr=-1: give a positive learning rate."


def test_slurm_jobs_run_the_same_command_through_submitit(program):
    arguments = ("launch=slurm", "launch.cluster=local", "launch.processes=2", "launch.gpus_per_node=0")
    result = program(*arguments, "optim.lr=0.75", "launch.minutes=5")
    assert result.returncode == 0, result.stderr
    assert json.loads((program.folder / "out.json").read_text()) == {"world": 2, "lr": 0.75}


def test_slurm_without_sbatch_says_what_is_missing(program):
    result = program("launch=slurm", "launch.processes=1", PATH=str(Path(sys.executable).parent))
    assert result.returncode == 2 and "sbatch" in result.stderr


def test_several_nodes_need_a_meeting_point():
    launch = OmegaConf.create({"kind": "torchrun", "processes": 2, "nodes": 2})
    with pytest.raises(InputError, match=r"launch\.node_rank"):
        torchrun_command(launch, "simcse.train", [])
    command = torchrun_command(launch, "simcse.train", ["seed=1"], node_rank=1, master="first:1234")
    assert command[-3:] == ["-m", "simcse.train", "seed=1"]
    assert {"--nnodes=2", "--node-rank=1", "--master-addr=first", "--master-port=1234"} <= set(command)


@pytest.mark.parametrize("processes", [0, -1, 1.5, "two"])
def test_a_wrong_process_count_is_refused(processes):
    with pytest.raises(InputError, match=r"launch\.processes"):
        process_count(OmegaConf.create({"processes": processes}))


def test_a_batch_is_split_exactly_or_refused():
    assert split_batch(512, 4) == (128, 1)
    assert split_batch(512, 4, largest=32) == (32, 4)
    assert split_batch(512, 4, largest=500) == (128, 1)
    with pytest.raises(
        InputError, match=r"batch_size=510 does not divide among 4 processes\. Use batch_size=508 or 512"
    ):
        split_batch(510, 4)
    with pytest.raises(InputError, match="multiple of the 48"):
        split_batch(512, 4, largest=48)
    with pytest.raises(InputError, match="batch_size=0"):
        split_batch(0, 1)
