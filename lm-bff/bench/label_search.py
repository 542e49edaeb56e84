"""Pairings of label words per second: tables of surviving examples in bits, and a Python loop over pairings.

    python lm-bff/bench/label_search.py             # 100 x 100, and 100,000 pairings drawn from 30^5
    python lm-bff/bench/label_search.py --quick

The loop is the authors' algorithm in one process: for each pairing the argmax over its columns of the logits, the
accuracy, and at the end one stable sort. Both return the best 100 pairings; the ranking has to be the same, ties
included. Logits are those that a search has: K=16 examples per class, a vocabulary of 50,265, words that fit their
class a little better than others; `--rounding` makes ties among logits too.
"""

import argparse
import itertools
import statistics
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from lm_bff.label_scores import Survivors, best_pairings
from shared.bench import write_record
from shared.provenance import Watch

ROOT = Path(__file__).resolve().parents[2]
KEPT = 100


def problem(classes: int, words: int, k: int, vocabulary: int, rounding: int | None, seed: int):
    """Logits (classes * k, vocabulary), labels, and per class the token ids of its words."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), k)
    logits = rng.standard_normal((classes * k, vocabulary), dtype=np.float32)
    ids = [rng.choice(vocabulary, size=words, replace=False) for _ in range(classes)]
    for label in range(classes):
        logits[np.ix_(labels == label, ids[label])] += 0.8
    return (logits if rounding is None else np.round(logits, rounding)), labels, ids


def loop(logits: np.ndarray, labels: np.ndarray, pairings) -> tuple[list[tuple[int, ...]], list[float]]:
    """The authors' algorithm: one pairing after the other."""
    scored = [(pairing, (logits[:, pairing].argmax(axis=1) == labels).mean()) for pairing in pairings]
    scored.sort(key=lambda one: -one[1])
    return [pairing for pairing, _ in scored[:KEPT]], [score for _, score in scored[:KEPT]]


def drawn(words: list[np.ndarray], sample: int, seed: int) -> list[tuple[int, ...]]:
    """The same pairings that `best_pairings` draws, in the order of the product."""
    sizes = [len(some) for some in words]
    rng = np.random.default_rng(seed)
    numbers = np.unique(rng.integers(np.prod(sizes), size=sample))
    while len(numbers) < sample:
        more = rng.integers(np.prod(sizes), size=sample - len(numbers))
        numbers = np.unique(np.concatenate([numbers, more]))
    chosen = np.unravel_index(numbers, sizes)
    return list(zip(*(words[c][index].tolist() for c, index in enumerate(chosen)), strict=True))


def compare(classes: int, words: int, sample: int | None, options: argparse.Namespace) -> dict:
    """Seconds of both forms in turn, medians, and whether they rank alike."""
    logits, labels, ids = problem(classes, words, options.k, options.vocabulary, options.rounding, options.seed)
    if sample is None:
        pairings = list(itertools.product(*(some.tolist() for some in ids)))
    else:
        pairings = drawn(ids, sample, options.seed)
    ours, theirs = [], []
    for _ in range(options.rounds):
        start = time.perf_counter()
        found, scores = best_pairings(logits, labels, ids, KEPT, sample=sample, seed=options.seed)
        middle = time.perf_counter()
        expected, expected_scores = loop(logits, labels, pairings)
        ours.append(middle - start)
        theirs.append(time.perf_counter() - middle)
    same = [tuple(row) for row in found.tolist()] == expected and np.allclose(scores, expected_scores)
    return {
        "pairings": len(pairings),
        "seconds": ours,
        "loop_seconds": theirs,
        "pairings_per_second": len(pairings) / statistics.median(ours),
        "ratio_to_loop": statistics.median(theirs) / statistics.median(ours),
        "same_ranking": bool(same),
    }


def whole(classes: int, words: int, options: argparse.Namespace) -> dict:
    """All pairings of a product that the loop would need hours for."""
    logits, labels, ids = problem(classes, words, options.k, options.vocabulary, options.rounding, options.seed)
    start = time.perf_counter()
    best_pairings(logits, labels, ids, KEPT)
    seconds = time.perf_counter() - start
    total = Survivors(logits, labels, ids).total
    return {"pairings": total, "seconds": [seconds], "pairings_per_second": total / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--vocabulary", type=int, default=50_265)
    parser.add_argument("--sample", type=int, default=100_000)
    parser.add_argument("--rounding", type=int, help="decimals that logits are rounded to; default: none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--quick", action="store_true", help="smaller, no record unless --out is given")
    parser.add_argument("--out", type=Path, help="default: records/<date>-cpu-label-search.json beside this script")
    options = parser.parse_args()
    if options.quick:
        options.sample, options.rounds = 20_000, 3
    watch = Watch(ROOT, config=vars(options), seed=options.seed)
    results = {
        "100 x 100": compare(2, 100, None, options),
        f"{options.sample:,} of 30^5": compare(5, 30, options.sample, options),
        "all of 30^5": whole(5, 20 if options.quick else 30, options),
    }
    table = Table("pairings", "number", "pairings/s", "x Python loop", "same ranking")
    for name, row in results.items():
        ratio, same = row.get("ratio_to_loop"), row.get("same_ranking")
        table.add_row(
            name,
            f"{row['pairings']:,}",
            f"{row['pairings_per_second']:,.0f}",
            "-" if ratio is None else f"{ratio:,.0f}",
            "-" if same is None else str(same),
        )
    Console().print(table)
    if options.quick and options.out is None:
        return
    record = {"benchmark": "label_search", "results": results, "provenance": watch.record()}
    write_record(record, __file__, "cpu-label-search", options.out)


if __name__ == "__main__":
    main()
