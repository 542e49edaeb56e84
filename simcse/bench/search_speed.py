"""Queries per second of the index: exact, faiss flat, faiss inverted file, and the authors' algorithm.

    python simcse/bench/search_speed.py                                  # 1,000 and 100,000 vectors
    python simcse/bench/search_speed.py --sizes 1000000 --queries 64 --hidden 384

Encoding is left out (bench/encode_speed.py): queries are vectors. The release takes one query at a time, multiplies,
and sorts all scores above the threshold as Python tuples; `released` does that here, at its default threshold. Vectors
are drawn around `--clusters` centres, because uniform noise has no neighbours and an inverted file nothing to find.
Recall is the part of the exact top k that is found.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from shared.bench import write_record
from shared.provenance import Watch
from simcse.index import SentenceIndex, unit_rows

ROOT = Path(__file__).resolve().parents[2]
THRESHOLD, TOP_K = 0.6, 5
Found = list[list[tuple[str, float]]]


def draw(count: int, queries: int, hidden: int, clusters: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors `(count, hidden)` around random centres, and queries `(queries, hidden)` near some of them."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((clusters, hidden), dtype=np.float32)
    spread = rng.standard_normal((count, hidden), dtype=np.float32)
    spread *= 0.7
    spread += centres[rng.integers(clusters, size=count)]
    near = spread[rng.integers(count, size=queries)]
    near = near + 0.5 * rng.standard_normal(near.shape, dtype=np.float32)
    return unit_rows(spread), unit_rows(near)


def released(sentences: list[str], keys: np.ndarray, queries: np.ndarray) -> Found:
    """The authors' search without faiss: per query a product, then a sort of (row, score) tuples in Python."""
    found = []
    for query in queries:
        scores = (query[None] @ keys.T)[0]
        hits = [(row, score) for row, score in enumerate(scores) if score >= THRESHOLD]
        hits = sorted(hits, key=lambda hit: hit[1], reverse=True)[:TOP_K]
        found.append([(sentences[row], float(score)) for row, score in hits])
    return found


def forms(sentences: list[str], keys: np.ndarray, backends: list[str]) -> dict[str, Callable[[np.ndarray], Found]]:
    """Name -> a search; building an index is not timed."""

    def searcher(backend: str) -> Callable[[np.ndarray], Found]:
        index = SentenceIndex(sentences, keys, keys[0], "avg", backend)
        return lambda queries: index.search(queries, THRESHOLD, TOP_K)

    return {"released": lambda queries: released(sentences, keys, queries)} | {
        name: searcher(name) for name in backends
    }


def recall(found: Found, exact: Found) -> float:
    """The part of the exact neighbours that is among those found."""
    pairs = list(zip(found, exact, strict=True))
    wanted = sum(len(true) for _, true in pairs)
    return sum(len({s for s, _ in some} & {s for s, _ in true}) for some, true in pairs) / max(wanted, 1)


def measure(size: int, options: argparse.Namespace) -> dict[str, dict]:
    """Per form: seconds of each round for the whole batch of queries and for one query, and recall."""
    keys, queries = draw(size, options.queries, options.hidden, options.clusters, options.seed)
    searches = forms([str(row) for row in range(size)], keys, options.backends)
    batch: dict[str, list[float]] = {name: [] for name in searches}
    single: dict[str, list[float]] = {name: [] for name in searches}
    found: dict[str, Found] = {}
    for _ in range(options.rounds):
        for name, search in searches.items():
            start = time.perf_counter()
            search(queries[:1])
            middle = time.perf_counter()
            found[name] = search(queries)
            single[name].append(middle - start)
            batch[name].append(time.perf_counter() - middle)
    return {
        name: {
            "batch_seconds": batch[name],
            "queries_per_second": len(queries) / statistics.median(batch[name]),
            "single_query_ms": 1000 * statistics.median(single[name]),
            "ratio_to_released": statistics.median(batch["released"]) / statistics.median(batch[name]),
            "recall": recall(found[name], found["released"]),
            "neighbours_per_query": sum(map(len, found[name])) / len(queries),
        }
        for name in searches
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--backends", nargs="+", default=["exact", "faiss", "faiss_fast"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--out", type=Path, help="default: records/<date>-cpu-search.json beside this script")
    options = parser.parse_args()
    watch = Watch(ROOT, config=vars(options), seed=options.seed)
    table = Table("sentences", "search", "queries/s", "one query, ms", "x released", "recall")
    results = {}
    for size in options.sizes:
        results[str(size)] = measure(size, options)
        for name, row in results[str(size)].items():
            speed, ratio = f"{row['queries_per_second']:,.0f}", f"{row['ratio_to_released']:.1f}"
            table.add_row(f"{size:,}", name, speed, f"{row['single_query_ms']:.2f}", ratio, f"{row['recall']:.3f}")
    Console().print(table)
    record = {
        "benchmark": "search_speed",
        "threads": torch.get_num_threads(),
        "results": results,
        "provenance": watch.record(),
    }
    write_record(record, __file__, "cpu-search", options.out)


if __name__ == "__main__":
    main()
