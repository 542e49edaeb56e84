"""Transfer evaluation: all classifiers as one batched layer against one after the other, same data, same numbers.

    python simcse/bench/transfer.py --out record.json                 # MRPC with 10 folds, CR with 5; 3-5 minutes
    python simcse/bench/transfer.py --cases CR:test --repeats 1       # 410 trainings: sequentially 5-10 minutes
    python simcse/bench/transfer.py --cases MR:test SUBJ:test --only batched --dim 768

Features are bags of words in `--dim` buckets, computed before the clock starts; the times are of reading the files,
folds and all trainings. Both forms run in turn, `--repeats` times, and medians are compared. The sequential form runs
on one thread, which is its best (its operations take microseconds); the batched one is timed on one thread, for the
ratio, and on `--threads`.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from shared import hub
from shared.bench import write_record
from shared.provenance import Watch
from simcse.baselines import bag_of_words
from simcse.senteval import TRANSFER_TASKS, classifier, evaluate_transfer, sequential
from simcse.senteval.classifier import PROTOCOLS

ROOT = Path(__file__).resolve().parents[2]


class Remembered:
    """Bag-of-words features that cost nothing from the second call on."""

    def __init__(self, dim: int):
        self.dim, self.known = dim, {}

    def __call__(self, sentences: list[str]) -> np.ndarray:
        key = hash(tuple(sentences))
        if key not in self.known:
            self.known[key] = bag_of_words(sentences, buckets=self.dim)
        return self.known[key]


def timed(
    encode: Remembered, data_dir: Path, task: str, protocol: str, fit, threads: int, device: str
) -> tuple[float, dict]:
    """Seconds and the task's entry."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    start = time.perf_counter()
    try:
        entry = evaluate_transfer(encode, data_dir, [task], protocol, fit=fit, device=device)[task]
    finally:
        torch.set_num_threads(before)
    return time.perf_counter() - start, entry


def measure(case: str, data_dir: Path, options: argparse.Namespace) -> dict:
    """One task under one protocol: median seconds of each form, their ratio and how far their accuracies differ."""
    task, protocol = case.split(":")
    encode = Remembered(options.dim)
    timed(
        encode, data_dir, task, "fast", classifier.fit, options.threads, options.device
    )  # features, file cache, thread pool
    forms = {"batched_one_thread": (classifier.fit, 1), "batched": (classifier.fit, options.threads)}
    if options.only != "batched":
        forms["sequential"] = (sequential.fit, 1)
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    entries = {}
    for _ in range(options.repeats):
        for name, (fit, threads) in forms.items():
            device = "cpu" if name == "sequential" else options.device
            elapsed, entries[name] = timed(encode, data_dir, task, protocol, fit, threads, device)
            seconds[name].append(elapsed)
    result = {
        "task": task,
        "protocol": protocol,
        "dim": options.dim,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "all_seconds": seconds,
        "entries": entries,
    }
    if "sequential" in forms:
        result["ratio_one_thread"] = result["seconds"]["sequential"] / result["seconds"]["batched_one_thread"]
        result["ratio"] = result["seconds"]["sequential"] / result["seconds"]["batched"]
        result["largest_difference"] = max(
            abs(entries["batched"][key] - entries["sequential"][key]) for key in ("devacc", "acc")
        )
    return result


def show(results: list[dict], threads: int) -> None:
    table = Table(title=f"transfer classifiers, seconds (median); batched on 1 and on {threads} threads")
    for name in (
        "task",
        "protocol",
        "sequential",
        "batched, 1",
        f"batched, {threads}",
        "ratio",
        "accuracies differ by",
    ):
        table.add_column(name, justify="right")
    for r in results:
        seconds = r["seconds"]
        both = "ratio" in r
        table.add_row(
            r["task"],
            r["protocol"],
            f"{seconds['sequential']:.1f}" if both else "-",
            f"{seconds['batched_one_thread']:.2f}",
            f"{seconds['batched']:.2f}",
            f"{r['ratio_one_thread']:.0f}x, {r['ratio']:.0f}x" if both else "-",
            f"{r['largest_difference']:.2f}" if both else "-",
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cases", nargs="+", default=["MRPC:test", "CR:fast"], help="TASK:PROTOCOL, protocol test or fast"
    )
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", help="of the batched form; the sequential one runs on the CPU")
    parser.add_argument("--only", choices=["batched"], help="leave the sequential form out")
    parser.add_argument("--data-dir", type=Path, help="SentEval's downstream folder; default: the source `senteval`")
    parser.add_argument("--out", type=Path, help="default: records/<date>-cpu-transfer.json beside this script")
    options = parser.parse_args()
    for case in options.cases:
        task, _, protocol = case.partition(":")
        if task not in TRANSFER_TASKS or protocol not in PROTOCOLS:
            parser.error(
                f"--cases {case}: TASK is one of {', '.join(TRANSFER_TASKS)}, PROTOCOL test or fast (MRPC:test)"
            )
    watch = Watch(ROOT, config=vars(options))
    data_dir = options.data_dir or hub.locate("simcse", "senteval")
    results = []
    for case in options.cases:
        results.append(measure(case, data_dir, options))
        show(results[-1:], options.threads)
    record = {"benchmark": "transfer", "results": results, "provenance": watch.record()}
    write_record(record, __file__, "cpu-transfer", options.out)


if __name__ == "__main__":
    main()
