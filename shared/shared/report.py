"""`python -m shared.report`: one page over all results, and the tables in the READMEs.

Reads every paper.yaml and every runs/<paper>/<scale>/<experiment>/results.json and writes

- runs/report.html: self-contained (inline style, embedded plots, no script, nothing fetched), each number linked to
  its run;
- the part of each paper's README between the two markers, each row naming the run it comes from;
- <paper>/records/<scale>/<experiment>.json: the results behind those rows, so that they can be committed. Where
  runs/ has no result of an experiment the record stands in: a fresh clone reports what was measured elsewhere.

Claims are judged here anew, over all runs of a scale together: a claim may compare two experiments, and a verdict never
outlives a change of paper.yaml. One broken file is reported and left out; the rest of the page is still made.
"""

import argparse
import base64
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from rich.console import Console
from rich.markup import escape

from shared import InputError
from shared.claims import SCALES, NotMeasured, Verdict, judge
from shared.paper import Comparison, Paper, load_paper, project_root
from shared.results import flatten, load_result, metric_or_not_measured, write_atomic
from shared.run_folders import runs_root

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


@dataclass(frozen=True)
class RunResult:
    """One results.json and where it was found."""

    path: Path
    content: dict[str, Any]
    from_record: bool

    @property
    def experiment(self) -> str:
        return self.content["experiment"]

    @property
    def scale(self) -> str:
        return self.content["scale"]

    @property
    def metrics(self) -> dict[str, Any]:
        return self.content["metrics"]

    @property
    def anchor(self) -> str:
        return f"run-{self.content['paper']}-{self.scale}-{self.experiment}"

    @property
    def record(self) -> str:
        """The record's path below the paper's folder."""
        return f"records/{self.scale}/{self.experiment}.json"


@dataclass(frozen=True)
class Judged:
    """A verdict and the runs whose metrics it used."""

    verdict: Verdict
    runs: list[RunResult]


@dataclass
class PaperReport:
    """All that is shown of one paper."""

    paper: Paper
    runs: list[RunResult]
    claims: dict[str, list[Judged]] = field(default_factory=dict)  # by scale
    comparisons: list[tuple[RunResult, list[Comparison]]] = field(default_factory=list)

    @property
    def behind_readme(self) -> list[RunResult]:
        """The runs that a row of the README rests on."""
        used = {run.anchor for run, rows in self.comparisons if rows}
        used |= {run.anchor for judged in self.claims.values() for j in judged if j.verdict.testable for run in j.runs}
        return [run for run in self.runs if run.anchor in used]


# ------------------------------------------------------------------------------------------------------------ reading


def read_runs(paper: Paper, runs: Path, problems: list[str]) -> list[RunResult]:
    """All results of a paper, runs/ before records, sorted by scale and experiment; broken files go to `problems`."""
    found: dict[tuple[str, str], RunResult] = {}
    records = paper.path.parent / "records"
    places = [
        *((path, False) for path in sorted((runs / paper.name).glob("*/*/results.json"))),
        *((path, True) for path in sorted(records.glob("*/*.json"))),
    ]
    for path, from_record in places:
        try:
            content = load_result(path)
            if content["paper"] != paper.name or content["scale"] not in SCALES:
                raise InputError(f"{path} says paper={content['paper']}, scale={content['scale']}; not used")
        except InputError as error:
            problems.append(str(error))
            continue
        found.setdefault((content["scale"], content["experiment"]), RunResult(path, content, from_record))
    return [found[key] for key in sorted(found)]


def judge_claims(paper: Paper, scale: str, runs: list[RunResult]) -> list[Judged]:
    """Each claim over all runs of one scale. m("path") is looked for in each run in turn, m("path", "experiment") in
    that experiment's; where several runs can decide, all of their verdicts are listed."""
    by_experiment = {run.experiment: run for run in runs}

    def judge_from(claim: dict[str, Any], here: RunResult | None) -> Judged:
        used: dict[str, RunResult] = {}

        def metric(path: str, experiment: str | None) -> Any:
            run = here if experiment is None else by_experiment.get(experiment)
            if run is None:
                raise NotMeasured(f"experiment {experiment} has not been run" if experiment else "nothing has been run")
            value = metric_or_not_measured(run.metrics, path, experiment)
            used[run.anchor] = run
            return value

        verdict = judge(claim, scale, metric, paper.number, paper.where)
        return Judged(verdict, list(used.values()))

    judged = []
    for claim in paper.claims:
        tried = [judge_from(claim, run) for run in runs] or [judge_from(claim, None)]
        decided = {tuple(run.anchor for run in one.runs): one for one in tried if one.verdict.testable}
        # Of several untestable ones the run that came furthest explains best what is missing.
        judged += list(decided.values()) or [max(tried, key=lambda one: len(one.verdict.used))]
    return judged


