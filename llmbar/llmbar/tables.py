"""Tables on the terminal: accuracy and agreement per set, in the order of the paper's."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

Rows = Mapping[str, Mapping[str, Mapping[str, float]]]
ORDER = ("nat", "neighbor", "gptinst", "gptout", "manual", "adv", "avg", "constraint", "negation", "normal", "base9",
         "base10", "faireval", "llmeval2", "mtbench")  # fmt: skip


def print_rows(judge: str, rows: Rows, console: Console) -> None:
    """One table per family of sets: strategy, then accuracy above agreement per set and average, one decimal."""
    for family, strategies in rows.items():
        names = {key.removesuffix("_acc") for row in strategies.values() for key in row if key.endswith("_acc")}
        columns = sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
        note = ", written for this project: not the paper's numbers" if family == "House" else ""
        table = Table(
            show_lines=True,
            title=escape(f"{judge} on {family}{note} (accuracy above agreement, %)"),
            title_justify="left",
        )
        table.add_column("strategy", no_wrap=True)
        for name in columns:
            table.add_column(escape(name), justify="right")
        for strategy, row in strategies.items():
            table.add_row(escape(strategy), *(_pair(row, name) for name in columns))
        console.print(table)


def _pair(row: Mapping[str, float], name: str) -> str:
    # On two lines, because seven columns of pairs do not fit a terminal of 80.
    return f"{row[f'{name}_acc']:.1f}\n{row[f'{name}_agr']:.1f}" if f"{name}_acc" in row else "-"
