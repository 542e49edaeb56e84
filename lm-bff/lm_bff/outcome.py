"""What a trial measured: outputs, predictions, metrics; and the majority baseline, which needs no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lm_bff.data import Example, class_numbers
from lm_bff.metrics import compute
from lm_bff.settings import TrialSettings
from lm_bff.tasks import Task
from shared import InputError


@dataclass
class TrialResult:
    """What a trial measured.

    dev, test: metrics (0..1), test by the name of the test set. dev_score: the metric that dev selects on.
    dev_outputs, test_outputs: (n, classes) mean logits over the draws, or (n, 1) scores of a regression.
    best_step: update whose weights were tested, None without training. history: dev score and mean training loss of
    every evaluation. seconds: wall time of the parts.
    """

    task: str
    settings: TrialSettings
    dev: dict[str, float]
    test: dict[str, dict[str, float]]
    dev_outputs: np.ndarray
    test_outputs: dict[str, np.ndarray]
    best_step: int | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    metric: str = "acc"

    @property
    def dev_score(self) -> float | None:
        """The dev metric that trials are chosen by; None without a dev set."""
        return self.dev.get(self.metric)

    def record(self) -> dict[str, Any]:
        """Plain values for a line of the store; outputs are left out."""
        return {
            "task": self.task,
            "method": self.settings.method,
            "seed": self.settings.seed,
            "settings": self.settings.as_dict(),
            "metric": self.metric,
            "dev": self.dev,
            "test": self.test,
            "best_step": self.best_step,
            "history": self.history,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }


def majority(
    task: Task, train: Sequence[Example], dev: Sequence[Example], tests: Mapping[str, Sequence[Example]], settings
) -> TrialResult:
    """Always the most frequent class of the full training set (the task's `majority`), else of `train`."""
    if task.regression:
        raise InputError(f"method=majority is not defined for {task.name}, whose labels are scores")
    label = task.majority
    if label is None:
        label = Counter(example.label for example in train).most_common(1)[0][0]
    column = np.zeros(len(task.labels), dtype=np.float32)
    column[task.labels.index(label)] = 1.0
    outputs = {name: np.tile(column, (len(examples), 1)) for name, examples in {"": dev, **tests}.items()}
    dev_outputs = outputs.pop("")
    return TrialResult(
        task.name,
        settings,
        measure(task, dev_outputs, dev) if dev else {},
        {name: measure(task, outputs[name], tests[name]) for name in tests},
        dev_outputs,
        outputs,
        metric=task.metric,
    )


def predictions(task: Task, outputs: np.ndarray) -> np.ndarray:
    """(n, classes) outputs -> (n,) class numbers, or scores of a regression. Ties go to the first class."""
    return outputs[:, 0] if task.regression else outputs.argmax(axis=1)


def measure(task: Task, outputs: np.ndarray, examples: Sequence[Example]) -> dict[str, float]:
    """The task's metrics of outputs against gold labels."""
    return compute(task.metrics, predictions(task, outputs), np.asarray(class_numbers(task, examples)))
