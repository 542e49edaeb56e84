"""Fine-tuning: the release's numbers of updates, head and loss; batchings that agree; kills and finished cells."""

import json

import numpy as np
import pytest
import torch

from mlm_masking import glue
from mlm_masking.classification import classify, loss_function, predict_logits, prepare
from mlm_masking.encoders import load_model, load_tokenizer, locate_model, model_name
from mlm_masking.finetune import finetune
from mlm_masking.fitting import Diverged, Settings, batches_from, fit, optimizer_and_schedule, update_counts
from mlm_masking.padding_free import PaddingFree
from shared import InputError


@pytest.fixture
def options(files):
    return {"train": str(files / "train.jsonl"), "dev": str(files / "dev.jsonl"), "device": "cpu"}


FAST = {"lr": 5e-3, "batch_size": 16, "epochs": 8}


# ------------------------------------------------------------------------------------------------- updates and schedule


@pytest.mark.parametrize(
    ("task", "batch", "epochs", "updates", "warmup"),
    [
        ("mnli", 32, 3, 36815, 2208),
        ("qnli", 32, 5, 16366, 981),
        ("qqp", 32, 3, 34110, 2046),
        ("rte", 16, 10, 1556, 93),
        ("sst2", 32, 3, 6313, 378),
        ("mrpc", 16, 3, 687, 41),
        ("cola", 32, 10, 2672, 160),
        ("stsb", 16, 5, 1796, 107),
    ],
)
def test_updates_and_warm_up_are_integer_divisions(task, batch, epochs, updates, warmup):
    assert update_counts(glue.load_task(task).train_examples, batch, epochs) == (updates, warmup)


def test_the_learning_rate_warms_up_over_six_percent_and_ends_at_zero(checkpoint):
    model = load_model(checkpoint, "classification", outputs=2, device="cpu")
    optimizer, schedule = optimizer_and_schedule(model, Settings(lr=1e-3), updates=100, warmup=6)
    rates = []
    for _ in range(100):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[5] == pytest.approx(1e-3) and max(rates) == rates[5] and rates[2] == pytest.approx(0.5e-3)
    assert rates[52] == pytest.approx(1e-3 * 47 / 94) and rates[-1] == 0


def test_weight_decay_is_one_tenth_on_every_parameter(checkpoint):
    model = load_model(checkpoint, "classification", outputs=2, device="cpu")
    optimizer, _ = optimizer_and_schedule(model, Settings(), updates=10, warmup=0)
    (group,) = optimizer.param_groups
    assert group["weight_decay"] == 0.1 and len(group["params"]) == len(list(model.parameters()))
    assert group["betas"] == (0.9, 0.98) and group["eps"] == 1e-6


def test_an_epoch_ends_with_its_short_batch_and_the_last_updates_are_counted_from_the_examples(checkpoint, options):
    prepared = prepare(checkpoint, glue.load_task("sst2"), train=options["train"], dev=options["dev"], size=50)
    settings = Settings(batch_size=16, epochs=2)
    updates = [(update, len(rows)) for update, rows in batches_from(prepared.train, settings, 1, 6, 0)]
    assert updates == [(1, 16), (2, 16), (3, 16), (4, 2), (5, 16), (6, 16)]
    later = [update for update, _ in batches_from(prepared.train, settings, 1, 6, 4)]
    assert later == [5, 6]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"lr": 0.0}, "lr=0.0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"epochs": 2.5}, r"epochs=2\.5"),
        ({"batching": "sorted"}, "batching=sorted: give one of packed, bucketed, random"),
        ({"optimizer": "sgd"}, "optimizer=sgd"),
        ({"precision": "fp8"}, "precision=fp8"),
        ({"warmup_percent": 100}, "warmup_percent=100"),
    ],
)
def test_settings_out_of_range_are_refused(bad, message):
    with pytest.raises(InputError, match=message):
        Settings(**bad)


def test_fewer_examples_than_a_batch_are_refused():
    with pytest.raises(InputError, match="5 training examples x 3 epochs make no batch of 32"):
        update_counts(5, 32, 3)


# -------------------------------------------------------------------------------------------------------- head and loss


