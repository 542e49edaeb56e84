"""From the finished parts of the laptop reproduction to its numbers, tables and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from litsearch import findings, plots, scoring
from litsearch.data import Corpus
from litsearch.evaluate import score, write_tables
from litsearch.laptop import Bench, Plan
from litsearch.parts import results_of, run_path
from litsearch.runs import Run, read_run
from shared.results import Run as Result


def report(cfg: DictConfig, result: Result, plan: Plan, bench: Bench, cited: Bench, console: Console) -> None:
    """Everything that is measured on the runs: the paper's table, tests, findings, figures."""
    folder, benchmark = result.output_dir, bench.benchmark
    runs = read_runs(folder, plan.shown, bench)
    scores, groups = score(runs), scoring.question_groups(benchmark.queries)
    rows = {
        name: {"gold_ranks": scoring.rank_histogram(run)}
        | scoring.group_means(scores[name], groups, cfg.seed, cfg.resamples)
        for name, run in runs.items()
    }
    costs = {name: results_of(folder, name) for name in plan.names}
    result.metrics |= about_data(bench, groups) | {
        "runs": rows,
        "paired": scoring.paired_tests(scores, groups, cfg.seed, against="bm25"),
        "ceilings": {name: findings.ceilings(runs[name]) for name in cfg.ceilings},
        **{what: {name: costs[name][what] for name in plan.names} for what in ("seconds", "cpu_seconds")},
    }
    # The paper's numbers are of a corpus eight times as large; beside documentation they would say nothing at all.
    write_tables(result, runs, scores, "never" if benchmark.name == "offline" else "always")
    if benchmark.name == "mini" and (len(benchmark.corpus), len(benchmark.queries)) == findings.REFERENCE_SIZE:
        result.metrics["reference"] = {name: findings.reference_values(rows[name]) for name in ("bm25", "random")}
    dense = [name for name in ("bm25", "minilm") if name in runs]
    draw_first_stages(result, runs, groups, cfg)
    report_overlap(result, {name: runs[name] for name in dense}, benchmark.corpus)
    report_reranking(cfg, result, runs)
    report_onehop(cfg, result, plan, cited, console)
    if plan.prompting is not None:
        report_prompting(result, plan, console)


def read_runs(folder: Path, names: list[str], bench: Bench) -> dict[str, Run]:
    benchmark = bench.benchmark
    return {name: read_run(run_path(folder, name), benchmark.queries, benchmark.corpus) for name in names}


def about_data(bench: Bench, groups: dict[str, np.ndarray]) -> dict[str, Any]:
    benchmark = bench.benchmark
    return {
        "data": benchmark.name,
        "papers": len(benchmark.corpus),
        "questions": len(benchmark.queries),
        "questions_by_group": {name: len(positions) for name, positions in groups.items()},
    }


# -------------------------------------------------------------------------------------------------------- first stages


def draw_first_stages(result: Result, runs: dict[str, Run], groups: dict[str, np.ndarray], cfg: DictConfig) -> None:
    first = {name: run for name, run in runs.items() if len(run.metadata["stages"]) == 1}
    rows, about = result.metrics["runs"], describe(result.metrics)
    columns = [(group, metric) for group, metric in scoring.TESTED if group in groups]
    result.save_plot(
        "systems",
        plots.systems({name: rows[name] for name in runs}, columns),
        f"Every system on {about}; lines: 95 % bootstrap intervals over questions.",
    )
    subsets = {name.removeprefix("avg_"): groups[name] for name in ("avg_broad", "avg_specific") if name in groups}
    curves = {
        subset: {name: findings.recall_curve(run, positions, cfg.top_k) for name, run in first.items()}
        for subset, positions in subsets.items()
    }
    result.save_plot(
        "recall_curves",
        plots.recall_curves(curves, {name: len(positions) for name, positions in subsets.items()}),
        f"Recall of the first stages at every depth, on {about}; grey: the paper's k of 5 and 20.",
    )
    shown = [name for name in ("bm25", "minilm", "hybrid") if name in runs]
    result.save_plot(
        "gold_ranks",
        plots.gold_ranks({name: rows[name]["gold_ranks"] for name in shown}),
        f"At which ranks the answers stand, on {about}.",
    )
    result.save_plot(
        "candidate_ceilings",
        plots.candidate_ceilings(result.metrics["ceilings"]),
        "What a faultless reranker of the first k papers would reach: no reranker finds what is not among them.",
    )


def describe(metrics: dict[str, Any]) -> str:
    """ "7,636 papers and 136 questions"."""
    what = "documents" if metrics["data"] == "offline" else "papers"
    return f"{metrics['papers']:,} {what} and {metrics['questions']} questions"


