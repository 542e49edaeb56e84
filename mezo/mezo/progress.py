"""What a run keeps while it goes on: the order of batches, dev scores, a log of steps, cut to a step on resuming."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared import InputError
from shared.results import write_atomic
from shared.training import read_metrics

SELECTIONS = ("metric", "loss", "last")


class BatchOrder:
    """Rows of step k as a function of (seed, k): a permutation per epoch, its last batch may be small."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"batch_size={batch_size}: give a whole number, 1 or more")
        self.count, self.size, self.seed = count, min(batch_size, count), seed
        self.per_epoch = math.ceil(count / self.size)
        self._epoch, self._order = -1, np.empty(0, dtype=int)

    def rows(self, step: int) -> list[int]:
        """Example numbers of step `step` (from 0)."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.count)
        return self._order[place * self.size : (place + 1) * self.size].tolist()


def evaluation_steps(steps: int, every: int | None, family: str) -> list[int]:
    """Steps after which dev is measured; the last one always is."""
    if every is None:
        every = max(1, math.ceil(steps / (10 if family == "masked" else 5)))
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise InputError(f"eval_every={every}: give a whole number, 1 or more, or null")
    return sorted({*range(every, steps + 1, every), steps}) if steps else []


class JsonLines:
    """A file of JSON lines with a "step" each; `first`: whether this process writes."""

    def __init__(self, path: Path, first: bool) -> None:
        self.path, self.first, self.lines = path, first, read_metrics(path)

    def keep_until(self, step: int) -> None:
        """Drop lines of later steps: a resumed run writes them again."""
        self.lines = [line for line in self.lines if line["step"] <= step]
        if self.first:
            write_atomic(self.path, "".join(json.dumps(line) + "\n" for line in self.lines))

    def append(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        if self.first:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def best_step(lines: Sequence[dict[str, Any]], select: str, metric: str, steps: int) -> int:
    """The step whose weights are tested: best on dev (the first of equals), or the last."""
    if select not in SELECTIONS:
        raise InputError(f"select={select}: give one of auto, {', '.join(SELECTIONS)}")
    if select == "last" or not lines:
        return steps
    if select == "metric":
        return max(lines, key=lambda line: (line[metric], -line["step"]))["step"]
    return min(lines, key=lambda line: (line["loss"], line["step"]))["step"]


class Pace:
    """Seconds per step of what this process ran, evaluations left out."""

    def __init__(self) -> None:
        self.seconds, self.steps, self._begun = 0.0, 0, 0.0

    def __enter__(self) -> Pace:
        self._begun = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._begun
        self.steps += 1

    @property
    def per_step(self) -> float | None:
        return self.seconds / self.steps if self.steps else None
