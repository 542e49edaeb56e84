"""`make reproduce-litsearch`: what of the paper shows on two CPU cores, without a download, in under four minutes.

With the mirror: the real small corpus (7,636 papers) and the 136 of the benchmark's questions whose answers are in it.
Without it: documentation of what is installed here, with summary lines as questions. On them

(a) first stages: random vectors, BM25 as released, TF-IDF, LSA, MiniLM, a SimCSE encoder of simcse/'s laptop scale, and
    BM25 with MiniLM fused;
(b) reranking BM25's first hundred with rerankers that know the answers: one that changes nothing, one without a fault
    (the ceiling of the candidates), one that errs;
(c) one-hop expansion, on the documentation corpus where the papers at hand come without citations;
(d) the prompting path on a real engine with a model of 100,000 parameters made on the spot, which has learned the form
    of short answers and nothing else: its ranking means nothing.

No language model that could rerank, and no retriever of the paper's size, is at hand on a laptop. Parts are made once
(`litsearch.parts`): a killed reproduction goes on where it was.
"""

from __future__ import annotations

import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from litsearch.laptop import Bench, data_overrides, make_plan, onehop_bench
from litsearch.laptop_report import report
from litsearch.locations import open_benchmark
from litsearch.onehop import check_counts
from litsearch.part_work import CONFIGS
from litsearch.parts import perform_all
from litsearch.rerank.mock import FLAVOURS
from litsearch.retrieve import check_top_k
from shared import InputError
from shared.launch import entrypoint
from shared.results import Run as Result


@entrypoint(config_name="reproduce")
def main(cfg: DictConfig) -> None:
    reproduce(cfg)


def reproduce(cfg: DictConfig, console: Console | None = None) -> Path:
    """Perform the parts, measure, draw, judge; the path of results.json. Raises InputError."""
    check(cfg)
    console = console or Console()
    result = Result(cfg.paper, cfg.experiment, cfg.scale, cfg.output_dir, cfg, cfg.seed)
    folder = result.output_dir
    bench = Bench(open_benchmark(cfg.data, full_papers=False), ())
    bench = Bench(bench.benchmark, data_overrides(cfg.data, bench.benchmark, folder))
    if bench.benchmark.name == "offline":
        console.print("The papers are not on this machine: documentation of what is installed here takes their place.")
    cited = onehop_bench(cfg, bench, folder)
    plan = make_plan(cfg, bench, cited, console)
    processes = cfg.processes or len(os.sched_getaffinity(0))
    performed = perform_all(plan.parts, folder, processes)
    result.metrics["parts"] = {"performed": performed, "kept": [n for n in plan.names if n not in performed]}
    report(cfg, result, plan, bench, cited, console)
    path = result.finish(console)
    console.print(f"everything: {folder}", highlight=False, soft_wrap=True)
    return path


def check(cfg: DictConfig) -> None:
    """Refuse what cannot be reproduced, before anything is made. Raises InputError."""
    if cfg.scale != "laptop":
        raise InputError(
            f"scale={cfg.scale}: reproduce runs at laptop scale; at paper scale run litsearch.retrieve, rerank and "
            "evaluate with data=full (the README has the commands)"
        )
    check_names(cfg)
    check_top_k(cfg.top_k)
    check_counts(cfg.onehop.cutoff_count, cfg.onehop.total_count)
    counts = ["rerank.max_k", "prompting.max_k", "prompting.questions", "minilm.max_length", "simcse.max_length"]
    counts += ["resamples"]
    for name in [*counts, *(["processes"] if cfg.processes is not None else [])]:
        value = OmegaConf.select(cfg, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value!r}: give a whole number of at least 1")


def check_names(cfg: DictConfig) -> None:
    """Refuse retrievers, rerankers and engines that there are not, or that are not made in this run."""
    there = sorted(path.stem for path in (CONFIGS / "retriever").glob("*.yaml"))
    for name in ("retrievers", "hybrid", "ceilings", "rerank.flavours", "onehop.first", "onehop.corpus.retrievers"):
        values = list(OmegaConf.select(cfg, name))
        if len(set(values)) < len(values):
            raise InputError(f"{name}={values}: give each once")
        unknown = [value for value in values if value not in there and "retriever" in name]
        if unknown:
            raise InputError(f"{name} holds {unknown[0]!r}, which is not one of {', '.join(there)}")
    if "bm25" not in cfg.retrievers:
        raise InputError(f"retrievers={list(cfg.retrievers)}: bm25 must be among them, everything is compared with it")
    if len(cfg.hybrid) == 1:
        raise InputError(f"hybrid={list(cfg.hybrid)}: give at least two to fuse, or [] to leave it out")
    made = {*cfg.retrievers, *(["hybrid"] if cfg.hybrid else [])}
    for name, values in {"hybrid": cfg.hybrid, "ceilings": cfg.ceilings, "rerank.first": [cfg.rerank.first]}.items():
        missing = [value for value in values if value not in made]
        if missing:
            raise InputError(f"{name} names {missing[0]}, but retrievers={list(cfg.retrievers)}; add it there")
    unknown = [flavour for flavour in cfg.rerank.flavours if flavour not in FLAVOURS]
    if unknown:
        raise InputError(f"rerank.flavours holds {unknown[0]!r}, which is not one of {', '.join(FLAVOURS)}")
    if cfg.prompting.backend not in ("auto", "vllm", "transformers"):
        raise InputError(f"prompting.backend={cfg.prompting.backend!r} is not one of auto, vllm, transformers")


if __name__ == "__main__":
    main()
