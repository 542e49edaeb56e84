"""What the parts of a reproduction do: the package's own commands, with their configurations composed as usual."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig
from rich.console import Console

from litsearch.locations import Benchmark, open_benchmark
from litsearch.parts import Part, part_folder, results_of, run_path
from litsearch.runs import Run, read_run, write_run

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ENCODER = "simcse_encoder"  # the part that trains one
QUIET = Console(quiet=True)


def compose(name: str, overrides: list[str], configs: Path = CONFIGS) -> DictConfig:
    """A configuration as the command line would compose it."""
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(configs), version_base="1.3"):
        return hydra.compose(name, overrides=overrides)


def _opened(part: Part) -> tuple[DictConfig, Benchmark]:
    cfg = compose("config", [*part.data, *part.options.get("overrides", [])])
    return cfg, open_benchmark(cfg.data, full_papers=False)


def retrieve_part(part: Part, folder: Path, cores: int) -> dict[str, Any]:
    """A first stage. Options: `overrides` of the retriever, `top_k`, `index` (keep vectors on disk as they come)."""
    from litsearch.retrieve import retrieve, retriever_options
    from litsearch.retrievers import make_retriever

    cfg, benchmark = _opened(part)
    options = retriever_options(cfg.retriever)
    if options.get("kind") == "dense":
        import torch

        torch.set_num_threads(cores)
    if ENCODER in part.needs:
        options["model"] = str(folder / results_of(folder, ENCODER)["model"])
    if part.options.get("index"):
        options["folder"] = str(part_folder(folder, part.name) / "index")
    retriever = make_retriever(options, cfg.key.name)
    run = retrieve(benchmark, retriever, cfg.key.name, min(part.options["top_k"], len(benchmark.corpus)))
    return _kept(run, part, folder)


def hybrid_part(part: Part, folder: Path, cores: int) -> dict[str, Any]:
    """The runs of the parts it needs, fused. Options: `top_k`."""
    from litsearch.hybrid import fuse_runs

    _, benchmark = _opened(part)
    runs = [read_run(run_path(folder, name), benchmark.queries, benchmark.corpus) for name in part.needs]
    return _kept(fuse_runs(runs, benchmark.corpus, part.options["top_k"]), part, folder)


def onehop_part(part: Part, folder: Path, cores: int) -> dict[str, Any]:
    """A run expanded. Options: `cutoff_count`, `total_count`."""
    from litsearch.onehop import expand_run

    _, benchmark = _opened(part)
    run = read_run(run_path(folder, part.needs[0]), benchmark.queries, benchmark.corpus)
    return _kept(expand_run(run, benchmark.corpus, **part.options), part, folder)


def rerank_part(part: Part, folder: Path, cores: int) -> dict[str, Any]:
    """A run reranked. Options: `overrides` of `litsearch.rerank`, `questions` (the first n only)."""
    from litsearch.rerank.__main__ import rerank

    own, source = part_folder(folder, part.name), run_path(folder, part.needs[0])
    if part.options.get("questions"):
        some = read_run(source)
        source = write_run(own / "questions.jsonl", Run(some.records[: part.options["questions"]], some.metadata))
    # vLLM says on every start what it is; errors are what a log is for.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    out = run_path(folder, part.name)
    out.unlink(missing_ok=True)  # not finished, or made from another input
    overrides = [f"run='{source}'", f"out='{out}'", *part.options["overrides"]]
    rerank(compose("rerank", [*part.data, *overrides]), QUIET)
    about = read_run(out).metadata["rerank"]
    return {"statistics": {name: value for name, value in about.items() if isinstance(value, int | dict)}}


def train_part(part: Part, folder: Path, cores: int) -> dict[str, Any]:
    """A SimCSE encoder, trained by simcse/'s own command. Options: `overrides` of `simcse.train`."""
    import simcse
    from simcse.train import train

    own = part_folder(folder, part.name)
    configs = Path(simcse.__file__).resolve().parents[1] / "configs"
    cfg = compose("config", list(part.options["overrides"]), configs)
    cfg.output_dir = str(own / "training")
    train(cfg)
    return {"model": str((own / "training" / "model").relative_to(folder))}


def _kept(run: Run, part: Part, folder: Path) -> dict[str, Any]:
    write_run(run_path(folder, part.name), run)
    return {"questions": len(run), "papers": run.metadata.get("papers")}


WORK: dict[str, Callable[[Part, Path, int], dict[str, Any]]] = {
    "retrieve": retrieve_part,
    "hybrid": hybrid_part,
    "onehop": onehop_part,
    "rerank": rerank_part,
    "train": train_part,
}
