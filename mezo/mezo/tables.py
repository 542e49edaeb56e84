"""`python -m mezo.tables`: the paper's tables from the runs of configs/experiment, the best of each grid by dev.

A row of a table is one or more experiment files (`paper_tables.yaml` says which); their grids say which runs belong to
it. For every task and split the run with the best dev score is taken: the lowest loss for causal models, the highest
metric for masked ones (the first of equals), and a cell is the mean over the splits, times 100. A cell of which some
runs are missing is an error that lists them, never a mean over what is there; one of which none has been run stays
empty. results.json of the experiment `tables` has them as `tables.<table>.<row>.<column>`, by which paper.yaml's rows
and claims are judged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from shared import InputError
from shared.launch import entrypoint
from shared.plan import runs_of
from shared.results import Run, over_seeds
from shared.run_folders import runs_root

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SPECIFICATION = CONFIGS / "paper_tables.yaml"


@dataclass(frozen=True)
class Point:
    """One run of a grid: its folder's name, its task and split, and how its dev scores are compared."""

    name: str
    task: str
    split: int
    masked: bool
    selects: bool

    def score(self, metrics: dict[str, Any]) -> float:
        """The higher the better; 0 where there is nothing to select by."""
        if not self.selects:
            return 0.0
        return metrics["dev"][metrics["metric"]] if self.masked else -metrics["dev"]["loss"]


def read_specification() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(SPECIFICATION.read_text("utf-8"))["tables"]


def points(experiment: str) -> list[Point]:
    """Every run of an experiment file at scale paper."""
    GlobalHydra.instance().clear()
    return [
        Point(str(cfg.experiment), str(cfg.task), int(cfg.data.seed), cfg.family == "masked", cfg.trainer != "none")
        for cfg in runs_of(CONFIGS, experiment, ("scale=paper",))
    ]


def row_cells(experiments: Sequence[str], root: Path) -> dict[str, dict[str, Any]]:
    """Task -> over_seeds of the test scores x 100 of the runs that dev chose.

    Raises:
        InputError: some runs of a task are there and others are not; the message lists them.
    """
    groups: dict[str, dict[int, list[Point]]] = {}
    for experiment in experiments:
        for point in points(experiment):
            groups.setdefault(point.task, {}).setdefault(point.split, []).append(point)
    return {task: cell for task, splits in groups.items() if (cell := _cell(task, splits, root)) is not None}


def _cell(task: str, splits: dict[int, list[Point]], root: Path) -> dict[str, Any] | None:
    wanted = [point for some in splits.values() for point in some]
    missing = [point.name for point in wanted if not (root / point.name / "results.json").is_file()]
    if len(missing) == len(wanted):
        return None
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(f"{root}: {', '.join(missing[:3])}{more} of the {len(wanted)} runs of {task} are missing")
    chosen = []
    for some in splits.values():
        found = [(point, _metrics(root / point.name / "results.json")) for point in some]
        _, best = max(found, key=lambda pair: pair[0].score(pair[1]))
        chosen.append(100 * best["test"][best["metric"]])
    return over_seeds(chosen)


def _metrics(path: Path) -> dict[str, Any]:
    metrics = json.loads(path.read_text("utf-8"))["metrics"]
    if metrics["metric"] not in metrics.get("test", {}):
        raise InputError(f"{path} has no test score: it was run without final=[dev,test]")
    return metrics


def build(name: str, table: dict[str, Any], root: Path) -> dict[str, dict[str, Any]]:
    """Row -> column -> value; columns are the tasks' names with `-` and capitals taken away, as in paper.yaml."""
    keys = table["columns"]
    found = {}
    for row, experiments in table["rows"].items():
        cells = row_cells(experiments, root)
        found[row] = {keys[task]: cell for task, cell in cells.items() if task in keys}
    return {row: cells for row, cells in found.items() if cells}


def as_rich(name: str, table: dict[str, Any], found: dict[str, dict[str, Any]]) -> Table:
    shown = Table("row", *table["columns"], title=name, title_justify="left")
    for row, cells in found.items():
        texts = (
            "-" if key not in cells else f"{cells[key]['mean']:.1f}"
            + (f" ({cells[key]['std']:.1f})" if cells[key]["std"] is not None else "")
            for key in table["columns"].values()
        )  # fmt: skip
        shown.add_row(row, *texts)
    return shown


@entrypoint(config_name="tables")
def main(cfg: DictConfig) -> None:
    specification = read_specification()
    names = [cfg.table] if isinstance(cfg.table, str) else list(cfg.table or specification)
    if unknown := [name for name in names if name not in specification]:
        raise InputError(f"table={unknown[0]} is unknown; there are {', '.join(specification)}")
    root = Path(cfg.root).expanduser() if cfg.root else runs_root() / cfg.paper / cfg.scale
    if not root.is_dir():
        raise InputError(f"root={root} is not there; run experiments first: python -m mezo.train -m experiment=... "
                         "scale=paper")  # fmt: skip
    console = Console()
    tables = {name: build(name, specification[name], root) for name in names}
    for name in [name for name, found in tables.items() if not found]:
        console.print(f"{name}: none of its runs is there", highlight=False)
        del tables[name]
    if not tables:
        return
    run = Run(cfg.paper, cfg.experiment, cfg.scale, cfg.output_dir or root / "tables", cfg)
    run.metrics["tables"] = tables
    for name, found in tables.items():
        console.print(as_rich(name, specification[name], found))
    run.finish(console)


if __name__ == "__main__":
    main()
