"""A grid of fine-tunings from its configuration: points, seeds and settings, and what every cell shares."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from mlm_masking.encoders import locate_model, model_name
from mlm_masking.fitting import Checkpoint, Diverged, Settings
from mlm_masking.grid import Cell, Cells, Point, check_seeds, grid_points, mean_score, search
from mlm_masking.weight_files import fingerprint
from shared import InputError

log = logging.getLogger(__name__)


def plain(value: Any) -> Any:
    """A part of a configuration as plain Python."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def settings_of(cfg: DictConfig, point: Point | None = None) -> Settings:
    """The hyper-parameters of a configuration, at a point of its grid. Raises InputError for one out of range."""
    values = {name: cfg[name] for name in Settings.__dataclass_fields__}
    settings = Settings(**{**values, "betas": tuple(cfg.betas)})
    return settings if point is None else replace(settings, **asdict(point))


class GridRun:
    """The cells of one configuration. Subclasses say how one of them is trained.

    Args:
        cfg: with lr, batch_size, epochs, grid, seed, seeds, search_seeds, ckpt, device, checkpoint_every.
        folder: where the cells go, below `cells/`.
        own_grid: the grid that `grid=task` stands for.
        fixed: what every cell's result depends on besides the model, the point and the seed.

    Raises:
        InputError: a grid, seed or setting that cannot be used.
    """

    def __init__(self, cfg: DictConfig, folder: Path, own_grid: Mapping[str, Sequence], fixed: dict[str, Any]):
        self.cfg = cfg
        if cfg.grid not in (None, "task") and not OmegaConf.is_dict(cfg.grid):
            wanted = "{lr: [...], batch_size: [...], epochs: [...]}"
            raise InputError(f"grid={cfg.grid}: give null (one point), task, or {wanted}")
        one = Point(float(cfg.lr), int(cfg.batch_size), int(cfg.epochs))
        self.points = [one] if cfg.grid is None else grid_points(own_grid if cfg.grid == "task" else plain(cfg.grid))
        self.seeds = check_seeds(cfg.seed if cfg.seeds is None else cfg.seeds)
        self.settings = {point: settings_of(cfg, point) for point in self.points}
        self.model = str(cfg.ckpt)
        self.fixed = {"model": fingerprint(locate_model(self.model)), **fixed}
        self.cells = Cells(folder / "cells", self.identity)

    @property
    def device(self) -> str:
        """`cfg.device`, else this process's GPU where a launcher started several, else the default."""
        if self.cfg.device:
            return self.cfg.device
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"

    def identity(self, cell: Cell) -> dict[str, Any]:
        """Everything that a cell's result depends on."""
        return {**self.fixed, "seed": cell.seed, **asdict(self.settings[cell.point])}

    def train(self, settings: Settings, seed: int, checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
        """Train one cell: {"score": ..., ...}. `folder` is for what it keeps beside its result."""
        raise NotImplementedError

    def work(self, cell: Cell) -> dict[str, Any]:
        """Train one cell; that it diverged is a result too."""
        folder = self.cells.work_folder(cell)
        checkpoint = Checkpoint(folder / "checkpoint.pt", self.identity(cell), self.cfg.checkpoint_every)
        try:
            result = self.train(self.settings[cell.point], cell.seed, checkpoint, folder)
        except Diverged as error:
            log.warning("%s: %s", cell.name, error)
            result = {"score": None, "diverged": str(error)}
        checkpoint.remove()
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        return result

    def run(self) -> tuple[Point, dict[Cell, dict[str, Any]]]:
        """The best point, and every cell's result. Raises InputError where the best point's cells all diverged."""
        return search(self.cells, self.points, self.seeds, self.cfg.search_seeds, self.work)


def print_grid(
    title: str,
    scale_by: float,
    grid: GridRun,
    best: Point,
    results: Mapping[Cell, dict[str, Any]],
    console: Console,
) -> None:
    """Mean score of every point, the best one in bold."""
    table = Table(title=title, title_justify="left")
    for name in ("lr", "batch", "epochs", "mean", "seeds"):
        table.add_column(name, justify="right")
    for point in grid.points:
        found = [result for cell, result in results.items() if cell.point == point]
        mean = mean_score(found)
        shown = "diverged" if mean == float("-inf") else f"{scale_by * mean:.2f}"
        row = (f"{point.lr:g}", str(point.batch_size), str(point.epochs), shown, str(len(found)))
        table.add_row(*row, style="bold" if point == best else None)
    console.print(table)


def experiment_name(cfg: DictConfig, verb: str, task: str) -> tuple[str, str]:
    """(results' name, cells' name): a single run has results of its own, and shares its cell with the grid."""
    if cfg.name:
        return cfg.name, cfg.name
    together = f"{verb}_{model_name(cfg.ckpt)}" + (f"_{task}" if task else "")
    if cfg.grid is not None or cfg.seeds is not None:
        return together, together
    point = Point(float(cfg.lr), int(cfg.batch_size), int(cfg.epochs))
    return f"{together}_{point.name}_seed{cfg.seed}", together
