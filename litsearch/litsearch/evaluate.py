"""Score runs: the paper's table of them, with intervals, tests between them, and the paper's own values.

    python -m litsearch.evaluate runs=[a.jsonl,b.jsonl]
    python -m litsearch.evaluate runs=[a.jsonl] data=full          # checked against the benchmark
    python -m litsearch.evaluate runs=[other.trec] data=mini

A run carries its questions and their answers, so nothing else is needed to score it; `data` makes sure that they are
the benchmark's. Written to the output folder: results.json (everything), table.md, table.csv, table.json (the paper's
table) and questions.csv (every question's score in every run).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, ListConfig
from rich.console import Console

from litsearch import scoring, tables
from litsearch.locations import Benchmark, open_benchmark
from litsearch.runs import Run, read_run, read_trec
from shared import InputError
from shared.launch import entrypoint
from shared.results import Run as Result
from shared.results import write_atomic


@entrypoint(config_name="evaluate")
def main(cfg: DictConfig) -> None:
    if not isinstance(cfg.runs, ListConfig | str) or not len(cfg.runs):
        raise InputError(f"runs={cfg.runs!r}: give one or more run files, runs=[a.jsonl,b.jsonl]")
    result = Result(cfg.paper, cfg.experiment, cfg.scale, cfg.output_dir, cfg, cfg.seed)
    paths = [cfg.runs] if isinstance(cfg.runs, str) else list(cfg.runs)
    benchmark = open_benchmark(cfg.data, full_papers=False) if cfg.get("data") else None
    runs = read_runs([Path(path) for path in paths], benchmark, dict(cfg.labels or {}), cfg.allow_partial)
    scores = score(runs, list(cfg.recalls))
    result.metrics |= evaluate(runs, scores, cfg.resamples, cfg.seed, cfg.paired)
    write_tables(result, runs, scores, cfg.compare)
    quiet = Console(quiet=cfg.scale != "paper")  # the paper's layout is printed already
    path = result.finish(quiet)
    Console(soft_wrap=True).print(f"results: {path}", highlight=False)


def read_runs(
    paths: Sequence[Path], benchmark: Benchmark | None, labels: Mapping[str, str], allow_partial: bool = False
) -> dict[str, Run]:
    """Label -> run, checked; all answer the same questions, in the order of the first.

    Raises:
        InputError: see `litsearch.runs.read_run`; runs of different corpora or questions; a label given twice.
    """
    queries = benchmark.queries if benchmark else None
    corpus = benchmark.corpus if benchmark else None
    runs: dict[str, Run] = {}
    for path in paths:
        if path.suffix == ".trec":
            if queries is None:
                raise InputError(f"runs: {path.name} is a TREC run, which names questions by number: give data=...")
            run = read_trec(path, queries, corpus)
        else:
            run = read_run(path, queries, corpus)
        if queries is not None and len(run) < len(queries) and not allow_partial:
            raise InputError(
                f"runs: {path} answers {len(run)} of the {len(queries)} questions; make it whole, or say "
                "allow_partial=true to score those"
            )
        label = labels.get(str(path)) or labels.get(path.name) or _free_label(run, path, runs)
        if label in runs:
            raise InputError(f"labels: {label!r} is given to two runs; give each its own")
        runs[label] = run
    return _aligned(runs)


def _free_label(run: Run, path: Path, taken: Mapping[str, Run]) -> str:
    """The system's name; where that is taken, with the key, then the file's name."""
    system = run.system.replace("+", "_")
    for label in (system, f"{system}_{run.key}", path.name.removesuffix(".jsonl")):
        if label not in taken:
            return label
    raise InputError(f"runs: {path} is given twice; name files of the same name with labels={{path: label}}")


def _aligned(runs: dict[str, Run]) -> dict[str, Run]:
    """Every run with its questions in the first one's order; InputError where they are not the same questions."""
    first_label, first = next(iter(runs.items()))
    order = {query: position for position, query in enumerate(first.queries)}
    for label, run in runs.items():
        made_with, wanted = run.metadata.get("corpus"), first.metadata.get("corpus")
        if None not in (made_with, wanted) and made_with != wanted:
            raise InputError(f"runs: {label} was made with another corpus than {first_label}; score them apart")
        other = set(run.queries) ^ set(first.queries)
        if other:
            example = next(iter(other)).query
            raise InputError(
                f"runs: {label} and {first_label} differ in {len(other)} questions (e.g. {example!r}); "
                "runs that are compared must answer the same questions"
            )
        run.records.sort(key=lambda record: order[record.query])
    return runs


