"""Several retrievers as one, by reciprocal rank fusion (Cormack et al., SIGIR 2009).

    python -m litsearch.retrieve retriever=hybrid                                  # BM25 and a dense retriever
    python -m litsearch.hybrid runs=[bm25.jsonl,grit.jsonl] top_k=200              # runs that are there already

    score(paper) = sum over lists of weight / (k + rank of the paper in the list)

Ranks are all it needs, so scores of different kinds need not be made comparable. k = 60 as in the paper that proposed
it. A paper beyond a list's depth gets nothing from it, nor does one that a retriever scores zero; ties are broken by
ascending position.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from omegaconf import DictConfig, ListConfig
from rich.console import Console

from litsearch import storage
from litsearch.data import Corpus
from litsearch.locations import open_benchmark, token_cache
from litsearch.retrievers import Retriever, check_search, make_retriever
from litsearch.runs import Run, RunRecord, read_run, write_run
from shared import InputError
from shared.launch import entrypoint
from shared.run_folders import run_folder

K, DEPTH = 60, 1000


def fuse(lists: Sequence[Sequence[int]], weights: Sequence[float] | None = None, k: float = K) -> dict[int, float]:
    """Score of every item in any of the ranked lists (items are whole numbers, best first).

    Args:
        weights: one per list; None is 1 each. k: what is added to a rank, from 1.
    """
    scores: dict[int, float] = {}
    for ranked, weight in zip(lists, weights if weights is not None else [1.0] * len(lists), strict=True):
        for rank, item in enumerate(ranked, start=1):
            scores[item] = scores.get(item, 0.0) + weight / (k + rank)
    return scores


def fuse_scored(
    lists: Sequence[tuple[Sequence[int], Sequence[float] | None]], weights: Sequence[float] | None = None, k: float = K
) -> dict[int, float]:
    """As `fuse`, of (ranked items, their scores); an item whose score is zero gets nothing from that list.

    A score of zero is no match: such items stand in the order of the corpus, and their rank says nothing.
    """
    matched = [
        items if scores is None else [item for item, score in zip(items, scores, strict=True) if score != 0]
        for items, scores in lists
    ]
    unmatched = dict.fromkeys((item for items, _ in lists for item in items), 0.0)
    return unmatched | fuse(matched, weights, k)


def best(scores: Mapping[int, float], limit: int) -> list[tuple[int, float]]:
    """The `limit` best items with their scores, ties by ascending item."""
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:limit]


class HybridRetriever:
    """Fuses what its parts find.

    Args:
        parts: name -> configuration of a retriever (a `retriever` group). weights: by the same names; None is 1 each.
        k: of the fusion. depth: how far down each list counts.
    """

    def __init__(
        self,
        name: str = "hybrid",
        key: str = "title_abstract",
        parts: Mapping[str, Mapping[str, Any]] | None = None,
        weights: Mapping[str, float] | None = None,
        k: float = K,
        depth: int = DEPTH,
    ) -> None:
        check_fusion(k, depth)
        if not parts or len(parts) < 2:
            raise InputError("retriever.parts: give at least two retrievers to fuse")
        self.name, self.key, self.k, self.depth = name, key, k, depth
        self.weights = checked_weights(weights, list(parts), "retriever.weights")
        self.parts: dict[str, Retriever] = {}
        for part, config in parts.items():
            options = {**config, "cache": token_cache(config["cache"])} if "cache" in config else config
            self.parts[part] = make_retriever(options, key)
        self._keys: int | None = None

    def index(self, keys: Iterable[str]) -> None:
        # Keys may be a stream that is read once, of texts that do not fit in memory: the others read a copy on disk.
        with tempfile.TemporaryFile("w+b") as copy:
            first, *others = self.parts.values()
            first.index(_copied(keys, copy))
            for retriever in others:
                copy.seek(0)
                retriever.index(json.loads(line) for line in copy)
            copy.seek(0)
            self._keys = sum(1 for _ in copy)

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        check_search(queries, k, self._keys)
        depth = min(self._keys, max(k, self.depth))
        found = [retriever.search(queries, depth) for retriever in self.parts.values()]
        positions = np.empty((len(queries), k), np.int64)
        scores = np.empty((len(queries), k), np.float32)
        for row in range(len(queries)):
            lists = [(ranked[row].tolist(), part_scores[row].tolist()) for ranked, part_scores in found]
            positions[row], scores[row] = zip(*best(fuse_scored(lists, self.weights, self.k), k), strict=True)
        return positions, scores

    def metadata(self) -> dict[str, Any]:
        parts = {part: retriever.metadata() for part, retriever in self.parts.items()}
        return {
            "retriever": self.name,
            "key": self.key,
            "parts": parts,
            "weights": self.weights,
            "k": self.k,
            "depth": self.depth,
        }

    def save(self, folder: Path, about: Mapping[str, Any] | None = None) -> None:
        if self._keys is None:
            raise InputError("save: nothing is indexed yet; call index(keys) first")
        content = {"kind": "hybrid", **self.metadata(), "keys": self._keys, **(about or {})}
        with storage.new_folder(folder, content) as making:
            for part, retriever in self.parts.items():
                retriever.save(making / part, about)

    def load(self, folder: Path) -> None:
        metadata = storage.read_metadata(folder, {"kind": "hybrid", "retriever": self.name, "key": self.key})
        if set(metadata["parts"]) != set(self.parts):
            raise InputError(
                f"{folder} was made of {', '.join(metadata['parts'])}, but {', '.join(self.parts)} are asked for"
            )
        for part, retriever in self.parts.items():
            retriever.load(Path(folder).expanduser() / part)
        self._keys = metadata["keys"]


def _copied(keys: Iterable[str], copy: IO[bytes]) -> Iterator[str]:
    for key in keys:
        copy.write(json.dumps(key).encode() + b"\n")
        yield key


def check_fusion(k: float, depth: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int | float) or not 0 <= k < float("inf"):
        raise InputError(f"k={k!r}: give a number of at least 0 (60 is customary)")
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise InputError(f"depth={depth!r}: give a whole number of at least 1")


def checked_weights(weights: Any, names: Sequence[str], what: str) -> list[float]:
    """One positive weight per name, from a mapping, a list or None."""
    if weights is None:
        return [1.0] * len(names)
    if isinstance(weights, Mapping):
        if set(weights) != set(names):
            raise InputError(f"{what} names {', '.join(map(str, weights))}, but there are {', '.join(names)}")
        weights = [weights[name] for name in names]
    if len(weights) != len(names):
        raise InputError(f"{what}: give {len(names)} numbers, one for each of {', '.join(names)}")
    for value in weights:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise InputError(f"{what} holds {value!r}; weights are numbers above 0")
    return [float(value) for value in weights]


# ---------------------------------------------------------------------------------------------------------------- runs


def fuse_runs(
    runs: Sequence[Run],
    corpus: Corpus,
    top_k: int,
    weights: Sequence[float] | None = None,
    k: float = K,
    depth: int = DEPTH,
) -> Run:
    """One run of several of the same questions; ties by the papers' position in the corpus.

    Raises InputError where the runs answer different questions.
    """
    first = runs[0]
    others = [{record.query: record for record in run} for run in runs[1:]]
    records = []
    for record in first:
        missing = [run.system for run, by_query in zip(runs[1:], others, strict=True) if record.query not in by_query]
        if missing or any(len(by_query) != len(first) for by_query in others):
            raise InputError(f"runs: {first.system} and the others do not answer the same questions")
        found = [record, *(by_query[record.query] for by_query in others)]
        lists = [
            (list(map(corpus.position, one.retrieved[:depth])), one.scores and one.scores[:depth]) for one in found
        ]
        fused = best(fuse_scored(lists, weights, k), top_k)
        retrieved = [corpus.papers[position].corpusid for position, _ in fused]
        records.append(RunRecord(record.query, retrieved, [score for _, score in fused]))
    about = {
        "stages": ["hybrid(" + "+".join(run.system for run in runs) + ")"],
        "hybrid": {"runs": [run.metadata for run in runs], "weights": weights, "k": k, "depth": depth},
        "top_k": top_k,
    }
    kept = {name: value for name, value in first.metadata.items() if name in ("corpus", "queries", "papers", "data")}
    keys = {run.key for run in runs}
    return Run(records, {**kept, "key": keys.pop() if len(keys) == 1 else None, **about})


@entrypoint(config_name="hybrid")
def main(cfg: DictConfig) -> None:
    fuse_files(cfg)


def fuse_files(cfg: DictConfig, console: Console | None = None) -> Path:
    """Do what the configuration says; the path of the new run."""
    if not isinstance(cfg.runs, ListConfig) or len(cfg.runs) < 2:
        raise InputError(f"runs={cfg.runs!r}: give at least two run files, runs=[a.jsonl,b.jsonl]")
    check_fusion(cfg.k, cfg.depth)
    if isinstance(cfg.top_k, bool) or not isinstance(cfg.top_k, int) or cfg.top_k < 1:
        raise InputError(f"top_k={cfg.top_k!r}: give a whole number of at least 1")
    paths = [Path(path) for path in cfg.runs]
    weights = checked_weights(list(cfg.weights) if cfg.weights else None, [path.name for path in paths], "weights")
    benchmark = open_benchmark(cfg.data, full_papers=False)
    runs = [read_run(path, benchmark.queries, benchmark.corpus) for path in paths]
    new = fuse_runs(runs, benchmark.corpus, cfg.top_k, weights, cfg.k, cfg.depth)
    folder = run_folder(cfg.paper, cfg.scale, cfg.experiment, cfg.output_dir)
    out = Path(cfg.out).expanduser().resolve() if cfg.out is not None else folder / f"{benchmark.name}.hybrid.jsonl"
    if out in [path.expanduser().resolve() for path in paths]:
        raise InputError(f"out={out} is one of the runs that are fused; give another name")
    write_run(out, new)
    (console or Console(soft_wrap=True)).print(f"run: {out}", highlight=False)
    return out


if __name__ == "__main__":
    main()
