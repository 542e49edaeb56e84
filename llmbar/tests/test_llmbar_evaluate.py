"""llmbar.evaluate: configurations to results, on every kind of judge, and what ends in one message."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmbar.evaluate import evaluate
from shared import InputError

ROOT = Path(__file__).resolve().parents[2]


def test_a_heuristic_on_our_instances(config, tmp_path):
    result = evaluate(config("judge=longer", "data=house"), tmp_path)
    row = result["rows"]["House"]["Longer"]
    assert (row["nat_acc"], row["adv_acc"]) == pytest.approx((55.0, 0.0))
    assert result["written_for_this_project"]
    assert len((tmp_path / "judgements.jsonl").read_text().splitlines()) == 40


def test_what_a_judge_wrote_replays_to_the_same_numbers(config, tmp_path):
    asked = evaluate(config("judge=preference_model", "judge.fit_on=[House/Natural]", "data=house"), tmp_path)
    path = tmp_path / "judgements.jsonl"
    replayed = evaluate(config("judge=recorded", f"recorded={path}", "data=house", "prompts=house"), tmp_path / "again")
    assert replayed["cells"] == asked["cells"]
    assert asked["fitted_on"] == ["House/Natural"]


def test_ones_own_file_and_a_comparison_with_another_judge(config, tmp_path):
    mine = tmp_path / "mine.json"
    records = [{"input": "Say hi.", "output_1": "hi", "output_2": "Hello there, my friend!", "label": 1}] * 5
    mine.write_text(json.dumps(records))
    own = ["data=file", f"data.file={mine}", "prompts=house"]
    evaluate(config("judge=longer", *own), tmp_path / "a")
    other = tmp_path / "Other.jsonl"
    other.write_text((tmp_path / "a" / "judgements.jsonl").read_text().replace("[1.0, 4.0]", "[4.0, 1.0]"))
    result = evaluate(config("judge=longer", *own, f"against={other}"), tmp_path / "b")
    assert result["cells"][0]["accuracy"] == 0.0
    (entry,) = result["against"]
    assert (entry["difference"], entry["against"], entry["n"]) == (-100.0, "Other", 5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["judge=recorded", "data=house"], "recorded is missing"),
        (["judge=recorded", "data=house", "recorded=/none.jsonl.gz", "prompts=house"], "does not exist"),
        (["judge=recorded", "data=house", "recorded=x", "data.limit=3"], "data.limit does not go with judge=recorded"),
        (["judge=longer", "data=house", "data.limit=0"], "data.limit=0"),
        (["judge=longer", "data=house", "data.sets=[]"], "data.sets is empty"),
        (["judge=longer", "data=house", "data.sets=[House/Natural,LLMBar/Natural]"], "mixes released sets"),
        (["judge=transformers", "data=house", "prompts=house"], "model is missing"),
        (["judge=reward_model", "data=house"], "model is missing"),
        (["judge=longer", "data=house", "judge.kind=magic"], "judge.kind='magic'"),
        (["judge=transformers", "model=tiny", "data=house", "prompts=mine"], "prompts='mine' is unknown"),
        (["judge=recorded", "recorded=x.jsonl", "data=house", "parsing=lax", "prompts=house"], "parsing='lax'"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_one_message(config, tmp_path, overrides, message):
    with pytest.raises(InputError) as error:
        evaluate(config(*overrides), tmp_path)
    assert message in str(error.value)


def test_several_strategies_merge_into_one_run(config):
    cfg = config("judge=vllm", "model=m", "strategy=[cot,swap,vanilla_logprob]")
    assert list(cfg.strategy) == ["CoT", "Swap", "Vanilla_Logprob"]
    assert len(config("judge=vllm", "model=m", "strategy=comparison").strategy) == 10
    assert len(config("judge=recorded").strategy) == 15
    assert list(config("judge=recorded", "strategy=cot").strategy) == ["CoT"]


def run(*arguments, tmp_path, **environment):
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, "REPRO_RUNS": str(tmp_path), **environment},
    )  # fmt: skip


@pytest.mark.mirror
def test_the_command_line_replays_a_recorded_judge(tmp_path, recorded_folder):
    path = recorded_folder / "GPT-4.jsonl.gz"
    done = run("llmbar.evaluate", "judge=recorded", f"recorded={path}", "data=llmbar", tmp_path=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "llmbar" / "laptop" / "evaluate" / "results.json").read_text())
    expected = json.loads((recorded_folder / "expected_statistics.json").read_text())["GPT-4"]
    cells = results["metrics"]["cells"]
    assert len(cells) == 75
    for cell in cells:
        released = expected[cell["set"]][cell["strategy"]]
        names = {"n": "n", "correct_given": "correct_False", "correct_swapped": "correct_True",
                 "correct_both": "correct_both", "equal": "equal", "unparsed": "unparsed",
                 "accuracy": "acc", "agreement": "agr"}  # fmt: skip
        assert {name: cell[name] for name in names} == {name: released[theirs] for name, theirs in names.items()}


def test_bad_input_on_the_command_line_is_one_message_and_status_2(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"set": "House/Nature", "i": 0}\n')
    done = run(
        "llmbar.evaluate", "judge=recorded", f"recorded={tmp_path / 'bad.jsonl'}", "data=house", "prompts=house",
        tmp_path=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    assert "line 1: set='House/Nature' is unknown" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("results.json"))
