"""Fine-tune a pre-trained encoder on a GLUE task: one point, several seeds, or the paper's grid.

    python -m mlm_masking.finetune task=sst2 model=runs/mlm-masking/laptop/tiny/model
    python -m mlm_masking.finetune task=rte model=efficient_mlm_m0.40 grid=task seeds=[1,2,3] scale=paper
    python -m mlm_masking.finetune task=file model=... data.train=train.csv data.dev=dev.csv task.labels=[no,yes]

All weights are trained and the last state is scored; head, schedule and optimiser are the release's (`fitting.py`,
`classification.py`). Batches are laid without padding (`padding_free.py`). Every cell (point, seed) is finished once
and kept (`grid.py`), and a killed one goes on from its last checkpoint.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from mlm_masking import glue
from mlm_masking.classification import finetune, prepare
from mlm_masking.encoders import locate_model, model_name
from mlm_masking.fitting import Checkpoint, Diverged, Settings
from mlm_masking.grid import Cell, Cells, Point, check_seeds, grid_points, mean_score, search
from mlm_masking.weight_files import fingerprint
from shared import InputError
from shared.launch import entrypoint
from shared.results import Run, is_main_process, over_seeds
from shared.training import run_folder

__all__ = ["finetune", "main", "prepare"]

log = logging.getLogger(__name__)

PAPER = "mlm-masking"


def settings_of(cfg: DictConfig, point: Point | None = None) -> Settings:
    """The hyper-parameters of a configuration, at a point of its grid. Raises InputError for one out of range."""
    names = Settings.__dataclass_fields__
    values = {name: cfg[name] for name in names if name in cfg}
    values["betas"] = tuple(cfg.betas)
    settings = Settings(**values)
    return settings if point is None else replace(settings, **asdict(point))


class Grid:
    """The cells of one configuration, and the work of each."""

    def __init__(self, cfg: DictConfig, folder: Path):
        self.cfg, self.task = cfg, glue.task_of(cfg.task)
        own = Point(float(cfg.lr), int(cfg.batch_size), int(cfg.epochs))
        if cfg.grid not in (None, "task") and not OmegaConf.is_dict(cfg.grid):
            raise InputError(
                f"grid={cfg.grid}: give null (one point), task, or {{lr: [...], batch_size: [...], epochs: [...]}}"
            )
        self.points = [own] if cfg.grid is None else grid_points(self.task.grid if cfg.grid == "task" else cfg.grid)
        self.seeds = check_seeds(cfg.seed if cfg.seeds is None else cfg.seeds)
        self.settings = {point: settings_of(cfg, point) for point in self.points}
        self.model = str(cfg.model)
        self.model_digest = fingerprint(locate_model(self.model))
        self.prepared = prepare(
            self.model,
            self.task,
            **_plain(cfg.data),
            max_length=cfg.max_length,
            predict=_plain(cfg.predict),
        )
        self.cells = Cells(folder / "cells", self.identity)

    def identity(self, cell: Cell) -> dict[str, Any]:
        """Everything that a cell's result depends on."""
        kept = ("max_length", "pooler_dropout", "save_model")
        return {
            "model": self.model_digest,
            "task": self.task.name,
            "data": self.prepared.origin,
            "data_options": _plain(self.cfg.data),
            "examples": len(self.prepared.train),
            "predict": _plain(self.cfg.predict),
            "seed": cell.seed,
            **asdict(self.settings[cell.point]),
            **{name: self.cfg[name] for name in kept},
        }

    def work(self, cell: Cell) -> dict[str, Any]:
        """Fine-tune one cell; a diverged one is a result too."""
        folder = self.cells.work_folder(cell)
        checkpoint = Checkpoint(folder / "checkpoint.pt", self.identity(cell), self.cfg.checkpoint_every)
        keep = self.cfg.save_model or self.cfg.predict
        try:
            result = finetune(
                self.model,
                self.task,
                seed=cell.seed,
                settings=self.settings[cell.point],
                prepared=self.prepared,
                pooler_dropout=self.cfg.pooler_dropout,
                device=self.cfg.device or _device(),
                checkpoint=checkpoint,
                save_to=folder / "model" if keep else None,
                progress=self.cfg.progress,
            )
        except Diverged as error:
            log.warning("%s: %s", cell.name, error)
            result = {"score": None, "metrics": {}, "training": {}, "diverged": str(error)}
        checkpoint.remove()
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        return result

    def run(self) -> tuple[Point, dict[Cell, dict[str, Any]]]:
        return search(self.cells, self.points, self.seeds, self.cfg.search_seeds, self.work)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _device() -> str:
    """This process's GPU where a launcher started several, else the default."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def summary(grid: Grid, best: Point, results: Mapping[Cell, dict[str, Any]]) -> dict[str, Any]:
    """What goes into results.json: the best point's metrics over seeds, and every cell's score."""
    chosen = [results[Cell(best, seed)] for seed in grid.seeds]
    if any(one["score"] is None for one in chosen):
        raise InputError(f"{grid.task.title}: {next(one['diverged'] for one in chosen if one['score'] is None)}")
    metrics = {
        name: {metric: over_seeds([one["metrics"][name][metric] for one in chosen]) for metric in values}
        for name, values in chosen[0]["metrics"].items()
    }
    return {
        "task": grid.task.name,
        "metric": grid.task.metric,
        "score": over_seeds([one["score"] for one in chosen]),
        "metrics": metrics,
        "best": asdict(best),
        "cells": {cell.name: result["score"] for cell, result in results.items()},
        "training": chosen[0]["training"],
        "data": grid.prepared.origin,
        "lengths": grid.prepared.statistics(grid.cfg.trained_length),
        "model": model_name(grid.model),
    }


def print_grid(grid: Grid, best: Point, results: Mapping[Cell, dict[str, Any]], console: Console) -> None:
    """Mean score of every point (times 100), the best one marked."""
    table = Table(title=f"{grid.task.title}: {grid.task.metric} x 100 on {grid.prepared.origin}", title_justify="left")
    for name in ("lr", "batch", "epochs", "mean", "seeds"):
        table.add_column(name, justify="right")
    for point in grid.points:
        found = [results[Cell(point, seed)] for seed in grid.seeds if Cell(point, seed) in results]
        mean = mean_score(found)
        shown = "diverged" if mean == float("-inf") else f"{100 * mean:.2f}"
        row = (f"{point.lr:g}", str(point.batch_size), str(point.epochs), shown, str(len(found)))
        table.add_row(*row, style="bold" if point == best else None)
    console.print(table)


def experiment_name(cfg: DictConfig) -> tuple[str, str]:
    """(results' name, cells' name): single runs have results of their own, and share cells with the grid."""
    shared_name = f"finetune_{model_name(cfg.model)}_{cfg.task.name}"
    if cfg.experiment:
        return cfg.experiment, cfg.experiment
    if cfg.grid is not None or cfg.seeds is not None:
        return shared_name, shared_name
    point = Point(float(cfg.lr), int(cfg.batch_size), int(cfg.epochs))
    return f"{shared_name}_{point.name}_seed{cfg.seed}", shared_name


@entrypoint(config_path="../configs", config_name="finetune")
def main(cfg: DictConfig) -> None:
    """Fine-tune on one task."""
    settings_of(cfg)  # numbers out of range are found before anything is read
    name, cells_name = experiment_name(cfg)
    grid = Grid(cfg, run_folder(PAPER, cfg.scale, cells_name, cfg.output_dir))
    run = Run(PAPER, name, cfg.scale, cfg.output_dir, config=cfg, seed=grid.seeds)
    best, results = grid.run()
    run.metrics |= summary(grid, best, results)
    if is_main_process():
        console = Console()
        print_grid(grid, best, results, console)
        run.finish(console)


if __name__ == "__main__":
    main()
