"""Runs through the entrypoint's function: every trainer and mode on both families, resumed, chosen on dev, refused."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from mezo.loop import ZeroOrderTraining
from mezo.problem import build_problem
from mezo.progress import BatchOrder, best_step, evaluation_steps
from mezo.replay import rebuild
from mezo.train import train
from mezo.trajectory import read, replay
from shared import InputError


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())["metrics"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "trained/trained.safetensors")


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("mode", ["full", "lora", "prefix", "head"])
@pytest.mark.parametrize("family", ["causal", "masked"])
def test_every_mode_of_both_families_trains_by_mezo(configure, opt_folder, masked_folder, family, mode):
    model = opt_folder if family == "causal" else masked_folder
    folder = train(configure("task=house-sentiment", f"model={model}", f"mode={mode}"))
    found = results(folder)
    assert set(found["dev"]) == {"loss", found["metric"]} and 0 <= found["test"][found["metric"]] <= 1
    training = found["training"]
    header, steps = read(folder / "trajectory.mzt")
    assert len(steps) == training["steps"] == 4 and training["evaluations_of_the_loss"] == 8
    assert training["projected_gradient"]["zero"] == 0
    # d numbers of N(0, 1) have the length sqrt(d), give or take
    expected = header.extra["eps"] * training["trained_weights"] ** 0.5
    assert training["eps_times_norm_of_z"] == pytest.approx(expected, rel=0.15)
    assert weights(folder).keys() == set(header.names)
    lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert all(json.loads(line)["projected_gradient"] for line in (folder / "steps.jsonl").read_text().splitlines())


@pytest.mark.parametrize("task", ["house-choice", "house-answer"])
def test_other_kinds_of_tasks_train_too(configure, opt_folder, task):
    found = results(train(configure(f"task={task}", f"model={opt_folder}", "mode=prefix", "data.num_test=4")))
    assert found["metric"] == {"house-choice": "accuracy", "house-answer": "f1"}[task]


def test_the_tested_weights_are_those_of_the_best_dev_step(configure, opt_folder, tmp_path):
    """With a rate that soon ruins the model, the first evaluation is the best; its weights are replayed, not kept."""
    same_run = ("task=house-sentiment", f"model={opt_folder}", "mode=lora", "lr=3.0")
    best = train(configure(*same_run, "steps=6", "eval_every=2", "select=loss", f"output_dir={tmp_path / 'best'}"))
    lines = [json.loads(line) for line in (best / "evaluations.jsonl").read_text().splitlines()]
    step = min(lines, key=lambda line: line["loss"])["step"]
    assert step < 6
    found = results(best)
    assert found["best_step"] == step
    assert found["dev"]["loss"] == pytest.approx({line["step"]: line for line in lines}[step]["loss"], abs=1e-6)
    short = train(configure(*same_run, f"steps={step}", "select=last", f"output_dir={tmp_path / 'short'}"))
    assert same(weights(best), weights(short))


KINDS_OF_STEPS = (
    "zo=plain", "zo=release", "zo=n_spsa", "zo=adam", "zo.one_point=true", "zo.scale_by=parameter_norm mode=full",
    "zo.scale_by=zo_norm zo.scale_when=epoch mode=full",
    "zo.scale_by=gradient_norm zo.scale_when=epoch zo=adam mode=full",
    "zo=release zo.seeds=medium",
)  # fmt: skip


@pytest.mark.parametrize("zo", KINDS_OF_STEPS)
def test_a_run_goes_on_from_its_trajectory_alone(configure, opt_folder, tmp_path, zo):
    """Everything but the file of scalars is deleted, and its last records too: same file, dev scores and weights."""
    same_run = ("task=house-sentiment", f"model={opt_folder}", "mode=lora", "steps=6", "lr=0.01", *zo.split())
    whole = train(configure(*same_run, f"output_dir={tmp_path / 'whole'}"))
    cut = tmp_path / "cut"
    cut.mkdir()
    recorded = (whole / "trajectory.mzt").read_bytes()
    records = 6 * (4 if zo == "zo=n_spsa" else 1)
    begin = len(recorded) - 24 * records
    (cut / "trajectory.mzt").write_bytes(recorded[: begin + 24 * (records * 5 // 6) + 7])
    train(configure(*same_run, f"output_dir={cut}"))
    assert (cut / "trajectory.mzt").read_bytes() == recorded
    assert (cut / "evaluations.jsonl").read_text() == (whole / "evaluations.jsonl").read_text()
    assert same(weights(cut), weights(whole))
    first, second = results(whole), results(cut)
    assert second["training"]["resumed_at_step"] == 5
    assert (first["dev"], first["test"], first["best_step"]) == (second["dev"], second["test"], second["best_step"])


def test_step_lengths_are_measured_again_in_every_epoch_and_kept_for_a_replay(configure, opt_folder, tmp_path):
    """One line per epoch, from that epoch's weights; without the file the trajectory cannot be replayed."""
    options = (
        "mode=full",
        "steps=6",
        "batch_size=4",
        "data.num_train=8",
        "lr=0.05",
        "select=last",
        "zo.scale_by=zo_norm",
    )
    run = ("task=house-sentiment", f"model={opt_folder}", *options)
    folder = train(configure(*run, "zo.scale_when=epoch"))
    lines = [json.loads(line) for line in (folder / "scales.jsonl").read_text().splitlines()]
    assert [(line["step"], line["steps"]) for line in lines] == [(0, 2), (2, 2), (4, 2)]
    assert results(folder)["training"]["step_lengths_measured"] == 3
    blocks = lines[0]["lengths"]
    assert blocks.keys() == {"embeddings", "layer 0", "layer 1", "rest"}
    assert all(line["lengths"] != blocks for line in lines[1:])
    once = train(configure(*run, f"output_dir={tmp_path / 'once'}"))
    first, second = (read(f / "trajectory.mzt")[1] for f in (folder, once))
    assert first[:2] == second[:2] and first[2:] != second[2:]

    arguments = {"base": str(opt_folder), "traj": str(folder / "trajectory.mzt"), "check_base": True, "steps": None,
                 "device": "cpu", "probe": None}  # fmt: skip
    model, count = rebuild(OmegaConf.create({**arguments, "out": str(tmp_path / "out")}))
    assert count == 6
    trained = weights(folder)
    assert all(torch.equal(t, trained[name]) for name, t in model.named_parameters() if name in trained)
    kept = (folder / "scales.jsonl").read_text()
    (folder / "scales.jsonl").write_text("".join(kept.splitlines(keepends=True)[:2]))
    with pytest.raises(InputError, match=r"scales\.jsonl has no step lengths for step 4"):
        rebuild(OmegaConf.create({**arguments, "out": str(tmp_path / "torn")}))
    (folder / "scales.jsonl").write_text(kept.replace('"lengths": {"embeddings": ', '"lengths": {"embeddings": 1'))
    with pytest.raises(InputError, match=r"scales\.jsonl: the line of step 0 is changed"):
        rebuild(OmegaConf.create({**arguments, "out": str(tmp_path / "changed")}))
    (folder / "scales.jsonl").unlink()
    with pytest.raises(InputError, match=r"scales\.jsonl has no step lengths for step 0"):
        rebuild(OmegaConf.create({**arguments, "out": str(tmp_path / "none")}))
    assert not (tmp_path / "torn").exists() and not (tmp_path / "none").exists()
    with pytest.raises(InputError, match=r"scales was a function; give it to replay\(\.\.\., scales=it\)"):
        replay(model, folder / "trajectory.mzt", check_base=False)


