"""How much is corrupted, how much is predicted, and how that changes over a run (paper, section 4).

Masking at rate m does two things at once: it hides m of the context, and it asks for m of the tokens. Apart:

- m_pred < m_corr: hide m_corr, take the loss on a part of it;
- m_pred > m_corr: c = ceil(m_pred / m_corr) copies of the sequence, each with another m_corr of it hidden, no token in
  two of them, all in one update. That costs c times the compute; a comparison at equal updates is not one at equal
  cost.

A rate is a number, or a schedule over the run such as `linear(0.30->0.15)`.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

from shared import InputError

SHAPES = ("linear", "cosine", "step")
SCHEDULE = re.compile(r"\s*(\w+)\s*\(\s*([^\s>@]+)\s*->\s*([^\s>@]+?)\s*(?:@\s*([^\s>@]+?)\s*)?\)\s*")
HOW = "give a number such as 0.4, or a schedule such as linear(0.30->0.15), cosine(0.30->0.15) or step(0.30->0.15@0.5)"
# ceil(0.45 / 0.15) must be 3 although the quotient is 3.0000000000000004
RATIO_SLACK = 1e-9


def check_rate(name: str, rate: Any, may_be_one: bool = False) -> float:
    """The rate as a float. Raises InputError where it is not in (0, 1), or (0, 1] if `may_be_one`."""
    fits = (isinstance(rate, int | float) and not isinstance(rate, bool) and 0 < rate < 1) or (may_be_one and rate == 1)
    if not fits:
        span = "above 0 and at most 1" if may_be_one else "between 0 and 1, both excluded"
        percent = f" ({rate} % is {rate / 100:g})" if isinstance(rate, int | float) and 1 < rate < 100 else ""
        raise InputError(f"{name}={rate} is not a rate: give a number {span}{percent}")
    return float(rate)


@dataclass(frozen=True)
class Schedule:
    """A rate over a run. `at` takes the share of the run that is done, in [0, 1]."""

    first: float
    last: float
    shape: str = "linear"
    change_at: float = 0.5  # of `step` only

    def at(self, progress: float) -> float:
        done = min(max(float(progress), 0.0), 1.0)
        if self.shape == "step":
            done = float(done >= self.change_at)
        elif self.shape == "cosine":
            done = 0.5 - 0.5 * math.cos(math.pi * done)
        return self.first + (self.last - self.first) * done if 0 < done < 1 else (self.last if done else self.first)

    @property
    def constant(self) -> bool:
        return self.first == self.last


def read_schedule(name: str, value: Any, may_be_one: bool = False) -> Schedule:
    """`0.4` or `linear(0.30->0.15)` as a Schedule.

    Raises:
        InputError: neither, or a rate out of range; `name` is the field that the message names.
    """
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return _read_shape(name, value, may_be_one)
    rate = check_rate(name, value, may_be_one)
    return Schedule(rate, rate)


def _read_shape(name: str, text: str, may_be_one: bool) -> Schedule:
    found = SCHEDULE.fullmatch(text)
    if found is None or found[1] not in SHAPES or (found[4] is not None and found[1] != "step"):
        raise InputError(f"{name}={text!r} is not a rate: {HOW}")
    try:
        first, last, change_at = float(found[2]), float(found[3]), float(found[4] or 0.5)
    except ValueError:
        raise InputError(f"{name}={text!r} is not a rate: {HOW}") from None
    if not 0 < change_at < 1:
        raise InputError(f"{name}={text!r}: the step is at {change_at}; give a share of the run between 0 and 1")
    return Schedule(check_rate(name, first, may_be_one), check_rate(name, last, may_be_one), found[1], change_at)


def copies_needed(corruption: float, prediction: float) -> int:
    """How often a sequence enters the update: ceil(m_pred / m_corr), at least once."""
    return max(1, math.ceil(prediction / corruption - RATIO_SLACK))


@dataclass(frozen=True)
class Rates:
    """Corruption and prediction rate over a run; equal in ordinary masked language modelling.

    Args:
        max_copies: the most copies of a sequence that an update may hold.
    Raises:
        InputError: the rates need more copies than that, somewhere in the run.
    """

    corruption: Schedule
    prediction: Schedule
    max_copies: int = 1

    def __post_init__(self) -> None:
        for progress in (step / 1000 for step in range(1001)):
            corruption, prediction = self.at(progress)
            if (copies := copies_needed(corruption, prediction)) > self.max_copies:
                raise InputError(
                    f"rates.prediction={prediction:g} with rates.corruption={corruption:g} needs {copies} copies of "
                    f"every sequence, and rates.max_copies={self.max_copies}: raise it (the compute grows with it), "
                    f"or predict at most {min(1.0, corruption * self.max_copies):g}"
                )

    @classmethod
    def tied(cls, rate: float | str) -> "Rates":
        schedule = read_schedule("rate", rate)
        return cls(schedule, schedule)

    def at(self, progress: float = 0.0) -> tuple[float, float]:
        """(corruption, prediction) when `progress` (0 to 1) of the run is done."""
        return self.corruption.at(progress), self.prediction.at(progress)

    @property
    def decoupled(self) -> bool:
        return self.corruption != self.prediction

    @property
    def largest(self) -> float:
        """The highest rate of the run, of the two."""
        return max(each for rate in (self.corruption, self.prediction) for each in (rate.first, rate.last))


def edges(corruption: float, prediction: float) -> list[float]:
    """The rates at which one copy's corrupted set ends and the next one's begins: 0, m_corr, 2 m_corr, ..., m_pred."""
    copies = copies_needed(corruption, prediction)
    return [0.0, *(corruption * number for number in range(1, copies)), max(prediction, corruption)]
