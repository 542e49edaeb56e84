"""LLMBar's protocol: every judge is asked twice, with the outputs in both orders, and scored on accuracy and agreement.

Winners name *data* outputs ("1", "2", or None for an answer without a winner), whatever letter they had in the
prompt. With labels y and winners w_F (given order) and w_T (swapped order) over the n instances of a set:

    Acc. = 100 (#(w_F = y) + #(w_T = y)) / 2n          Agr. = 100 #(w_F = w_T) / n

None is never right, but None = None counts as agreement, as in the release. Averages over sets are unweighted means
of the unrounded values, never pooled over instances: a pooled Adversarial average would weigh Neighbor (134) three
times Manual (46).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

WINNERS = ("1", "2", None)
_MIRROR = {"1": "2", "2": "1", None: None}


def mirror(winner: str | None) -> str | None:
    """From a position in the swapped prompt to the data output shown there: 1 and 2 change places, None stays."""
    return _MIRROR[winner]


def compare(value_1: float | None, value_2: float | None) -> tuple[str, str]:
    """Winners in both orders from one value per output (a rating, a reward, a length).

    The release's rule: given order "1" if value_1 > value_2 else "2"; swapped order "2" if value_2 > value_1 else
    "1". So a tie ("hedging") yields "2" and "1": exactly half a point and no agreement. A missing value is treated
    like a tie; which of the two mirrored answers it then gives in which order cannot be seen in any score except the
    two orders' own counts, and there the release has "1" and "2".
    """
    if value_1 is None or value_2 is None:
        return "1", "2"
    return ("1" if value_1 > value_2 else "2"), ("2" if value_2 > value_1 else "1")


@dataclass(frozen=True)
class Cell:
    """One judge with one strategy on one set. Counts are instances, except `unparsed`: answers, out of 2n."""

    n: int
    correct_given: int
    correct_swapped: int
    correct_both: int
    equal: int
    unparsed: int
    accuracy: float  # percent
    agreement: float  # percent
    kappa: dict[str, float | None]
    legacy_kappa: dict[str, float | None]

    def __getitem__(self, name: str) -> object:
        return getattr(self, name)

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def score(
    winners_given: Sequence[str | None], winners_swapped: Sequence[str | None], labels: Sequence[int | str]
) -> Cell:
    """Score one set. All three sequences have n entries; winners are "1", "2" or None, labels 1 or 2.

    Raises ValueError for sequences of different lengths, no instances, or anything that is not a winner or a label.
    """
    n = len(labels)
    if not (len(winners_given) == len(winners_swapped) == n):
        raise ValueError(
            f"winners and labels must have the same length, not {len(winners_given)}, {len(winners_swapped)} and {n}"
        )
    if n == 0:
        raise ValueError("a set without instances has no accuracy")
    given, swapped, gold = (
        _codes(winners_given, "winners_given"),
        _codes(winners_swapped, "winners_swapped"),
        _gold(labels),
    )
    right_given, right_swapped = given == gold, swapped == gold
    correct_given, correct_swapped = int(right_given.sum()), int(right_swapped.sum())
    equal = int((given == swapped).sum())
    return Cell(
        n=n,
        correct_given=correct_given,
        correct_swapped=correct_swapped,
        correct_both=int((right_given & right_swapped).sum()),
        equal=equal,
        unparsed=int((given == 0).sum() + (swapped == 0).sum()),
        # In this order of operations the floats equal the released ones bit for bit (100 * x / n does not).
        accuracy=(correct_given + correct_swapped) / (2 * n) * 100,
        agreement=equal / n * 100,
        kappa=_kappas(given, swapped, gold),
        # The release maps "1" to 1 and *everything else* to 0, so a right "2" never meets label 2. Kept for bit
        # comparison only.
        legacy_kappa=_kappas(np.where(given == 1, 1, 0), np.where(swapped == 1, 1, 0), gold),
    )


def points(
    winners_given: Sequence[str | None], winners_swapped: Sequence[str | None], labels: Sequence[int | str]
) -> np.ndarray:
    """(n,) each instance's share of right answers over the two orders, 0, 0.5 or 1: what bootstraps resample."""
    gold = _gold(labels)
    return (
        (_codes(winners_given, "winners_given") == gold)
        + (_codes(winners_swapped, "winners_swapped") == gold).astype(int)
    ) / 2


def macro_average(values: Iterable[float]) -> float:
    """Unweighted mean of the sets' unrounded values (LLMBar, table 2: Adversarial over 4 sets, Average over 5)."""
    listed = list(values)
    if not listed:
        raise ValueError("no sets to average over")
    return sum(listed) / len(listed)


def cohen_kappa(first: np.ndarray, second: np.ndarray) -> float | None:
    """Cohen's kappa of two codings, in scikit-learn's order of operations (equal bit for bit, without its import).

    None where it is undefined: both coders used one and the same code throughout.
    """
    codes = np.union1d(first, second)
    table = np.zeros((len(codes), len(codes)))
    np.add.at(table, (np.searchsorted(codes, first), np.searchsorted(codes, second)), 1)
    expected = np.outer(table.sum(axis=0), table.sum(axis=1)) / table.sum()
    different = 1 - np.eye(len(codes))
    chance = np.sum(different * expected)
    return None if chance == 0 else float(1 - np.sum(different * table) / chance)


def _kappas(given: np.ndarray, swapped: np.ndarray, gold: np.ndarray) -> dict[str, float | None]:
    label_given, label_swapped = cohen_kappa(given, gold), cohen_kappa(swapped, gold)
    both = label_given is not None and label_swapped is not None
    return {
        "given": label_given,
        "swapped": label_swapped,
        "average": (label_given + label_swapped) / 2 if both else None,
        "orders": cohen_kappa(given, swapped),
    }


def _codes(winners: Sequence[str | None], name: str) -> np.ndarray:
    """(n,) 1, 2, or 0 for no winner."""
    codes = {"1": 1, "2": 2, None: 0}
    try:
        return np.array([codes[winner] for winner in winners], dtype=np.int8)
    except (KeyError, TypeError):
        bad = next(w for w in winners if not (w is None or isinstance(w, str)) or w not in codes)
        raise ValueError(f'{name}: {bad!r} is not a winner; use "1", "2" or None') from None


def _gold(labels: Sequence[int | str]) -> np.ndarray:
    codes = {1: 1, 2: 2, "1": 1, "2": 2}
    bad = [label for label in labels if isinstance(label, bool) or label not in codes]
    if bad:
        raise ValueError(f"labels: {bad[0]!r} is not a label; use 1 or 2 (the better output)")
    return np.array([codes[label] for label in labels], dtype=np.int8)