@pytest.mark.parametrize("trainer", ["adam", "sgd"])
def test_fine_tuning_resumes_to_the_same_weights(configure, masked_folder, tmp_path, monkeypatch, trainer):
    same_run = ("task=house-sentiment", f"model={masked_folder}", f"trainer={trainer}", "mode=lora", "steps=6")
    whole = train(configure(*same_run, f"output_dir={tmp_path / 'whole'}"))
    from mezo import fine_tuning

    update = fine_tuning.FineTuning.update

    def stop_at_five(self, step):
        if step == 5:
            raise KeyboardInterrupt
        return update(self, step)

    monkeypatch.setattr(fine_tuning.FineTuning, "update", stop_at_five)
    with pytest.raises(KeyboardInterrupt):
        train(configure(*same_run, f"output_dir={tmp_path / 'cut'}"))
    monkeypatch.undo()
    cut = train(configure(*same_run, f"output_dir={tmp_path / 'cut'}"))
    assert results(cut)["training"]["resumed_at_step"] == 4
    assert same(weights(cut), weights(whole))
    assert results(cut)["dev"] == results(whole)["dev"]
    assert not (cut / "checkpoints").exists()


def test_adam_learns_its_training_set(configure, masked_folder):
    """The baseline is a baseline: the training loss falls."""
    options = ("trainer=adam", "mode=full", "lr=0.003", "steps=80", "eval_every=80", "log_every=1", "select=last")
    folder = train(configure("task=house-sentiment", f"model={masked_folder}", *options))
    losses = [json.loads(line)["loss"] for line in (folder / "steps.jsonl").read_text().splitlines()]
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])


