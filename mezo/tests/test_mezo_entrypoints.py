"""The programs themselves: killed and resumed, on two ranks, replayed from scalars, and what bad input ends in."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mezo.replay import rebuild
from mezo.train import train
from mezo.trajectory import RECORD, read
from shared import InputError


def command(module: str, *overrides: str) -> list[str]:
    return [sys.executable, "-m", module, *overrides]


def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "REPRO_RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"}


def small(folder: Path, model: Path, *more: str) -> list[str]:
    """Overrides of a run of 40 steps."""
    return [
        "task=house-sentiment", f"model={model}", f"output_dir={folder}", "mode=lora", "lr=0.01", "steps=40",
        "batch_size=4", "eval_every=20", "data.num_train=16", "data.num_dev=6", "data.num_test=6", *more,
    ]  # fmt: skip


def run_here(overrides: list[str]) -> Path:
    """The same run in this process, on one thread as in the others."""
    import hydra

    import shared.launch  # noqa: F401  (puts the launch group on Hydra's search path)

    with hydra.initialize_config_dir(str(Path(__file__).parents[1] / "configs"), version_base="1.3"):
        cfg = hydra.compose("config", overrides=overrides)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train(cfg)
    finally:
        torch.set_num_threads(threads)


def records(path: Path) -> int:
    """Whole records of a trajectory that another process writes."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    return (len(content) - content.find(b"\n") - 1) // RECORD.size if b"\n" in content else 0


