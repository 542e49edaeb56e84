"""Fine-tune a pre-trained encoder on a GLUE task: one point, several seeds, or the paper's grid.

    python -m mlm_masking.finetune task=sst2 ckpt=runs/mlm-masking/laptop/<name>/model
    python -m mlm_masking.finetune task=rte ckpt=efficient_mlm_m0.40 evaluation=paper     # the grid, three seeds
    python -m mlm_masking.finetune -m evaluation=table_c                                 # a table of the paper
    python -m mlm_masking.finetune task=file ckpt=... data.train=train.csv data.dev=dev.csv task.labels=[no,yes]

All weights are trained and the last state is scored; head, schedule and optimiser are the release's (`fitting.py`,
`classification.py`). Batches are laid without padding (`padding_free.py`). Every cell (point, seed) is finished once
and kept (`grid.py`), and a killed one goes on from its last checkpoint.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from mlm_masking import glue
from mlm_masking.classification import finetune, prepare
from mlm_masking.encoders import model_name
from mlm_masking.fitting import Checkpoint, Settings
from mlm_masking.grid import Cell, Point
from mlm_masking.grid_run import GridRun, experiment_name, plain, print_grid, settings_of
from shared import InputError
from shared.launch import entrypoint
from shared.results import Run, is_main_process, over_seeds
from shared.training import run_folder

__all__ = ["finetune", "main", "prepare"]

PAPER = "mlm-masking"
IDENTITY = ("max_length", "pooler_dropout", "save_model")


class TaskGrid(GridRun):
    """The cells of one task's fine-tuning."""

    def __init__(self, cfg: DictConfig, folder: Path):
        self.task = glue.task_of(cfg.task)
        data = {"data_options": plain(cfg.data), "predict": plain(cfg.predict)}
        super().__init__(cfg, folder, self.task.grid, {"task": self.task.name, **data, **{k: cfg[k] for k in IDENTITY}})
        options = {"max_length": cfg.max_length, "predict": plain(cfg.predict)}
        self.prepared = prepare(self.model, self.task, **plain(cfg.data), **options)
        self.fixed |= {"data": self.prepared.origin, "examples": len(self.prepared.train)}

    def train(self, settings: Settings, seed: int, checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
        return finetune(
            self.model,
            self.task,
            seed=seed,
            settings=settings,
            prepared=self.prepared,
            pooler_dropout=self.cfg.pooler_dropout,
            device=self.device,
            checkpoint=checkpoint,
            save_to=folder / "model" if self.cfg.save_model or self.cfg.predict else None,
            progress=self.cfg.progress,
        )


def summary(grid: TaskGrid, best: Point, results: Mapping[Cell, dict[str, Any]]) -> dict[str, Any]:
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


@entrypoint(config_path="../configs", config_name="finetune")
def main(cfg: DictConfig) -> None:
    """Fine-tune on one task."""
    settings_of(cfg)  # numbers out of range are found before anything is read
    name, cells_name = experiment_name(cfg, "finetune", str(cfg.task.name))
    grid = TaskGrid(cfg, run_folder(PAPER, cfg.scale, cells_name, cfg.output_dir))
    run = Run(PAPER, name, cfg.scale, cfg.output_dir, config=cfg, seed=grid.seeds)
    best, results = grid.run()
    run.metrics |= summary(grid, best, results)
    if is_main_process():
        console = Console()
        print_grid(
            f"{grid.task.title}: {grid.task.metric} x 100 on {grid.prepared.origin}", 100, grid, best, results, console
        )
        run.finish(console)


if __name__ == "__main__":
    main()