def collect(root: Path, runs: Path, problems: list[str]) -> list[PaperReport]:
    """A report of every paper below `root`; what could not be read is named in `problems`."""
    reports = []
    for path in sorted(root.glob("*/paper.yaml")):
        try:
            paper = load_paper(path.parent.name, root)
            report = PaperReport(paper, read_runs(paper, runs, problems))
            for scale in SCALES:
                report.claims[scale] = judge_claims(paper, scale, [run for run in report.runs if run.scale == scale])
            report.comparisons = [(run, paper.compare(run.experiment, run.scale, run.metrics)) for run in report.runs]
        except InputError as error:
            problems.append(str(error))
            continue
        reports.append(report)
    return reports


# ---------------------------------------------------------------------------------------------------------- the READMEs


def markdown_table(header: list[str], rows: Iterable[list[str]], numbers: frozenset[int] = frozenset()) -> list[str]:
    """A Markdown table; columns listed in `numbers` are right-aligned. Cells are escaped."""

    def cell(text: str) -> str:
        return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")

    lines = ["| " + " | ".join(header) + " |"]
    lines.append("|" + "|".join("---:" if index in numbers else "---" for index in range(len(header))) + "|")
    return lines + ["| " + " | ".join(map(cell, row)) + " |" for row in rows]


def run_link(run: RunResult, folder: str = "") -> str:
    return f"[{run.experiment}]({folder}{run.record})"


def readme_tables(report: PaperReport) -> str:
    """What stands between the markers of a paper's README."""
    lines = [
        "",
        f"*Written by `make report` from [records](records); {report.paper.path.name} holds the paper's numbers.*",
    ]
    shown = False
    for scale in SCALES:
        compared = [(run, rows) for run, rows in report.comparisons if rows and run.scale == scale]
        testable = [one for one in report.claims[scale] if one.verdict.testable]
        if not compared and not testable:
            continue
        shown = True
        lines += ["", f"**Scale `{scale}`**"]
        for run, _ in compared:
            lines += ["", provenance_line(run)]
        if compared:
            rows = [
                [label_of(row), row.measured_text(), row.paper_text(), row.difference_text(), run_link(run)]
                for run, rows in compared
                for row in rows
            ]
            header = ["metric", "measured", "paper", "difference", "run"]
            lines += ["", *markdown_table(header, rows, numbers=frozenset({1, 2, 3}))]
        rows = [
            [one.verdict.text, f"**{one.verdict.verdict}**", one.verdict.detail, ", ".join(map(run_link, one.runs))]
            for one in testable
        ]
        if rows:
            lines += ["", *markdown_table(["claim", "verdict", "because", "run"], rows)]
        rest = [one.verdict for one in report.claims[scale] if not one.verdict.testable]
        if rest:
            lines += [
                "",
                f"<details><summary>{len(rest)} claims are not testable at scale {scale}, and why</summary>",
                "",
            ]
            lines += [f"- {verdict.text}: {verdict.verdict.partition('(')[2].removesuffix(')')}." for verdict in rest]
            lines += ["", "</details>"]
    if not shown:
        lines += ["", f"Nothing has been measured yet: `make reproduce-{report.paper.name}`."]
    return "\n".join([*lines, ""])


def label_of(row: Comparison) -> str:
    """A row's label, with its source and note in brackets."""
    about = "; ".join(filter(None, (row.source, row.note)))
    return f"{row.label} ({about})" if about else row.label


def provenance_line(run: RunResult) -> str:
    """Which run, from which code, on what machine: one line of Markdown."""
    provenance = run.content["provenance"]
    commit = (provenance.get("commit") or "no commit")[:10] + (" with local changes" if provenance.get("dirty") else "")
    machine = provenance.get("hardware") or {}
    where = ", ".join(machine.get("gpus") or []) or f"{machine.get('cores', '?')} cores of {machine.get('cpu', '?')}"
    seconds = provenance.get("wall_time_s")
    took = f", {seconds:.0f} s" if isinstance(seconds, int | float) else ""
    return f"Run {run_link(run)}: commit {commit}, {where}{took}, {str(provenance.get('started_at', ''))[:10]}."


def overview_table(reports: list[PaperReport]) -> str:
    """What stands between the markers of the root README: every claim that a run could decide."""
    rows = []
    for report in reports:
        for scale in SCALES:
            for one in report.claims[scale]:
                if one.verdict.testable:
                    links = ", ".join(run_link(run, f"{report.paper.name}/") for run in one.runs)
                    rows.append([report.paper.name, one.verdict.text, one.verdict.verdict, one.verdict.detail, links])
    if not rows:
        return "\n\nNothing has been measured yet: `make reproduce`.\n"
    return "\n".join(["", "", *markdown_table(["paper", "claim", "verdict", "measured", "run"], rows), ""])


def rewrite_between_markers(path: Path, text: str) -> bool:
    """Replace what stands between the markers; True where the file changed.

    Raises:
        InputError: no such file, or not exactly one pair of markers in order; the file is left alone.
    """
    if not path.is_file():
        raise InputError(f"{path.parent.name}/{path.name} is missing, so its table was not written")
    content = path.read_text(encoding="utf-8")
    if content.count(BEGIN) != 1 or content.count(END) != 1 or content.index(BEGIN) > content.index(END):
        raise InputError(f"{path.parent.name}/{path.name} needs one line {BEGIN} and, after it, one line {END}")
    head, rest = content.split(BEGIN)
    new = head + BEGIN + text + END + rest.split(END)[1]
    if new != content:
        write_atomic(path, new)
    return new != content


