"""paper.yaml: what a paper says (tables, single numbers, claims), and a run's metrics laid beside it.

    tables:
      table5:
        {title, source: "Table 5", metric: "sts.{column}.all", scale_by: 100, format: ".2f",
         columns: [STS12, {key: STSBenchmark, label: STS-B}, {label: Avg, metric: sts.avg.all}],
         rows: {unsup_bert_base: {label, experiment: unsup_bert_base, values: [68.40, ...]}, glove: {label, values}}}
    measured: [{label, metric, paper: "table5.unsup_bert_base.Avg" | 76.25 | null, scale: laptop, experiment: reproduce,
                format, scale_by, note}]
    claims:   [{id, text, source, laptop: "<predicate>" | {not_testable: why}, paper: ...}]

A row with `experiment` is one this repository can measure (at scale paper); `experiment` may be a list, one per column.
A row without is a baseline quoted from the paper. `metric` may be overridden by a row or a column.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shared import InputError
from shared.claims import SCALES, Verdict, find_metric, is_summary, judge, number_of, parse_predicate

PAPER_KEYS = {"paper", "title", "authors", "venue", "year", "url", "release", "tables", "measured", "claims"}
TABLE_KEYS = {"title", "source", "columns", "metric", "scale_by", "format", "rows", "note"}
ROW_KEYS = {"label", "experiment", "metric", "values", "note", "source"}
MEASURED_KEYS = {"label", "metric", "paper", "scale", "experiment", "format", "scale_by", "note"}
CLAIM_KEYS = {"id", "text", "source", *SCALES}


def project_root() -> Path:
    """The repository's top folder (all packages are installed editable, so it is where this file lies)."""
    return Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Cell:
    """One number of a table of the paper, and where its measured counterpart is found."""

    table: str
    row: str
    key: str
    column: str
    label: str
    paper: float | None
    experiment: str | None
    metric: str | None
    scale_by: float
    format: str


@dataclass(frozen=True)
class Comparison:
    """One measured value beside the paper's; `measured` is the metric as the run gave it (number, summary, text)."""

    label: str
    measured: Any
    paper: float | None
    scale_by: float = 1.0
    format: str = ".2f"
    note: str = ""
    source: str = ""
    in_table: bool = False

    @property
    def difference(self) -> float | None:
        number = number_of(self.measured)
        return None if number is None or self.paper is None else number * self.scale_by - self.paper

    def measured_text(self) -> str:
        """The measured value scaled and formatted; "mean ± std" over seeds."""
        number = number_of(self.measured)
        if number is None:
            return "-" if self.measured is None else str(self.measured)
        text = f"{number * self.scale_by:{self.format}}"
        if is_summary(self.measured) and self.measured["std"] is not None:
            text += f" ± {self.measured['std'] * self.scale_by:{self.format}}"
        return text

    def paper_text(self) -> str:
        return "" if self.paper is None else f"{self.paper:{self.format}}"

    def difference_text(self) -> str:
        return "" if self.difference is None else f"{self.difference:+{self.format}}"


@dataclass(frozen=True)
class Paper:
    """A validated paper.yaml. `data` is its content; every predicate in it has been parsed."""

    name: str
    path: Path
    data: dict[str, Any]

    @property
    def where(self) -> str:
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def claims(self) -> list[dict[str, Any]]:
        return self.data.get("claims") or []

    @property
    def tables(self) -> dict[str, dict[str, Any]]:
        return self.data.get("tables") or {}

    @functools.cached_property
    def _cells(self) -> dict[str, Cell]:
        """By "table.row.column", where the column is given by its key or by its printed name."""
        cells = list(_all_cells(self.tables))
        named = {f"{cell.table}.{cell.row}.{cell.key}": cell for cell in cells}
        return named | {f"{cell.table}.{cell.row}.{cell.column}": cell for cell in cells}

    def cells(self, table: str | None = None) -> list[Cell]:
        """The cells of one table, or of all of them, in the paper's order."""
        return [cell for cell in dict.fromkeys(self._cells.values()) if table in (None, cell.table)]

    def cell(self, reference: str) -> Cell:
        """The cell named "table.row.column". Raises InputError for an unknown one."""
        if reference not in self._cells:
            raise InputError(f"{self.where}: no table cell is called {reference!r} (table.row.column)")
        return self._cells[reference]

    def number(self, reference: str) -> float:
        """The number the paper prints at "table.row.column". Raises InputError where there is none."""
        value = self.cell(reference).paper
        if value is None:
            raise InputError(f"{self.where}: the paper has no number at {reference!r}")
        return value

    def judge(self, scale: str, metric: Any) -> list[Verdict]:
        """All claims judged at one scale; `metric(path, experiment)` gives a measured value or raises NotMeasured."""
        return [judge(claim, scale, metric, self.number, self.where) for claim in self.claims]

    def compare(self, experiment: str, scale: str, metrics: dict[str, Any]) -> list[Comparison]:
        """What this run measured of what paper.yaml lists, beside the paper's numbers; what it lacks is left out."""
        rows = []
        for item in self.data.get("measured") or []:
            if item.get("scale", "laptop") == scale and item["experiment"] == experiment:
                rows.append(self._measured(item, metrics))
        if scale == "paper":
            for cell in self.cells():
                if cell.experiment == experiment:
                    value = _get(metrics, cell.metric)
                    source = self.tables[cell.table]["source"]
                    label = f"{cell.label}, {cell.column}"
                    rows.append(
                        Comparison(label, value, cell.paper, cell.scale_by, cell.format, source=source, in_table=True)
                    )
        return [row for row in rows if row.measured is not None]

    def _measured(self, item: dict[str, Any], metrics: dict[str, Any]) -> Comparison:
        reference, number, scale_by, source, digits = item.get("paper"), None, 1.0, "", ".2f"
        if isinstance(reference, str):
            cell = self.cell(reference)
            number, scale_by, digits = cell.paper, cell.scale_by, cell.format
            source = self.tables[cell.table]["source"]
        elif reference is not None:
            number = float(reference)
        value = _get(metrics, item["metric"])
        scale_by = item.get("scale_by", scale_by)
        return Comparison(
            item["label"], value, number, scale_by, item.get("format", digits), item.get("note", ""), source
        )


