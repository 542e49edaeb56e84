"""Judges without a model: prefer the longer output, or the shorter.

They show why the Adversarial half is adversarial: "longer is better" is right in 55 % of Natural and in 13 % of
Neighbor, because the wrong outputs were chosen for looking better. Words are what `str.split` gives; equal lengths
are a tie.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmbar.data import Instance


def word_counts(instances: Sequence[Instance]) -> np.ndarray:
    """(n, 2) words of output_1 and output_2."""
    counts = [(len(one.output_1.split()), len(one.output_2.split())) for one in instances]
    return np.array(counts, dtype=float).reshape(-1, 2)


def longer(instances: Sequence[Instance]) -> np.ndarray:
    """(n, 2) values of a judge that prefers the longer output."""
    return word_counts(instances)


def shorter(instances: Sequence[Instance]) -> np.ndarray:
    """(n, 2) values of a judge that prefers the shorter output."""
    return -word_counts(instances)