def write_readmes(root: Path, reports: list[PaperReport], problems: list[str]) -> None:
    """Copy the results behind each README to records/, then write the tables."""
    for report in reports:
        folder = report.paper.path.parent
        for run in report.behind_readme:
            if not run.from_record:
                write_atomic(folder / run.record, run.path.read_bytes())
        try:
            rewrite_between_markers(folder / "README.md", readme_tables(report))
        except InputError as error:
            problems.append(str(error))
    top = root / "README.md"
    if top.is_file() and BEGIN in top.read_text(encoding="utf-8"):
        try:
            rewrite_between_markers(top, overview_table(reports))
        except InputError as error:
            problems.append(str(error))


# ------------------------------------------------------------------------------------------------------------ the page


def embedded_plots(run: RunResult, problems: list[str]) -> list[dict[str, str]]:
    """The run's plots as data URIs; a listed file that is missing is a problem (beside a record it is not)."""
    plots = []
    for plot in run.content.get("plots") or []:
        path = run.path.parent / "plots" / Path(plot["file"]).name  # never outside the run's folder
        if path.is_file():
            data = base64.b64encode(path.read_bytes()).decode()
            plots.append({**plot, "uri": f"data:image/png;base64,{data}"})
        elif not run.from_record:
            problems.append(f"{path} is listed in results.json but missing")
    return plots


def table_view(report: PaperReport, table_id: str) -> dict[str, Any]:
    """One table of the paper as rows of cells, each with what was measured at scale paper, if anything was."""
    table = report.paper.tables[table_id]
    runs = {run.experiment: run for run in report.runs if run.scale == "paper"}
    rows: dict[str, dict[str, Any]] = {}
    measured = 0
    for cell in report.paper.cells(table_id):
        row = rows.setdefault(cell.row, {"label": cell.label, "cells": [], "measured": False, "experiments": []})
        row["note"] = table["rows"][cell.row].get("note", "")
        if cell.experiment and cell.experiment not in row["experiments"]:
            row["experiments"].append(cell.experiment)
        run, value = runs.get(cell.experiment or ""), None
        if run is not None and cell.metric:
            try:
                value = metric_or_not_measured(run.metrics, cell.metric)
            except NotMeasured:
                value = None
        comparison = Comparison(cell.label, value, cell.paper, cell.scale_by, cell.format)
        row["cells"].append({"comparison": comparison, "run": run if value is not None else None})
        row["measured"] |= value is not None
        measured += value is not None
    columns = list(dict.fromkeys(cell.column for cell in report.paper.cells(table_id)))
    reproducible = sum(len(row["cells"]) for row in rows.values() if row["experiments"])
    return {**table, "columns": columns, "rows": list(rows.values()), "n_measured": measured, "n": reproducible}


def render_page(reports: list[PaperReport], problems: list[str]) -> str:
    """The whole page as HTML; every text is escaped by the template engine."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["flatten"] = flatten
    environment.filters["gib"] = lambda count: f"{count / 2**30:.1f} GiB"
    environment.globals["comparison"] = lambda value: Comparison("", value, None, format=".4g")
    views = [
        {
            "report": report,
            "paper": report.paper,
            "tables": [table_view(report, table_id) for table_id in report.paper.tables],
            "plots": {run.anchor: embedded_plots(run, problems) for run in report.runs},
            "counts": {
                scale: [sum(one.verdict.verdict == verdict for one in judged) for verdict in ("holds", "does not hold")]
                + [sum(not one.verdict.testable for one in judged)]
                for scale, judged in report.claims.items()
            },
        }
        for report in reports
    ]
    return environment.get_template("report.html.j2").render(views=views, problems=problems, scales=SCALES)


def build(root: Path, runs: Path, out: Path) -> list[str]:
    """Write the page, the records and the READMEs; returns the problems met (empty: all is well)."""
    problems: list[str] = []
    reports = collect(root, runs, problems)
    write_readmes(root, reports, problems)
    write_atomic(out, render_page(reports, problems))
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m shared.report", description="The report page and README tables.")
    parser.add_argument("--root", type=Path, default=project_root(), help="the folder that holds the papers' folders")
    parser.add_argument("--runs", type=Path, default=None, help="where results are (default: runs/, or $REPRO_RUNS)")
    parser.add_argument("--out", type=Path, default=None, help="the page to write (default: <runs>/report.html)")
    arguments = parser.parse_args()
    runs = arguments.runs
    if runs is None:
        runs = runs_root()
    out = arguments.out or runs / "report.html"
    console = Console(stderr=True, soft_wrap=True)
    problems = build(arguments.root, runs, out)
    for problem in problems:
        console.print(f"[yellow]problem:[/] {escape(problem)}")
    Console(soft_wrap=True).print(f"wrote {escape(str(out))}")
    if problems:
        sys.exit(2)


if __name__ == "__main__":
    main()
