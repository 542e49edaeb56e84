"""The state machine that asks: orders, sharing, waves, biases, chat formats."""

import pytest

from llmbar.decoding import Decoding, bias_sets
from llmbar.judges import ANSWERS, PromptJudge
from llmbar.replay import Rules, replay
from llmbar.strategies import from_config
from shared import InputError
from shared.generation import Completion


class Scripted:
    """A model of one rule, and a memory of what it was asked: each wave is a list of requests."""

    def __init__(self, answer):
        self.answer, self.waves = answer, []

    def __call__(self, requests):
        self.waves.append(list(requests))
        return [self.answer(request) for request in requests]


def first_position(request) -> Completion:
    """Always for what stands first; rates everything 5."""
    if request.candidates:
        return Completion(request.id, "", "length", candidate_logprobs={ANSWERS[0]: -1.0, ANSWERS[1]: -2.0})
    last = request.messages[-1]["content"]
    text = "5" if "0 to 9" in last else "Output (a)" if request.max_tokens == 50 else "Therefore, Output (a) is better."
    return Completion(request.id, text, "stop")


COMPARISON = ("Vanilla_NoRules", "Vanilla", "Vanilla_1shot", "Vanilla_2shot", "CoT", "Metrics", "Reference",
              "Metrics_Reference", "Swap", "Swap_CoT")  # fmt: skip


@pytest.fixture
def pick(strategies):
    return lambda *names: {name: strategies[name] for name in names}


def test_the_ten_comparison_strategies_cost_18_to_22_calls_per_instance(pick, house, house_templates):
    ask = Scripted(first_position)  # every CoT is a conflict: the dearest case
    judged = PromptJudge(ask, pick(*COMPARISON), house_templates).run(house["House/Natural"])
    assert judged.calls.per_instance(20) == {"naive": 28, "asked": 22}
    agree = Scripted(lambda r: Completion(r.id, "Therefore, neither.", "stop"))  # no CoT is a conflict
    judged = PromptJudge(agree, pick(*COMPARISON), house_templates).run(house["House/Natural"])
    assert judged.calls.per_instance(20) == {"naive": 24, "asked": 18}
    assert sum(len(wave) for wave in ask.waves) == 22 * 20
    assert len(ask.waves) == 3


def test_rating_strategies_share_the_comparison_strategies_auxiliary_texts(pick, house, house_templates):
    ask = Scripted(first_position)
    names = ("Metrics", "Metrics_Reference", "Rating_Metrics", "Rating_Metrics_Reference")
    PromptJudge(ask, pick(*names), house_templates).run(house["House/Natural"][:1])
    assert sorted(request.id.split(" ")[1] for request in ask.waves[0]) == [
        "auxiliary/Metrics.txt",
        "auxiliary/Reference.txt",
    ]


def test_both_orders_are_asked_and_winners_name_data_outputs(pick, house, house_templates, write_lines, strategies):
    one = house["House/Natural"][1]
    ask = Scripted(first_position)
    judged = PromptJudge(ask, pick("Vanilla"), house_templates).run([one])
    given, swapped = (request.messages[1]["content"] for request in ask.waves[0])
    assert given.index(one.output_1) < given.index(one.output_2)
    assert swapped.index(one.output_2) < swapped.index(one.output_1)
    result = replay(write_lines(judged.records), house, Rules("x", strategies), allow_partial=True)
    tally = result.tallies["Vanilla", "House/Natural"]
    assert (tally.given[1], tally.swapped[1]) == ("1", "2")


def test_metrics_come_before_the_reference(pick, house, house_templates):
    def answer(request):
        return Completion(
            request.id, {150: " METRICS ", 384: "REFERENCE"}.get(request.max_tokens, "Output (b)"), "stop"
        )

    ask = Scripted(answer)
    (record,) = PromptJudge(ask, pick("Metrics_Reference"), house_templates).run(house["House/Natural"][:1]).records
    assert [text for text, _ in record["aux"]] == ["METRICS", "REFERENCE"]
    shown = ask.waves[1][0].messages[1]["content"]
    assert 0 < shown.index("\nMETRICS\n") < shown.index("\nREFERENCE\n")


def test_a_second_stage_runs_only_on_a_conflict_and_replays(pick, house, house_templates, write_lines, strategies):
    conflicts = house["House/Natural"][0]

    def answer(request):
        if request.id.startswith(conflicts.id + " ") or "swapped" not in request.id:
            return Completion(request.id, "Therefore, Output (a) is better.", "stop")
        return Completion(request.id, "Therefore, Output (b) is better.", "stop")

    judge = PromptJudge(Scripted(answer), pick("Swap", "Swap_CoT"), house_templates)
    judged = judge.run(house["House/Natural"][:3])
    stages = {(record["i"], record["strategy"]): len(record["stages"]) for record in judged.records}
    assert stages == {(i, name): 2 if i == 0 else 1 for i in range(3) for name in ("Swap", "Swap_CoT")}
    result = replay(write_lines(judged.records), house, Rules("x", strategies, house_templates), allow_partial=True)
    assert result.prompts_checked == 4


