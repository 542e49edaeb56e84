"""Dense search against what the release does: scikit-learn's cosine of each question with all keys, one by one.

    python litsearch/bench/dense_search.py                   # 64,000 vectors of 1,024 dimensions, 600 questions
    python litsearch/bench/dense_search.py --quick

Keys are float16, as stored. The release's form gets fewer questions, because each costs it the same (it turns all keys
into float64 every time); its seconds are per question. That both find the same 200 is checked first, but for cosines
that are equal within 1e-12. Vectors are drawn around centres: uniform noise has no neighbours. `first search` reads the
vectors from disk and normalises them; `later` finds them in memory.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.metrics.pairwise import cosine_similarity

from litsearch.cosine import CosineSearch
from shared.bench import write_record
from shared.provenance import Watch

ROOT = Path(__file__).resolve().parents[2]


def draw(count: int, queries: int, hidden: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys `(count, hidden)` float16 around 1,000 centres, and questions `(queries, hidden)` float32 near some keys."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((1000, hidden), dtype=np.float32)
    keys = np.empty((count, hidden), np.float16)
    for start in range(0, count, 8192):
        rows = keys[start : start + 8192]
        rows[:] = centres[rng.integers(1000, size=len(rows))] + rng.standard_normal(rows.shape, dtype=np.float32)
    near = keys[rng.integers(count, size=queries)].astype(np.float32)
    return keys, near + rng.standard_normal(near.shape, dtype=np.float32)


def released(keys: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k nearest, question by question."""
    return np.stack([np.argsort(cosine_similarity(query[None], keys)[0])[::-1][:k] for query in queries])


def check(keys: np.ndarray, queries: np.ndarray, k: int) -> None:
    """Refuse to time a search that does not find the same."""
    positions, scores = CosineSearch(keys).search(queries, k)
    for row, query in enumerate(queries):
        cosines = cosine_similarity(query[None].astype(np.float64), keys)[0]
        wanted = np.argsort(-cosines, kind="stable")[:k]
        if not np.allclose(cosines[positions[row]], cosines[wanted], rtol=0, atol=1e-12):
            raise SystemExit(f"question {row}: other papers are found")
        if not np.allclose(scores[row], cosines[wanted], rtol=0, atol=1e-6):
            raise SystemExit(f"question {row}: other cosines are found")


def measure(keys: np.ndarray, queries: np.ndarray, options: argparse.Namespace) -> dict[str, dict]:
    check(keys, queries[: options.released_queries], options.k)
    seconds: dict[str, list[float]] = {"released": [], "first search": [], "later": []}
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "vectors.npy", keys)
        for _ in range(options.rounds):
            start = time.perf_counter()
            released(keys, queries[: options.released_queries], options.k)
            seconds["released"].append((time.perf_counter() - start) / options.released_queries)
            for name in ("first search", "later"):
                if name == "first search":
                    search = CosineSearch(np.load(Path(folder) / "vectors.npy", mmap_mode="r"), "cpu")
                start = time.perf_counter()
                search.search(queries, options.k)
                seconds[name].append((time.perf_counter() - start) / len(queries))
    reference = statistics.median(seconds["released"])
    return {
        name: {
            "seconds_per_question": times,
            "questions_per_second": 1 / statistics.median(times),
            "faster_than_released": reference / statistics.median(times),
        }
        for name, times in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64_000)
    parser.add_argument("--hidden", type=int, nargs="+", default=[1024])
    parser.add_argument("--queries", type=int, default=600)
    parser.add_argument("--released-queries", type=int, default=6)
    parser.add_argument("--k", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="4,000 vectors, 50 questions, two rounds")
    parser.add_argument("--out", type=Path, help="default: records/<date>-cpu-dense-search.json beside this script")
    options = parser.parse_args()
    if options.quick:
        options.size, options.queries, options.rounds = 4000, 50, 2
    watch = Watch(ROOT, config=vars(options), seed=options.seed)
    table = Table("vectors", "dimensions", "search", "questions/s", "x released")
    results = {}
    for hidden in options.hidden:
        keys, queries = draw(options.size, options.queries, hidden, options.seed)
        results[str(hidden)] = measure(keys, queries, options)
        for name, row in results[str(hidden)].items():
            speed, ratio = f"{row['questions_per_second']:,.1f}", f"{row['faster_than_released']:,.1f}"
            table.add_row(f"{options.size:,}", f"{hidden:,}", name, speed, ratio)
    Console().print(table)
    record = {"benchmark": "dense_search", "threads": torch.get_num_threads(), "results": results}
    record["provenance"] = watch.record()
    write_record(record, __file__, "cpu-dense-search", options.out)


if __name__ == "__main__":
    main()