@pytest.mark.parametrize("family", ["causal", "masked"])
def test_linear_probing_writes_the_heads_rows_and_mezo_may_start_there(
    configure, opt_folder, masked_folder, family, tmp_path
):
    model = opt_folder if family == "causal" else masked_folder
    probed = train(configure("task=house-sentiment", f"model={model}", "trainer=lp"))
    rows = load_file(probed / "probe.safetensors")
    assert torch.equal(rows["weight"][0], -rows["weight"][1]) and rows["weight"].abs().sum() > 0
    assert ("bias" in rows) == (family == "masked")
    after = train(
        configure("task=house-sentiment", f"model={model}", "probe_first=true", "mode=lora", "lr=0",
                  f"output_dir={tmp_path / 'after'}")
    )  # fmt: skip
    # With a rate of 0, MeZO stays where probing ended.
    assert results(after)["test"] == results(probed)["test"]
    assert results(after)["dev"]["loss"] == pytest.approx(results(probed)["dev"]["loss"], abs=1e-6)


def test_accuracy_needs_no_gradient(configure, masked_folder):
    shared = ("task=house-sentiment", f"model={masked_folder}", "objective=accuracy", "eps=0.3")
    losses = [json.loads(x)["loss"] for x in (train(configure(*shared)) / "steps.jsonl").read_text().splitlines()]
    assert all(-1 <= loss <= 0 and (loss * 8) % 1 == 0 for loss in losses)
    with pytest.raises(InputError, match="objective=accuracy has no gradient; use trainer=zo"):
        train(configure(*shared, "trainer=adam", "resume=restart"))


def test_zero_shot_and_in_context_learning_train_nothing(configure, opt_folder, tmp_path):
    base = ("task=house-sentiment", f"model={opt_folder}", "trainer=none")
    folder = train(configure(*base))
    assert not (folder / "trajectory.mzt").exists() and "training" not in results(folder)
    train(configure(*base, "evaluation.num_demos=2", f"output_dir={tmp_path / 'icl'}"))


def test_micro_batches_give_the_whole_batchs_steps(configure, opt_folder, tmp_path):
    runs = [
        train(configure("task=house-sentiment", f"model={opt_folder}", "mode=lora", "lr=0.01",
                        f"micro_batch_size={size}", f"output_dir={tmp_path / str(size)}"))
        for size in ("null", 3)
    ]  # fmt: skip
    whole, parts = ([s.projected_gradient for s in read(run / "trajectory.mzt")[1]] for run in runs)
    assert parts == pytest.approx(whole, abs=2e-3) and parts != whole