def test_ratings_are_asked_once_per_output_without_an_order(pick, house, house_templates):
    ask = Scripted(first_position)
    (record,) = PromptJudge(ask, pick("Rating"), house_templates).run(house["House/Natural"][:1]).records
    assert record["scores"] == [["5", "stop"], ["5", "stop"]]
    assert len(ask.waves[0]) == 2


def test_log_probabilities_decide_without_generating_and_equal_ones_decide_nothing(pick, house, house_templates):
    ask = Scripted(first_position)
    (record,) = PromptJudge(ask, pick("Vanilla_Logprob"), house_templates).run(house["House/Natural"][:1]).records
    assert record["stages"] == [{"out": [["Output (a)", "logprob"], ["Output (a)", "logprob"]]}]
    assert record["logprobs"] == [[-1.0, -2.0]] * 2
    assert all(request.max_tokens == 0 and request.candidates == ANSWERS for request in ask.waves[0])
    tie = Scripted(lambda r: Completion(r.id, "", "length", candidate_logprobs=dict.fromkeys(ANSWERS, -1.0)))
    (record,) = PromptJudge(tie, pick("Vanilla_Logprob"), house_templates).run(house["House/Natural"][:1]).records
    assert record["stages"][0]["out"][0] == ["", "logprob"]


def test_an_item_without_an_answer_takes_only_its_own_judgements_with_it(pick, house, house_templates):
    one, other = house["House/Natural"][:2]

    def answer(request):
        if request.id == f"{one.id} auxiliary/Metrics.txt auxiliary 150":
            return Completion.failure(request, "HTTP 500")
        return first_position(request)

    judged = PromptJudge(Scripted(answer), pick("Vanilla", "Metrics"), house_templates).run([one, other])
    assert judged.failed == {f"{one.id} Metrics": "HTTP 500"}
    assert {(r["i"], r["strategy"]) for r in judged.records} == {(0, "Vanilla"), (1, "Vanilla"), (1, "Metrics")}


def test_biases_go_to_the_stages_that_the_release_biased(pick, house, house_templates):
    ask = Scripted(first_position)
    bias = bias_sets(lambda text: list(text.encode()), ["B", "Both"], ["Ou", "O"])
    assert bias == {"avoid": {66: -100.0}, "favor": {79: 7.0, 117: 7.0}}  # "Both" is no single token
    names = ("Metrics", "CoT", "Swap", "Rating")
    PromptJudge(ask, pick(*names), house_templates, decoding=Decoding(bias=bias)).run(house["House/Natural"][:1])
    seen = {request.id.split(" ")[1]: set(request.logit_bias) for wave in ask.waves for request in wave}
    assert seen == {
        "auxiliary/Metrics.txt": set(), "rating/Rating.txt": set(), "comparison/CoT.txt": {66},
        "comparison/Metrics.txt": {66, 79, 117}, "swap_and_synthesize/Swap.txt": {66, 79, 117},
    }  # fmt: skip


def test_short_answers_can_be_cut_earlier(pick, house, house_templates):
    ask = Scripted(first_position)
    PromptJudge(ask, pick("Vanilla", "CoT"), house_templates, decoding=Decoding(short_limit=8)).run(
        house["House/Natural"][:1]
    )
    assert {request.id.split(" ")[1]: request.max_tokens for request in ask.waves[0]} == {
        "comparison/Vanilla.txt": 8,
        "comparison/CoT.txt": 300,
    }


def test_chat_formats_become_prompts_with_the_released_special_tokens(pick, house, house_templates):
    asked = {}
    for name in ("llama2", "falcon"):
        ask = Scripted(lambda r: Completion(r.id, "Output (a)", "stop"))
        PromptJudge(ask, pick("Vanilla_2shot"), house_templates, chat_format=name).run(house["House/Natural"][:1])
        asked[name] = ask.waves[0][0]
    assert asked["llama2"].prompt.startswith("<s>[INST] <<SYS>>\n")
    assert not asked["llama2"].add_special_tokens
    assert asked["falcon"].prompt.endswith("\nFalcon:")
    assert asked["falcon"].add_special_tokens


def test_few_shot_on_a_two_message_api_and_unknown_formats_are_refused(pick, house, house_templates):
    ask = Scripted(first_position)
    with pytest.raises(InputError, match="few-shot strategies need"):
        PromptJudge(ask, pick("Vanilla_1shot"), house_templates, chat_format="palm").run(house["House/Natural"][:1])
    with pytest.raises(InputError, match="chat_format='vicuna' is unknown"):
        PromptJudge(ask, pick("Vanilla"), house_templates, chat_format="vicuna")


def test_a_strategy_of_ones_own_needs_no_code(house, house_templates):
    own = from_config(
        {"Mine": {"stages": [{"prompt": "comparison/Vanilla.txt", "max_new_tokens": 9, "rule": "short"}]}}
    )
    ask = Scripted(first_position)
    judged = PromptJudge(ask, own, house_templates).run(house["House/Natural"][:1])
    assert ask.waves[0][0].max_tokens == 9
    assert judged.records[0]["strategy"] == "Mine"
