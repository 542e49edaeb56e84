"""From a completion to a verdict: the three rules under which every number of LLMBar was made.

A judge answers in free text; what it is taken to have said is decided by these few lines, so they are exact and stand
alone. They are the release's rules, quirks included: the rule for "(a)" is tried before the rule for "(b)", so an
answer that claims both counts as "(a)" (121 of ChatGPT's Swap+CoT answers do), and the full stop of "is better." is a
wildcard that needs one character, so an answer that breaks off at "is better" has no winner.
"""

import re
from collections.abc import Callable

# The order is part of the rule: the first pattern that matches decides.
SHORT = ((re.compile(r"(?:^|\n) ?Output \(a\)"), "1"), (re.compile(r"(?:^|\n) ?Output \(b\)"), "2"))
VERDICT = ((re.compile(r"Output \(a\) is better."), "1"), (re.compile(r"Output \(b\) is better."), "2"))


def parse_short(text: str) -> str | None:
    """`"1"` if a line of the answer starts with "Output (a)", else `"2"` if one starts with "Output (b)", else None.

    "1" and "2" are positions in the prompt; `scores.mirror` turns them into data outputs for the swapped order.
    Source: LLMBar's release, every strategy that answers in a few words.
    """
    return _first_match(SHORT, text)


def parse_verdict(text: str) -> str | None:
    """`"1"` for "Output (a) is better" with at least one more character, else `"2"` for the same of (b), else None.

    Source: LLMBar's release, every strategy that explains before it decides.
    """
    return _first_match(VERDICT, text)


def parse_rating(text: str) -> int | None:
    """The score, if the whole completion is an integer to Python's `int` (blanks around it are fine), else None.

    "8/10", "7.5", "Score: 8" and "" have no score. Source: LLMBar's release, rating strategies.
    """
    try:
        return int(text)
    except ValueError:
        return None


# What a strategy's YAML may name as `rule` in a comparison stage.
COMPARISON_RULES: dict[str, Callable[[str], str | None]] = {"short": parse_short, "verdict": parse_verdict}
RATING_RULE = "rating"


def claims_both(rule: str, text: str) -> bool:
    """Whether the answer matches the rule's patterns for both outputs, i.e. the order of the patterns decided it."""
    (first, _), (second, _) = {"short": SHORT, "verdict": VERDICT}[rule]
    return bool(first.search(text) and second.search(text))


def last_claim(rule: str, text: str) -> str | None:
    """The verdict named last in the answer: what another reader might have counted (reported, never scored)."""
    found = [
        (match.start(), winner)
        for pattern, winner in {"short": SHORT, "verdict": VERDICT}[rule]
        for match in pattern.finditer(text)
    ]
    return max(found)[1] if found else None


def _first_match(rule: tuple[tuple[re.Pattern[str], str], ...], text: str) -> str | None:
    for pattern, winner in rule:
        if pattern.search(text):
            return winner
    return None