def test_the_pooler_has_no_dropout_unless_it_is_asked_for(checkpoint):
    head = load_model(checkpoint, "classification", outputs=2, device="cpu").classifier
    assert head.dropout.p == 0.0
    assert (
        load_model(checkpoint, "classification", outputs=2, pooler_dropout=0.1, device="cpu").classifier.dropout.p
        == 0.1
    )
    features = torch.randn(3, 1, 32)
    expected = torch.tanh(features[:, 0] @ head.dense.weight.T + head.dense.bias) @ head.out_proj.weight.T
    torch.testing.assert_close(head.train()(features), expected + head.out_proj.bias)
    with pytest.raises(InputError, match="pooler_dropout=1"):
        load_model(checkpoint, "classification", outputs=2, pooler_dropout=1)


def test_the_loss_is_a_sum_over_examples_of_nll_or_of_squared_error(checkpoint):
    rows = [np.array([0, 20, 30, 2]), np.array([0, 40, 2]), np.array([0, 9, 8, 7, 2])]
    for task, labels in (("sst2", np.array([1, 0, 1])), ("stsb", np.array([4.5, 0.0, 2.25]))):
        task = glue.load_task(task)
        model = load_model(checkpoint, "classification", outputs=task.outputs, device="cpu").eval()
        batch = PaddingFree(rows, model)
        hidden = batch.hidden(model)
        logits = classify(model, hidden, batch)
        loss = loss_function(task, labels)(model, hidden, batch, np.arange(3))
        if task.kind == "classification":
            expected = -logits.log_softmax(-1)[torch.arange(3), torch.from_numpy(labels)].sum()
        else:
            expected = (logits[:, 0] - torch.from_numpy(labels).float()).square().sum()
        torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("kind", ["bucketed", "random"])
