"""The small language in which a claim of paper.yaml is a predicate over measured metrics, and its judge.

A claim is data, so that the verdict printed beside it can only come from numbers that a run left behind. Predicates are
parsed with Python's `ast` and evaluated by walking a whitelist of nodes: numbers and strings, + - * /, comparisons,
and / or / not, and the calls in `FUNCTIONS`. There is no attribute access, no subscript and no name lookup, so a
paper.yaml from elsewhere cannot run code.

    m("scratch.triplets.stsb_dev") - m("scratch.untrained.stsb_dev") > 2 * std("scratch.untrained.stsb_dev")
    m("stsb_dev", "unsup_bert_base") > m("stsb_dev", "dropout_p0")        # across two experiments of the same scale
    abs(m("sts.avg.all") * 100 - p("table5.unsup_bert_base.Avg")) < 1     # against the number in the paper
"""

import ast
import operator
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shared import InputError

HOLDS = "holds"
FAILS = "does not hold"
NOT_TESTABLE = "not testable at this scale"
SCALES = ("laptop", "paper")

_BINARY = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_COMPARE = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_METRIC_CALLS = ("m", "std", "n")  # read a metric: ("dotted.path"[, "experiment"])
FUNCTIONS = (*_METRIC_CALLS, "p", "min", "max", "abs", "mean")


class NotMeasured(Exception):
    """A predicate asks for something that no run has measured; the message becomes the reason in the verdict."""


@dataclass(frozen=True)
class Verdict:
    """One claim judged: HOLDS, FAILS or "not testable at this scale (why)"; `detail` shows the numbers it rests on."""

    id: str
    text: str
    verdict: str
    detail: str = ""
    source: str = ""
    predicate: str | None = None
    used: dict[str, Any] = field(default_factory=dict)

    @property
    def testable(self) -> bool:
        return self.verdict in (HOLDS, FAILS)

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "text": self.text,
            "source": self.source,
            "verdict": self.verdict,
            "detail": self.detail,
            "predicate": self.predicate,
        }


# ---------------------------------------------------------------------------------------------------- metrics by path


def find_metric(metrics: Any, path: str) -> Any:
    """The value at a dotted path in nested dicts; keys may hold dots ("temperature.0.05"). KeyError if absent."""
    if isinstance(metrics, dict):
        if path in metrics:
            return metrics[path]
        parts = path.split(".")
        for cut in range(1, len(parts)):
            head = ".".join(parts[:cut])
            if head in metrics:
                try:
                    return find_metric(metrics[head], ".".join(parts[cut:]))
                except KeyError:
                    continue
    raise KeyError(path)


def is_summary(value: Any) -> bool:
    """Whether a metric is given over several seeds, as {"mean", "std", "n", "values"} (see `results.over_seeds`)."""
    return isinstance(value, dict) and {"mean", "std", "n"} <= value.keys()


def number_of(value: Any) -> float | None:
    """The one number a metric stands for (the mean of a summary), or None where it is not a number."""
    if is_summary(value):
        value = value["mean"]
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


# --------------------------------------------------------------------------------------------- the predicate language


def parse_predicate(source: str, where: str) -> ast.Expression:
    """Parse and check a predicate without evaluating it.

    Args:
        source: the predicate's text.
        where: what to name in an error, e.g. "simcse/paper.yaml: claim 'hard_negatives' (laptop)".
    Raises:
        InputError: not a string, not an expression, or something outside the whitelist.
    """
    if not isinstance(source, str) or not source.strip():
        raise InputError(f"{where}: a predicate is a non-empty string or {{not_testable: why}}, got {source!r}")
    try:
        tree = ast.parse(source.strip(), mode="eval")
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{where}: cannot parse {source!r}: {getattr(error, 'msg', error)}") from None
    _check(tree.body, source, where)
    if not isinstance(tree.body, ast.Compare | ast.BoolOp | ast.UnaryOp):
        raise InputError(f"{where}: {source!r} is a value, not a predicate; compare it with something")
    return tree


def _check(node: ast.AST, source: str, where: str) -> None:
    """Refuse every node outside the whitelist, naming it."""

    def refuse(why: str) -> InputError:
        return InputError(f"{where}: in {source!r}: {why}")

    if isinstance(node, ast.Constant):
        if type(node.value) not in (int, float, str, bool):
            raise refuse(f"constant {node.value!r} is not a number or a string")
        return
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
        if name not in FUNCTIONS:
            raise refuse(f"unknown function {name!r}; there are {', '.join(FUNCTIONS)}")
        if node.keywords or not node.args:
            raise refuse(f"{name}() takes positional arguments, at least one")
        if name in (*_METRIC_CALLS, "p"):
            limit = 1 if name == "p" else 2
            strings = all(isinstance(arg, ast.Constant) and isinstance(arg.value, str) for arg in node.args)
            if not strings or len(node.args) > limit:
                raise refuse(f"{name}() takes {'a quoted path' if limit == 1 else 'a quoted path and an experiment'}")
        if name == "abs" and len(node.args) != 1:
            raise refuse("abs() takes one argument")
        for arg in node.args:
            _check(arg, source, where)
        return
    allowed: tuple[list[ast.AST], bool]
    if isinstance(node, ast.BinOp):
        allowed = [node.left, node.right], type(node.op) in _BINARY
    elif isinstance(node, ast.UnaryOp):
        allowed = [node.operand], isinstance(node.op, ast.Not | ast.USub | ast.UAdd)
    elif isinstance(node, ast.BoolOp):
        allowed = list(node.values), True
    elif isinstance(node, ast.Compare):
        allowed = [node.left, *node.comparators], all(type(op) in _COMPARE for op in node.ops)
    else:
        allowed = [], False
    if not allowed[1]:
        raise refuse(f"{ast.unparse(node)!r} is not allowed (numbers, + - * /, comparisons, and/or/not, {FUNCTIONS})")
    for child in allowed[0]:
        _check(child, source, where)


