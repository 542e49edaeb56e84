"""A grid of fine-tunings: points x seeds, each cell run once, and the best point on dev.

A cell is one fine-tuning; its result is one JSON file that appears when it is finished and is never computed again. Any
number of processes may work on the same grid (several shells, a Hydra multirun, `launch=torchrun` with a process per
GPU): a cell is claimed by a lock that the operating system frees when its process dies.
"""

import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mlm_masking.finished import read_finished, write_finished
from shared import InputError

log = logging.getLogger(__name__)

AXES = ("lr", "batch_size", "epochs")
POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Point:
    """One choice of hyper-parameters."""

    lr: float
    batch_size: int
    epochs: int

    @property
    def name(self) -> str:
        return f"lr{self.lr:g}-bs{self.batch_size}-ep{self.epochs}"


@dataclass(frozen=True)
class Cell:
    """One fine-tuning: a point and a seed."""

    point: Point
    seed: int

    @property
    def name(self) -> str:
        return f"{self.point.name}/seed-{self.seed}"


def grid_points(grid: Mapping[str, Sequence[float]]) -> list[Point]:
    """Every combination, in the order lr, batch size, epochs. Raises InputError for an empty or unknown axis."""
    if unknown := sorted(set(grid) - set(AXES)):
        raise InputError(f"grid has an axis {unknown[0]!r}; its axes are {', '.join(AXES)}")
    for axis in AXES:
        values = grid.get(axis)
        if not values or isinstance(values, str) or len(set(values)) < len(values):
            raise InputError(f"grid.{axis}={values}: give a list of different values")
    return [
        Point(float(lr), int(size), int(epochs)) for lr, size, epochs in itertools.product(*(grid[a] for a in AXES))
    ]


def check_seeds(seeds: Sequence[int], field: str = "seeds") -> list[int]:
    """The seeds as a list. Raises InputError for none, or one given twice."""
    seeds = [seeds] if isinstance(seeds, int) else list(seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"{field}={seeds}: give at least one, each once")
    return seeds


class Cells:
    """The finished and unfinished cells in one folder.

    Args:
        folder: where the cells' files are.
        identity: cell -> everything that its result depends on; a file with another identity is refused.
    """

    def __init__(self, folder: Path, identity: Callable[[Cell], dict[str, Any]]):
        self.folder, self.identity = folder, identity

    def path(self, cell: Cell) -> Path:
        return self.folder / f"{cell.name}.json"

    def work_folder(self, cell: Cell) -> Path:
        """Where a cell keeps what is not its result: checkpoint, saved model, predictions."""
        return self.folder / cell.name

    def finished(self, cell: Cell) -> dict[str, Any] | None:
        """The cell's result, or None. Raises InputError where the file is of another run."""
        return read_finished(self.path(cell), self.identity(cell))

    def run(self, cells: Sequence[Cell], work: Callable[[Cell], dict[str, Any]]) -> dict[Cell, dict[str, Any]]:
        """The results of all cells: finished ones are read, free ones run here, claimed ones waited for."""
        for cell in cells:
            self.finished(cell)  # a folder of another run is found before hours are spent
        results: dict[Cell, dict[str, Any]] = {}
        while waiting := [cell for cell in cells if cell not in results]:
            progressed = False
            for cell in waiting:
                result = self._try(cell, work)
                if result is not None:
                    results[cell], progressed = result, True
            if not progressed:
                time.sleep(POLL_SECONDS)
        return results

    def _try(self, cell: Cell, work: Callable[[Cell], dict[str, Any]]) -> dict[str, Any] | None:
        """The cell's result, computed now if nobody else is at it; None where somebody is."""
        if (result := self.finished(cell)) is not None:
            return result
        path = self.path(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        try:
            result = self.finished(cell)
            if result is None:
                log.info("cell %s", cell.name)
                result = work(cell)
                write_finished(path, self.identity(cell), result)
            # Only now: whoever has opened the old lock file, or makes a new one, finds the cell finished.
            Path(lock.lock_file).unlink(missing_ok=True)
            return result
        finally:
            lock.release()


def mean_score(results: Sequence[dict[str, Any]]) -> float:
    """The mean of the cells' scores; minus infinity where one of them has diverged."""
    scores = [result["score"] for result in results]
    return float("-inf") if None in scores else sum(scores) / len(scores)


def best_point(points: Sequence[Point], seeds: Sequence[int], results: Mapping[Cell, dict[str, Any]]) -> Point:
    """The point with the highest mean score over seeds; of equals the first in the grid's order.

    Raises:
        InputError: every point has diverged with some seed.
    """
    means = {point: mean_score([results[Cell(point, seed)] for seed in seeds]) for point in points}
    best = max(points, key=lambda point: means[point])
    if means[best] == float("-inf"):
        raise InputError("every point of the grid diverged with some seed: add a lower lr")
    return best


def search(
    cells: Cells,
    points: Sequence[Point],
    seeds: Sequence[int],
    search_seeds: Sequence[int] | None,
    work: Callable[[Cell], dict[str, Any]],
) -> tuple[Point, dict[Cell, dict[str, Any]]]:
    """Run the grid; returns the best point and every cell's result.

    Args:
        search_seeds: the seeds every point is tried with; the best point is then run with the rest of `seeds`. None is
            all of them, the unbiased and dearer way.
    """
    trial = check_seeds(seeds if search_seeds is None else search_seeds, "search_seeds")
    results = cells.run([Cell(point, seed) for point in points for seed in trial], work)
    best = best_point(points, trial, results)
    results |= cells.run([Cell(best, seed) for seed in seeds], work)
    return best, results
