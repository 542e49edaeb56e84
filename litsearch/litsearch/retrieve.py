"""Rank the corpus for every question and write the run.

    python -m litsearch.retrieve retriever=bm25 key=title_abstract top_k=200
    python -m litsearch.retrieve retriever=e5 data=full index=indexes/e5
    python -m litsearch.retrieve data=files data.corpus=papers.jsonl data.queries=questions.jsonl

The run is `<output_dir>/<data>.<key>.<retriever>.jsonl` (`litsearch.runs`); `python -m litsearch.evaluate` scores it,
`litsearch.onehop` and `litsearch.rerank` go on from it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from litsearch.keys import Keys, needs_full_paper, rank_papers
from litsearch.locations import Benchmark, open_benchmark, token_cache
from litsearch.retrievers import Retriever, make_retriever
from litsearch.runs import Run, RunRecord, run_metadata, write_qrels, write_run, write_trec
from shared import InputError
from shared.launch import entrypoint
from shared.run_folders import run_folder


@entrypoint()
def main(cfg: DictConfig) -> None:
    check_top_k(cfg.top_k)
    folder = run_folder(cfg.paper, cfg.scale, cfg.experiment, cfg.output_dir)
    benchmark = open_benchmark(cfg.data, full_papers=False)
    check_top_k(cfg.top_k, len(benchmark.corpus))
    retriever = make_retriever(retriever_options(cfg.retriever), cfg.key.name)
    started = time.perf_counter()
    run = retrieve(benchmark, retriever, cfg.key.name, cfg.top_k, cfg.compat.dedup_keys, cfg.index)
    name = cfg.run or f"{benchmark.name}.{cfg.key.name}.{retriever.name}.jsonl"
    path = write_run(folder / name, run)
    if cfg.trec:
        write_trec(path.with_suffix(".trec"), run)
        write_qrels(folder / f"{benchmark.name}.qrels", benchmark.queries)
    seconds = time.perf_counter() - started
    papers, questions = len(benchmark.corpus), len(run)
    console = Console(soft_wrap=True)
    console.print(f"{retriever.name}: {questions} questions over {papers} papers in {seconds:.1f} s", highlight=False)
    console.print(f"run: {path}", highlight=False)


def check_top_k(top_k: Any, papers: int | None = None) -> None:
    """Refuse a top_k that is no whole number from 1 to the number of papers."""
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise InputError(f"top_k={top_k!r}: give a whole number of at least 1")
    if papers is not None and top_k > papers:
        raise InputError(f"top_k={top_k} is more than the corpus has papers ({papers}); give at most {papers}")


def retriever_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """A `retriever` group with its cache folder resolved."""
    options = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else dict(config)
    if "cache" in options:
        options["cache"] = token_cache(options["cache"])
    return options


def retrieve(
    benchmark: Benchmark,
    retriever: Retriever,
    key: str = "title_abstract",
    top_k: int = 200,
    dedup_keys: bool = False,
    index: str | Path | None = None,
) -> Run:
    """The `top_k` best papers for every question.

    Args:
        index: a saved index of the same corpus, key and retriever; None makes one.

    Raises:
        InputError: an index that was made with something else, or keys that hold nothing.
    """
    corpus = benchmark.corpus
    keys = Keys(corpus.stream() if needs_full_paper(key) else corpus.papers, key, dedup_keys)
    if index is None:
        retriever.index(keys)
    else:
        check_index(index, corpus.fingerprint, key, dedup_keys)
        retriever.load(Path(index))
        for _ in keys:  # whose they are; the texts themselves are not needed again
            pass
    questions = [query.query for query in benchmark.queries]
    positions, scores = rank_papers(retriever.search, keys.owners, questions, top_k)
    records = [
        RunRecord(query, [corpus.papers[i].corpusid for i in found.tolist()], found_scores.tolist())
        for query, found, found_scores in zip(benchmark.queries, positions, scores, strict=True)
    ]
    about = {
        "data": benchmark.name,
        "key": key,
        "dedup_keys": dedup_keys,
        "retriever": retriever.metadata(),
        "stages": [retriever.name],
        "top_k": top_k,
    }
    return Run(records, run_metadata(corpus, benchmark.queries, **about))


def check_index(folder: str | Path, corpus: str, key: str, dedup_keys: bool) -> None:
    """Refuse an index of another corpus, key or way of treating duplicates; the retriever checks the rest."""
    from litsearch import storage

    storage.read_metadata(folder, {"corpus": corpus, "key": key, "dedup_keys": dedup_keys})


if __name__ == "__main__":
    main()
