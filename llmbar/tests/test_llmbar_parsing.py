"""The rules that decide what a completion says."""

import pytest

from llmbar.parsing import claims_both, last_claim, parse_rating, parse_short, parse_verdict


@pytest.mark.parametrize(
    ("text", "winner"),
    [
        ("Output (a)", "1"),
        ("Output (b)", "2"),
        (" Output (b)", "2"),
        ("Sure!\nOutput (a) is my choice", "1"),
        ("Sure!\n Output (b)", "2"),
        ("I choose Output (a)", None),  # not at the start of a line
        ("x\n  Output (a)", None),  # two blanks
        ("output (a)", None),
        ("Output (c)", None),
        ("", None),
        ("Output (b)\nOutput (a)", "1"),  # the rule for (a) is tried first, wherever it matches
    ],
)
def test_short_answers_need_a_line_that_starts_with_the_output(text, winner):
    assert parse_short(text) == winner


@pytest.mark.parametrize(
    ("text", "winner"),
    [
        ("Therefore, Output (a) is better.", "1"),
        ("Therefore, Output (b) is better.", "2"),
        ("Output (b) is better than Output (a)", "2"),  # the full stop is a wildcard
        ("Therefore, Output (a) is better", None),  # and needs one character
        ("Therefore, Output (a) is better\n", None),  # which is not a line break
        ("Output (b) is better.\n\nOutput (a) is better.", "1"),
        ("Neither is better.", None),
    ],
)
def test_verdicts_need_one_more_character_and_a_before_b(text, winner):
    assert parse_verdict(text) == winner


@pytest.mark.parametrize(
    ("text", "score"), [("7", 7), (" 9 ", 9), ("8/10", None), ("7.5", None), ("Score: 8", None), ("", None)]
)
def test_a_rating_is_an_integer_as_a_whole(text, score):
    assert parse_rating(text) == score


def test_answers_for_both_are_noticed_and_the_last_one_is_told_apart():
    text = "Output (a) is better. On reflection, Output (b) is better."
    assert parse_verdict(text) == "1"
    assert claims_both("verdict", text)
    assert last_claim("verdict", text) == "2"
    assert not claims_both("short", "Output (a)")
    assert last_claim("short", "nothing") is None