def test_a_loss_that_is_not_finite_stops_with_the_weights_of_the_step_before(configure, opt_folder, monkeypatch):
    cfg = configure("task=house-sentiment", f"model={opt_folder}", "mode=lora", "steps=5")
    problem, _ = build_problem(cfg)
    loss, calls, kept = type(problem).loss, [], {}

    def broken(self, batch):
        calls.append(1)
        # 2 calls check the closure, 2 its response, 2 are a step's
        value, weight = loss(self, batch)
        if len(calls) == 12:
            kept.update({name: t.clone() for name, t in self.model.named_parameters() if "lora" in name})
            return value * float("nan"), weight
        return value, weight

    monkeypatch.setattr(type(problem), "loss", broken)
    monkeypatch.setattr(type(problem), "dev", lambda self: {"loss": 0.0, "accuracy": 0.0})
    monkeypatch.setattr("mezo.train.build_problem", lambda cfg: (problem, lambda: None))
    with pytest.raises(InputError, match=r"seed \d+: loss .* projected gradient nan.* steps before it are in"):
        train(cfg)
    steps = read(Path(cfg.output_dir) / "trajectory.mzt")[1]
    assert 1 <= len(steps) < 5
    now = {name: tensor for name, tensor in problem.model.named_parameters() if "lora" in name}
    assert same(now, kept)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer=zero"], "trainer=zero: give one of zo, adam, sgd, lp, none"),
        (["eps=0"], "eps=0.0 must be a positive number"),
        (["lr=-1"], "lr=-1.0 must be a number, 0 or more"),
        (["zo.n=0"], "n=0 must be a whole number, 1 or more"),
        (["zo.seeds=small"], "zo.seeds=small: give large or medium"),
        (["zo.scale_by=zo_norm", "zo.scale_when=step"], "zo.scale_when=step: give once or epoch"),
        (["zo.n_schedule=cubic"], "zo.n_schedule=cubic: give constant or linear"),
        (["schedule=cosine"], "schedule=cosine: give auto, constant or linear"),
        (["steps=-1"], "steps=-1: give a whole number, 0 or more"),
        (["batch_size=0"], "batch_size=0: give a whole number, 1 or more"),
        (["eval_every=0"], "eval_every=0: give a whole number, 1 or more, or null"),
        (["select=best"], "select=best: give one of auto, metric, loss, last"),
        (["gradient_checkpointing=true"], "set gradient_checkpointing=false"),
        (["dropout=true"], "set dropout=false"),
        (["dtype=int8"], "dtype=int8: give one of float32, float16, bfloat16"),
        (["family=encoder"], "family=encoder: give one of auto, causal, masked"),
        (["prompt=false"], "prompt=false is for masked language models"),
        (["mode.untie_embeddings=false", "mode=head"], "the head is tied to the input embeddings"),
        (["trainer=lp", "task=house-choice"], r"tune the head instead \(trainer=adam mode=head\)"),
        (["task=house-answer", "objective=candidates"], "has no candidates"),
        (["trainer=adam", "dtype=float16"], "overflows without a scaler"),
        (["final=[train]"], "final holds train: give dev, test, or"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_configurations_end_in_one_message(configure, opt_folder, overrides, message):
    with pytest.raises(InputError, match=message):
        train(configure("task=house-sentiment", f"model={opt_folder}", *overrides))


def test_models_that_cannot_be_trained_are_refused(configure, opt_folder, tmp_path):
    config = json.loads((opt_folder / "config.json").read_text())
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in opt_folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    quantised = {**config, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    (broken / "config.json").write_text(json.dumps(quantised))
    with pytest.raises(InputError, match="is quantised: quantised weights cannot be perturbed"):
        train(configure("task=house-sentiment", f"model={broken}"))
    (broken / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(InputError, match=r"lacks \d+ weights \(first .*layers.2.*\), which would be random"):
        train(configure("task=house-sentiment", f"model={broken}"))


def test_an_unfinished_run_of_other_options_is_not_continued(configure, opt_folder):
    run = ("task=house-sentiment", f"model={opt_folder}", "mode=lora")
    folder = train(configure(*run))
    stamp = (folder / "results.json").stat().st_mtime_ns
    train(configure(*run))
    assert (folder / "results.json").stat().st_mtime_ns == stamp
    (folder / "results.json").unlink()
    with pytest.raises(InputError, match=r"unfinished run of another configuration \(lr: .* -> 0.5\)"):
        train(configure(*run, "lr=0.5"))
    with pytest.raises(InputError, match="holds a run already"):
        train(configure(*run, "resume=never"))
    # Without config.json, or with a damaged one, the trajectory's own header says whose it is.
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"belongs to another run \(extra differ\)"):
        train(configure(*run, "lr=0.5"))
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"belongs to another run \(extra differ\)"):
        train(configure(*run, "lr=0.5"))


def test_batches_and_evaluations_are_functions_of_the_step():
    order = BatchOrder(10, 4, seed=1)
    epoch = [order.rows(step) for step in range(3)]
    assert [len(rows) for rows in epoch] == [4, 4, 2]
    assert sorted(row for rows in epoch for row in rows) == list(range(10))
    assert order.rows(4) == BatchOrder(10, 4, seed=1).rows(4) != order.rows(1)
    assert BatchOrder(3, 64, 0).rows(0) != [] and len(BatchOrder(3, 64, 0).rows(5)) == 3
    assert evaluation_steps(20, None, "causal") == [4, 8, 12, 16, 20]
    assert evaluation_steps(10, 4, "masked") == [4, 8, 10]
    lines = [{"step": s, "loss": loss, "acc": a} for s, loss, a in ((1, 2.0, 0.5), (2, 1.0, 0.5), (3, 1.0, 0.4))]
    assert [best_step(lines, s, "acc", 3) for s in ("metric", "loss", "last")] == [1, 2, 3]


def test_large_models_are_read_again_instead_of_kept(configure, opt_folder, monkeypatch, tmp_path):
    run = ("task=house-sentiment", f"model={opt_folder}", "mode=full", "lr=0.5", "select=loss")
    kept = train(configure(*run, f"output_dir={tmp_path / 'kept'}"))
    monkeypatch.setattr("mezo.loop.KEPT_WEIGHTS", 0)
    went = []
    go_to = ZeroOrderTraining.go_to
    monkeypatch.setattr(ZeroOrderTraining, "go_to", lambda self, *a: (went.append(self.base.kept), go_to(self, *a)))
    again = train(configure(*run, f"output_dir={tmp_path / 'again'}"))
    assert went == [None]
    assert results(again)["best_step"] < 4, "the base was not needed"
    assert same(weights(kept), weights(again))