def report_overlap(result: Result, runs: dict[str, Run], corpus: Corpus) -> None:
    """overlap.<system>: recall@20 of the thirds of questions that share least and most words with their answers."""
    overlap = findings.overlaps(next(iter(runs.values())), corpus)
    result.metrics["overlap"] = {name: findings.by_overlap(run, overlap) for name, run in runs.items()}
    result.metrics["overlap"]["mean"] = float(overlap.mean())
    result.save_plot(
        "overlap_against_recall",
        plots.overlap_against_recall(runs, overlap),
        "Recall@20 against the words a question shares with its answer: points are questions, lines means of fifths.",
    )


def report_reranking(cfg: DictConfig, result: Result, runs: dict[str, Run]) -> None:
    first = runs[cfg.rerank.first]
    gains = {
        flavour: findings.gains(first, runs[f"{cfg.rerank.first}-{flavour}"])
        for flavour in cfg.rerank.flavours
        if flavour != "identity"
    }
    if not gains:
        return
    result.metrics["gains"] = {
        name: {
            "better": int((values > 1e-9).sum()),
            "worse": int((values < -1e-9).sum()),
            "mean": float(values.mean()),
        }
        for name, values in gains.items()
    }
    result.save_plot(
        "reranker_gains",
        plots.reranker_gains(gains),
        f"What reranking the first {cfg.rerank.max_k} of {plots.label(cfg.rerank.first)} changes for every question, "
        "with rerankers that know the answers.",
    )


# ------------------------------------------------------------------------------------------------- one-hop, prompting


def report_onehop(cfg: DictConfig, result: Result, plan: Plan, cited: Bench, console: Console) -> None:
    """onehop.<first stage>: what expansion did to its candidates; onehop.reranked.<flavour>: recall afterwards."""
    folder = result.output_dir
    before = read_runs(folder, list(plan.expanded), cited)
    after = read_runs(folder, list(plan.expanded.values()), cited)
    rows = {
        name.removeprefix(cited.prefix): findings.expansion(before[name], after[plan.expanded[name]], cfg.seed)
        for name in plan.expanded
    }
    if not rows:
        console.print("One-hop expansion was left out: no first stage of onehop.first was run.")
        return
    reranked = read_runs(folder, list(plan.reranked.values()), cited)
    result.metrics["onehop"] = {
        "data": cited.benchmark.name,
        "papers": len(cited.benchmark.corpus),
        "questions": len(cited.benchmark.queries),
        "citations": sum(len(paper.citations) for paper in cited.benchmark.corpus.papers),
        "first_stages": rows,
        "reranked": {
            flavour: {f"R@{k}": float(findings.recalls(reranked[name], k).mean()) for k in (5, 20)}
            for flavour, name in plan.reranked.items()
        },
    }
    print_onehop(cfg, result.metrics["onehop"], console)
    what = "documents" if cited.benchmark.name == "offline" else "papers"
    result.save_plot(
        "onehop_ceilings",
        plots.expansion_ceilings(rows, cfg.onehop.cutoff_count),
        f"Answers among the candidates before and after one-hop, on {len(cited.benchmark.corpus):,} {what} with "
        f"{result.metrics['onehop']['citations']:,} citations.",
    )


def print_onehop(cfg: DictConfig, onehop: dict[str, Any], console: Console) -> None:
    title = f"answers among the candidates, percent; {onehop['papers']:,} papers, {onehop['questions']} questions"
    table = Table(title=f"{title} ({onehop['data']})", title_justify="left", box=SIMPLE_HEAD)
    for name in ("one-hop after", f"first {cfg.onehop.cutoff_count}", "expanded", "as many without", "candidates"):
        table.add_column(name, justify="left" if name == "one-hop after" else "right")
    for name, row in onehop["first_stages"].items():
        cells = [f"{row[key]:.1f}" for key in ("first", "after", "as_many", "candidates")]
        table.add_row(plots.label(name), *cells)
    console.print(table)


def report_prompting(result: Result, plan: Plan, console: Console) -> None:
    """prompting: how the tiny model's replies were. Its ranking means nothing and is not scored."""
    folder = result.output_dir
    run = read_run(run_path(folder, plan.prompting))
    about = run.metadata["rerank"]
    kept = {name: value for name, value in about.items() if isinstance(value, int | dict) and name != "settings"}
    backend = about["generator"]["backend"]
    result.metrics["prompting"] = kept | {"backend": backend, "ranking_means_nothing": True}
    result.metrics["prompting"].pop("generator", None)
    console.print(
        f"prompting path on {backend}: {about['questions']} prompts of {about['max_k']} papers, {about['replies']} "
        f"replies, {about['complete']} of them name every paper once, {about['unparsable']} hold no number; the model "
        "was made on the spot and knows nothing of papers, so its ranking means nothing and is not scored"
    )
