"""The plan: parameters, FLOPs and hours of the paper's recipe; it follows the configurations and fetches nothing."""

import json
import os

import pytest
import torch
from hydra import compose, initialize_config_dir
from transformers import RobertaPreLayerNormConfig, RobertaPreLayerNormForMaskedLM

from mlm_masking.plan import CONFIGS, SHAPES, evaluation_runs, flops_per_token, make_plan, model_shape, pretraining
from shared import InputError
from shared.plan import runs_of
from shared.sources import sources


@pytest.mark.parametrize(
    ("size", "heads", "count"), [("medium", 8, 51_533_913), ("base", 12, 124_698_201), ("large", 16, 355_413_081)]
)
def test_parameters_are_exact(size, heads, count):
    shape = SHAPES[size]
    assert shape.parameters == count
    config = RobertaPreLayerNormConfig(
        vocab_size=50265, hidden_size=shape.hidden, num_hidden_layers=shape.layers, num_attention_heads=heads,
        intermediate_size=shape.ffn, max_position_embeddings=514, type_vocab_size=1,
    )  # fmt: skip
    with torch.device("meta"):
        model = RobertaPreLayerNormForMaskedLM(config)
    # transformers has a row of token types that the release does not.
    assert sum(parameter.numel() for parameter in model.parameters()) - shape.hidden == count


def test_a_token_of_the_large_recipe_costs_two_gigaflop():
    large = SHAPES["large"]
    head = flops_per_token(large, 128, 0.4) - flops_per_token(large, 128, 0.0)
    assert head / 1e9 == pytest.approx(0.126, abs=5e-4)
    assert 6 * large.matrices / 1e9 == pytest.approx(1.82, abs=0.01)
    assert flops_per_token(large, 128, 0.4) / 1e9 == pytest.approx(2.0, abs=0.03)
    attention = 12 * 128 * 1024 * 24
    assert attention / flops_per_token(large, 128, 0.4) == pytest.approx(0.02, abs=0.002)


