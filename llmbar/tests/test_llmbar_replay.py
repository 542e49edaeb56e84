"""Replay: the released statistics to the last digit, and every kind of broken file."""

import gzip
import json
from copy import deepcopy

import pytest

from llmbar import summary
from llmbar.replay import Rules, replay
from llmbar.reproduce import check_statistics, replay_all
from llmbar.stages import second_stage_prompts
from shared import InputError


@pytest.fixture
def rules(strategies, house_templates):
    return Rules("Judge", strategies, house_templates)


def test_a_judge_that_is_always_right_scores_a_hundred(write_lines, vanilla_lines, house, rules):
    result = replay(write_lines(vanilla_lines), house, rules)
    row = summary.rows(result)["House"]["Vanilla"]
    assert (row["avg_acc"], row["avg_agr"], row["adv_acc"]) == (100.0, 100.0, 100.0)
    assert (row["avg_low"], row["avg_high"]) == (100.0, 100.0)
    cell = summary.cells(result)[0]
    counts = {"n": 20, "correct_given": 20, "correct_swapped": 20, "correct_both": 20, "equal": 20, "unparsed": 0}
    expected = {"strategy": "Vanilla", "set": "House/Natural", **counts, "accuracy": 100.0, "agreement": 100.0}
    assert {name: cell[name] for name in expected} == expected


def test_averages_are_unweighted_over_sets(write_lines, vanilla_lines, house, rules):
    wrong = [[["Output (a)", "stop"], ["Output (b)", "stop"]], [["Output (b)", "stop"], ["Output (a)", "stop"]]]
    for line in vanilla_lines:
        if line["set"] == "House/Natural":
            line["stages"][0]["out"] = wrong[house["House/Natural"][line["i"]].label == 1]
    row = summary.rows(replay(write_lines(vanilla_lines), house, rules))["House"]["Vanilla"]
    assert (row["nat_acc"], row["adv_acc"], row["avg_acc"]) == (0.0, 100.0, 80.0)  # pooled, it would be 50


def test_plain_jsonl_is_read_as_well(tmp_path, vanilla_lines, house, rules):
    path = tmp_path / "plain.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in vanilla_lines))
    assert replay(path, house, rules).lines == 40


def conflict_line(house, house_templates, **changes):
    one = house["House/Natural"][0]
    first = ("Therefore, Output (a) is better.", "Therefore, Output (a) is better.")
    prompts = second_stage_prompts(one, house_templates["swap_and_synthesize/Swap.txt"], first, ("1", "2"))
    from llmbar.prompts import sha256_16

    return {
        "set": one.set, "i": 0, "strategy": "Swap",
        "stages": [{"out": [[first[0], "stop"], [first[1], "stop"]]},
                   {"out": [["Output (a)", "stop"], ["Output (b)", "stop"]],
                    "prompt_sha256": [sha256_16(prompt) for prompt in prompts]}],
    } | changes  # fmt: skip


def test_the_second_stage_decides_and_its_prompts_are_checked(write_lines, house, house_templates, rules):
    result = replay(write_lines([conflict_line(house, house_templates)]), house, rules, allow_partial=True)
    tally = result.tallies["Swap", "House/Natural"]
    assert (tally.given[0], tally.swapped[0], result.prompts_checked) == ("1", "1", 2)


def test_a_second_stage_of_another_prompt_is_refused(write_lines, house, house_templates, rules):
    line = conflict_line(house, house_templates)
    line["stages"][1]["prompt_sha256"][1] = "0" * 16
    with pytest.raises(InputError, match=r"hash to .* made with other data or another swap_and_synthesize/Swap.txt"):
        replay(write_lines([line]), house, rules, allow_partial=True)


def test_without_a_conflict_or_with_an_unreadable_answer_the_first_stage_is_final(
    write_lines, house, house_templates, rules
):
    line = conflict_line(house, house_templates)
    line["stages"] = [{"out": [["Therefore, Output (a) is better.", "stop"], ["no idea", "stop"]]}]
    tally = replay(write_lines([line]), house, rules, allow_partial=True).tallies["Swap", "House/Natural"]
    assert (tally.given[0], tally.swapped[0], tally.unparsed) == ("1", None, 1)


def test_palm_cot_is_read_as_released_or_corrected(write_lines, house, strategies):
    text = "Output (b) is better.\n\nOutput (a) is short."
    line = {"set": "House/Natural", "i": 0, "strategy": "CoT", "stages": [{"out": [[text, ""], [text, ""]]}]}
    given = {}
    for judge, parsing in (("PaLM2", "released"), ("PaLM2", "corrected"), ("LLaMA2", "released")):
        result = replay(write_lines([line]), house, Rules(judge, strategies, {}, parsing), allow_partial=True)
        given[judge, parsing] = result.tallies["CoT", "House/Natural"].given[0]
    assert given == {("PaLM2", "released"): "1", ("PaLM2", "corrected"): "2", ("LLaMA2", "released"): "2"}