def score(runs: Mapping[str, Run], recalls: Sequence[int] = scoring.RECALLS) -> dict[str, dict[str, np.ndarray]]:
    """Label -> metric -> `(n_questions,)` in percent."""
    functions = scoring.metric_functions(recalls)
    return {label: scoring.per_question(run, functions) for label, run in runs.items()}


def evaluate(
    runs: Mapping[str, Run],
    scores: Mapping[str, Mapping[str, np.ndarray]],
    resamples: int = 1000,
    seed: int = 0,
    paired: bool = True,
) -> dict[str, Any]:
    """The metrics of results.json: `runs.<label>.<group>.<metric>` in percent, `paired`, `questions`.

    Raises InputError for resamples below 0.
    """
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 0:
        raise InputError(f"resamples={resamples!r}: give a whole number of at least 0")
    first = next(iter(runs.values()))
    groups = scoring.question_groups(first.queries)
    return {
        "questions": len(first),
        "runs": {
            label: {
                "system": run.system,
                "key": run.key,
                "made_by": {k: v for k, v in run.metadata.items() if k in ("retriever", "stages", "top_k", "data")},
                "gold_ranks": scoring.rank_histogram(run),
                **scoring.group_means(scores[label], groups, seed, resamples),
            }
            for label, run in runs.items()
        },
        "paired": scoring.paired_tests(scores, groups, seed) if paired else [],
    }


def write_tables(
    result: Result, runs: Mapping[str, Run], scores: Mapping[str, Mapping[str, np.ndarray]], compare: str
) -> None:
    """table.md, table.csv, table.json and questions.csv in the result's folder, and the table on the terminal."""
    if compare not in ("auto", "always", "never"):
        raise InputError(f"compare={compare!r} is not one of auto, always, never")
    metrics, folder = result.metrics, result.output_dir
    whole = metrics["questions"] == tables.WHOLE_BENCHMARK
    rows: list[tables.Row] = []
    for label, run in runs.items():
        printed = tables.paper_values(result.paper, run) if compare != "never" else {}
        rows += tables.rows_with_paper(
            tables.our_row(label, metrics["runs"][label]), printed, whole or compare == "always"
        )
    some = next(iter(metrics["runs"].values()))
    counts = {group: some[group]["n"] for group, _ in scoring.COLUMNS if group in some}
    note = "Brackets: 95% bootstrap intervals over questions. "
    note += "avg. is over questions, not over columns."
    if any(row.kind == "paper" for row in rows) and not whole:
        note += f" The paper's rows are of all {tables.WHOLE_BENCHMARK} questions; these are {metrics['questions']}"
        note += ", so no difference is taken." if compare == "auto" else "."
    write_atomic(folder / "table.md", tables.markdown(rows, metrics["paired"], counts, note))
    write_atomic(folder / "table.csv", tables.csv_text(rows))
    write_atomic(folder / "table.json", json.dumps(_table_json(rows), indent=1, ensure_ascii=False) + "\n")
    write_atomic(folder / "questions.csv", _questions_csv(runs, scores))
    console = Console()
    tables.print_table(rows, counts, console)
    tables.print_tests(metrics["paired"], console)
    console.print(note, style="dim")


def _table_json(rows: Sequence[tables.Row]) -> list[dict[str, Any]]:
    return [
        {
            "run": row.label,
            "kind": row.kind,
            "values": {f"{group}.{metric}": value for (group, metric), value in row.values.items()},
            "intervals": {f"{group}.{metric}": list(ends) for (group, metric), ends in row.intervals.items()},
        }
        for row in rows
    ]


def _questions_csv(runs: Mapping[str, Run], scores: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """A line per question and run: what it was, where its answers were found, and every score in percent."""
    from litsearch.metrics import gold_ranks

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = list(next(iter(scores.values())))
    writer.writerow(["run", "query_set", "specificity", "quality", "query", "corpusids", "ranks", *names])
    for label, run in runs.items():
        for position, record in enumerate(run):
            query = record.query
            ranks = ["-" if rank is None else rank for rank in gold_ranks(record.retrieved, query.corpusids)]
            about = [query.query_set, query.specificity, query.quality, query.query]
            lists = [" ".join(map(str, query.corpusids)), " ".join(map(str, ranks))]
            writer.writerow([label, *about, *lists, *(f"{scores[label][name][position]:.6g}" for name in names)])
    return out.getvalue()


if __name__ == "__main__":
    main()
