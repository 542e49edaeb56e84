"""One pass theta += scale z over fp32 weights on the CPU: nanoseconds per parameter, and a logged step's replay.

    python mezo/bench/perturbation_speed.py             # 51M parameters, two models, one thread and all: 5 minutes
    python mezo/bench/perturbation_speed.py --layers 1 --rounds 3

naive     what the release's formula allocates: z = normal(size); p.data = p.data + (1 * z) * eps
torch     `mezo.spsa.perturb`, the same numbers made by compiled loops and added where they are made
counter   `mezo.spsa.perturb(rng="counter")`, numbers from a counter, likewise
replay    `mezo.trajectory.apply_steps`, per logged step: every piece of the weights takes all steps while it is cached

Two models of the same size. "opt": 8 layers of width 512 and the embeddings of 50,272 words, half of all parameters, as
in an OPT of that width. "layers": 16 such layers and no embeddings. The naive formula needs three temporaries of each
tensor's size: the C library keeps those of a layer for the next one, and gives those of the embeddings back to the
system every time. Ways alternate within a round; medians are compared.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from mezo.spsa import perturb
from mezo.trajectory import Step, apply_steps
from shared.bench import write_record
from shared.provenance import Watch

ROOT = Path(__file__).resolve().parents[2]
EPS = 1e-3
REPLAYED = 32


def weights(model: str, layers: int) -> list[torch.Tensor]:
    """The tensors of a decoder of width 512, with the embeddings or with as many layers more."""
    layer = [(512, 512), (512,)] * 4 + [(2048, 512), (2048,), (512, 2048), (512,)] + [(512,)] * 4
    shapes = [(50_272, 512), (2050, 512)] + layer * layers if model == "opt" else layer * (layers * 2)
    return [torch.randn(shape) * 0.02 for shape in shapes]


def naive(params: list[torch.Tensor], seed: int) -> None:
    torch.manual_seed(seed)
    for p in params:
        z = torch.normal(mean=0, std=1, size=p.size(), device=p.device, dtype=p.dtype)
        p.data = p.data + (1 * z) * EPS


def replay(params: list[torch.Tensor], rng: str) -> None:
    apply_steps(params, [Step(seed, 0.5, 1e-3) for seed in range(REPLAYED)], rng)


def measure(params: list[torch.Tensor], rounds: int) -> dict[str, list[float]]:
    """Seconds per pass (per logged step for replays) by way."""
    ways = {
        "naive": (lambda k: naive(params, k), 1),
        "torch": (lambda k: perturb(params, k, EPS), 1),
        "counter": (lambda k: perturb(params, k, EPS, rng="counter"), 1),
        "replay torch": (lambda k: replay(params, "torch"), REPLAYED),
        "replay counter": (lambda k: replay(params, "counter"), REPLAYED),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for k in range(rounds + 1):
        for name, (way, passes) in ways.items():
            start = time.perf_counter()
            way(k)
            if k:  # the first round warms up (numba compiles)
                seconds[name].append((time.perf_counter() - start) / passes)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--layers", type=int, default=8, help="of the model with embeddings; the other has twice as many"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="default: records/<date>-cpu-perturbation.json beside this script")
    options = parser.parse_args()
    watch = Watch(ROOT, config={"layers": options.layers, "rounds": options.rounds})
    console, table = Console(), Table("model", "threads", "way", "ns per parameter", "times faster than naive")
    results: dict[str, dict] = {}
    everything = torch.get_num_threads()
    for model in ("opt", "layers"):
        params = weights(model, options.layers)
        count = sum(p.numel() for p in params)
        results[model] = {"parameters": count}
        for threads in sorted({1, everything}):
            torch.set_num_threads(threads)
            seconds = measure(params, options.rounds)
            median = {name: statistics.median(taken) for name, taken in seconds.items()}
            ratios = {name: median["naive"] / taken for name, taken in median.items()}
            per_pass = {rng: median[rng] / median[f"replay {rng}"] for rng in ("torch", "counter")}
            results[model][f"{threads} threads"] = {
                "seconds": seconds,
                "median": median,
                "ratio": ratios,
                "replay_per_pass": per_pass,
            }
            for name, taken in median.items():
                table.add_row(model, str(threads), name, f"{taken / count * 1e9:.2f}", f"{ratios[name]:.1f}")
    console.print(table)
    record = {"benchmark": "perturbation_speed", "results": results, "provenance": watch.record()}
    write_record(record, __file__, "cpu-perturbation", options.out)


if __name__ == "__main__":
    main()
