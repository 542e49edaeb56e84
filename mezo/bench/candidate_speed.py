"""Steps per second of MeZO on a task whose options are one token each: one pass per prompt, or one per candidate.

    python mezo/bench/candidate_speed.py                        # an OPT of 45M parameters, 16 examples a step
    python mezo/bench/candidate_speed.py --layers 12 --width 768 --rounds 3

release   every candidate a row, padded on the left to a multiple of 8, logits of every position, log-softmax over them
rows      every candidate a row, but padded on the right and logits only in front of options: what sharing alone adds
shared    `mezo.objectives`: the prompt once for all candidates

All three are steps of the same optimiser (two evaluations, the weights never written, counter-based numbers) from the
same weights with the same seeds, so that the difference is the forward passes; losses and projected gradients are
compared. Prompts have the lengths of SST-2's (short) and RTE's (long); their tokens are random, which costs the same.
Ways alternate within a round; medians are compared.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from transformers import OPTConfig, OPTForCausalLM

from mezo import MeZO
from mezo.encoding import Encoded
from mezo.objectives import Objective
from mezo.tasks import get_task
from shared.bench import write_record
from shared.provenance import Watch

ROOT = Path(__file__).resolve().parents[2]
BATCH = 16
# (mean, deviation, least) of the log-normal that prompt lengths in tokens are drawn from
LENGTHS = {"short": (26, 0.4, 8), "long": (76, 0.5, 30)}


def model_of(options) -> OPTForCausalLM:
    config = OPTConfig(
        hidden_size=options.width, ffn_dim=4 * options.width, num_hidden_layers=options.layers,
        num_attention_heads=options.width // 64, word_embed_proj_dim=options.width, dropout=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    return OPTForCausalLM(config).eval()


def batch_of(kind: str, candidates: int) -> list[Encoded]:
    draw = np.random.RandomState(3)
    mean, deviation, least = LENGTHS[kind]
    found = []
    for number in range(BATCH):
        length = max(least, round(mean * np.exp(draw.normal(0, deviation) - deviation**2 / 2)))
        prompt = (0, *draw.randint(10, 50000, length).tolist())
        options = tuple((*prompt, 100 + c) for c in range(candidates))
        found.append(Encoded(str(number), options, (1,) * candidates, (int(draw.randint(candidates)),)))
    return found


def release_loss(model: OPTForCausalLM, batch: list[Encoded]) -> torch.Tensor:
    rows = [ids for example in batch for ids in example.candidates]
    width = -(-max(map(len, rows)) // 8) * 8
    input_ids = torch.tensor([[1] * (width - len(ids)) + list(ids) for ids in rows])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in rows])
    logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    logprobs = logits.log_softmax(-1).gather(-1, input_ids[:, 1:, None])[..., 0]
    scores = logprobs[:, -1].view(len(batch), -1)
    return F.cross_entropy(scores, torch.tensor([example.gold[0] for example in batch]))


def measure(model: OPTForCausalLM, batch: list[Encoded], rounds: int) -> dict:
    """Seconds per step by way, and the losses and projected gradients each saw."""
    shared = Objective(get_task("sst2"), None, "candidates")
    rows = Objective(get_task("sst2"), None, "candidates", share=False)
    losses = {
        "release": lambda: release_loss(model, batch),
        "rows": lambda: rows.loss(model, batch),
        "shared": lambda: shared.loss(model, batch),
    }
    optimizers = {
        name: MeZO(model.named_parameters(), lr=0.0, model=model, rng="counter", check=False) for name in losses
    }
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in losses}
    for k in range(rounds + 1):
        for name, closure in losses.items():
            start = time.perf_counter()
            loss = optimizers[name].step(closure)
            if k:  # the first round warms up (numba compiles)
                seconds[name].append(time.perf_counter() - start)
            seen[name].append((loss, optimizers[name].last.projected_gradient))
    return {"seconds": seconds, "seen": seen, "tokens": {"shared": shared.lay_out(model, batch).tokens,
            "rows": rows.lay_out(model, batch).tokens}}  # fmt: skip


def summary(found: dict) -> dict:
    median = {name: statistics.median(taken) for name, taken in found["seconds"].items()}
    pairs = {name: np.array(values) for name, values in found["seen"].items()}
    return {
        **found,
        "median": median,
        "times_faster": {name: median[name] / median["shared"] for name in ("release", "rows")},
        "largest_loss_difference": {
            name: float(np.abs(pairs[name][:, 0] - pairs["shared"][:, 0]).max()) for name in ("release", "rows")
        },
        "largest_gradient_difference": {
            name: float(np.abs(pairs[name][:, 1] - pairs["shared"][:, 1]).max()) for name in ("release", "rows")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--candidates", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="default: records/<date>-cpu-candidates.json beside this script")
    options = parser.parse_args()
    watch = Watch(ROOT, config={name: value for name, value in vars(options).items() if name != "out"})
    model, console = model_of(options), Console()
    count = sum(p.numel() for p in model.parameters())
    title = f"OPT, {count / 1e6:.0f}M parameters, {BATCH} examples, {options.candidates} candidates"
    columns = ("prompts", "way", "s per step", "shared is faster by", "largest difference of losses")
    table = Table(*columns, title=title)
    results = {}
    with torch.no_grad():
        for kind in LENGTHS:
            results[kind] = found = summary(measure(model, batch_of(kind, options.candidates), options.rounds))
            for name, taken in found["median"].items():
                table.add_row(
                    kind, name, f"{taken:.2f}", f"{found['times_faster'].get(name, 1):.2f}",
                    f"{found['largest_loss_difference'].get(name, 0):.1e}",
                )  # fmt: skip
    console.print(table)
    record = {"benchmark": "candidate_speed", "parameters": count, "results": results, "provenance": watch.record()}
    write_record(record, __file__, "cpu-candidates", options.out)


if __name__ == "__main__":
    main()
