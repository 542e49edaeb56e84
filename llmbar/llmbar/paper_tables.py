"""The paper's tables beside what the recorded answers give: three figures per cell, recorded, paper, difference.

Seven rows of the paper differ from its own release by one answer to one GPTInst instance (0.54 points of accuracy,
1.09 of agreement, and the averages with them), and table 10 prints 54.4 for 50 of 92. They are shown, not explained
away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from llmbar.findings import JudgeRows
from shared import InputError
from shared.paper import Paper

# Two numbers agree if the measured one, rounded to the printed decimal either way at a tie, is the paper's.
PRINTED = 0.05 + 1e-9


@dataclass(frozen=True)
class Compared:
    """One cell of a table of the paper. `recorded` is None where nothing was recorded for it."""

    table: str
    row: str
    label: str
    column: str
    recorded: float | None
    paper: float

    @property
    def difference(self) -> float | None:
        return None if self.recorded is None else self.recorded - self.paper

    @property
    def agrees(self) -> bool:
        return self.difference is not None and abs(self.difference) <= PRINTED


def compare_tables(paper: Paper, rows: JudgeRows, tables: Sequence[int] | None = None) -> list[Compared]:
    """Every cell of the tables whose rows are called "<judge> <strategy>", or of the given ones.

    Raises InputError for a table number that paper.yaml does not have.
    """
    known = {int(name.removeprefix("table")): name for name in paper.tables if name.startswith("table")}
    for number in tables or ():
        if number not in known:
            raise InputError(f"tables: there is no table {number}; there are {', '.join(map(str, sorted(known)))}")
    wanted = [known[number] for number in (tables or sorted(known))]
    compared = []
    for name in wanted:
        for cell in paper.cells(name):
            judge, _, strategy = cell.row.partition(" ")
            if strategy and cell.paper is not None:
                value = _recorded(rows, judge, strategy, cell.column)
                compared.append(Compared(name, cell.row, cell.label, cell.column, value, cell.paper))
    return compared


def _recorded(rows: JudgeRows, judge: str, strategy: str, column: str) -> float | None:
    for strategies in rows.get(judge, {}).values():
        if column in strategies.get(strategy, {}):
            return strategies[strategy][column]
    return None


def agreement(compared: Sequence[Compared]) -> dict[str, Any]:
    """How many cells were recorded, how many agree at the printed precision, and the rows that do not."""
    recorded = [one for one in compared if one.recorded is not None]
    differing = [one for one in recorded if not one.agrees]
    return {
        "cells": len(compared),
        "recorded": len(recorded),
        "agree": len(recorded) - len(differing),
        "differ": [
            {"table": one.table, "row": one.row, "column": one.column, "recorded": one.recorded, "paper": one.paper}
            for one in differing
        ],
    }


def by_row(compared: Sequence[Compared]) -> dict[tuple[str, str], list[Compared]]:
    """(table, row) -> its cells, in the paper's order."""
    rows: dict[tuple[str, str], list[Compared]] = {}
    for one in compared:
        rows.setdefault((one.table, one.row), []).append(one)
    return rows


def markdown(compared: Sequence[Compared], titles: Mapping[str, str]) -> str:
    """All tables: each cell as recorded, with the paper's figure behind it where the two differ."""
    lines = ["# The paper's tables, recomputed from the recorded answers", ""]
    lines += [
        "A cell is what the recorded answers give; `25.0 (25.5)` says that the paper prints 25.5. `-`: not recorded."
    ]
    for table in dict.fromkeys(one.table for one in compared):
        rows = {row: cells for (name, row), cells in by_row(compared).items() if name == table}
        columns = [one.column for one in next(iter(rows.values()))]
        lines += ["", f"## {table.replace('table', 'Table ')}: {titles[table]}", ""]
        lines += ["| row | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for cells in rows.values():
            lines.append(f"| {cells[0].label} | " + " | ".join(_text(one) for one in cells) + " |")
    return "\n".join(lines) + "\n"


def _text(one: Compared) -> str:
    if one.recorded is None:
        return f"- ({one.paper:.1f})"
    return f"{one.recorded:.1f}" if one.agrees else f"{one.recorded:.1f} ({one.paper:.1f})"


def print_summary(compared: Sequence[Compared], titles: Mapping[str, str], console: Console) -> None:
    """Per table how many cells agree; then the rows that do not, with recorded, paper and difference."""
    table = Table("table", "cells", "recorded", "agree", title="the paper's tables, recomputed", title_justify="left")
    for name in dict.fromkeys(one.table for one in compared):
        counts = agreement([one for one in compared if one.table == name])
        label = f"{name.replace('table', '')}: {titles[name]}"
        table.add_row(label, *(str(counts[key]) for key in ("cells", "recorded", "agree")))
    console.print(table)
    differing = [one for one in compared if one.recorded is not None and not one.agrees]
    if differing:
        columns = ("row", "column", "recorded", "paper", "difference")
        table = Table(*columns, title="cells that differ from the paper", title_justify="left")
        for one in differing:
            figures = (f"{one.recorded:.2f}", f"{one.paper:.1f}", f"{one.difference:+.2f}")
            table.add_row(f"{one.row} ({one.table.replace('table', 'table ')})", one.column, *figures)
        console.print(table)


def print_tables(compared: Sequence[Compared], titles: Mapping[str, str], console: Console) -> None:
    """The tables in full, as the paper prints them, with its figure in brackets where the recorded one is another."""
    for name in dict.fromkeys(one.table for one in compared):
        rows = {row: cells for (table, row), cells in by_row(compared).items() if table == name}
        columns = [one.column for one in next(iter(rows.values()))]
        table = Table("row", *columns, title=f"{name.replace('table', 'Table ')}: {titles[name]}", title_justify="left")
        for cells in rows.values():
            table.add_row(cells[0].label, *(_text(one) for one in cells))
        console.print(table)
