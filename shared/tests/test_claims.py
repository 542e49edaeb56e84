"""Claims: the predicate language judges from metrics alone, and refuses everything that is not a predicate."""

import pytest

from shared import InputError
from shared.claims import FAILS, HOLDS, NotMeasured, find_metric, judge, parse_predicate

METRICS = {
    "a": {"mean": 0.70, "std": 0.01, "n": 3, "values": [0.69, 0.70, 0.71]},
    "b": 0.60,
    "zero": 0,
    "once": {"mean": 0.5, "std": None, "n": 1, "values": [0.5]},
    "group": {"x": 1},
    "list": [3.0, 1.0, 2.0],
    "name": "STS-B dev (mirror)",
    "undefined": None,
    "temperature": {"0.05": 86.2, "1": 64.0},
}


def metric(path, experiment=None):
    if experiment == "other":
        return {"b": 0.9}[path]
    if experiment is not None:
        raise NotMeasured(f"experiment {experiment} has not been run")
    try:
        return find_metric(METRICS, path)
    except KeyError:
        raise NotMeasured(f"metric {path} was not measured") from None


def verdict(predicate, scale="laptop"):
    return judge({"id": "c", "text": "t", scale: predicate}, scale, metric, {"table5.x.Avg": 76.25}.__getitem__)


@pytest.mark.parametrize(
    ("predicate", "expected"),
    [
        ('m("a") > m("b")', HOLDS),
        ('m("a") - m("b") > 0.2', FAILS),
        ('m("a") - m("b") > 2 * std("a") and n("a") >= 3', HOLDS),
        ('not m("a") < m("b")', HOLDS),
        ('m("b") < m("a") < 1', HOLDS),
        ('min(m("list")) == 1 and max(m("list"), 5) == 5 and mean(m("list")) == 2', HOLDS),
        ('abs(m("b") - 0.9) < 0.31', HOLDS),
        ('m("b", "other") > m("b")', HOLDS),
        ('m("name") == "STS-B dev (mirror)"', HOLDS),
        ('m("temperature.0.05") > m("temperature.1")', HOLDS),
        ('m("b") * 100 < p("table5.x.Avg")', HOLDS),
        ("-1 < 0", HOLDS),
    ],
)
def test_predicates_are_evaluated(predicate, expected):
    assert verdict(predicate).verdict == expected


@pytest.mark.parametrize(
    ("predicate", "reason"),
    [
        ('m("nowhere") > 1', "metric nowhere was not measured"),
        ('m("b", "never_run") > 1', "experiment never_run has not been run"),
        ('std("b") > 1', "measured once"),
        ('std("once") > 1', "undefined"),
        ('m("undefined") > 1', "undefined"),
        ('m("group") > 1', "a group"),
        ('m("b") / m("zero") > 1', "zero"),
        # a missing metric is not hidden by the other operand: "holds" must not rest on half of a claim
        ('m("b") > 0 or m("nowhere") > 1', "metric nowhere was not measured"),
        (None, "no test is defined"),
        ({"not_testable": "needs a GPU"}, "needs a GPU"),
    ],
)
def test_what_was_not_measured_is_not_testable_and_says_why(predicate, reason):
    result = verdict(predicate)
    assert result.verdict.startswith("not testable at this scale (") and reason in result.verdict
    assert not result.testable


def test_the_detail_shows_the_numbers_the_verdict_rests_on():
    assert verdict('m("a") > m("b")').detail == "a = 0.7, b = 0.6"


@pytest.mark.parametrize(
    "source",
    [
        '__import__("os").system("true") == 0',
        'm("a").real > 0',
        "open > 1",
        "[1][0] > 0",
        "(lambda: 1)() > 0",
        'm("a" + "b") > 0',
        'm(path="a") > 0',
        "m() > 0",
        'm("a", "b", "c") > 0',
        "2 ** 999999999 > 0",
        'f"{1}" == "1"',
        "1 if 2 > 1 else 0",
        'm("a") >',
        'm("a") - m("b")',
        "",
        7,
    ],
)
def test_anything_outside_the_language_is_refused_naming_the_claim(source):
    with pytest.raises(InputError, match=r"paper.yaml: claim 'hard_negatives' \(laptop\)"):
        parse_predicate(source, "paper.yaml: claim 'hard_negatives' (laptop)")


def test_mixing_text_and_numbers_is_an_error_not_a_verdict():
    with pytest.raises(InputError, match="mixes kinds"):
        verdict('m("name") > 1')
