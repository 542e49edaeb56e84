"""Pre-training: what it leaves behind, how its loss is weighted, what it is configured by, and what it refuses."""

import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

from mlm_masking.data import open_blocks
from mlm_masking.heldout import HeldOut
from mlm_masking.masker import build_masker
from mlm_masking.model import MaskedLanguageModel
from mlm_masking.pretrain import build_arguments, experiment_name, load_text, train
from mlm_masking.trainer import _LossGuard
from mlm_masking.vocabulary import Vocabulary
from shared import InputError
from shared.plan import experiment_files, runs_of
from shared.training import read_metrics

CONFIGS = Path(__file__).parents[1] / "configs"


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def results(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))["metrics"]


def losses(folder):
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]


def assert_same_weights(one, other, atol):
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=atol, rtol=0, msg=name)


# ------------------------------------------------------------------------------------------------------ what it leaves


def test_model_folder_loads_with_automodel_and_has_the_reported_losses(pretrain_here, home):
    folder = pretrain_here("optim.max_steps=10")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    model, report = AutoModelForMaskedLM.from_pretrained(folder / "model", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    (tokens,) = (home / "mlm-masking" / "data").glob("*/tokens")
    blocks = open_blocks(tokens, 16, part="valid")
    own = build_masker({"masking": {"rate": 0.4, "seed": 0}}, vocabulary)
    measured = HeldOut(blocks, vocabulary, own, count=20).losses(MaskedLanguageModel(model))
    assert measured == pytest.approx(results(folder)["loss"], abs=1e-5)


def test_metrics_log_has_losses_in_nats_and_bits_rates_and_evaluations(pretrain_here):
    folder = pretrain_here("masking.rate=0.4")
    lines = read_metrics(folder / "metrics.jsonl")
    trained = [line for line in lines if "loss" in line]
    assert [line["step"] for line in trained] == list(range(1, 13))
    for line in trained:
        assert line["loss_bits"] == pytest.approx(line["loss"] / math.log(2))
        assert line["ppl"] == pytest.approx(2 ** line["loss_bits"])
        assert abs(line["pred_rate"] - 0.4) <= 1 / 16 and line["corr_rate"] == line["pred_rate"]
    assert trained[-1]["learning_rate"] == 0
    evaluated = [line for line in lines if "eval_own" in line]
    assert [line["step"] for line in evaluated] == [6, 12]
    assert evaluated[0].keys() >= {"eval_15", "eval_40", "eval_80", "eval_15_bits", "eval_80_ppl", "eval_own_ppl"}
    metrics = results(folder)
    assert abs(metrics["measured"]["pred_rate"] - 0.4) < 1 / 128
    assert metrics["curve"]["updates"] == [6, 12] and metrics["cost"]["tokens"] == 12 * 8 * 16


def test_a_model_learns_to_use_context(pretrain_here):
    folder = pretrain_here("optim.max_steps=250", "eval.steps=50", "optim.learning_rate=3e-3", "batch_size=16")
    metrics = results(folder)
    assert metrics["plateau"]["left_at"] is not None
    loss = metrics["loss"]
    assert loss["15"] < metrics["plateau"]["unigram_loss"] - 0.15 and loss["15"] < loss["80"]


def test_fixed_rate_masks_are_the_same_for_models_of_every_rate_and_seed(
    compose_pretrain, pretrain_overrides, home, tmp_path
):
    made = []
    for more in (("masking.rate=0.15",), ("masking.rate=0.8", "seed=7", "masking=span_t5", "masking.rate=0.5")):
        cfg = compose_pretrain(pretrain_overrides(tmp_path, *more))
        text = load_text(cfg)
        heldout = HeldOut(
            text.heldout, text.vocabulary, build_masker(cfg, text.vocabulary, seed=cfg.eval.seed), count=9
        )
        made.append([batch.input_ids for name in ("15", "40", "80") for batch in heldout._batches(name, 1.0)])
    assert all(torch.equal(one, other) for one, other in zip(*made, strict=True))


def test_snapshots_are_models_along_the_run(pretrain_here):
    folder = pretrain_here("snapshot_every=4")
    assert sorted(path.name for path in (folder / "snapshots").iterdir()) == ["update-12", "update-4", "update-8"]
    last = load_file(folder / "snapshots" / "update-12" / "model.safetensors")
    assert all(torch.equal(tensor, last[name]) for name, tensor in weights(folder).items())


def test_finished_run_is_left_alone(pretrain_here):
    folder = pretrain_here()
    before = (folder / "results.json").stat().st_mtime_ns, (folder / "model" / "model.safetensors").stat().st_mtime_ns
    assert pretrain_here() == folder
    assert before == (
        (folder / "results.json").stat().st_mtime_ns,
        (folder / "model" / "model.safetensors").stat().st_mtime_ns,
    )


def test_many_runs_share_one_text_and_write_only_their_metrics(compose_pretrain, pretrain_overrides, home, tmp_path):
    cfg = compose_pretrain(pretrain_overrides(tmp_path / "one", "+optim.save_strategy=no", "eval.steps=null"))
    text = load_text(cfg)
    trained = train(cfg, tmp_path / "one", text)
    assert [path.name for path in (tmp_path / "one").rglob("*") if path.is_file()] == ["metrics.jsonl"]
    again = train(cfg, tmp_path / "two", text)
    assert trained.metrics["loss"] == again.metrics["loss"]


# ------------------------------------------------------------------------------------------------- the weighted loss


def test_unequal_micro_batches_train_as_their_joint_batch(pretrain_here, tmp_path):
    """Bernoulli masks: each of the 4 micro-batches of 2 rows predicts another number of tokens."""
    options = ("masking=bernoulli", "optim.max_steps=5", "masking.rate=0.3")
    joint = pretrain_here(*options, output_dir=tmp_path / "joint")
    parts = pretrain_here(*options, "forward_batch_size=2", output_dir=tmp_path / "parts")
    assert losses(parts) == pytest.approx(losses(joint), abs=1e-5)
    assert_same_weights(joint, parts, atol=2e-5)


def test_gradient_of_four_unequal_micro_batches_is_that_of_the_joint_batch(
    compose_pretrain, pretrain_overrides, worker, home, tmp_path
):
    gradients = []
    for forward in ("null", "2"):
        overrides = pretrain_overrides(
            tmp_path / forward, "masking=bernoulli", f"forward_batch_size={forward}", "optim.max_steps=1",
            "optim.learning_rate=0", "eval.steps=null", "+optim.save_strategy=no",
        )  # fmt: skip
        gradients.append(worker.first_gradient(compose_pretrain(overrides), tmp_path / forward))
    joint, parts = gradients
    assert joint.keys() == parts.keys() and len(joint) > 30
    for name in joint:
        torch.testing.assert_close(joint[name], parts[name], atol=1e-6, rtol=1e-4, msg=name)


def test_more_prediction_than_corruption_puts_all_copies_into_one_update(pretrain_here):
    folder = pretrain_here("rates=decoupled", "rates.corruption=0.2", "rates.prediction=0.4")
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    assert all(abs(line["pred_rate"] - 0.4) < 1 / 16 and abs(line["corr_rate"] - 0.2) < 1 / 16 for line in lines)
    ordinary = pretrain_here("masking.rate=0.4", output_dir=folder.parent / "tied")
    assert results(folder)["cost"]["tokens"] == results(ordinary)["cost"]["tokens"]
    assert results(folder)["cost"]["flops"] > 1.5 * results(ordinary)["cost"]["flops"]


def test_copies_share_the_forward_batch(compose_pretrain, pretrain_overrides, tmp_path):
    options = (
        "rates=decoupled",
        "rates.corruption=0.1",
        "rates.prediction=0.4",
        "forward_batch_size=8",
        "batch_size=16",
    )
    args = build_arguments(compose_pretrain(pretrain_overrides(tmp_path, *options)), tmp_path)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (2, 8)


def test_less_prediction_than_corruption_predicts_a_part_of_what_is_hidden(pretrain_here):
    folder = pretrain_here("rates=decoupled", "rates.corruption=0.4", "rates.prediction=0.1")
    measured = results(folder)["measured"]
    assert measured["pred_rate"] == pytest.approx(0.1, abs=0.02) and measured["corr_rate"] == pytest.approx(
        0.4, abs=0.02
    )


def test_a_scheduled_rate_falls_over_the_run(pretrain_here):
    folder = pretrain_here("masking.schedule='linear(0.80->0.20)'")
    rates = [line["pred_rate"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    assert rates[0] == pytest.approx(0.8, abs=0.05) and rates[-1] == pytest.approx(0.25, abs=0.05)
    assert all(later < earlier for earlier, later in pairwise(rates))


@pytest.mark.parametrize(
    "options",
    [
        ("masking=span_t5",),
        ("masking.strategy=whole_word",),
        ("masking.strategy=uniform", "masking.compat=fairseq", "replace=p801010"),
        ("masking=bernoulli", "masking.compat=hf", "replace=p801010"),
        ("norm=post", "optimizer=adamw"),
        ("model.dropout=0.1", "model.attention_dropout=0.1", "model.pad_vocab_to=64", "optim.bf16=true"),
    ],
)
def test_every_kind_of_run_ends_with_a_model(pretrain_here, options):
    folder = pretrain_here("optim.max_steps=4", *options)
    model = AutoModelForMaskedLM.from_pretrained(folder / "model")
    assert model.config.vocab_size == 300
    assert math.isfinite(results(folder)["loss"]["own"])


def test_weights_of_a_pre_trained_model_are_gone_on_from(pretrain_here, tmp_path):
    first = pretrain_here(output_dir=tmp_path / "first")
    more = pretrain_here(
        f"init_from={first / 'model'}", "optim.max_steps=1", "optim.learning_rate=0", output_dir=tmp_path / "more"
    )
    assert results(more)["loss"] == pytest.approx(results(first)["loss"], abs=1e-5)


# -------------------------------------------------------------------------------------------------- the paper's runs


def test_every_cell_of_every_experiment_composes_and_has_a_name_of_its_own():
    names = {}
    for experiment in experiment_files(CONFIGS):
        for cfg in runs_of(CONFIGS, experiment):
            assert cfg.scale == "paper" and cfg.data.name == "wikibook"
            cell = (cfg.model.name, cfg.norm, cfg.masking.strategy, cfg.masking.rate, cfg.masking.schedule,
                    cfg.replace.name,
                    cfg.rates.corruption, cfg.rates.prediction, cfg.recipe, cfg.snapshot_every)  # fmt: skip
            assert names.setdefault(experiment_name(cfg), cell) == cell
    assert len(names) > 50
    assert {"efficient-large-uniform-m0.40", "efficient-medium-uniform-m0.15", "efficient-large-span_t5-m0.70",
            "efficient-large-uniform-c0.05-p0.40", "efficient-large-uniform-m0.40-p801010"} <= names.keys()  # fmt: skip


def test_efficient_recipe_is_the_papers():
    (cfg,) = runs_of(CONFIGS, "schedule_base", ("recipe=efficient_large", "scale=laptop"))
    assert (cfg.batch_size, cfg.data.block_length, cfg.optim.max_steps, cfg.optim.warmup_steps) == (
        4096,
        128,
        23000,
        1380,
    )
    assert (cfg.optim.learning_rate, cfg.optim.adam_beta2, cfg.optim.adam_epsilon) == (2e-3, 0.98, 1e-6)
    assert (cfg.optim.weight_decay, cfg.optim.max_grad_norm, cfg.optimizer, cfg.seed) == (0.01, 0.0, "release", 1)
    assert (cfg.model.name, cfg.model.dropout, cfg.model.attention_dropout, cfg.norm) == ("large", 0.1, 0.1, "pre")
    assert cfg.batch_size * cfg.data.block_length * cfg.optim.max_steps == pytest.approx(12.06e9, rel=1e-3)


# ------------------------------------------------------------------------------------------------------ what it refuses


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("masking.rate=1.5",), "masking.rate=1.5 is not a rate"),
        (("masking.rate=0",), "masking.rate=0 is not a rate"),
        (("masking.strategy=sentence",), "masking.strategy=sentence is not one of"),
        (("masking=span_t5", "masking.rate=0.9"), "rate"),
        (("masking=pmi",), "masking.ngrams is missing"),
        (("replace.p_same=0.7", "replace.p_random=0.7"), "p_same"),
        (("rates=decoupled", "rates.corruption=0.1", "rates.prediction=1.2"), "rates.prediction=1.2 is not a rate"),
        (("rates=decoupled", "rates.corruption=0.1", "rates.prediction=1.0"), "needs 10 copies"),
        (("batch_size=8", "forward_batch_size=3"), "Use a divisor of 8"),
        (("batch_size=100000",), "fewer than one batch"),
        (("data.block_length=1",), "block needs at least 2"),
        (("data.block_length=64",), "model.max_position_embeddings=34 holds 32 tokens"),
        (("optimizer=sgd",), "optimizer=sgd: give one of release, adamw"),
        (("optim.max_steps=0",), "optim.max_steps=0"),
        (("optim.learning_rate=-1",), "optim.learning_rate=-1"),
        (("+optim.learning_rat=1",), "Did you mean 'learning_rate'"),
        (("optim.warmup_steps=50",), "warm-up of 50 updates in a run of 12"),
        (("norm=post", "init_from=CHECKPOINT"), "has norm=pre, but norm=post"),
        (("init_from=CHECKPOINT",), "embedding of 400 ids"),
        (("init_from=MISNAMED", "norm=post"), "weights are those of a pre-LayerNorm model"),
        (("stop_after_minutes=0",), "stop_after_minutes=0"),
        (("eval.steps=0",), "eval.steps=0"),
        (("resume=maybe",), "resume=maybe: give one of auto, never, restart"),
        (("data.path=/nowhere.txt", "data.name=nowhere"), "nowhere.txt"),
    ],
)
def test_bad_input_is_one_message(pretrain_here, checkpoint, misnamed_checkpoint, options, message):
    places = {"CHECKPOINT": str(checkpoint), "MISNAMED": str(misnamed_checkpoint)}
    for name, place in places.items():
        options = tuple(option.replace(name, place) for option in options)
    with pytest.raises(InputError) as refused:
        pretrain_here(*options)
    assert message in str(refused.value)