class _Evaluator:
    """Walks a checked predicate. Every operand is evaluated (no short cut): one missing metric makes it untestable."""

    def __init__(self, metric: Callable[[str, str | None], Any], paper_number: Callable[[str], float]):
        self.metric, self.paper_number = metric, paper_number
        self.used: dict[str, Any] = {}

    def __call__(self, node: ast.AST) -> Any:
        match node:
            case ast.Constant():
                return node.value
            case ast.BinOp():
                return _BINARY[type(node.op)](self(node.left), self(node.right))
            case ast.UnaryOp():
                value = self(node.operand)
                return (
                    not value if isinstance(node.op, ast.Not) else -value if isinstance(node.op, ast.USub) else +value
                )
            case ast.BoolOp():
                values = [self(child) for child in node.values]
                return all(values) if isinstance(node.op, ast.And) else any(values)
            case ast.Compare():
                values = [self(child) for child in (node.left, *node.comparators)]
                return all(_COMPARE[type(op)](a, b) for op, a, b in zip(node.ops, values, values[1:], strict=False))
            case ast.Call():
                return self._call(node.func.id, node.args)
        raise AssertionError(f"unchecked node {node!r}")

    def _call(self, name: str, args: list[ast.expr]) -> Any:
        if name == "p":
            value = self.paper_number(args[0].value)
            self.used[f"paper {args[0].value}"] = value
            return value
        if name in _METRIC_CALLS:
            return self._metric(name, args[0].value, args[1].value if len(args) > 1 else None)
        values = [self(arg) for arg in args]
        flat = [x for value in values for x in (value if isinstance(value, list) else [value])]
        if not flat:
            raise NotMeasured(f"{name}() of an empty list")
        return abs(flat[0]) if name == "abs" else {"min": min, "max": max, "mean": statistics.fmean}[name](flat)

    def _metric(self, name: str, path: str, experiment: str | None) -> Any:
        label = path if experiment is None else f"{path} of {experiment}"
        value = self.metric(path, experiment)
        if name != "m":
            if not is_summary(value):
                raise NotMeasured(f"metric {label} was measured once, without a spread over seeds")
            value = value[{"std": "std", "n": "n"}[name]]
            label = f"{name}({label})"
        elif is_summary(value):
            value = value["mean"]
        if isinstance(value, dict):
            raise NotMeasured(f"metric {label} is a group, not one number")
        if value is None or value == "undefined":
            raise NotMeasured(f"metric {label} is undefined")
        self.used[label] = value
        return value


def judge(
    claim: dict[str, Any],
    scale: str,
    metric: Callable[[str, str | None], Any],
    paper_number: Callable[[str], float],
    where: str = "paper.yaml",
) -> Verdict:
    """Judge one claim at one scale.

    Args:
        claim: an entry of paper.yaml's `claims`.
        scale: "laptop" or "paper".
        metric: (path, experiment or None) -> the metric's value; raises NotMeasured.
        paper_number: "table.row.column" -> the number printed in the paper.
    Raises:
        InputError: a malformed predicate, naming the claim.
    """
    place = f"{where}: claim {claim['id']!r} ({scale})"
    base = {"id": claim["id"], "text": claim["text"], "source": claim.get("source", "")}
    rule = claim.get(scale)
    if rule is None:
        return Verdict(**base, verdict=f"{NOT_TESTABLE} (no test is defined for scale {scale})")
    if isinstance(rule, dict):
        return Verdict(**base, verdict=f"{NOT_TESTABLE} ({rule['not_testable']})")
    tree = parse_predicate(rule, place)
    evaluate = _Evaluator(metric, paper_number)
    try:
        outcome = evaluate(tree.body)
    except NotMeasured as missing:
        return Verdict(**base, verdict=f"{NOT_TESTABLE} ({missing})", predicate=rule, used=evaluate.used)
    except ZeroDivisionError:
        return Verdict(**base, verdict=f"{NOT_TESTABLE} (it divides by a measured zero)", predicate=rule)
    except TypeError as error:
        raise InputError(f"{place}: {rule!r} mixes kinds of values: {error}") from None
    detail = ", ".join(f"{name} = {_short(value)}" for name, value in evaluate.used.items())
    return Verdict(**base, verdict=HOLDS if outcome else FAILS, detail=detail, predicate=rule, used=evaluate.used)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_short, value[:8])) + (", ..." if len(value) > 8 else "") + "]"
    return str(value)
