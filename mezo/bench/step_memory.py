"""Peak memory of a training step against inference: an OPT of 51M parameters, 16 x 128 tokens, fp32 on a CPU.

    python mezo/bench/step_memory.py
    python mezo/bench/step_memory.py --layers 2 --repetitions 1

The ways and how they are measured: `mezo/memory.py`. Medians over repetitions, each way in fresh processes, ways in
turn. `ratio` is over inference: 1.05 is the aim for MeZO in every mode; Adam stands beside it.
"""

import argparse
import statistics
from dataclasses import asdict, fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mezo.memory import WAYS, Sizes, peak
from shared.bench import write_record
from shared.provenance import Watch

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Sizes):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, help="default: records/<date>-cpu-step-memory.json beside this script")
    options = parser.parse_args()
    sizes = Sizes(**{field.name: getattr(options, field.name) for field in fields(Sizes)})
    watch = Watch(ROOT, config={**asdict(sizes), "repetitions": options.repetitions})
    runs: dict[str, list[dict[str, int]]] = {way: [] for way in WAYS}
    for _ in range(options.repetitions):
        for way in WAYS:
            runs[way].append(peak(way, sizes))
    bytes_of = {way: statistics.median(run["peak"] for run in found) for way, found in runs.items()}
    ratio = {way: value / bytes_of["inference"] for way, value in bytes_of.items()}
    count, console = runs["inference"][0]["parameters"], Console()
    table = Table("way", "peak, MB", "over inference", title=f"{count / 1e6:.0f}M fp32 parameters")
    for way in WAYS:
        table.add_row(way, f"{bytes_of[way] / 1e6:.0f}", f"{ratio[way]:.3f}")
    console.print(table)
    record = {
        "benchmark": "step_memory", "parameters": count, "runs": runs, "peak_bytes": bytes_of, "ratio": ratio,
        "provenance": watch.record(),
    }  # fmt: skip
    write_record(record, __file__, "cpu-step-memory", options.out)


if __name__ == "__main__":
    main()
