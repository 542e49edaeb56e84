"""The paper's table of our runs: on the terminal, as Markdown and as CSV, with the paper's values and differences.

The paper's rows come from paper.yaml. They are of the whole benchmark (64,183 papers, 597 questions); beside a run on
anything smaller they are shown for orientation and no difference is taken.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from litsearch.runs import Run
from litsearch.scoring import COLUMNS
from shared.claims import find_metric
from shared.paper import Paper

WHOLE_BENCHMARK = 597
SHORT = {"broad": "broad", "specific": "spec."}
TITLES = {"inline": "inline-citation", "author": "author-written", "avg": "avg."}
# Rerankers that know the answers stand for no system of the paper.
MOCKS = {"rerank:identity", "rerank:oracle", "rerank:noisy"}
TABLE_OF_KEY = {"title_abstract": "table3", "full_paper": "table5"}


@dataclass(frozen=True)
class Row:
    """One run (`kind` "ours"), the paper's row for the same system ("paper"), or the difference of the two.

    values: (group, metric) -> percent; what was not measured or not printed is missing.
    """

    label: str
    kind: str
    values: dict[tuple[str, str], float]
    intervals: dict[tuple[str, str], tuple[float, float]]


def paper_row(run: Run) -> str | None:
    """The paper's name for a run's system: "bm25", "bm25_rerank", "grit_onehop"; None for an unknown one."""
    stages = run.metadata.get("stages")
    if not stages or MOCKS.intersection(stages):
        return None
    suffix = ""
    if any(stage.startswith("onehop") for stage in stages[1:]):
        suffix = "_onehop"
    elif any(stage.startswith("rerank") for stage in stages[1:]):
        suffix = "_rerank"
    return f"{stages[0]}{suffix}"


def paper_values(paper: Paper, run: Run) -> dict[tuple[str, str], float]:
    """What the paper prints for a run's system and key, by (group, metric); empty where it has no such row."""
    names = {TABLE_OF_KEY.get(run.key or "title_abstract")}
    if run.key in (None, "title_abstract"):
        names.add("table8")
    found = {}
    for cell in paper.cells():
        if cell.table in names and cell.row == paper_row(run) and cell.paper is not None:
            group, _, metric = cell.key.partition(".")
            found[group, metric] = cell.paper
    return found


def our_row(label: str, groups: Mapping[str, Mapping[str, Any]], columns: Sequence[tuple[str, str]] = COLUMNS) -> Row:
    values, intervals = {}, {}
    for group, metric in columns:
        try:
            values[group, metric] = find_metric(groups, f"{group}.{metric}")
        except KeyError:
            continue  # no questions of this group
        found = groups[group].get("intervals")
        if found:
            intervals[group, metric] = tuple(found[metric])
    return Row(label, "ours", values, intervals)


def rows_with_paper(ours: Row, printed: Mapping[tuple[str, str], float], differences: bool) -> list[Row]:
    """Our row, followed by the paper's and (for the whole benchmark) the difference, where the paper has one."""
    rows = [ours]
    printed = {column: value for column, value in printed.items() if column in COLUMNS}
    if printed:
        rows.append(Row(f"{ours.label} (paper)", "paper", dict(printed), {}))
        if differences:
            minus = {column: ours.values[column] - value for column, value in printed.items() if column in ours.values}
            rows.append(Row(f"{ours.label} (difference)", "difference", minus, {}))
    return rows


def header(column: tuple[str, str]) -> str:
    group, metric = column
    source, _, breadth = group.partition("_")
    return f"{TITLES.get(source, source)} {breadth} {metric}"


def cell_text(row: Row, column: tuple[str, str], with_interval: bool = False) -> str:
    if column not in row.values:
        return "-"
    text = f"{row.values[column]:+.1f}" if row.kind == "difference" else f"{row.values[column]:.1f}"
    if with_interval and column in row.intervals:
        low, high = row.intervals[column]
        text += f" [{low:.1f}, {high:.1f}]"
    return text


def print_table(rows: Sequence[Row], counts: Mapping[str, int], console: Console) -> None:
    """The table on the terminal, in the paper's column order."""
    # No rules between columns and short headings: nine columns have to fit into 80 characters.
    table = Table(title="recall, percent", title_justify="left", box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("run", overflow="fold")
    for column in COLUMNS:
        group, metric = column
        source, _, breadth = group.partition("_")
        lines = (source, SHORT[breadth], metric, f"n={counts.get(group, 0)}")
        table.add_column("\n".join(lines), justify="right", no_wrap=True)
    styles = {"paper": "dim", "difference": "italic"}
    for row in rows:
        label = row.label if row.kind == "ours" else f"  {row.kind}"
        table.add_row(escape(label), *(cell_text(row, c) for c in COLUMNS), style=styles.get(row.kind))
    console.print(table)


def print_tests(tests: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Differences between runs with their intervals and p values."""
    if not tests:
        return
    table = Table(title="differences between runs, points", title_justify="left", box=SIMPLE_HEAD)
    for name in ("first - second", "questions", "difference", "95% interval", "p", "p (Holm)"):
        text = name in ("first - second", "questions")
        table.add_column(name, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    for test in tests:
        table.add_row(
            escape(f"{test['first']} - {test['second']}"),
            f"{test['group'].removeprefix('avg_')} {test['metric']}",
            f"{test['difference']:+.1f}",
            f"[{test['low']:+.1f}, {test['high']:+.1f}]",
            f"{test['p_randomization']:.4f}",
            f"{test['p_holm']:.4f}",
        )
    console.print(table)


def markdown(rows: Sequence[Row], tests: Sequence[Mapping[str, Any]], counts: Mapping[str, int], note: str) -> str:
    """The table with its intervals, and the tests, as Markdown."""
    lines = ["# LitSearch: recall, percent", "", note, ""]
    lines += ["| run | " + " | ".join(map(header, COLUMNS)) + " |"]
    lines += ["|---|" + "---:|" * len(COLUMNS)]
    lines += ["| questions | " + " | ".join(str(counts.get(group, 0)) for group, _ in COLUMNS) + " |"]
    for row in rows:
        label = row.label.replace("|", "\\|")
        lines.append(f"| {label} | " + " | ".join(cell_text(row, c, with_interval=True) for c in COLUMNS) + " |")
    if tests:
        lines += ["", "## Differences between runs, points", ""]
        lines += ["| first | second | questions | metric | difference | 95% interval | p | p (Holm) |"]
        lines += ["|---|---|---|---|---:|---|---:|---:|"]
        for test in tests:
            lines.append(
                f"| {test['first']} | {test['second']} | {test['group'].removeprefix('avg_')} | {test['metric']} "
                f"| {test['difference']:+.1f} | [{test['low']:+.1f}, {test['high']:+.1f}] "
                f"| {test['p_randomization']:.4f} | {test['p_holm']:.4f} |"
            )
    return "\n".join(lines) + "\n"


def csv_text(rows: Sequence[Row]) -> str:
    """One line per row, unrounded, with the ends of each interval as columns of their own."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [f"{group}.{metric}" for group, metric in COLUMNS]
    writer.writerow(["run", "kind", *names, *(f"{name} {end}" for name in names for end in ("low", "high"))])
    for row in rows:
        values = [row.values.get(column, "") for column in COLUMNS]
        ends = [end for column in COLUMNS for end in row.intervals.get(column, ("", ""))]
        writer.writerow([row.label, row.kind, *values, *ends])
    return out.getvalue()