@pytest.fixture
def misnamed_checkpoint(checkpoint, tmp_path):
    """Pre-LayerNorm weights under a config.json that says `roberta`, as the released models have it."""
    folder = tmp_path / "misnamed"
    folder.mkdir()
    tensors = load_file(checkpoint / "model.safetensors")
    from safetensors.torch import save_file

    renamed = {name.replace("roberta_prelayernorm.", "roberta."): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"model_type": "roberta", "architectures": ["RobertaForMaskedLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_empty_text_is_refused(pretrain_here, tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n\n")
    with pytest.raises(InputError):
        pretrain_here(f"data.path={tmp_path / 'empty.txt'}", "data.name=empty")


def test_loss_that_is_not_finite_ends_the_run_and_names_the_blocks(pretrain_here, tmp_path):
    with pytest.raises(InputError) as refused:
        pretrain_here("optim.learning_rate=1e38", "optim.warmup_steps=0")
    message = str(refused.value)
    assert message.startswith("the loss is ") and "learning rate" in message and "blocks" in message
    written = json.loads((tmp_path / "run" / "bad_batch_rank0.json").read_text())
    assert len(written["index"]) == 8 and written["update"] > 1
    assert not (tmp_path / "run" / "results.json").exists()


def test_the_message_of_a_loss_that_is_not_finite_gives_the_loss_scale_of_fp16(tmp_path):
    # fp16 with a loss scale needs a GPU: here the guard sees a real scaler, and of the trainer what it looks at.
    trainer = SimpleNamespace(
        state=SimpleNamespace(global_step=6),
        lr_scheduler=SimpleNamespace(get_last_lr=lambda: [0.25]),
        examples=[(0, torch.tensor([3, 1]))],
        accelerator=SimpleNamespace(scaler=torch.amp.GradScaler("cpu", init_scale=512.0)),
        args=SimpleNamespace(output_dir=str(tmp_path / "checkpoints"), process_index=0),
    )
    with pytest.raises(InputError, match=r"inf at update 7 \(learning rate 0.25, loss scale 512, epoch 0, blocks 3, 1"):
        _LossGuard(trainer).watch(torch.tensor(float("inf")))
    assert json.loads((tmp_path / "bad_batch_rank0.json").read_text())["index"] == [3, 1]


def test_a_sweep_by_joblib_trains_each_cell_in_a_folder_of_its_own_and_a_finished_one_never_again(
    pretrain_overrides, environment, tmp_path
):
    runs = tmp_path / "runs" / "mlm-masking" / "laptop"
    overrides = pretrain_overrides(tmp_path, "optim.max_steps=2", "masking.rate=0.15,0.4", "hydra/launcher=joblib")
    overrides = [one for one in overrides if not one.startswith("output_dir=")]
    command = [sys.executable, "-m", "mlm_masking.pretrain", "-m", *overrides, "hydra.launcher.n_jobs=2"]
    written = []
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        written.append({path: path.stat().st_mtime_ns for path in runs.glob("*/results.json")})
    rates = sorted(results(path.parent)["rate"]["corruption"] for path in written[0])
    assert rates == pytest.approx([0.15, 0.4])
    assert written[1] == written[0]


def test_a_rate_of_less_than_a_token_warns_and_trains_on(pretrain_here, caplog):
    pretrain_here("masking.rate=0.01", "optim.max_steps=3", "batch_size=4")
    assert "less than one" in caplog.text


def test_command_line_runs_a_cell_and_refuses_with_status_2(command, pretrain_overrides, tmp_path):
    overrides = pretrain_overrides(
        tmp_path / "run", "masking.rate=0.4", "masking.strategy=uniform", "optim.max_steps=2"
    )
    assert command("pretrain", *overrides) == (0, "")
    assert results(tmp_path / "run")["strategy"] == "uniform"
    status, message = command("pretrain", *overrides, "masking.rate=40")
    assert status == 2 and "40 % is 0.4" in message


def test_multirun_names_cells_and_never_runs_a_finished_one_again(command, pretrain_overrides, runs, caplog):
    overrides = [one for one in pretrain_overrides("x", "optim.max_steps=2") if not one.startswith("output_dir")]
    sweep = ("--multirun", *overrides, "masking.rate=0.15,0.4", "masking=uniform,span_t5")
    assert command("pretrain", *sweep)[0] == 0
    cells = sorted((runs / "mlm-masking" / "laptop").glob("*/results.json"))
    assert [path.parent.name for path in cells] == [
        f"laptop-tiny-{strategy}-m{rate}" for strategy in ("span_t5", "uniform") for rate in ("0.15", "0.40")
    ]
    before = [path.stat().st_mtime_ns for path in cells]
    cells[2].unlink()
    assert command("pretrain", *sweep)[0] == 0
    after = [path.stat().st_mtime_ns for path in cells]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, False, True]
