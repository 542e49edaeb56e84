"""Rerank a run with a language model.

    python -m litsearch.rerank run=RUN.jsonl llm=vllm model=Qwen/Qwen3-30B-A3B-Instruct-2507
    python -m litsearch.rerank run=RUN.jsonl llm=openai model=gpt-4o-2024-05-13 dry_run=true
    python -m litsearch.rerank run=RUN.jsonl llm=oracle            # the ceiling, without a model

Written beside each other: `<run>.rerank-<model>.jsonl` (the run; `pre_reranked` is the list that came in),
`...answers.jsonl` (every reply as it comes: the same command again asks only for what is missing) and `...stats.json`.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from litsearch.data import Corpus, Paper
from litsearch.keys import needs_full_paper
from litsearch.locations import Benchmark, open_benchmark
from litsearch.rerank.cost import estimate, print_cost
from litsearch.rerank.listwise import Candidates, ListwiseReranker, Ranking, Settings, statistics
from litsearch.rerank.mock import MockReranker
from litsearch.rerank.prompt import document_text
from litsearch.reranked import check_output, input_digest, read_stage_input, reranked_run
from litsearch.runs import Run, write_run
from shared import InputError
from shared.generation import Generator, make_generator
from shared.launch import entrypoint
from shared.results import write_atomic
from shared.training import run_folder

log = logging.getLogger(__name__)
TINY = "tiny"  # a model of our own that knows the form of the answers only
SETTINGS = ("parser", "mode", "window", "step", "max_tokens", "temperature")


@entrypoint(config_path="../../configs", config_name="rerank")
def main(cfg: DictConfig) -> None:
    rerank(cfg)


def rerank(cfg: DictConfig, console: Console | None = None) -> Path | None:
    """Do what the configuration says; the path of the new run, None after a dry run.

    Raises InputError for what cannot be reranked, and at the end for questions without an answer (unless
    `allow_partial`).
    """
    console = console or Console(soft_wrap=True)
    benchmark = open_benchmark(cfg.data, full_papers=False)
    run = read_stage_input(cfg.run, benchmark, cfg.max_k)
    settings = Settings(key=shown_key(cfg.get("key"), run), **{name: cfg[name] for name in SETTINGS})
    name = cfg.llm.name or _model_name(str(cfg.llm.generator.get("model") or cfg.llm.generator.backend))
    out = output_path(cfg, run, name)
    items = candidates(run, benchmark.corpus, settings.key, cfg.max_k)
    options = generator_options(cfg.llm)
    journal = out.with_name(out.name.removesuffix(".jsonl") + ".answers.jsonl")
    if cfg.dry_run:
        print_cost(*estimate(items, settings, options, journal), console)
        return None
    about = {"model": name, "settings": settings.about(), "input": input_digest(run, cfg.max_k), "max_k": cfg.max_k}
    check_output(out, about["input"], "rerank")
    out.parent.mkdir(parents=True, exist_ok=True)
    with open_generator(options, benchmark, run, settings.key, out.parent) as generator:
        rankings = ListwiseReranker(generator, settings, journal).rank(items)
        about["generator"] = generator.binding()
    check_failures(rankings, items, journal, cfg.allow_partial)
    stats = statistics(rankings)
    extras = [{"rerank": ranking.about()} for ranking in rankings]
    orders = [ranking.order for ranking in rankings]
    new = reranked_run(run, orders, cfg.max_k, cfg.keep_rest, f"rerank:{name}", {"rerank": about | stats}, extras)
    write_run(out, new)
    write_atomic(out.with_name(out.name.removesuffix(".jsonl") + ".stats.json"), json.dumps(stats, indent=1) + "\n")
    print_statistics(stats, console)
    console.print(f"run: {out}", highlight=False)
    return out


def _model_name(model: str) -> str:
    """A hub id or a served name as it is, a folder's own name: runs say which model it was, not where it lay."""
    folder = Path(model).expanduser()
    return folder.resolve().name if folder.is_dir() else model


def shown_key(wanted: Mapping[str, Any] | None, run: Run) -> str:
    """What is shown of a paper: what the `key` group says, else what the run was made from."""
    if wanted is not None:
        return wanted["name"]
    if run.key in (None, "paragraphs"):
        log.info("key: the run was made from %s; papers are shown by title and abstract", run.key or "an unknown key")
        return "title_abstract"
    return run.key


