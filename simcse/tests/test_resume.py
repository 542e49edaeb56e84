"""A killed training goes on and ends as if nothing had happened; what must not go on is refused."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shared import InputError
from shared.training import latest_checkpoint, read_metrics
from simcse.resume import check_weights_fit

LONG = ("optim.max_steps=120", "optim.save_steps=12", "eval.steps=24")


def _lines(folder: Path) -> list[dict]:
    return [
        {k: v for k, v in line.items() if "second" not in k and "runtime" not in k}
        for line in read_metrics(folder / "metrics.jsonl")
    ]


def _wait_for_checkpoint(folder: Path, process, step: int) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        checkpoint = latest_checkpoint(folder) if folder.exists() else None
        if checkpoint is not None and int(checkpoint.name.split("-")[1]) >= step:
            return
        time.sleep(0.002)
    pytest.fail(f"no checkpoint {step}: {folder.with_suffix('.log').read_text()[-3000:]}")


def test_run_killed_in_mid_training_resumes_to_bit_identical_weights(tmp_path, start_train):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    reference = start_train(whole, *LONG)
    victim = start_train(killed, *LONG)
    _wait_for_checkpoint(killed, victim, 24)
    victim.kill()
    victim.wait()
    assert not (killed / "results.json").exists(), "the run was over before it could be killed"
    resumed = start_train(killed, *LONG)
    assert resumed.wait(600) == 0, killed.with_suffix(".log").read_text()[-3000:]
    assert reference.wait(600) == 0, whole.with_suffix(".log").read_text()[-3000:]

    results = json.loads((killed / "results.json").read_text())
    assert 0 < results["metrics"]["train"]["resumed_at_step"] < 120
    first, second = load_file(whole / "model/model.safetensors"), load_file(killed / "model/model.safetensors")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    last_first = load_file(latest_checkpoint(whole) / "model.safetensors")
    last_second = load_file(latest_checkpoint(killed) / "model.safetensors")
    assert all(torch.equal(last_first[name], last_second[name]) for name in last_first)
    assert [line for line in _lines(whole) if "train_loss" not in line] == [
        line for line in _lines(killed) if "train_loss" not in line
    ]


def test_finished_run_is_left_alone_and_restart_trains_again(run_here, tmp_path, caplog):
    folder = run_here("optim.max_steps=3")
    stamp = (folder / "results.json").stat().st_mtime_ns
    run_here("optim.max_steps=3")
    assert (folder / "results.json").stat().st_mtime_ns == stamp and "finished" in caplog.text
    run_here("optim.max_steps=3", "resume=restart")
    assert (folder / "results.json").stat().st_mtime_ns > stamp


@pytest.fixture
def unfinished(run_here, tmp_path) -> Path:
    """A run that was killed after its checkpoint at step 4."""
    folder = run_here("optim.max_steps=4", "optim.save_steps=2")
    (folder / "results.json").unlink()
    shutil.rmtree(folder / "model")
    return folder


def test_another_configuration_does_not_go_on_with_an_unfinished_run(unfinished, run_here):
    with pytest.raises(InputError, match=r"unfinished run.*loss\.temperature: 0\.05 -> 0\.1"):
        run_here("optim.max_steps=4", "optim.save_steps=2", "loss.temperature=0.1")
    assert latest_checkpoint(unfinished) is not None
    with pytest.raises(InputError, match="holds a run already"):
        run_here("optim.max_steps=4", "optim.save_steps=2", "resume=never")


def test_folder_with_trainer_state_as_initial_weights_starts_at_step_zero(
    unfinished, run_here, tmp_path, tiny_encoder_folder, caplog
):
    model = shutil.copytree(tiny_encoder_folder, tmp_path / "with_state")
    shutil.copy(latest_checkpoint(unfinished) / "trainer_state.json", model)
    for option in ("model", "init_from"):
        folder = run_here(f"{option}={model}", "optim.max_steps=2", output_dir=tmp_path / f"from_{option}")
        assert json.loads((folder / "results.json").read_text())["metrics"]["train"]["resumed_at_step"] == 0
    assert "only its weights are used" in caplog.text


def test_resume_from_another_folders_checkpoint(unfinished, run_here, tmp_path):
    checkpoint = latest_checkpoint(unfinished)
    folder = run_here("optim.max_steps=6", f"resume_from={checkpoint}", output_dir=tmp_path / "second")
    assert json.loads((folder / "results.json").read_text())["metrics"]["train"]["resumed_at_step"] == 4
    with pytest.raises(InputError, match=r"not a training checkpoint.*Did you mean"):
        run_here(f"resume_from={unfinished}", output_dir=tmp_path / "third")


def test_checkpoint_of_another_model_is_refused(unfinished, formula_encoder):
    from simcse.model import ContrastiveModel

    with pytest.raises(InputError, match="of another model"):
        check_weights_fit(latest_checkpoint(unfinished), ContrastiveModel(formula_encoder("avg")))


def test_optimiser_state_of_another_size_is_refused(unfinished, run_here):
    file = latest_checkpoint(unfinished) / "optimizer.pt"
    state = torch.load(file, weights_only=True)
    state["state"][0]["exp_avg"] = torch.zeros(3, 5)
    torch.save(state, file)
    with pytest.raises(InputError, match="optimiser state is of another model"):
        run_here("optim.max_steps=4", "optim.save_steps=2")


def test_half_written_checkpoint_is_passed_over(unfinished, run_here):
    torn = unfinished / "checkpoints" / "checkpoint-99"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    folder = run_here("optim.max_steps=4", "optim.save_steps=2")
    assert json.loads((folder / "results.json").read_text())["metrics"]["train"]["resumed_at_step"] == 4