def test_batchings_agree_where_nothing_is_random(make_checkpoint, options, kind):
    """One full batch per update and no dropout: order does not matter, so every way of laying it gives one model."""
    folder = make_checkpoint(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    logits = []
    for batching in ("packed", kind):
        prepared = prepare(folder, glue.load_task("sst2"), train=options["train"], dev=options["dev"])
        model = load_model(folder, "classification", outputs=2, device="cpu")
        with torch.no_grad():
            model.classifier.out_proj.weight.fill_(0.02)
            model.classifier.dense.weight.copy_(torch.eye(32))
        settings = Settings(lr=1e-3, batch_size=96, epochs=3, batching=batching)
        fit(model, prepared.train, loss_function(prepared.task, prepared.train_labels), settings, seed=1)
        logits.append(predict_logits(model, prepared.dev["dev"][0], settings))
    np.testing.assert_allclose(logits[0], logits[1], rtol=0, atol=2e-4)


def test_predictions_are_in_the_order_of_the_rows(checkpoint, options):
    prepared = prepare(checkpoint, glue.load_task("sst2"), train=options["train"], dev=options["dev"])
    model = load_model(checkpoint, "classification", outputs=2, device="cpu").eval()
    rows, _ = prepared.dev["dev"]
    logits = predict_logits(model, rows, Settings())
    for row in (0, 17, 59):
        with torch.no_grad():
            alone = model(input_ids=torch.from_numpy(rows[row].astype(np.int64))[None]).logits[0]
        np.testing.assert_allclose(logits[row], alone.numpy(), rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("optimizer", ["release", "adamw"])
def test_a_learnable_task_is_learned(checkpoint, options, optimizer):
    result = finetune(checkpoint, "sst2", settings=Settings(**FAST, optimizer=optimizer), seed=1, **options)
    assert result["score"] == result["metrics"]["dev"]["accuracy"] > 0.95
    assert result["training"]["updates"] == 48 and result["training"]["warmup_updates"] == 2
    assert set(result["metrics"]["dev"]) == {"accuracy", "precision", "recall", "f1", "mcc"}


def test_the_same_seed_gives_the_same_result_and_another_seed_another(checkpoint, options):
    settings = Settings(lr=1e-3, batch_size=16, epochs=1)
    runs = [finetune(checkpoint, "sst2", settings=settings, seed=seed, **options) for seed in (1, 1, 2)]
    losses = [one["training"]["train_loss"] for one in runs]
    assert losses[0] == losses[1] != losses[2]


def test_pairs_and_scores_are_learned_too(checkpoint, tmp_path):
    rows = [{"sentence1": text, "sentence2": "a film", "label": 5.0 * good}
            for good, texts in enumerate((("a bad film", "dull and long"), ("a good film", "warm and funny")))
            for text in texts * 24]  # fmt: skip
    (tmp_path / "scores.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = str(tmp_path / "scores.jsonl")
    settings = Settings(lr=5e-3, batch_size=16, epochs=10)
    result = finetune(checkpoint, "stsb", settings=settings, train=path, dev=path, device="cpu")
    assert result["score"] == result["metrics"]["dev"]["spearman"] > 0.8 and "pearson" in result["metrics"]["dev"]


def test_several_dev_sets_are_scored_apart_and_the_first_decides(checkpoint, files, write_sentences):
    write_sentences(files / "other.jsonl", 20, seed=2)
    dev = {"matched": str(files / "dev.jsonl"), "mismatched": str(files / "other.jsonl")}
    result = finetune(
        checkpoint, "sst2", settings=Settings(**FAST), train=str(files / "train.jsonl"), dev=dev, device="cpu"
    )
    assert list(result["metrics"]) == ["matched", "mismatched"]
    assert result["score"] == result["metrics"]["matched"]["accuracy"]


def test_a_loss_that_is_no_number_names_update_rate_and_rows(checkpoint, options):
    with pytest.raises(Diverged, match=r"the loss is (nan|inf) at update \d+ \(lr .*training rows \d+.*lower lr"):
        finetune(checkpoint, "sst2", settings=Settings(lr=1e20, batch_size=16, epochs=1), **options)


def test_bfloat16_trains(checkpoint, options):
    settings = Settings(**FAST, precision="bf16")
    assert finetune(checkpoint, "sst2", settings=settings, **options)["score"] > 0.9


# ------------------------------------------------------------------------------------------------------------ bad input


def test_models_and_lengths_that_do_not_fit_are_refused(
    checkpoint, make_checkpoint, tokenizer_folder, options, tmp_path
):
    with pytest.raises(InputError, match="max_length=65, but the model's positions hold 64 tokens"):
        finetune(checkpoint, "sst2", max_length=65, **options)
    small = make_checkpoint(vocab_size=300)
    with pytest.raises(InputError, match="the tokenizer has 321 entries, the model 300 embeddings"):
        load_tokenizer(small, 300)
    with pytest.raises(InputError, match=r"no config\.json"):
        finetune(tokenizer_folder, "sst2", **options)
    with pytest.raises(InputError, match="looks like a folder but there is none"):
        finetune(str(tmp_path / "absent"), "sst2", **options)
    bare = make_checkpoint()
    for file in bare.glob("*oken*"):
        file.unlink()
    for name in ("vocab.json", "merges.txt"):
        (bare / name).unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"needs tokenizer\.json, or vocab\.json and merges\.txt"):
        finetune(bare, "sst2", **options)


def test_missing_encoder_weights_are_an_error_and_not_random(make_checkpoint):
    from safetensors.torch import load_file, save_file

    folder = make_checkpoint()
    weights = load_file(folder / "model.safetensors")
    weights.pop("roberta_prelayernorm.encoder.layer.1.attention.self.query.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 weights \(first .*query\.weight\): they would be random"):
        load_model(folder, "classification", outputs=2, device="cpu")


def test_a_model_is_found_by_the_name_of_its_run_or_of_what_was_converted(checkpoint, runs):
    import shutil

    for place in (
        "efficient-tiny/model",
        "curves/snapshots/update-10",
        "convert_efficient_mlm_m0.40/efficient_mlm_m0.40",
    ):
        shutil.copytree(checkpoint, runs / "mlm-masking" / "paper" / place)
    for name in (
        "efficient-tiny",
        "curves/snapshots/update-10",
        "princeton-nlp/efficient_mlm_m0.40",
        "efficient_mlm_m0.40",
    ):
        assert (locate_model(name) / "config.json").is_file(), name
    with pytest.raises(InputError):
        locate_model("../paper/efficient-tiny")


def test_runs_are_named_after_their_model():
    assert model_name("princeton-nlp/efficient_mlm_m0.40") == "efficient_mlm_m0.40"
    assert model_name("runs/mlm-masking/laptop/uniform_40/model") == "uniform_40"
    assert model_name("curves_large_m0.15/snapshots/update-2300") == "curves_large_m0.15-update-2300"
