"""Fine-tuning from the command line: kills and resumption, finished cells, what is written, what is refused."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from mlm_masking import glue
from mlm_masking.classification import loss_function, prepare
from mlm_masking.encoders import load_model
from mlm_masking.fitting import Checkpoint, Settings, fit
from shared import InputError

# ---------------------------------------------------------------------------------------------------------- resumption


def test_a_run_killed_between_updates_ends_with_the_same_weights(checkpoint, files, tmp_path):
    train, dev = str(files / "train.jsonl"), str(files / "dev.jsonl")
    prepared = prepare(checkpoint, glue.load_task("sst2"), train=train, dev=dev)
    settings, loss = Settings(lr=1e-3, batch_size=16, epochs=3), loss_function(prepared.task, prepared.train_labels)

    class Killed(Exception):
        pass

    def run(path, kill_at=None):
        torch.manual_seed(5)
        model = load_model(checkpoint, "classification", outputs=2, device="cpu")
        keep = Checkpoint(path, {"run": 1}, every=4)

        def stop(update):
            if update == kill_at:
                raise Killed

        fit(model, prepared.train, loss, settings, seed=1, checkpoint=keep, on_update=stop)
        return model.state_dict()

    whole = run(tmp_path / "a.pt")
    for moment in (5, 11, 13):
        with pytest.raises(Killed):
            run(tmp_path / "b.pt", kill_at=moment)
    resumed = run(tmp_path / "b.pt")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    with pytest.raises(InputError, match="another run"):
        Checkpoint(tmp_path / "b.pt", {"run": 2}, 4).load(None, None, None)


def arguments(files, checkpoint, *more):
    return (
        "task=sst2",
        f"ckpt={checkpoint}",
        f"data.train={files}/train.jsonl",
        f"data.dev={files}/dev.jsonl",
        f"output_dir={files}/out",
        "progress=false",
        "batch_size=16",
        "device=cpu",
        *more,
    )


def results(files):
    return json.loads((files / "out" / "results.json").read_text())["metrics"]


def test_sigkill_in_a_grid_costs_only_the_cell_it_hits(files, checkpoint, environment, command, write_sentences):
    write_sentences(files / "train.jsonl", 320)
    grid = ("grid={lr:[1e-3,2e-3],batch_size:[16],epochs:[2]}", "seeds=[1,2]", "checkpoint_every=10")
    given = arguments(files, checkpoint, *grid)
    program = [sys.executable, "-m", "mlm_masking.finetune", *given]
    process = subprocess.Popen(program, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first = files / "out" / "cells" / "lr0.001-bs16-ep2" / "seed-1.json"
    deadline = time.monotonic() + 200
    while not first.is_file() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert first.is_file() and not (files / "out" / "results.json").is_file()
    before = first.stat().st_mtime_ns
    assert command("finetune", *given) == (0, "")
    assert first.stat().st_mtime_ns == before and len(results(files)["cells"]) == 4
    leftovers = [path.name for path in (files / "out").rglob("*") if path.suffix in (".pt", ".lock", ".tmp")]
    assert leftovers == []


def test_the_command_writes_scores_over_seeds_lengths_and_origin(files, checkpoint, command):
    assert command("finetune", *arguments(files, checkpoint, "lr=1e-3", "epochs=2", "seeds=[1,2]")) == (0, "")
    metrics = results(files)
    assert metrics["score"]["n"] == 2 and metrics["metrics"]["dev"]["accuracy"] == metrics["score"]
    assert metrics["data"] == "own files (train.jsonl)" and metrics["lengths"]["train"]["examples"] == 96
    assert metrics["best"] == {"lr": 0.001, "batch_size": 16, "epochs": 2}
    assert metrics["lengths"]["dev"]["truncated"] == 0 and "beyond_trained_length" in metrics["lengths"]["dev"]


def test_a_finished_cell_is_read_and_a_changed_setting_is_refused(files, checkpoint, command):
    assert command("finetune", *arguments(files, checkpoint, "epochs=1")) == (0, "")
    cell = files / "out" / "cells" / "lr5e-05-bs16-ep1" / "seed-1.json"
    stored = json.loads(cell.read_text())
    stored["result"]["score"] = 0.111
    cell.write_text(json.dumps(stored))
    assert command("finetune", *arguments(files, checkpoint, "epochs=1")) == (0, "")
    assert results(files)["score"]["values"] == [0.111]
    status, error = command("finetune", *arguments(files, checkpoint, "epochs=1", "weight_decay=0.01"))
    assert status == 2 and "is of a run with another weight_decay" in error


def test_models_and_predictions_are_written_on_request(files, checkpoint, command):
    (files / "test.jsonl").write_text('{"sentence": "a good film", "label": -1}\n{"sentence": "dull", "label": -1}\n')
    more = ("epochs=1", "save_model=true", f"predict={{test:{files}/test.jsonl}}")
    assert command("finetune", *arguments(files, checkpoint, *more)) == (0, "")
    folder = files / "out" / "cells" / "lr5e-05-bs16-ep1" / "seed-1" / "model"
    lines = (folder / "test.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 3 and lines[1].split("\t")[1] in ("positive", "negative")
    assert load_model(folder, "classification", outputs=2, device="cpu") is not None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr=0", "lr=0"),
        ("batching=padded", "batching=padded"),
        ("grid=all", "grid=all: give null"),
        ("grid={lr:[1e-3],batch_size:[16],epochs:[]}", r"grid.epochs=\[\]"),
        ("seeds=[1,1]", "each once"),
        ("task=blimp", "task of mlm_masking.probe"),
        ("data.dev=null", "belong together"),
        ("learning_rate=1", "learning_rate"),
        ("task.metric=bleu", "task.metric=bleu"),
    ],
)
def test_bad_options_end_with_status_two_and_leave_nothing(files, checkpoint, command, override, message):
    status, error = command("finetune", *arguments(files, checkpoint, "epochs=1", override))
    assert status == 2 and re.search(message, error)
    assert not (files / "out" / "results.json").exists()
    assert not list((files / "out").rglob("*.json")) and not list((files / "out").rglob("*.tmp"))