def _get(metrics: dict[str, Any], path: str | None) -> Any:
    try:
        return None if path is None else find_metric(metrics, path)
    except KeyError:
        return None


def _all_cells(tables: dict[str, dict[str, Any]]) -> Iterator[Cell]:
    for table_id, table in tables.items():
        columns = [column if isinstance(column, dict) else {"key": column} for column in table["columns"]]
        for row_id, row in table["rows"].items():
            experiments = row.get("experiment")
            for index, (column, value) in enumerate(zip(columns, row["values"], strict=True)):
                template = column.get("metric") or row.get("metric") or table.get("metric")
                key = column.get("key", column.get("label"))
                yield Cell(
                    table=table_id,
                    row=row_id,
                    key=key,
                    column=column.get("label", key),
                    label=row["label"],
                    paper=None if value is None else float(value),
                    experiment=experiments[index] if isinstance(experiments, list) else experiments,
                    metric=template.format(column=key) if template else None,
                    scale_by=column.get("scale_by", table.get("scale_by", 1.0)),
                    format=table.get("format", ".2f"),
                )


# -------------------------------------------------------------------------------------------------- reading paper.yaml


def paper_path(paper: str, root: Path | None = None) -> Path:
    """<root>/<paper>/paper.yaml. Raises InputError where there is none."""
    root = root or project_root()
    path = root / paper / "paper.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.parent.name for p in root.glob("*/paper.yaml"))) or "none"
        raise InputError(f"paper={paper}: there is no {paper}/paper.yaml (papers here: {known})")
    return path


def load_paper(paper: str, root: Path | None = None) -> Paper:
    """Read and check <paper>/paper.yaml; an empty file is a paper without tables or claims.

    Raises:
        InputError: the file is missing, is not YAML, or holds something malformed; the message names the place.
    """
    path = paper_path(paper, root)
    where = f"{path.parent.name}/{path.name}"
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{where} is not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a mapping at the top, got {type(data).__name__}")
    _known_keys(data, PAPER_KEYS, where)
    for table_id, table in (data.get("tables") or {}).items():
        _check_table(table, f"{where}: table {table_id!r}")
    result = Paper(paper, path, data)
    for item in data.get("measured") or []:
        place = f"{where}: measured row {item.get('label', item)!r}"
        _known_keys(item, MEASURED_KEYS, place, required=("label", "metric", "experiment"))
        if isinstance(item.get("paper"), str):
            result.cell(item["paper"])
    _check_claims(result)
    return result


def _known_keys(item: Any, known: set[str], where: str, required: tuple[str, ...] = ()) -> None:
    if not isinstance(item, dict):
        raise InputError(f"{where}: expected a mapping, got {item!r}")
    if unknown := sorted(map(str, item.keys() - known)):
        raise InputError(f"{where}: unknown key {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    if missing := [key for key in required if item.get(key) is None]:
        raise InputError(f"{where}: {', '.join(missing)} is missing")


def _check_table(table: Any, where: str) -> None:
    _known_keys(table, TABLE_KEYS, where, required=("title", "source", "columns", "rows"))
    for row_id, row in table["rows"].items():
        place = f"{where}, row {row_id!r}"
        _known_keys(row, ROW_KEYS, place, required=("label", "values"))
        if len(row["values"]) != len(table["columns"]):
            raise InputError(f"{place}: {len(row['values'])} values for {len(table['columns'])} columns")
        for value in row["values"]:
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise InputError(f"{place}: {value!r} is not a number (use null where the paper has none)")
        experiment = row.get("experiment")
        if isinstance(experiment, list) and len(experiment) != len(table["columns"]):
            raise InputError(f"{place}: {len(experiment)} experiments for {len(table['columns'])} columns")


def _check_claims(paper: Paper) -> None:
    seen: set[str] = set()
    for claim in paper.claims:
        place = f"{paper.where}: claim {claim.get('id', claim) if isinstance(claim, dict) else claim!r}"
        _known_keys(claim, CLAIM_KEYS, place, required=("id", "text"))
        if claim["id"] in seen:
            raise InputError(f"{place} is listed twice")
        seen.add(claim["id"])
        for scale in SCALES:
            rule = claim.get(scale)
            if isinstance(rule, dict):
                _known_keys(rule, {"not_testable"}, f"{place} ({scale})", required=("not_testable",))
            elif rule is not None:
                parse_predicate(rule, f"{place} ({scale})")
