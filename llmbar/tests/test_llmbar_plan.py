"""The plan counts what a run would ask, with our instances where the release is not at hand, and downloads nothing."""

import json

import pytest
from omegaconf import OmegaConf

from llmbar import plan as planning
from llmbar.plan import CONFIGS, MODELS, Model, make_plan, shared_length, unshared_bytes
from shared import InputError
from shared.plan import GPU, experiment_files, runs_of


@pytest.fixture(autouse=True)
def without_the_release(monkeypatch):
    """Counted from our instances, whatever mirror there is."""
    monkeypatch.delenv("REPRO_MIRROR", raising=False)
    planning.instances_of.cache_clear()
    planning.questions.cache_clear()
    yield
    planning.instances_of.cache_clear()
    planning.questions.cache_clear()


def test_every_experiment_file_composes_and_has_a_plan(config):
    plans, missing, _ = make_plan(config(name="plan"))
    assert [plan.experiment for plan in plans] == experiment_files(CONFIGS)
    assert {plan.model for plan in plans if plan.gpus} == set(MODELS)
    assert all(plan.hours is not None for plan in plans if plan.gpus and "memory" not in plan.lacks)
    assert "make mirror-llmbar ARGS=llama2_70b_chat" in missing["llama2_70b_chat"]
    for plan in plans:
        assert plan.new_prompt_tokens <= plan.prompt_tokens
        assert plan.calls <= plan.naive_calls


def test_ten_strategies_cost_at_most_22_calls_per_instance_and_28_without_sharing(config):
    """On LLMBar alone, every CoT in conflict."""
    (cfg,) = runs_of(CONFIGS, "llama2_70b_chat", ("data=llmbar",), config_name="evaluate")
    plan = planning.plan_experiment("x", cfg, GPU(989, 80, 3350), config(name="plan"))
    assert (plan.calls / 419, plan.naive_calls / 419) == (22, 28)


def test_hours_follow_the_formula_and_a_model_that_does_not_fit_has_none(config):
    assume = OmegaConf.create({"batch": 10, "utilisation": 0.5, "bandwidth": 0.5})
    plan = planning.Plan("x", "m", 1, 100, 100, 80_000, 40_000, 20_000)
    planning.estimate(plan, Model(1e9, 10, 2, 100), GPU(100, 24, 1000), assume, 2)
    reading, writing = 2 * 1e9 * 40_000 / 50e12, 20_000 / 10 * 2e9 / 500e9
    assert plan.at_once == 10
    assert plan.hours == pytest.approx((reading + writing) / 3600)
    planning.estimate(
        plan := planning.Plan("x", "m", 1, 1, 1, 80, 40, 20), Model(12e9, 10, 2, 100), GPU(1, 24, 1), assume, 2
    )
    assert (plan.hours, plan.lacks) == (None, ["memory"])


def test_prompts_share_their_beginnings():
    assert shared_length(b"Output (a)", b"Output (b)") == 8
    assert shared_length(b"", b"x") == 0
    # Sorted: "rules: a", "rules: ab", "task": 8 bytes, then 1 new, then 4.
    assert unshared_bytes(["task", "rules: ab", "rules: a"]) == 13


def test_an_api_costs_money_and_needs_its_key(config, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (plan,), _, _ = make_plan(config("experiments=[gpt_4o]", "price={prompt: 2, completion: 10}", name="plan"))
    assert plan.money[0] == pytest.approx(plan.prompt_tokens * 2e-6)
    assert plan.money[1] == pytest.approx(plan.money[0] + plan.answer_tokens * 1e-5)
    assert "$OPENAI_API_KEY" in plan.lacks


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["gpu=H1000"], "gpu=H1000 is not listed"),
        (["utilisation=0", "experiments=[gpt_4o]"], "utilisation=0: give a fraction"),
        (["batch=0", "experiments=[gpt_4o]"], "batch=0"),
        (["experiments=[gpt4]"], "there is no gpt4"),
    ],
)
def test_a_setting_that_makes_no_sense_is_one_message(config, overrides, message):
    with pytest.raises(InputError, match=message):
        make_plan(config(*overrides, name="plan"))


def test_json_carries_the_assumptions(config, capsys):
    cfg = config("experiments=[skywork_reward_8b]", "output=json", name="plan")
    planning.main.__wrapped__(cfg)
    whole = json.loads(capsys.readouterr().out)
    assert whole["assumptions"]["tflops"] == 989
    assert whole["estimates"][0]["calls"] == 2400
