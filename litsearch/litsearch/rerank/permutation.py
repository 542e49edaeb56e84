"""From a model's reply to an order of the papers it was shown.

Two readings. `compat` is the release's: every character that is not a digit becomes a space, what is left are numbers.
It reads "(GPT-4): [2] > [1]" as 4, 2, 1. `strict` takes only numbers that stand alone in square brackets, and falls
back to `compat` where there are none. Either way: numbers count from 1, a repeated one counts where it stands first,
one that names no shown paper is dropped, and papers that are not named follow in the order they had.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from shared import InputError

MODES = ("compat", "strict")
IDENTIFIER = re.compile(r"\[\s*(\d+)\s*\]")


@dataclass(frozen=True)
class Reading:
    """A reply, read.

    order: positions within the window, 0-based, every one exactly once.
    named: how many of them the reply named; missing: how many it did not.
    repeated, out_of_range: numbers in the reply that were dropped.
    fell_back: strict found nothing in brackets.
    """

    order: tuple[int, ...]
    named: int
    repeated: int
    out_of_range: int
    fell_back: bool = False

    @property
    def missing(self) -> int:
        return len(self.order) - self.named

    @property
    def unparsable(self) -> bool:
        """Nothing in the reply names a paper, so that the order is the one there was."""
        return self.named == 0


def read_reply(reply: str, size: int, mode: str = "compat") -> Reading:
    """Read a reply about `size` papers. Raises InputError for an unknown mode."""
    if mode not in MODES:
        raise InputError(f"parser={mode!r} is not one of {', '.join(MODES)}")
    numbers = IDENTIFIER.findall(reply) if mode == "strict" else []
    fell_back = mode == "strict" and not numbers
    if not numbers:
        numbers = "".join(c if c.isdigit() else " " for c in reply).split()
    order: dict[int, None] = {}
    repeated = out_of_range = 0
    for number in numbers:
        position = _position(number)
        if position is None or not 0 <= position < size:
            out_of_range += 1
        elif position in order:
            repeated += 1
        else:
            order[position] = None
    named = len(order)
    order |= dict.fromkeys(range(size))
    return Reading(tuple(order), named, repeated, out_of_range, fell_back)


def _position(number: str) -> int | None:
    """0-based; None for what isdigit calls a digit and int does not (superscripts), or int refuses to read (length)."""
    try:
        return int(number) - 1
    except ValueError:
        return None


def parse_permutation(reply: str, n: int, start: int, end: int, mode: str = "compat") -> list[int]:
    """The new order of n papers after a reply about those at positions start to end - 1.

    Args:
        reply: numbers count from 1 at `start`. n: papers in all; those outside of the window keep their places.
        mode: "compat" (the release's) or "strict".

    Returns: 0-based positions, best first, each of `range(n)` exactly once.

    Raises InputError for an unknown mode, or a window that is not within the papers.
    """
    if not 0 <= start <= end <= n:
        raise InputError(f"start={start}, end={end}: the window must lie within the {n} papers")
    order = read_reply(reply, end - start, mode).order
    return [*range(start), *(start + position for position in order), *range(end, n)]
