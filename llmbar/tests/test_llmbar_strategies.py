"""Strategies as data."""

import json

import pytest

from llmbar.strategies import from_config
from shared import InputError

STAGE = {"prompt": "comparison/Mine.txt", "max_new_tokens": 5, "rule": "short"}


def test_the_fifteen_released_strategies_are_there(strategies):
    released = [one for one in strategies.values() if one.stages[0].decide_by == "text"]
    assert len(released) == 15
    assert sum(one.is_rating for one in released) == 5


@pytest.mark.mirror
def test_prompts_limits_rules_and_biases_are_the_released_ones(strategies, mirror):
    configs = json.loads((mirror / "llmbar" / "evaluator_configs.json").read_text())
    rules = {"short": r"(?:^|\n) ?Output \(a\)", "verdict": r"Output \(a\) is better."}
    checked = 0
    for model, evaluators in configs.items():
        for name, modules in evaluators.items():
            strategy = strategies[name]
            parts = [*strategy.auxiliary, *strategy.stages]
            assert [module["prompt"] for module in modules] == [part.prompt for part in parts]
            for module, part in zip(modules, parts, strict=True):
                options = next(value for key, value in module.items() if key.endswith("_kwargs"))
                limits = [
                    options[key] for key in ("max_tokens", "max_new_tokens", "max_output_tokens") if key in options
                ]
                assert limits == [part.max_new_tokens]
                if module["parsing"] is not None:
                    assert module["parsing"]["1"] == rules[part.rule_for(model, "released")], (model, name)
                if "openai_kwargs" in module:
                    bias = [kind for kind in ("avoid", "favor") if f"tokens_to_{kind}" in options]
                    assert bias == list(getattr(part, "bias", ()))
                checked += 1
    assert checked == sum(len(modules) for evaluators in configs.values() for modules in evaluators.values())


def test_palm_cot_is_the_one_exception_and_corrected_parsing_ignores_it(strategies):
    stage = strategies["CoT"].stages[0]
    assert stage.rule_for("PaLM2", "released") == "short"
    assert stage.rule_for("PaLM2", "corrected") == stage.rule_for("GPT-4", "released") == "verdict"
    assert strategies["Swap"].stages[0].rule_for("PaLM2", "released") == "verdict"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stages": []}, "0 stages"),
        ({"stages": [STAGE] * 3}, "3 stages"),
        ({"stages": [{**STAGE, "rule": "loud"}]}, "rule='loud' is unknown"),
        ({"stages": [{**STAGE, "bias": ["love"]}]}, "bias=['love'] is unknown"),
        ({"stages": [{**STAGE, "max_new_tokens": 0}]}, "max_new_tokens=0"),
        ({"stages": [{**STAGE, "promt": "x"}]}, "unknown field 'promt'"),
        ({"stages": [{"rule": "short", "max_new_tokens": 5}]}, "'prompt' is missing"),
        ({"stages": [{**STAGE, "decide_by": "dice"}]}, "decide_by='dice'"),
        ({"stages": [{**STAGE, "rule": "rating"}, STAGE]}, "only written comparisons"),
        ("x", "expected fields"),
    ],
)
def test_a_bad_strategy_is_one_message(fields, message):
    with pytest.raises(InputError) as error:
        from_config({"Mine": fields})
    assert message in str(error.value)
    assert "Mine" in str(error.value)
