"""From the `data` configuration group to papers and questions, wherever they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from litsearch.data import Corpus, Query, check_answers, load_corpus, load_queries
from litsearch.own_papers import load_own_papers
from shared import InputError, hub

PAPER = "litsearch"
SOURCES = ("auto", "mini", "release", "s2orc", "offline", "files", "own")


@dataclass(frozen=True)
class Benchmark:
    """A corpus and its questions; `name` goes into the names of runs and indexes."""

    name: str
    corpus: Corpus
    queries: list[Query]


def open_benchmark(data: Mapping[str, Any], full_papers: bool = True, needs_queries: bool = True) -> Benchmark:
    """Read what the `data` group names.

    Args:
        data: `name`, `source`, `corpus` and `queries` (paths), `max_papers` and `max_queries` (offline).
        full_papers: keep full texts in memory (`litsearch.data.load_corpus`).
        needs_queries: whether it is an error if there are none.

    Raises:
        InputError: an unknown source, data that are not on this machine, or data that are not as they should be.
    """
    source = data.get("source")
    if source not in SOURCES:
        raise InputError(f"data.source={source!r} is not one of {', '.join(SOURCES)}")
    name = data.get("name") or source
    if source == "auto":
        source = name = "mini" if is_in_mirror("mini") else "offline"
    if source == "offline":
        from litsearch.offline import offline_benchmark

        limits = {key: data[key] for key in ("max_papers", "max_queries") if data.get(key) is not None}
        return Benchmark(name, *offline_benchmark(**limits))
    corpus_path, queries_path = _paths(source, data)
    corpus = load_own_papers(corpus_path) if source == "own" else load_corpus(corpus_path, full_papers)
    if queries_path is None and needs_queries:
        raise InputError(f"data.queries is missing: data={name} has papers only; give a file of questions")
    queries = load_queries(queries_path) if queries_path is not None else []
    check_answers(queries, corpus)
    return Benchmark(name, corpus, queries)


def is_in_mirror(name: str) -> bool:
    """Whether a source of litsearch/sources.yaml can be had without a download."""
    from shared.sources import source

    folder = hub.mirror_folder(PAPER)
    return folder is not None and hub.within(folder, source(PAPER, name)) is not None


def _paths(source: str, data: Mapping[str, Any]) -> tuple[Path, Path | None]:
    if source in ("files", "own"):
        if data.get("corpus") is None:
            raise InputError("data.corpus is missing: give the file or folder with the papers")
        queries = data.get("queries")
        return Path(data["corpus"]).expanduser(), Path(queries).expanduser() if queries is not None else None
    if source == "mini":
        folder = hub.locate(PAPER, "mini")
        return folder / "corpus_clean.jsonl", folder / "query.jsonl"
    corpus = "corpus_clean" if source == "release" else "corpus_s2orc"
    return hub.locate(PAPER, corpus) / corpus, hub.locate(PAPER, "query") / "query"


def token_cache(setting: bool | str | Path | None) -> Path | None:
    """The folder that remembers tokenized texts: True is the local cache, a path itself, False or None nothing."""
    if setting is True:
        return hub.cache_folder(PAPER) / "tokens"
    return Path(setting).expanduser() if setting else None