def plan_config(*overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("plan", list(overrides))


def planned(name, *overrides):
    (plan,), missing, general = make_plan(plan_config(f"experiments=[{name}]", *overrides))
    return plan, missing, general


def test_a_large_run_takes_12_billion_tokens_and_most_of_a_day_on_one_gpu():
    plan, _, _ = planned("rates_large")
    assert plan.runs == 8 and plan.tokens / 8 == 23_000 * 4096 * 128
    assert plan.flops / 8 == pytest.approx(2.4e19, rel=0.05)
    assert 15 < plan.hours / 8 < 18
    full, _, _ = planned("rates_large", "utilisation=1.0")
    assert full.hours == pytest.approx(0.4 * plan.hours)
    spread, _, _ = planned("rates_large", "gpus=8")
    assert spread.hours == pytest.approx(plan.hours / 8) and spread.memory <= plan.memory


def test_more_prediction_than_corruption_costs_as_many_copies():
    runs = {cfg.rates.corruption: pretraining(cfg, 1)["flops"] for cfg in runs_of(CONFIGS, "decoupled_predict40")}
    (tied,) = [cfg for cfg in runs_of(CONFIGS, "rates_large") if cfg.masking.rate == 0.4]
    tied = pretraining(tied, 1)["flops"]
    head = tied - tied * flops_per_token(SHAPES["large"], 128, 0) / flops_per_token(SHAPES["large"], 128, 0.4)
    for corruption, copies in ((0.05, 8), (0.1, 4), (0.2, 2)):
        assert runs[corruption] == pytest.approx(copies * (tied - head) + head, rel=1e-6)


def test_the_grids_are_counted_cell_by_cell():
    plan, _, _ = planned("table_a_released")
    assert plan.runs == 10 * 3 * (4 + 4 + 4 + 24)  # checkpoints x seeds x points of MNLI, QNLI, QQP, SST-2
    points = {"mnli": (2 * 8, 392_702, 39), "qnli": (2 * 8, 104_743, 50), "qqp": (2 * 8, 363_846, 31)}
    points["sst2"] = (8 * 18, 67_349, 14)  # points x epochs, summed
    tokens = 10 * 3 * sum(epochs * examples * mean for epochs, examples, mean in points.values())
    assert plan.tokens == tokens and plan.flops == 6 * SHAPES["large"].matrices * tokens
    squad, _, _ = planned("table_b")
    assert squad.runs == 3 * 3 * 12 and squad.kind == "SQuAD"


def test_every_evaluation_file_composes_and_its_models_have_a_size():
    names = sorted(path.stem for path in (CONFIGS / "evaluation").glob("*.yaml") if path.stem != "paper")
    assert {"table_a", "table_a_released", "table_b", "table_c", "table_d"} <= set(names)
    for name in names:
        verb, configs, models = evaluation_runs(name)
        assert all(cfg.scale == "paper" for cfg in configs) and len(set(models)) == len(models), name
        for model in models:
            assert model_shape(model) in SHAPES.values()
        if verb == "finetune":
            assert all(list(cfg.seeds) == [1, 2, 3] and cfg.grid == "task" for cfg in configs)
    with pytest.raises(InputError, match="does not tell its size"):
        model_shape("my-model")


def test_the_models_that_are_evaluated_are_those_that_the_experiments_make():
    from mlm_masking.pretrain import experiment_name

    made = {}
    for name in ("rates_large", "replacement_large", "decoupled_corrupt40", "decoupled_predict40", "spans_large"):
        made |= {experiment_name(cfg): name for cfg in runs_of(CONFIGS, name)}
    for name in ("table_a", "table_b", "table_c", "table_d"):
        wanted = evaluation_runs(name)[2]
        absent = [model for model in wanted if model not in made and "m0.15-p801010" not in model]
        assert absent == [], name
    spans = [model for model in evaluation_runs("strategies")[2] if "span" in model]
    assert set(spans) <= set(made)


def test_the_papers_tables_name_runs_of_these_files():
    from shared.paper import load_paper

    paper = load_paper("mlm-masking")
    for table in ("table_a", "table_a_released", "table_c", "table_d"):
        models = evaluation_runs(table)[2]
        tasks = {cell.key for cell in paper.cells(table)}
        assert {cell.experiment for cell in paper.cells(table)} == {
            f"finetune_{model}_{task}" for model in models for task in tasks
        }
    assert paper.number("table_a.m40.MNLI") == 84.5 and paper.number("table_c.c05_p40.SST-2") == 93.9


def test_what_is_missing_is_named_and_nothing_is_fetched(monkeypatch, tmp_path):
    monkeypatch.setenv("REPRO_MIRROR", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    before = os.environ.get("HF_HUB_OFFLINE")
    plan, missing, general = planned("table_a_released")
    assert os.environ.get("HF_HUB_OFFLINE") == before
    assert {"glue_mnli", "efficient_mlm_m0.40"} <= plan.needs <= set(sources("mlm-masking"))
    assert "make mirror-mlm-masking ARGS=glue_mnli" in missing["glue_mnli"]
    assert plan.lacks == sorted(plan.needs)
    assert list(tmp_path.iterdir()) == []
    assert any(line.startswith("GPU: ") for line in general) or torch.cuda.device_count() > 0
    own, _, _ = planned("table_c")
    assert len(own.after) == 6


def test_a_gpu_that_is_too_small_is_named():
    plan, _, _ = planned("rates_large", "gpu=RTX3090")
    assert any("memory of RTX3090" in line for line in plan.lacks)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("gpu=H900", "gpu=H900 is not listed"),
        ("utilisation=0", "utilisation=0"),
        ("small_utilisation=1.5", "small_utilisation"),
        ("gpus=0", "gpus=0"),
        ("experiments=[rates]", "there is no rates"),
    ],
)
def test_bad_options_are_refused(override, message):
    with pytest.raises(InputError, match=message):
        make_plan(plan_config(override))


def test_the_command_prints_and_writes_the_plan(command, tmp_path, capsys):
    assert command("plan", "experiments=[rates_base,table_b]", "output=json", f"output_dir={tmp_path}") == (0, "")
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert [one["experiment"] for one in plan["estimates"]] == ["rates_base", "table_b"]
    assert plan["assumptions"]["gpu"] == "H200" and plan["assumptions"]["mean_tokens"]["squad"] == 180
    assert command("plan", "experiments=[rates_base,table_b]") == (0, "")
    status, error = command("plan", "output=csv", "experiments=[table_b]")
    assert status == 2 and "output=csv" in error


def test_the_whole_plan_is_of_every_experiment_and_evaluation():
    plans, _, _ = make_plan(plan_config())
    names = {plan.experiment for plan in plans}
    files = {path.stem for folder in ("experiment", "evaluation") for path in (CONFIGS / folder).glob("*.yaml")}
    assert names == files - {"paper"}
    assert all(plan.runs and plan.flops and plan.hours and plan.memory for plan in plans)
    (pmi,) = [plan for plan in plans if plan.experiment == "pmi_large"]
    assert pmi.after == {"n-gram list (mlm_masking.pmi)"}
