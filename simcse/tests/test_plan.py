"""The plan: parameter counts are the models' own, estimates follow their formulas, nothing is downloaded."""

import json
import os

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from shared import InputError
from shared.plan import GPUS, availability, runs_of
from simcse import plan
from simcse.plan import CONFIGS, ENCODERS, estimate, make_plan


def configuration(name):
    """The published configurations, written out: BERT and RoBERTa, base and large."""
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    size = large if "large" in name else {}
    if name.startswith("bert"):
        return BertModel, BertConfig(**size)
    roberta = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
    return RobertaModel, RobertaConfig(**roberta, **size)


@pytest.mark.parametrize("name", ENCODERS)
def test_parameter_counts_are_those_of_the_model(name):
    model_class, config = configuration(name)
    with torch.device("meta"):
        model = model_class(config, add_pooling_layer=False)
    assert ENCODERS[name].parameters == sum(p.numel() for p in model.parameters())
    assert ENCODERS[name].block_parameters == sum(p.numel() for p in model.encoder.parameters())


def plan_config(*overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("plan", list(overrides))


def test_the_unsupervised_run_costs_what_its_formula_says():
    (cfg,) = runs_of(CONFIGS, "unsup_bert_base")
    one = estimate(cfg)
    assert one["tokens"] == 1_000_000 * 2 * 32
    block = 85_054_464
    assert one["flops"] == 6 * block * 64e6 + 125 * 2 * block * 3_833 * 32
    weights = 16 * (108_891_648 + 768 * 768 + 768) + 2 * block
    assert one["memory"] == weights + 34 * 768 * 12 * 64 * 2 * 32 + 3 * 4 * 64 * 64


def test_mlm_costs_a_second_pass_and_chunks_save_memory():
    (plain,), (mlm,) = runs_of(CONFIGS, "sup_bert_base"), runs_of(CONFIGS, "sup_bert_base_mlm")
    (chunked,) = runs_of(CONFIGS, "sup_bert_base", ("compute.grad_cache_chunk=64",))
    plain, mlm, chunked = map(estimate, (plain, mlm, chunked))
    assert 1.9 < mlm["flops"] / plain["flops"] < 2.2
    assert chunked["memory"] < 0.3 * plain["memory"] and chunked["flops"] > 1.25 * plain["flops"]


def test_processes_share_the_batch_but_not_the_weights():
    (cfg,) = runs_of(CONFIGS, "sup_bert_base")
    one, four = estimate(cfg)["memory"], estimate(cfg, processes=4)["memory"]
    weights = 16 * (108_891_648 + 768 * 768 + 768) + 2 * 85_054_464
    assert weights < four < one and (four - weights) < 0.3 * (one - weights)


@pytest.mark.parametrize("experiment", ["ablation_augment", "ablation_hardneg", "ablation_objective"])
def test_the_runs_of_a_sweep_are_those_that_hydra_composes(experiment):
    runs = runs_of(CONFIGS, experiment)
    point = runs[-1]
    override = {
        "ablation_augment": "augment={name:mlm_15,kind:mlm,percent:15}",
        "ablation_hardneg": "loss.hard_negative_weight=0.6931471805599453",
        "ablation_objective": "objective=same_sentence",
    }[experiment]
    extra = ["encoders=2"] if experiment == "ablation_objective" else []
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        composed = compose("config", [f"experiment={experiment}", override, *extra])
    resolved = [OmegaConf.to_container(cfg, resolve=True) for cfg in (point, composed)]
    assert resolved[0] == resolved[1]


def test_a_sweep_counts_every_run():
    names = [cfg.experiment for cfg in runs_of(CONFIGS, "ablation_dropout")]
    assert len(names) == len(set(names)) == 8
    plans, *_ = make_plan(plan_config("experiments=[ablation_dropout,unsup_bert_base]", "gpu=A100"))
    assert [plan.runs for plan in plans] == [8, 1]
    assert plans[0].flops == pytest.approx(8 * plans[1].flops)
    seconds = plans[1].flops / (GPUS["A100"].tflops * 1e12 * 0.25)
    assert plans[1].hours == pytest.approx(seconds / 3600)


def test_a_run_that_does_not_fit_the_gpu_says_so():
    plans, *_ = make_plan(plan_config("experiments=[sup_roberta_large]", "gpu=L4"))
    assert any("memory of L4" in lack for lack in plans[0].lacks)


def test_what_is_missing_is_named_with_the_command_that_fetches_it(monkeypatch, tmp_path):
    monkeypatch.setenv("REPRO_MIRROR", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)  # the plan must not ask the hub even so, nor leave this set
    missing = availability("simcse", {"wiki1m", "bert-base-uncased", "qqp"})
    assert "make mirror-simcse ARGS=wiki1m" in missing["wiki1m"]
    assert "441 MB" in missing["bert-base-uncased"]
    assert missing["qqp"].startswith("no download listed") or "make mirror-simcse" in missing["qqp"]
    assert "HF_HUB_OFFLINE" not in os.environ


@pytest.mark.mirror
def test_what_the_mirror_holds_is_not_missing(mirror):
    assert availability("simcse", {"senteval"}) == {"senteval": None}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("gpu=TPU", "gpu=TPU is not listed; known: V100"),
        ("utilisation=1.5", "utilisation=1.5"),
        ("gpus=0", "gpus=0"),
        ("experiments=[sup_bret_base]", "there is no sup_bret_base"),
        ("experiments=[unsup]", "unsup is not of scale paper"),
    ],
)
def test_a_wrong_option_is_an_error_that_says_what_there_is(override, message):
    with pytest.raises(InputError, match=message.replace("[", r"\[")):
        make_plan(plan_config("experiments=[unsup_bert_base]", override))


def test_a_model_of_unknown_size_is_an_error_not_a_guess():
    (cfg,) = runs_of(CONFIGS, "unsup_bert_base", ("model=some-other-model",))
    with pytest.raises(InputError, match="model=some-other-model"):
        estimate(cfg)


def test_json_carries_the_estimates_with_their_assumptions(capsys):
    plan.main.__wrapped__(plan_config("experiments=[unsup_bert_base]", "gpus=2", "output=json"))
    whole = json.loads(capsys.readouterr().out)
    h100 = {"gpu": "H100", "tflops": 989, "memory_gb": 80, "bandwidth_gbs": 3350}
    assert whole["assumptions"] == h100 | {"gpus": 2, "utilisation": 0.25}
    assert whole["estimates"][0]["experiment"] == "unsup_bert_base" and whole["estimates"][0]["hours"] > 0
