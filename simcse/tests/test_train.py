"""The training entrypoint: what it leaves behind, which weights it keeps, and what it refuses."""

import json
import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from shared import InputError
from shared.training import read_metrics
from simcse.devset import load_dev_set
from simcse.embedding import embed_sentences, load_encoder
from simcse.scratch import build_tiny, train_tokenizer
from simcse.trainer import BestWeights, LossGuard


def _metrics(folder) -> dict:
    return json.loads((folder / "results.json").read_text())["metrics"]


def test_model_folder_loads_with_automodel_and_gives_the_reported_score(run_here, dev_folder, sentences):
    folder = run_here("pooler=cls", "mlp_only_train=true", "optim.max_steps=10")
    encoder, tokenizer = load_encoder(str(folder / "model"))
    assert encoder.eval_pooler == "cls_before_pooler"
    texts = sentences(5)
    ours = embed_sentences(encoder, tokenizer, texts)
    plain = AutoModel.from_pretrained(folder / "model").eval()
    inputs = AutoTokenizer.from_pretrained(folder / "model")(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        theirs = plain(**inputs)
    np.testing.assert_allclose(ours, theirs.last_hidden_state[:, 0].numpy(), atol=1e-5)
    assert theirs.pooler_output is not None and "pooler.dense.weight" in load_file(folder / "model/model.safetensors")
    scores = load_dev_set(dev_folder).scores(lambda t: embed_sentences(encoder, tokenizer, t), 0)
    assert _metrics(folder)["stsb_dev"] == pytest.approx(scores["eval_stsb_spearman"], abs=1e-6)


def test_best_of_the_evaluations_is_what_is_saved(run_here):
    folder = run_here("optim.max_steps=40", "eval.steps=5", "optim.learning_rate=3e-3")
    scored = {
        line["step"]: line["eval_stsb_spearman"]
        for line in read_metrics(folder / "metrics.jsonl")
        if "eval_stsb_spearman" in line and line["step"]
    }
    best = max(scored, key=lambda step: (scored[step], -step))  # the first of equals: strictly greater replaces
    metrics = _metrics(folder)
    assert sorted(scored) == list(range(5, 45, 5)) and metrics["best_step"] == best
    assert metrics["stsb_dev"] == pytest.approx(scored[best], abs=1e-6)


def test_equal_score_does_not_replace_the_best(tmp_path):
    layer = torch.nn.Linear(2, 2)
    best = BestWeights(tmp_path / "best.safetensors")
    best.keep(layer, 5, 0.5, write=True)
    again = BestWeights(tmp_path / "best.safetensors")
    assert (again.step, again.score) == (5, 0.5) and not again.score < 0.5
    kept = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.zero_()
    assert again.load(layer) and torch.equal(layer.weight, kept)


def test_dev_evaluation_encodes_each_sentence_once_and_opens_no_test_file(dev_folder):
    calls: list[list[str]] = []

    def encode(texts):
        calls.append(list(texts))
        return np.random.default_rng(0).standard_normal((len(texts), 8))

    dev = load_dev_set(dev_folder)  # the folder holds dev files only
    dev.scores(encode, 7)
    dev.geometry(encode, 7)
    assert len(calls) == 1 and len(calls[0]) == len(set(calls[0]))
    expected = {text for pairs in dev.sets.values() for text in pairs.sentences}
    assert set(calls[0]) == expected
    dev.scores(encode, 8)
    assert len(calls) == 2


def test_without_sts_files_the_projects_graded_pairs_are_the_dev_set(monkeypatch, run_here, caplog):
    monkeypatch.setenv("REPRO_MIRROR", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with caplog.at_level(logging.WARNING):
        folder = run_here("eval.data_dir=null", "optim.max_steps=2")
    metrics = _metrics(folder)
    assert metrics["dev_source"] == "the project's graded pairs" and "graded_dev" in metrics
    assert "stsb_dev" not in metrics and "graded pairs" in caplog.text


def test_trajectory_logs_alignment_and_uniformity_from_step_zero(run_here):
    folder = run_here("eval.trajectory_steps=2", "optim.max_steps=6", "eval.steps=null")
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if "eval_alignment" in line]
    assert [line["step"] for line in lines] == [0, 2, 4, 6]
    assert all(line["eval_uniformity"] < 0 < line["eval_alignment"] for line in lines)


def test_last_incomplete_batch_is_trained_on(run_here):
    assert _metrics(run_here("batch_size=50", "optim.num_train_epochs=2"))["train"]["steps"] == 2 * 3


def test_accumulation_keeps_the_global_batch(run_here):
    folder = run_here("batch_size=32", "forward_batch_size=8", "optim.num_train_epochs=1")
    assert _metrics(folder)["train"]["steps"] == 4
    with pytest.raises(InputError, match="not a multiple"):
        run_here("batch_size=32", "forward_batch_size=5", "resume=restart")


def test_row_chunks_and_gradient_cache_change_no_loss(run_here, tmp_path):
    def losses(name: str, *more: str) -> list[float]:
        folder = run_here("dropout.p=0", "optim.max_steps=5", *more, output_dir=tmp_path / name)
        return [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]

    plain = losses("plain", "compute.row_chunks=1")
    assert losses("chunks", "compute.row_chunks=4") == pytest.approx(plain, abs=1e-4)
    assert losses("cached", "compute.grad_cache_chunk=8") == pytest.approx(plain, abs=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        ("loss.mlm=true",),
        ("encoders=2", "objective=next_sentence"),
        ("dropout.p=0.2", "dropout.fixed_mask=true"),
        ("objective=delete_one_word", "augment.sides=both"),
        ("augment.kind=crop", "augment.percent=20", "objective=next_3_sentences"),
        ("loss.similarity=dot", "pooler=cls"),
    ],
    ids=lambda options: options[0],
)
def test_variants_train(run_here, options):
    metrics = _metrics(run_here(*options, "optim.max_steps=4"))
    assert metrics["train"]["steps"] == 4 and metrics["stsb_dev"] is not None


