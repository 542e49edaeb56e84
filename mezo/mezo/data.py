"""From files to the examples of a run: parquet and JSON lines, and who is in train, dev and test (MeZO, section 3.2).

    permutation of the training file under the seed:   the first num_train + num_dev are taken, the last num_dev are dev
    permutation of the validation file, same seed:     the first num_test are the test set

Whether a file comes from a mirror, the cache or the hub is `shared.hub`'s matter; `data_dir` names a folder instead,
with files or folders called train and validation.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mezo.tasks import HOUSE, Sample, Task
from shared import InputError, hub

log = logging.getLogger(__name__)

PAPER = "mezo"
SPLITS = ("train", "validation")
SUFFIXES = (".parquet", ".jsonl", ".json")
DEMONSTRATION_SEEDS = 10_000


@dataclass(frozen=True)
class Splits:
    """Train, dev and test of a run; `pool`: the whole training file, which demonstrations are drawn from."""

    train: list[Sample]
    dev: list[Sample]
    test: list[Sample]
    pool: list[Sample]


def load_splits(
    task: Task,
    *,
    num_train: int = 1000,
    num_dev: int | None = None,
    num_test: int = 1000,
    seed: int = 0,
    data_dir: str | Path | None = None,
) -> Splits:
    """The examples of a run.

    Args:
        num_dev: None for the task's own (500; CB and COPA 100). num_test: at most so many.
        seed: of the choice (`train_set_seed` of the release).
        data_dir: a folder with train and validation files of this task, or with a folder named after it.
    Raises:
        InputError: no such file, a row that does not fit the task, or no training example left beside num_dev.
    """
    num_dev = task.num_dev if num_dev is None else num_dev
    for name, value in (("num_train", num_train), ("num_dev", num_dev), ("num_test", num_test)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InputError(f"{name}={value!r}: give a whole number, 0 or more")
    pool, valid = (samples(task, split, data_dir) for split in SPLITS)
    if num_train and len(pool) <= num_dev:
        raise InputError(
            f"task={task.name}: num_dev={num_dev} of {len(pool)} training examples leaves none to train on"
        )
    chosen = subset(pool, seed, num_train + num_dev)
    cut = max(0, len(chosen) - num_dev)
    if cut < num_train:
        log.warning("%s: %d training examples remain beside num_dev=%d, not %d", task.name, cut, num_dev, num_train)
    return Splits(chosen[:cut], chosen[cut:], subset(valid, seed, num_test), pool)


def subset(rows: Sequence[Sample], seed: int, count: int) -> list[Sample]:
    """`count` of the rows (all, if there are fewer) in the order of numpy's permutation under `seed`."""
    return [rows[number] for number in np.random.RandomState(seed).permutation(len(rows))[:count]]


def demonstrations(
    splits: Splits, count: int, items: int, *, shared: bool = False, seed: int = 0
) -> list[list[Sample]]:
    """Demonstrations for each of `items` test examples.

    Args:
        shared: the same for all, drawn under `seed`; else a set of its own for each, its seed drawn under 0 (the
            release's in-context learning).
    Raises:
        InputError: fewer training examples than `count`.
    """
    if count < 1:
        return [[] for _ in range(items)]
    if len(splits.pool) < count:
        raise InputError(f"num_demos={count}: the training file has {len(splits.pool)} examples; lower num_demos")
    if shared:
        return [subset(splits.pool, seed, count)] * items
    seeds = np.random.RandomState(0).randint(0, DEMONSTRATION_SEEDS, items)
    return [subset(splits.pool, int(one), count) for one in seeds]


# -------------------------------------------------------------------------------------------------------------- files


def samples(task: Task, split: str, data_dir: str | Path | None = None) -> list[Sample]:
    """All examples of a split in the order of its files."""
    if task.source == HOUSE and data_dir is None:
        from mezo.offline_tasks import house_rows  # late: it reads packages

        rows = house_rows(task.name, split)
        return [task.sample(row, f"{task.name}, {split}, row {number}") for number, row in enumerate(rows)]
    found = []
    for path in split_files(task, split, data_dir):
        found += [task.sample(row, f"{path}, row {number}") for number, row in enumerate(read_rows(path))]
    if not found:
        raise InputError(f"task={task.name}: {split} has no examples")
    return found


def split_files(task: Task, split: str, data_dir: str | Path | None = None) -> list[Path]:
    """The files of a split: those that are called so, or lie in a folder that is."""
    if data_dir is None:
        root = hub.locate(PAPER, task.source)
        patterns = [pattern for pattern in hub.source(PAPER, task.source).files if f"/{split}" in pattern]
        found = sorted(path for pattern in patterns for path in root.glob(pattern))
    else:
        root = Path(data_dir).expanduser()
        root = root / task.name if (root / task.name).is_dir() else root
        if not root.is_dir():
            raise InputError(f"data_dir={data_dir} is not a folder")
        found = sorted(
            path
            for path in root.rglob("*")
            if path.suffix in SUFFIXES and any(part.startswith(split) for part in path.relative_to(root).parts)
        )
    if not found:
        raise InputError(f"task={task.name}: no {split}*.parquet or {split}*.jsonl in {root}")
    return found


def read_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a parquet file, or of JSON lines; raises InputError naming the file and the line."""
    if path.suffix == ".parquet":
        import pyarrow.parquet
        from pyarrow import ArrowException

        try:
            yield from pyarrow.parquet.read_table(path).to_pylist()
        except (ArrowException, OSError) as error:
            raise InputError(f"{path} is not a parquet file: {error}") from None
        return
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}, line {number}: not JSON ({error})") from None
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {number}: {line[:60]!r} is not an object")
            yield row
