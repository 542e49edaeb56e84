"""The paper's tables from the store: `python -m lm_bff.tables table=[table3,table5]`, beside the paper's numbers.

For each seed the trial with the best dev score is taken (the first of equals); a cell is the mean and the population
standard deviation of those trials' test scores over the seeds, times 100. configs/paper_tables.yaml says which trials
belong to a row, and what the paper reports. A cell of which some trials are missing is an error that lists them, never
a mean over fewer seeds; a cell of which none has been run stays empty.

Beside our number stand the paper's, the difference, and the difference in standard errors of both (z). Each table is
written as markdown and csv, and all of them as results.json of the experiment `tables`, by which paper.yaml's rows and
claims are judged: `tables.<table>.<row>.<column>`, times 100, a column's `-` written as `_`.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from lm_bff.settings import TRAINED
from lm_bff.store import Store
from lm_bff.tasks import CONFIGS
from shared import InputError
from shared.launch import entrypoint
from shared.results import Run, over_seeds, write_atomic
from shared.training import runs_root

SPECIFICATION = CONFIGS / "paper_tables.yaml"
PAPER_VALUE = re.compile(r"(-?\d+(?:\.\d+)?)(?: \((\d+(?:\.\d+)?)\))?")
# What the trials of one cell have to share; seed, batch size and learning rate are what they differ in.
SHARED_FIELDS = ("model", "compat", "k", "splits", "use_dev", "settings.max_steps", "settings.eval_every")


# ----------------------------------------------------------------------------------------------------------- one cell


@dataclass(frozen=True)
class Scores:
    """Test scores (0..1) of the trials that dev chose, by seed. `metric` says what they measure, `test` on what."""

    task: str
    method: str
    k: int
    metric: str
    test: str | None
    by_seed: dict[int, float]
    chosen: tuple[str, ...]

    @property
    def values(self) -> np.ndarray:
        return np.array(list(self.by_seed.values()))

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def std(self) -> float:
        """The population standard deviation (ddof 0), as in the release."""
        return float(self.values.std())

    @property
    def median(self) -> float:
        return float(np.median(self.values))

    def text(self, median: bool = False) -> str:
        """ "92.7 (0.9)", or with the median "92.7 (0.9) (median 92.9)"."""
        text = f"{100 * self.mean:.1f} ({100 * self.std:.1f})"
        return f"{text} (median {100 * self.median:.1f})" if median else text


def field_of(record: Mapping[str, Any], name: str) -> Any:
    """A field by its dotted name, None where there is none."""
    value: Any = record
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def matching(records: Sequence[dict[str, Any]], where: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records whose fields (dotted names) have these values; a list of values allows any of them.

    A mapping of label words is given as {label: word}; model `tiny` stands for every tiny model.
    """
    return [record for record in records if all(_agrees(record, name, wanted) for name, wanted in where.items())]


def _agrees(record: Mapping[str, Any], name: str, wanted: Any) -> bool:
    value = field_of(record, name)
    if name == "settings.mapping":
        value = None if value is None else dict(value)
        return value == wanted if wanted is None else value == dict(wanted)
    if isinstance(wanted, list):
        return any(_agrees(record, name, one) for one in wanted)
    if name == "model" and wanted == "tiny":
        return str(value).split(":")[0] == "tiny"
    return value == wanted


