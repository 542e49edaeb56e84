"""Which papers a model is shown at once.

One window (the paper's way): all candidates; where they do not fit, the last fifth of them is left out and the rest
tried again, down to half of them (100, 80, 60). What is left out keeps its place behind the others.

Sliding windows (RankGPT, Sun et al. 2023): from the end of the list to its start, each `step` further up, so that a
relevant paper climbs from window to window. For models with short contexts.
"""

from __future__ import annotations

from shared import InputError

SHRINK = 5  # a fifth of the papers at a time
LEAST = 2  # nothing can be ordered below


def window_sizes(n: int) -> list[int]:
    """Sizes to try for n papers, in order: n, less floor(n / 5) each time, while at least floor(n / 2).

    For n < 5 the release subtracts 0 and tries for ever; here it is one paper at a time, down to a pair.
    """
    step = max(1, n // SHRINK)
    least = max(LEAST, n // 2)
    return list(range(n, least - 1, -step)) or [n]


def sliding_windows(n: int, size: int, step: int) -> list[tuple[int, int]]:
    """(start, end) of every window, in the order in which they are ranked: the last one first, the first starts at 0.

    Raises InputError for sizes and steps with which papers could not climb.
    """
    for name, value, least in (("window", size, LEAST), ("step", step, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name}={value!r}: give a whole number of at least {least}")
    if step >= size:
        raise InputError(f"step={step} must be smaller than window={size}: else windows do not overlap")
    windows, end = [], n
    while True:
        start = max(0, end - size)
        windows.append((start, end))
        if start == 0:
            return windows
        end -= step
