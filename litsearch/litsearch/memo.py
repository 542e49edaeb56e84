"""A dictionary that computes what it does not hold, and starts over when it is full."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Key, Value = TypeVar("Key"), TypeVar("Value")


class Memo(dict[Key, Value]):
    """`memo[key]` is `compute(key)`, computed once; a hit costs one dictionary look-up, without a Python call.

    Emptied when it holds `limit` entries: in text the frequent ones are back at once, which keeps memory bounded for
    the price of a counter instead of an order of use.
    """

    def __init__(self, compute: Callable[[Key], Value], limit: int):
        super().__init__()
        self.compute, self.limit = compute, limit

    def __missing__(self, key: Key) -> Value:
        if len(self) >= self.limit:
            self.clear()
        value = self[key] = self.compute(key)
        return value
