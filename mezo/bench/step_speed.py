"""A whole MeZO step against the two forward passes in it, on a CPU: batch 16 x 128 tokens, an OPT of 51M parameters.

    python mezo/bench/step_speed.py
    python mezo/bench/step_speed.py --layers 2 --rounds 3

forwards          two forward passes of the batch, nothing else
counter, exact    `MeZO(model=..., rng="counter")`: perturbed weights made as each module runs, one update
counter, inplace  the same numbers added to the weights and taken off again (+eps, -2 eps, +eps, update)
torch, exact      the release's numbers, perturbed weights made as each module runs
torch, inplace    the release's numbers and arithmetic, drawn into a reused buffer
naive             the release's formulas written down: four passes with three temporaries each

Ways alternate within a round; medians are compared. `ratio` is a step over two forward passes: 1.15 is the aim for the
first way. Beside it stands the same ratio by processor time, which other programs on the machine disturb less.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from mezo import MeZO
from mezo.memory import EPS, LR, Sizes, batch_loss, build
from shared.bench import write_record
from shared.provenance import Watch

ROOT = Path(__file__).resolve().parents[2]


def naive_step(model: torch.nn.Module, loss: Callable[[], torch.Tensor], seed: int) -> None:
    """Algorithm 1 as the release's formulas say it, with torch's global generator."""
    parameters = list(model.parameters())

    def perturb(scaling: float) -> None:
        torch.manual_seed(seed)
        for p in parameters:
            z = torch.normal(mean=0, std=1, size=p.size(), dtype=p.dtype)
            p.data = p.data + (scaling * z) * EPS

    perturb(1)
    plus = float(loss())
    perturb(-2)
    gradient = (plus - float(loss())) / (2 * EPS)
    perturb(1)
    torch.manual_seed(seed)
    for p in parameters:
        z = torch.normal(mean=0, std=1, size=p.size(), dtype=p.dtype)
        p.data = p.data - LR * (gradient * z)


def ways_of(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> dict[str, Callable[[int], object]]:
    """Name -> one round. Weights move by 1e-6 a step, which changes no work."""
    ways: dict[str, Callable[[int], object]] = {"forwards": lambda k: (loss(), loss())}
    for rng in ("counter", "torch"):
        for restore in ("exact", "inplace"):
            optimizer = MeZO(
                model.named_parameters(), LR, EPS, rng=rng, restore=restore, check=False,
                model=model if restore == "exact" else None,
            )  # fmt: skip
            ways[f"{rng}, {restore}"] = lambda k, optimizer=optimizer: optimizer.step(loss)
    ways["naive"] = lambda k: naive_step(model, loss, k)
    return ways


@torch.no_grad()
def measure(ways: dict[str, Callable[[int], object]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """(wall, processor) seconds of every round."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for k in range(rounds + 1):
        for name, way in ways.items():
            wall, processor = time.perf_counter(), time.process_time()
            way(k)
            if k:  # the first round warms up (numba compiles)
                found[name].append((time.perf_counter() - wall, time.process_time() - processor))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Sizes):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="default: records/<date>-cpu-step-speed.json beside this script")
    options = parser.parse_args()
    sizes = Sizes(**{field.name: getattr(options, field.name) for field in fields(Sizes)})
    watch = Watch(ROOT, config={**asdict(sizes), "rounds": options.rounds})
    model = build(sizes)
    count = sum(p.numel() for p in model.parameters())
    found = measure(ways_of(model, batch_loss(model, sizes)), options.rounds)
    wall, processor = ({n: statistics.median(r[k] for r in runs) for n, runs in found.items()} for k in (0, 1))
    console = Console()
    threads = torch.get_num_threads()
    title = f"{count / 1e6:.0f}M parameters, {options.rows} x {options.tokens} tokens, {threads} threads"
    table = Table("way", "seconds", "over two forwards", "by processor time", title=title)
    ratios = {n: {"wall": wall[n] / wall["forwards"], "processor": processor[n] / processor["forwards"]} for n in wall}
    for name, ratio in ratios.items():
        table.add_row(name, f"{wall[name]:.3f}", f"{ratio['wall']:.3f}", f"{ratio['processor']:.3f}")
    console.print(table)
    record = {
        "benchmark": "step_speed", "parameters": count, "threads": threads, "seconds": found,
        "median": wall, "ratio": ratios, "provenance": watch.record(),
    }  # fmt: skip
    write_record(record, __file__, "cpu-step-speed", options.out)


if __name__ == "__main__":
    main()