def test_triplets_train_with_weighted_hard_negatives(run_here, sentences, tmp_path):
    path = tmp_path / "triplets.csv"
    rows = zip(*(sentences(64, seed) for seed in range(3)), strict=True)
    path.write_text("a,b,c\n" + "".join(",".join(f'"{text}"' for text in row) + "\n" for row in rows))
    options = (f"data.path={path}", "data.columns=null", "optim.max_steps=2", "dropout.p=0")
    folder = run_here(*options)
    weighted = run_here(*options, "loss.hard_negative_weight=2.0", output_dir=tmp_path / "weighted")
    pairs = run_here(*options, "data.columns=2", output_dir=tmp_path / "pairs")
    first = [read_metrics(f / "metrics.jsonl")[2]["loss"] for f in (pairs, folder, weighted)]
    assert first[0] < first[1] < first[2]
    assert _metrics(folder)["text"]["columns"] == 3


def test_tiny_encoder_is_the_same_for_the_same_text_and_seed(tmp_path, sentences):
    texts = sentences(300)
    options = {"vocab_size": 500, "hidden_size": 32}
    first = build_tiny(texts, tmp_path / "first", seed=1, **options)
    torch.rand(7)
    second = build_tiny(texts, tmp_path / "second", seed=1, **options)
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (first / file).read_bytes() == (second / file).read_bytes()
    other = build_tiny(texts, tmp_path / "other", seed=2, **options)
    assert (first / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(first)
    ids = tokenizer("the man plays guitar")["input_ids"]
    assert ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id
    assert (
        tokenizer.unk_token_id not in ids and tokenizer.decode(ids, skip_special_tokens=True) == "the man plays guitar"
    )
    with pytest.raises(InputError, match="vocab_size=100"):
        train_tokenizer(texts, 100)


def test_loss_that_is_not_finite_stops_the_run_and_leaves_the_batch(run_here, tmp_path):
    with pytest.raises(InputError, match=r"the loss is nan at step \d+; the batch is in .*bad_batch\.json"):
        run_here("optim.learning_rate=1e30", "optim.max_grad_norm=0", "optim.max_steps=20", "loss.similarity=dot")
    dumped = json.loads((tmp_path / "run" / "bad_batch.json").read_text())
    assert len(dumped["sentences"]) == 16 and len(dumped["sentences"][0]) == 2
    assert load_file(tmp_path / "run" / "bad_batch.safetensors")["input_ids"].shape[:2] == (16, 2)
    assert not (tmp_path / "run" / "results.json").exists()


def test_guard_on_an_accelerator_looks_one_step_later(tmp_path, tiny_tokenizer):
    class Elsewhere(torch.Tensor):
        """A loss that says it is on another device, so that reading it at once would stall."""

        device = torch.device("meta")

    guard = LossGuard(tmp_path, tiny_tokenizer)
    batch = {"input_ids": torch.tensor([[[2, 5, 3]]])}
    guard.watch(torch.tensor(float("inf")).as_subclass(Elsewhere), batch, 1)
    with pytest.raises(InputError, match="the loss is inf at step 1"):
        guard.watch(torch.tensor(1.0), batch, 2)


def test_repeated_sentences_in_a_batch_are_counted_in_a_warning(run_here, sentences, tmp_path, caplog):
    path = tmp_path / "repeats.txt"
    path.write_text("\n".join(sentences(8) * 4))
    run_here(f"data.path={path}", "batch_size=32", "optim.max_steps=1")
    assert "24 sentence(s) meet their own copy in one of 1 batches" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("batch_size=500",), r"128 example\(s\), fewer than one batch"),
        (("loss.hard_negative_weight=1",), r"loss\.hard_negative_weight=1.*no hard negatives"),
        (("loss.temperature=0",), "temperature is 0"),
        (("loss.similarity=l2",), "similarity is 'l2'"),
        (("pooler=max",), "pooler"),
        (("mlp_only_train=true",), "mlp_only_train=true needs pooler=cls"),
        (("loss.mlm=true", "loss.mlm_weight=-1"), r"loss\.mlm_weight=-1"),
        (("loss.mlm=true", "loss.mlm_probability=1.5"), r"loss\.mlm_probability=1\.5"),
        (("dropout.p=1",), r"dropout\.p is 1"),
        (("objective=previous",), "objective=previous"),
        (("objective=delete_one_word", "augment.kind=crop"), "leave out augment.kind"),
        (("encoders=3",), "encoders=3"),
        (("data.path=null", "data.source=null"), "no training text"),
        (("data.path=null", "data.source=wiki2m"), "no source 'wiki2m'"),
        (("data.max_length=100",), r"data\.max_length=100: the model has 64 positions"),
        (("model=/nowhere/model",), "/nowhere/model"),
        (("optim.learning_rat=1",), "learning_rat|Could not override"),
        (("+optim.learning_rat=1",), "Did you mean 'learning_rate'"),
        (("resume=maybe",), "resume=maybe"),
        (("eval.steps=0",), r"eval\.steps=0"),
        (("eval.final=[glue]",), "eval.final holds glue"),
        (("augment.kind=mlm", "augment.percent=15", "optim.dataloader_num_workers=2"), "dataloader_num_workers=0"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_bad_option_is_one_clear_message_and_leaves_no_results(run_here, tmp_path, options, message):
    with pytest.raises(Exception, match=message) as error:
        run_here(*options)
    assert isinstance(error.value, InputError) or "learning_rat" in str(error.value)
    assert not (tmp_path / "run" / "results.json").exists()


def test_vocabulary_of_another_model_is_refused(run_here, tmp_path, tiny_encoder_folder, sentences):
    import shutil

    mixed = shutil.copytree(tiny_encoder_folder, tmp_path / "mixed")
    words = [" ".join(f"{text}{i}" for text in sentence.split()) for i, sentence in enumerate(sentences(300))]
    train_tokenizer(words, 800).save_pretrained(mixed)
    with pytest.raises(InputError, match="they do not belong together"):
        run_here(f"model={mixed}")


def test_two_gpus_without_a_launcher_are_refused(monkeypatch, compose_train, train_overrides, tmp_path):
    from transformers import TrainingArguments

    from simcse.train import build_arguments

    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(InputError, match=r"2 GPUs are visible to one process.*launch\.processes=2"):
        build_arguments(compose_train(train_overrides(tmp_path)), tmp_path)


@pytest.mark.mirror
def test_triplets_from_random_weights_beat_the_untrained_encoder_on_real_data(compose_train, tmp_path, monkeypatch):
    from simcse.train import train

    monkeypatch.setenv("REPRO_RUNS", str(tmp_path / "runs"))
    more = ["optim.num_train_epochs=1", "optim.learning_rate=1e-3", "eval.steps=null", "data.max_examples=2048"]
    metrics = _metrics(train(compose_train(["experiment=triplets", f"output_dir={tmp_path / 'run'}", *more])))
    assert metrics["text"]["source"] == "snli_triplets" and metrics["dev_source"].startswith("STS-B dev")
    assert metrics["stsb_dev"] > metrics["before"]["stsb_dev"] + 0.02
    assert metrics["uniform"] < metrics["before"]["uniform"] - 1