def test_a_run_killed_at_any_step_ends_as_one_that_was_not(opt_folder, tmp_path):
    """SIGKILL behind the first evaluation, whose score is then deleted: same file, scores, weights as without it."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    victim_of = command("mezo.train", *small(cut, opt_folder))
    victim = subprocess.Popen(victim_of, env=environment(tmp_path), stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 600
    while records(cut / "trajectory.mzt") < 23:
        assert victim.poll() is None, victim.stderr.read().decode()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.001)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert not (cut / "results.json").exists(), "the run was over before it could be killed"
    for name in ("evaluations.jsonl", "steps.jsonl", "config.json"):
        (cut / name).unlink()
    for folder in (cut, whole):
        run_here(small(folder, opt_folder))
    assert (cut / "trajectory.mzt").read_bytes() == (whole / "trajectory.mzt").read_bytes()
    assert (cut / "evaluations.jsonl").read_text() == (whole / "evaluations.jsonl").read_text()
    first, second = (load_file(folder / "trained/trained.safetensors") for folder in (whole, cut))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    found = [json.loads((folder / "results.json").read_text())["metrics"] for folder in (whole, cut)]
    assert all(found[0][key] == found[1][key] for key in ("dev", "test", "best_step"))
    assert 23 <= found[1]["training"]["resumed_at_step"] < 40


EPOCHS_OF_THREE = ("mode=full", "lr=1e-4", "batch_size=11", "zo.scale_by=zo_norm", "zo.scale_when=epoch")


@pytest.mark.parametrize("options", [(), EPOCHS_OF_THREE])
def test_two_ranks_take_the_steps_of_one(masked_folder, tmp_path, options):
    """Batches of 5 and 11 are split unevenly; both runs go through the entrypoint. Step lengths are rank 0's."""
    shared = small(tmp_path / "two", masked_folder, "batch_size=5", "steps=6", "eval_every=6", "lr=0.005", *options)
    done = subprocess.run(
        command("mezo.train", *shared, "launch=torchrun", "launch.processes=2"),
        env=environment(tmp_path), capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    run_here([o for o in shared if not o.startswith("output_dir")] + [f"output_dir={tmp_path / 'one'}"])
    (_, two), (_, single) = (read(tmp_path / name / "trajectory.mzt") for name in ("two", "one"))
    assert [step.seed for step in two] == [step.seed for step in single]
    # Sums in another order: the losses agree to their last digits, and eps = 0.01 divides them.
    assert [s.projected_gradient for s in two] == pytest.approx([s.projected_gradient for s in single], abs=1e-3)
    scores = [json.loads((tmp_path / n / "evaluations.jsonl").read_text())["loss"] for n in ("two", "one")]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    if options:
        assert len((tmp_path / "two" / "scales.jsonl").read_text().splitlines()) == 2


@pytest.fixture(scope="module")
def finished(opt_folder, tmp_path_factory):
    """finished(mode) -> the folder of a short run."""
    made: dict[str, Path] = {}

    def run(mode: str, *more: str) -> Path:
        if mode not in made:
            folder = tmp_path_factory.mktemp(mode)
            made[mode] = run_here(small(folder, opt_folder, f"mode={mode}", "steps=5", *more))
        return made[mode]

    return run


def replayed(folder: Path, out: Path, **options):
    settings = {"base": None, "traj": str(folder / "trajectory.mzt"), "out": str(out), "steps": None, "probe": None,
                "check_base": True, "device": "cpu"}  # fmt: skip
    return rebuild(OmegaConf.create({**settings, **options}))


@pytest.mark.parametrize("mode", ["lora", "prefix", "head"])
def test_scalars_and_the_base_give_the_trained_tensors_back(finished, tmp_path, mode):
    folder = finished(mode, "select=last")
    _, count = replayed(folder, tmp_path / "out")
    assert count == 5
    first, second = load_file(folder / "trained/trained.safetensors"), load_file(tmp_path / "out/trained.safetensors")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_full_model_is_replayed_into_a_plain_folder(finished, opt_folder, tmp_path):
    folder = finished("full", "select=last")
    _, count = replayed(folder, tmp_path / "out", base=str(opt_folder))
    assert count == 5
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = load_file(folder / "trained/trained.safetensors")
    mine = dict(model.named_parameters())
    assert all(torch.equal(mine[name], tensor) for name, tensor in expected.items())
    # A hundredth of the model's size and less, whatever the model: 24 bytes a step.
    assert (folder / "trajectory.mzt").stat().st_size < 12_000


def test_broken_and_foreign_trajectories_leave_nothing_behind(finished, masked_folder, opt_folder, tmp_path):
    folder = finished("lora", "select=last")
    whole = (folder / "trajectory.mzt").read_bytes()
    begin = whole.index(b"\n") + 1
    swapped = whole[:begin] + whole[begin + 24 : begin + 48] + whole[begin : begin + 24] + whole[begin + 48 :]
    other = tmp_path / "other"
    shutil.copytree(opt_folder, other)
    weights = load_file(other / "model.safetensors")
    from safetensors.torch import save_file

    name = next(name for name in weights if "v_proj.weight" in name)
    weights[name] = weights[name] + 1e-3
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    full = finished("full", "select=last")
    cases = [
        (whole[:-3], {}, "is truncated in record 4"),
        (swapped, {}, "record 0 is changed, missing or out of order"),
        (b"not a trajectory\n", {}, "is not a trajectory of this program"),
        ((full / "trajectory.mzt").read_bytes(), {"base": str(other)}, "not those of its base model"),
        (whole, {"base": str(masked_folder)}, "task=house-sentiment|no trainable tensor|is .* here"),
    ]
    for number, (content, options, message) in enumerate(cases):
        path = tmp_path / f"{number}.mzt"
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            replayed(folder, tmp_path / "out", traj=str(path), **options)
        assert not list(tmp_path.glob("*out*"))
    with pytest.raises(InputError, match=r"traj is missing: python -m mezo\.replay base="):
        replayed(folder, tmp_path / "out", traj=None)
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="is there already; give a new folder"):
        replayed(folder, tmp_path / "there")


def test_bad_input_ends_in_one_message_and_status_2(opt_folder, tmp_path):
    overrides = small(tmp_path / "run", opt_folder, "trainer=zo", "eps=-1")
    done = subprocess.run(
        command("mezo.train", *overrides), env=environment(tmp_path), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2
    assert "eps=-1" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run/results.json").exists() and not (tmp_path / "run/trajectory.mzt").exists()