def test_ratings_that_do_not_parse_count_as_ties_and_are_counted(write_lines, house, rules):
    lines = [
        {"set": "House/Natural", "i": i, "strategy": "Rating", "scores": [[first, "stop"], ["5", "stop"]]}
        for i, first in enumerate(["8/10", "7.5", "Score: 8", "", "5", "9", " 1 "])
    ]
    tally = replay(write_lines(lines), house, rules, allow_partial=True).tallies["Rating", "House/Natural"]
    assert tally.given[:7] == ["1", "1", "1", "1", "2", "1", "2"]
    assert tally.swapped[:7] == ["2", "2", "2", "2", "1", "1", "2"]
    assert (tally.unparsed_ratings, tally.unparsed) == (4, 0)


def test_a_content_filter_is_an_answer_without_a_winner(write_lines, house, rules):
    out = [["", "content management policy"], ["Output (a)", "stop"]]
    line = {"set": "House/Natural", "i": 0, "strategy": "Vanilla", "stages": [{"out": out}]}
    tally = replay(write_lines([line]), house, rules, allow_partial=True).tallies["Vanilla", "House/Natural"]
    assert (tally.filtered, tally.unparsed, tally.given[0]) == (1, 1, None)


def test_missing_instances_are_counted_and_averages_refused_unless_wanted(write_lines, vanilla_lines, house, rules):
    path = write_lines(vanilla_lines[:-3])
    with pytest.raises(InputError, match=r"3 judgements are missing .* allow_partial=true"):
        replay(path, house, rules)
    cells = summary.cells(replay(path, house, rules, allow_partial=True))
    assert [(cell["n"], cell["missing"]) for cell in cells] == [(20, 0), (5, 0), (5, 0), (5, 0), (2, 3)]


def test_a_set_that_is_missing_altogether_is_not_left_out_of_an_average(write_lines, vanilla_lines, house, rules):
    path = write_lines([line for line in vanilla_lines if not line["set"].endswith("Manual")])
    with pytest.raises(InputError, match="5 judgements are missing"):
        replay(path, house, rules)
    row = summary.rows(replay(path, house, rules, allow_partial=True))["House"]["Vanilla"]
    assert "avg_acc" not in row
    assert "adv_acc" not in row