def choose(records: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """For each seed the trial with the best dev score, the first of equals.

    Raises:
        InputError: several trials of a seed and no dev score to choose by.
    """
    chosen: dict[int, dict[str, Any]] = {}
    for record in records:
        best = chosen.get(record["seed"])
        if best is None:
            chosen[record["seed"]] = record
            continue
        scores = [one["dev"].get(one["metric"]) for one in (best, record)]
        if None in scores:
            raise InputError(
                f"task={record['task']} seed={record['seed']}: several trials and no dev score to choose one by "
                f"({best['key']}, {record['key']})"
            )
        if scores[1] > scores[0]:
            chosen[record["seed"]] = record
    return chosen


def gather(records: Sequence[dict[str, Any]], test: str | None = None, metric: str | None = None) -> Scores:
    """Mean and deviation over the seeds of records that belong together.

    Args:
        test: which test set (None: the only one, or dev where there is none). metric: None for the task's.
    Raises:
        InputError: no records, records of different models or lengths of training, or a trial without this score.
    """
    if not records:
        raise InputError("gather: there are no trials")
    first = records[0]
    for name in SHARED_FIELDS:
        found = sorted({str(field_of(record, name)) for record in records})
        if len(found) > 1:
            raise InputError(
                f"task={first['task']} method={first['method']}: trials with different {name} ({', '.join(found)}) "
                f"cannot be averaged; choose with where.{name}=..."
            )
    metric = metric or first["metric"]
    chosen = choose(records)
    by_seed = {}
    for seed in sorted(chosen):
        tests = chosen[seed]["test"]
        name = test if test is not None else next(iter(tests), None)
        scores = chosen[seed]["dev"] if name is None else tests.get(name, {})
        if scores.get(metric) is None:
            raise InputError(
                f"task={first['task']} seed={seed}: trial {chosen[seed]['key']} has no {metric} on {name or 'dev'}"
            )
        by_seed[seed] = scores[metric]
    keys = tuple(chosen[seed]["key"] for seed in sorted(chosen))
    return Scores(first["task"], first["method"], first["k"], metric, test, by_seed, keys)


def missing_points(
    records: Sequence[dict[str, Any]], seeds: Sequence[int], grid: Mapping[str, Sequence[float]]
) -> list[str]:
    """The points of seeds x grid that have no trial, in words. Methods that train nothing have one point a seed."""
    if records and records[0]["method"] not in TRAINED:
        have = {record["seed"] for record in records}
        return [f"seed={seed}" for seed in seeds if seed not in have]
    have = {(r["seed"], r["settings"]["batch_size"], float(r["settings"]["lr"])) for r in records}
    return [
        f"seed={seed} batch_size={batch_size} lr={float(lr):g}"
        for seed in seeds
        for batch_size in grid["batch_size"]
        for lr in grid["lr"]
        if (seed, batch_size, float(lr)) not in have
    ]


# ---------------------------------------------------------------------------------------------------------- the tables


@dataclass(frozen=True)
class Cell:
    """Our scores (None: not run) beside the paper's mean and deviation (None: not reported), both times 100."""

    row: str
    column: str
    ours: Scores | None
    paper: float | None
    paper_std: float | None

    @property
    def difference(self) -> float | None:
        return None if self.ours is None or self.paper is None else 100 * self.ours.mean - self.paper

    @property
    def z(self) -> float | None:
        """The difference in standard errors: those of our seeds, and of as many of the paper's."""
        if self.difference is None or self.paper_std is None:
            return None
        error = math.sqrt(((100 * self.ours.std) ** 2 + self.paper_std**2) / len(self.ours.by_seed))
        return self.difference / error if error else None


@dataclass(frozen=True)
class PaperTable:
    """One table: rows and columns in order, and its cells by (row, column)."""

    name: str
    title: str
    rows: dict[str, str]
    columns: list[str]
    cells: dict[tuple[str, str], Cell]


def read_specification(path: Path = SPECIFICATION) -> dict[str, Any]:
    """The tables of configs/paper_tables.yaml."""
    return yaml.safe_load(path.read_text("utf-8"))["tables"]


def paper_value(text: str | float | None) -> tuple[float | None, float | None]:
    """(mean, deviation) of "92.7 (0.9)", 95.0 or null."""
    if text is None:
        return None, None
    found = PAPER_VALUE.fullmatch(str(text))
    if found is None:
        raise InputError(f"paper_tables.yaml: {text!r} is not a number such as 92.7 (0.9)")
    return float(found[1]), None if found[2] is None else float(found[2])


def build(
    name: str,
    specification: Mapping[str, Any],
    records: Sequence[dict[str, Any]],
    seeds: Sequence[int],
    grid: Mapping[str, Sequence[float]],
    where: Mapping[str, Any] | None = None,
) -> PaperTable:
    """Fill a table from the store's records.

    Args:
        where: further conditions on all trials (model, settings.max_steps, ...); what the table itself says goes first.
    Raises:
        InputError: cells of which some grid points are missing; all of them are listed.
    """
    columns = [column if isinstance(column, dict) else {"task": column} for column in specification["columns"]]
    labels = [column.get("label", column["task"]) for column in columns]
    cells, gaps = {}, []
    for row, about in specification["rows"].items():
        values = about.get("values") or [None] * len(columns)
        if len(values) != len(columns):
            raise InputError(f"{name}, row {row}: {len(values)} values for {len(columns)} columns")
        for column, label, value in zip(columns, labels, values, strict=True):
            test = column.get("test", column["task"])
            wanted = {**specification.get("where", {}), **column.get("where", {}), **(about.get("where") or {})}
            own = matching(records, {"task": column["task"], **(where or {}), **wanted}) if "where" in about else []
            ours = None
            if own and any(test in record["test"] for record in own):
                if absent := missing_points(own, about.get("seeds", seeds), about.get("grid", grid)):
                    gaps.append(f"{name}, {about['label']}, {label}: {'; '.join(absent)}")
                    continue
                ours = gather(own, test, column.get("metric"))
            cells[row, label] = Cell(row, label, ours, *paper_value(value))
    if gaps:
        raise InputError("trials are missing, and nothing is averaged over fewer:\n  " + "\n  ".join(gaps))
    rows = {row: about["label"] for row, about in specification["rows"].items()}
    return PaperTable(name, specification["title"], rows, labels, cells)


def as_rich(table: PaperTable) -> Table:
    """For the terminal: ours, and below it the paper's."""
    shown = Table(title=f"{table.name}: {table.title}", title_justify="left", show_lines=True)
    shown.add_column("ours / paper", overflow="fold")
    for column in table.columns:
        shown.add_column(column, justify="right", no_wrap=True)
    for row, label in table.rows.items():
        cells = [table.cells[row, column] for column in table.columns]
        shown.add_row(label, *(f"{_ours(cell)}\n[dim]{_paper(cell)}[/]" for cell in cells))
    return shown


def as_markdown(table: PaperTable) -> str:
    """One line per row: ours (paper: ...)."""
    head = ["", *table.columns]
    lines = [f"**{table.title}**", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row, label in table.rows.items():
        cells = [table.cells[row, column] for column in table.columns]
        texts = [f"{_ours(cell)} [{_paper(cell)}]" if cell.ours else f"[{_paper(cell)}]" for cell in cells]
        lines.append("| " + " | ".join([label, *texts]) + " |")
    return "\n".join([*lines, "", "Mean (standard deviation) over the seeds; in brackets the paper's.", ""])


def as_csv(table: PaperTable) -> str:
    """One line per cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["table", "row", "column", "mean", "std", "median", "seeds", "paper", "paper_std", "difference", "z"]
    )
    for (row, column), cell in table.cells.items():
        ours = cell.ours
        own = [100 * ours.mean, 100 * ours.std, 100 * ours.median] if ours else [None] * 3
        numbers = [*own, len(ours.by_seed) if ours else 0, cell.paper, cell.paper_std, cell.difference, cell.z]
        writer.writerow([table.name, row, column, *("" if n is None else round(n, 3) for n in numbers)])
    return out.getvalue()


def as_metrics(tables: Sequence[PaperTable]) -> dict[str, Any]:
    """{table: {row: {column: summary over the seeds, x 100}}} of the cells that were run.

    The deviation in a summary is the sample's, as in every results.json; markdown and csv have the population's.
    """
    metrics: dict[str, Any] = {}
    for table in tables:
        for (row, column), cell in table.cells.items():
            if cell.ours is not None:
                of_row = metrics.setdefault(table.name, {}).setdefault(row, {})
                of_row[column.replace("-", "_")] = over_seeds([100 * value for value in cell.ours.values])
    return metrics


def _ours(cell: Cell) -> str:
    return "-" if cell.ours is None else cell.ours.text()


def _paper(cell: Cell) -> str:
    if cell.paper is None:
        return "-"
    return f"{cell.paper:.1f}" if cell.paper_std is None else f"{cell.paper:.1f} ({cell.paper_std:.1f})"


def print_scores(scores: Sequence[Scores], console: Console) -> None:
    """Plain lines: task, K, method, metric, mean (std) (median)."""
    table = Table("task", "K", "method", "metric", title="mean (std) (median) over seeds, x 100", title_justify="left")
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("seeds", justify="right")
    for one in scores:
        task = one.task if one.test in (None, one.task) else f"{one.task} ({one.test})"
        dev = " (dev)" if one.test is None else ""
        table.add_row(task, str(one.k), one.method, one.metric + dev, one.text(median=True), str(len(one.by_seed)))
    console.print(table)


# --------------------------------------------------------------------------------------------------------- entrypoint


@entrypoint(config_name="tables")
def main(cfg: DictConfig) -> None:
    specification = read_specification()
    names = [cfg.table] if isinstance(cfg.table, str) else list(cfg.table or specification)
    if unknown := [name for name in names if name not in specification]:
        raise InputError(f"table={unknown[0]} is unknown; there are {', '.join(specification)}")
    path = Path(cfg.store).expanduser() if cfg.store else runs_root() / cfg.paper / cfg.scale / "trials.jsonl"
    if not path.is_file():
        raise InputError(f"store={path} is not there; run trials first with `python -m lm_bff.sweep`")
    records = Store(path).records()
    where = OmegaConf.to_container(cfg.where) or {}
    grid = OmegaConf.to_container(cfg.grid, resolve=True)
    tables = [build(name, specification[name], records, list(cfg.seeds), grid, where) for name in names]
    console = Console()
    shown = [table for table in tables if any(cell.ours for cell in table.cells.values())]
    for table in tables:
        if table not in shown:
            console.print(f"{table.name}: none of its trials has been run", highlight=False)
    if not shown:
        return
    run = Run(cfg.paper, cfg.experiment, cfg.scale, cfg.output_dir or path.parent / "tables", cfg, list(cfg.seeds))
    for table in shown:
        console.print(as_rich(table))
        write_atomic(run.output_dir / f"{table.name}.md", as_markdown(table))
        write_atomic(run.output_dir / f"{table.name}.csv", as_csv(table))
    run.metrics["tables"] = as_metrics(shown)
    run.finish(console)
    Console(soft_wrap=True).print(f"markdown, csv and results.json: {run.output_dir}", highlight=False)


if __name__ == "__main__":
    main()
