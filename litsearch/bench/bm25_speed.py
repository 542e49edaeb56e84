"""Questions per second of BM25 after indexing, against rank-bm25 and bm25s, on the same terms.

    python litsearch/bench/bm25_speed.py                  # as many documents as the real corpus has, and 64,000
    python litsearch/bench/bm25_speed.py --quick

All get lists of terms, use one thread and return the 20 best. Scores are compared with rank-bm25's first, bit by bit.
bm25s has no variant with rank-bm25's negative idfs, so it is given our term weights (as float32, its default): then
its top 20 must be ours, except where scores are equal within float32. Documents beyond the real corpus are resampled
from it (`litsearch.generated_texts`). rank-bm25 is so slow that it gets fewer questions.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import bm25s
import numpy as np
from rank_bm25 import BM25Okapi
from rich.console import Console
from rich.table import Table

from litsearch.bm25 import BM25
from litsearch.generated_texts import real_texts, resampled
from litsearch.text import terms
from shared.bench import write_record
from shared.provenance import Watch

ROOT = Path(__file__).resolve().parents[2]
K = 20
Search = Callable[[list[list[str]]], np.ndarray]


def with_our_weights(ours: BM25, backend: str) -> bm25s.BM25:
    """A bm25s index that holds our matrix."""
    index = bm25s.BM25(backend=backend)
    index.scores = {
        "data": ours.impacts.astype(np.float32),
        "indices": ours.documents.astype(np.int32),
        "indptr": ours.starts.astype(np.int32),
        "num_docs": len(ours),
    }
    index.nonoccurrence_array = None
    index.vocab_dict = dict(ours.vocabulary)
    index.unique_token_ids_set = set(index.vocab_dict.values())
    return index


def searches(ours: BM25, theirs: BM25Okapi) -> dict[str, Search]:
    """Name -> positions of the 20 best for lists of terms."""

    def rank_bm25(queries: list[list[str]]) -> np.ndarray:
        return np.stack([np.argsort(theirs.get_scores(query))[::-1][:K] for query in queries])

    def bm25s_search(backend: str) -> Search:
        index = with_our_weights(ours, backend)
        options = {"k": K, "show_progress": False, "n_threads": 0 if backend == "numpy" else 1}
        return lambda queries: index.retrieve(queries, return_as="documents", **options)

    return {
        "litsearch": lambda queries: ours.search_terms(queries, K)[0],
        "rank-bm25": rank_bm25,
        "bm25s numpy": bm25s_search("numpy"),
        "bm25s numba": bm25s_search("numba"),
    }


def check(ours: BM25, theirs: BM25Okapi, forms: dict[str, Search], queries: list[list[str]], few: int) -> None:
    """Refuse to time anything that does not find the same."""
    for query in queries[:few]:
        if not np.array_equal(ours.scores(query), theirs.get_scores(query)):
            raise SystemExit(f"scores differ from rank-bm25's for {query}")
    for name in ("bm25s numpy", "bm25s numba"):
        found, wanted = forms[name](queries), forms["litsearch"](queries)
        for row, query in enumerate(queries):
            scores = ours.scores(query)
            if not np.allclose(scores[found[row]], scores[wanted[row]], rtol=1e-5, atol=1e-5):
                raise SystemExit(f"{name} ranks otherwise for {query}")


def measure(documents: list[list[str]], queries: list[list[str]], options: argparse.Namespace) -> dict[str, dict]:
    started = time.perf_counter()
    ours = BM25.from_tokens(documents)
    built = time.perf_counter() - started
    started = time.perf_counter()
    theirs = BM25Okapi(documents)
    theirs_built = time.perf_counter() - started
    forms = searches(ours, theirs)
    few = max(2, min(len(queries), options.rank_bm25_work // len(documents)))
    check(ours, theirs, forms, queries, few)
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    gc.collect()
    for round_ in range(options.rounds):
        for name, search in forms.items():
            asked = queries[:few] if name == "rank-bm25" else queries
            if name == "rank-bm25" and round_ >= 3:
                continue
            start = time.perf_counter()
            search(asked)
            seconds[name].append((time.perf_counter() - start) / len(asked))
    reference = statistics.median(seconds["litsearch"])
    return {
        name: {
            "seconds_per_question": times,
            "questions_per_second": 1 / statistics.median(times),
            "litsearch_is_faster_by": statistics.median(times) / reference,
            "index_seconds": {"litsearch": built, "rank-bm25": theirs_built}.get(name),
        }
        for name, times in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", help="default: the real corpus's size, and 64,000")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rank-bm25-work", type=int, default=400_000, help="documents times questions for rank-bm25")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="1,000 documents, two rounds")
    parser.add_argument("--out", type=Path, help="default: records/<date>-cpu-bm25.json beside this script")
    options = parser.parse_args()
    watch = Watch(ROOT, config=vars(options), seed=options.seed)
    name, texts, questions = real_texts()
    documents, queries = list(map(terms, texts)), list(map(terms, questions))
    sizes = options.sizes or [len(documents), 64_000]
    if options.quick:
        sizes, options.rounds = [1000], 2
    table = Table("documents", "search", "questions/s", "litsearch is faster by", "index, s")
    results = {}
    for size in sizes:
        of_size = documents[:size] if size <= len(documents) else resampled(documents, size, options.seed)
        results[str(size)] = measure(of_size, queries, options)
        for form, row in results[str(size)].items():
            index = "" if row["index_seconds"] is None else f"{row['index_seconds']:.1f}"
            speed, ratio = f"{row['questions_per_second']:,.1f}", f"{row['litsearch_is_faster_by']:,.2f}"
            table.add_row(f"{size:,}", form, speed, ratio, index)
    Console().print(table)
    record = {"benchmark": "bm25_speed", "corpus": name, "questions": len(queries), "k": K, "results": results}
    record["provenance"] = watch.record()
    write_record(record, __file__, "cpu-bm25", options.out)


if __name__ == "__main__":
    main()