BREAKS = {
    "no stages": (lambda r: r.pop("stages"), "`stages` is missing"),
    "scores for a comparison": (lambda r: r.update(scores=r.pop("stages")), "`stages` is missing"),
    "one order only": (lambda r: r["stages"][0]["out"].pop(), "must hold two answers"),
    "three stages": (lambda r: r.update(strategy="Swap", stages=r["stages"] * 3), "3 stages; Swap has one or 2"),
    "two stages of one": (lambda r: r["stages"].append(r["stages"][0]), "2 stages; Vanilla has exactly one"),
    "no text": (lambda r: r["stages"][0]["out"][0].__setitem__(0, None), "an answer is"),
    "i out of range": (lambda r: r.update(i=20), "i=20 is out of range; House/Natural has instances 0 to 19"),
    "i negative": (lambda r: r.update(i=-1), "i=-1 is out of range"),
    "i a string": (lambda r: r.update(i="0"), "i='0' is out of range"),
    "released i out of range": (lambda r: r.update(set="LLMBar/Natural", i=100), "instances 0 to 99"),
    "unknown set": (lambda r: r.update(set="LLMBar/Nature"), "set='LLMBar/Nature' is unknown"),
    "unknown strategy": (lambda r: r.update(strategy="Swap+CoT"), "strategy='Swap+CoT' is unknown"),
    "rating without scores": (lambda r: r.update(strategy="Rating"), "`scores` must hold two answers"),
    "values that are none": (lambda r: r.update(strategy="Reward_Model", values=[1, None]), "two finite numbers"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_line_is_one_message_with_its_number(name, write_lines, vanilla_lines, house, rules):
    breaks, message = BREAKS[name]
    lines = deepcopy(vanilla_lines)
    breaks(lines[1])
    with pytest.raises(InputError) as error:
        replay(write_lines(lines), house, rules)
    assert "line 2" in str(error.value)
    assert message in str(error.value)


def test_a_second_stage_without_conflict_and_a_conflict_without_second_stage(
    write_lines, house, house_templates, rules
):
    line = conflict_line(house, house_templates)
    line["stages"][0]["out"][1][0] = "Therefore, Output (b) is better."
    with pytest.raises(InputError, match="second stage without a conflict"):
        replay(write_lines([line]), house, rules)
    line = conflict_line(house, house_templates)
    line["stages"].pop()
    with pytest.raises(InputError, match="disagree, but there is no second stage"):
        replay(write_lines([line]), house, rules)


def test_a_judgement_twice_is_refused(write_lines, vanilla_lines, house, rules):
    with pytest.raises(InputError, match=r"line 41: House/Natural\[0\] with Vanilla is there twice"):
        replay(write_lines([*vanilla_lines, vanilla_lines[0]]), house, rules)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x1f\x8bnot gzip at all", "broken gzip"),
        (b'{"set": "\xff"}\n', "line 1: not UTF-8"),
        (b"{oops\n", "line 1: not JSON"),
        (b"[1]\n", "line 1: not a JSON object"),
        (b"", "is empty"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_message(tmp_path, house, rules, content, message):
    path = tmp_path / "broken.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        replay(path, house, rules)
    assert message in str(error.value)


def test_a_gzip_file_that_breaks_off_is_one_message(write_lines, vanilla_lines, house, rules):
    path = write_lines(vanilla_lines)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"broken gzip file after line .*fetch it again"):
        replay(path, house, rules)


def test_a_file_without_the_selected_sets_is_one_message(write_lines, vanilla_lines, house, rules):
    natural = [line for line in vanilla_lines if line["set"] == "House/Natural"]
    manual = {"House/Adversarial/Manual": house["House/Adversarial/Manual"]}
    with pytest.raises(InputError, match="no line for the selected sets"):
        replay(write_lines(natural), manual, rules)


def test_two_recorded_judges_are_compared_instance_by_instance(write_lines, vanilla_lines, house, rules):
    worse = deepcopy(vanilla_lines)
    for line in worse[:10]:
        line["stages"][0]["out"] = [["?", "stop"], ["?", "stop"]]
    first = replay(write_lines(vanilla_lines), house, rules)
    second = replay(write_lines(worse, "Worse.jsonl.gz"), house, rules)
    (entry,) = summary.compare_judges(first, second)
    assert entry["difference"] == pytest.approx(10.0)  # half of Natural, one of five sets
    assert entry["n"] == 40
    assert entry["low"] > 0


@pytest.mark.mirror
def test_every_recorded_cell_equals_the_released_statistics_to_the_last_digit(released, recorded_folder, strategies):
    files = sorted(recorded_folder.glob("*.jsonl.gz"))
    recorded = replay_all(files, released, seed=0)
    check = check_statistics(recorded, recorded_folder / "expected_statistics.json")
    cells = sum(len(one.tallies) for one in recorded.replays.values())
    assert check["equal"] == check["cells"] == cells
    assert all(one.prompts_unchecked == 0 for one in recorded.replays.values())
    if set(recorded.replays) == {"GPT-4", "ChatGPT", "LLaMA2", "Falcon"}:
        assert (check["cells"], check["judgements"], check["second_stage_prompts"]) == (353, 28789, 5596)


@pytest.mark.mirror
def test_answers_for_both_outputs_are_as_many_as_known(released, recorded_folder, strategies, released_templates):
    known = {"ChatGPT": ("Swap_CoT", 121, 64), "LLaMA2": ("Vanilla_2shot", 42, 2), "Falcon": ("CoT", 8, 5)}
    for judge, (strategy, both, differs) in known.items():
        result = replay(recorded_folder / f"{judge}.jsonl.gz", released, Rules(judge, strategies, released_templates))
        tallies = [tally for (name, _), tally in result.tallies.items() if name == strategy]
        assert (sum(t.claims_both for t in tallies), sum(t.last_differs for t in tallies)) == (both, differs)


@pytest.mark.mirror
def test_memory_is_flat_in_the_size_of_the_file(released, recorded_folder, released_templates, strategies, tmp_path):
    """Ten times the lines (as other sets' lines, which are read and passed over) must not cost ten times the memory."""
    import tracemalloc

    with gzip.open(recorded_folder / "GPT-4.jsonl.gz", "rt") as file:
        lines = file.readlines()[:1500]
    natural = {"LLMBar/Natural": released["LLMBar/Natural"]}
    peaks = []
    for times in (1, 10):
        path = tmp_path / f"{times}.jsonl"
        elsewhere = [line for line in lines if '"LLMBar/Natural"' not in line[:40]]
        here = [line for line in lines if '"LLMBar/Natural"' in line[:40] and '"strategy":"Vanilla"' in line[:80]]
        path.write_text("".join(here) + "".join(elsewhere) * times)
        tracemalloc.start()
        replay(path, natural, Rules("GPT-4", strategies, released_templates))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + 200_000
