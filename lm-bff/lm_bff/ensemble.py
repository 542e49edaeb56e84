"""Ensembles (section 7.2, Table 4 of the paper): one model per template, their outputs averaged.

Classes: the mean of the models' logits, then the largest. A regression: the mean of the predicted scores (the release
takes the largest of one column there, which is always the first).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lm_bff.data import Example
from lm_bff.outcome import measure
from lm_bff.tasks import Task
from shared import InputError


def average(outputs: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of the members' (n, classes) outputs. Raises InputError for none, or for different shapes."""
    if not outputs:
        raise InputError("ensemble: no members; give at least one template")
    shapes = {member.shape for member in outputs}
    if len(shapes) > 1:
        raise InputError(f"ensemble: members have outputs of shapes {sorted(shapes)}; were they tested on other data?")
    return np.mean(np.stack(outputs).astype(np.float64), axis=0)


def ensemble_metrics(task: Task, outputs: Sequence[np.ndarray], examples: Sequence[Example]) -> dict[str, float]:
    """The task's metrics of the averaged outputs."""
    return measure(task, average(outputs), examples)
