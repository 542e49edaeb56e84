"""Make an index once, search it often.

    python -m litsearch.index retriever=e5 key=title_abstract data=full
    python -m litsearch.retrieve retriever=e5 data=full index=runs/litsearch/laptop/index/LitSearch.title_abstract.e5
    python -m litsearch.index retriever=minilm data=own data.corpus=my_papers/ index=my_index

An index is a folder: memory-mapped arrays, metadata.json (retriever, model, instructions, key, corpus: an index of
anything else is refused), and what a search page needs to show results without the corpus: `papers.jsonl` (title,
abstract, citations, source), `owners.npy` (whose key is whose) and, where full texts are indexed, the texts of the keys
(`passages.txt`). Killed, the same command goes on where it was (dense retrievers) or begins again; an index that is
complete is left as it is.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from litsearch import storage
from litsearch.data import Corpus, Paper
from litsearch.keys import Keys, needs_full_paper
from litsearch.locations import open_benchmark
from litsearch.records import iter_records
from litsearch.retrieve import retriever_options
from litsearch.retrievers import Retriever, make_retriever
from shared import InputError
from shared.launch import entrypoint
from shared.results import write_atomic
from shared.run_folders import run_folder

log = logging.getLogger(__name__)
BUILT_IN_PLACE = ("bm25", "dense")  # kinds that write while they index
PAPERS, OWNERS = "papers.jsonl", "owners"
PASSAGES, ENDS = "passages.txt", "passage_ends"


@dataclass(frozen=True)
class Index:
    """An opened index: the retriever, ready to search; its papers (without full texts); whose each key is."""

    retriever: Retriever
    corpus: Corpus
    owners: np.ndarray
    metadata: dict[str, Any]
    folder: Path


@entrypoint(config_name="index")
def main(cfg: DictConfig) -> None:
    make_index(cfg)


def make_index(cfg: DictConfig, console: Console | None = None) -> Path:
    """Do what the configuration says; the index's folder.

    Raises InputError for a folder that holds something else, and see the retriever's `index`.
    """
    console = console or Console(soft_wrap=True)
    benchmark = open_benchmark(cfg.data, full_papers=False, needs_queries=False)
    corpus, key = benchmark.corpus, cfg.key.name
    options = retriever_options(cfg.retriever)
    folder = storage.check_place(index_folder(cfg, f"{benchmark.name}.{key}.{options['name']}"))
    retriever = make_retriever(options, key)
    about = {
        "corpus": corpus.fingerprint,
        "papers": len(corpus),
        "data": benchmark.name,
        "dedup_keys": cfg.compat.dedup_keys,
        "config": OmegaConf.to_container(cfg.retriever, resolve=True),
    }
    started = time.perf_counter()
    keys = Keys(corpus.stream() if needs_full_paper(key) else corpus.papers, key, cfg.compat.dedup_keys)
    if is_complete(folder, retriever, about):
        console.print(f"index: {folder} is there already", highlight=False)
        return folder
    if not has_vectors(folder, retriever, about):
        if (options.get("kind") or options["name"]) in BUILT_IN_PLACE:
            retriever = make_retriever({**options, "folder": str(folder)}, key)
        retriever.index(keys)
        retriever.save(folder, about)
    count = add_papers(folder, corpus, key, cfg.compat.dedup_keys)
    seconds = time.perf_counter() - started
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    console.print(
        f"{retriever.name}: {count} keys of {len(corpus)} papers in {seconds:.1f} s, {size / 2**20:,.1f} MB",
        highlight=False,
    )
    console.print(f"index: {folder}", highlight=False)
    return folder


def index_folder(cfg: DictConfig, name: str) -> Path:
    """`index`, or `<output folder>/<data>.<key>.<retriever>`."""
    if cfg.index is not None:
        return Path(cfg.index).expanduser().resolve()
    return run_folder(cfg.paper, cfg.scale, cfg.experiment, cfg.output_dir) / name


def has_vectors(folder: Path, retriever: Retriever, about: Mapping[str, Any]) -> bool:
    """Whether the retriever's part of this very index is there. Raises InputError where another index is."""
    if not (folder / storage.METADATA).is_file():
        return False
    wanted = {**retriever.metadata(), **{name: about[name] for name in ("corpus", "dedup_keys")}}
    if storage.read_metadata(folder).get("corpus") is None:
        return False  # made, but not said of what: killed in between
    try:
        storage.read_metadata(folder, wanted)
    except InputError as error:
        raise InputError(f"{error} (to replace it, delete the folder)") from None
    return True


def is_complete(folder: Path, retriever: Retriever, about: Mapping[str, Any]) -> bool:
    return has_vectors(folder, retriever, about) and storage.read_metadata(folder).get("shows_papers") is True


def add_papers(folder: Path, corpus: Corpus, key: str, dedup_keys: bool) -> int:
    """Write what results are shown from: papers.jsonl, owners.npy, and passages where keys are no abstracts.

    Returns how many keys there are.
    """
    full = needs_full_paper(key)
    keys = Keys(corpus.stream() if full else corpus.papers, key, dedup_keys)
    if full:
        ends = [0]
        with (folder / PASSAGES).open("wb") as passages:
            for text in keys:
                ends.append(ends[-1] + passages.write(text.encode("utf-8", "surrogatepass")))
        _save_array(folder, ENDS, np.array(ends, np.int64))
    else:
        for _ in keys:
            pass
    _save_array(folder, OWNERS, keys.owners)
    fields = ("corpusid", "title", "abstract", "citations", "source")
    lines = ({name: getattr(paper, name) for name in fields} for paper in corpus.papers)
    write_atomic(folder / PAPERS, "".join(json.dumps(line, ensure_ascii=True) + "\n" for line in lines))
    storage.add_metadata(folder, {"shows_papers": True})
    return len(keys.owners)


def _save_array(folder: Path, name: str, array: np.ndarray) -> None:
    new = folder / f".{name}.{os.getpid()}.npy"
    np.save(new, array)
    new.replace(folder / f"{name}.npy")


def open_index(folder: str | Path) -> Index:
    """Open an index with nothing but its folder (and, for dense ones, the model that made it).

    Raises InputError where there is none, it is not complete, or the model is not to be had or another one.
    """
    folder = Path(folder).expanduser()
    metadata = storage.read_metadata(folder)
    if metadata.get("shows_papers") is not True or "config" not in metadata:
        raise InputError(f"{folder} was not made by `python -m litsearch.index`, or not finished; run it (again)")
    retriever = make_retriever(metadata["config"], metadata["key"])
    retriever.load(folder)
    papers = [
        Paper(line["corpusid"], line["title"], line["abstract"], tuple(line.get("citations", ())), "", line["source"])
        for _, line in iter_records(folder / PAPERS)
    ]
    corpus = Corpus(papers, folder, has_full_papers=False, known_fingerprint=metadata["corpus"])
    return Index(retriever, corpus, np.asarray(storage.open_array(folder, OWNERS)), metadata, folder)


if __name__ == "__main__":
    main()