def candidates(run: Run, corpus: Corpus, key: str, max_k: int) -> list[Candidates]:
    """The first `max_k` papers of every question as texts; `q<i>` is the i-th question's id."""
    wanted = {corpusid for retrieved in run.retrieved for corpusid in retrieved[:max_k]}
    papers: Sequence[Paper] = corpus.papers
    source = corpus.stream() if needs_full_paper(key) else papers
    texts = {paper.corpusid: document_text(paper, key) for paper in source if paper.corpusid in wanted}
    empty = sum(not text for text in texts.values())
    if empty:
        fix = "; key=title_abstract shows what there is" if key == "full_paper" else ""
        log.warning("%d of %d candidates have no text%s", empty, len(texts), fix)
    return [
        Candidates(f"q{i}", record.query.query, [texts[corpusid] for corpusid in record.retrieved[:max_k]])
        for i, record in enumerate(run)
    ]


def output_path(cfg: DictConfig, run: Run, name: str) -> Path:
    """`out`, or `<output folder>/<run>.rerank-<model>.jsonl`."""
    if cfg.out is not None:
        out = Path(cfg.out).expanduser().resolve()
        if not out.name.endswith(".jsonl"):
            raise InputError(f"out={cfg.out}: the name of a run must end in .jsonl")
    else:
        folder = run_folder(cfg.paper, cfg.scale, cfg.experiment, cfg.output_dir)
        stem = run.path.name.removesuffix(".gz").removesuffix(".jsonl")
        out = folder / f"{stem}.rerank-{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('-')}.jsonl"
    if out == run.path.resolve():
        raise InputError(f"out={out} is the run that is reranked; give another name")
    return out


def generator_options(llm: Mapping[str, Any]) -> dict[str, Any]:
    """An `llm` group's back end without what is null. Raises InputError where the model is not named."""
    options = OmegaConf.to_container(llm.generator, resolve=True) if isinstance(llm, DictConfig) else dict(llm)
    options = {name: value for name, value in options.items() if value is not None}
    if options.get("backend") in ("vllm", "transformers", "openai") and "model" not in options:
        raise InputError(f"model is missing: the {options['backend']} back end needs it (model=...)")
    return options


def open_generator(options: dict[str, Any], benchmark: Benchmark, run: Run, key: str, folder: Path) -> Generator:
    """The back end of `options`; the mock ones are told the answers."""
    options = dict(options)
    if options["backend"] == "mock":
        corpus = benchmark.corpus
        source = corpus.stream() if needs_full_paper(key) else corpus.papers
        gold = {corpusid for query in run.queries for corpusid in query.corpusids}
        texts = {paper.corpusid: document_text(paper, key) for paper in source if paper.corpusid in gold}
        answers = {f"q{i}": [texts[corpusid] for corpusid in query.corpusids] for i, query in enumerate(run.queries)}
        return MockReranker(options["flavour"], answers, options.get("noise", 0.5), options.get("seed", 0))
    if options.get("model") == TINY and options["backend"] in ("vllm", "transformers"):
        from litsearch.rerank.tiny_ranker import tiny_ranker  # torch, which servers and mocks do without

        options["model"] = str(tiny_ranker(folder / "tiny_model", benchmark.corpus.papers))
    return make_generator(options, paper="litsearch")


def check_failures(rankings: Sequence[Ranking], items: Sequence[Candidates], journal: Path, partial: bool) -> None:
    """Say which questions have no answer; an error unless partial results are welcome."""
    failed = [(item, ranking) for item, ranking in zip(items, rankings, strict=True) if ranking.failure]
    if not failed:
        return
    item, ranking = failed[0]
    message = (
        f"{len(failed)} of {len(items)} questions have no answer, the first is {item.query!r}: {ranking.failure}. The "
        f"others are kept in {journal}: the same command again asks only for what is missing"
    )
    if not partial:
        raise InputError(f"{message}; allow_partial=true keeps the order of these")
    log.warning("%s", message)


def print_statistics(stats: Mapping[str, Any], console: Console) -> None:
    table = Table("replies", "", title=None)
    table.columns[1].justify = "right"
    for name, value in stats.items():
        shown = ", ".join(f"{k} {v:,}" for k, v in value.items()) if isinstance(value, dict) else f"{value:,}"
        if value or name in ("questions", "replies", "unparsable"):
            table.add_row(name.replace("_", " "), shown)
    console.print(table)


if __name__ == "__main__":
    main()
