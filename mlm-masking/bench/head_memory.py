"""Peak memory of the LM head: chunked linear + cross-entropy against full logits.

    python mlm-masking/bench/head_memory.py            # 16,384 tokens, 40 % predicted, 50,265 ids, width 768
    python mlm-masking/bench/head_memory.py --quick

Three ways to the same loss and the same gradients of hidden states, decoder and bias:

    ours                 predicted positions, a chunk of logits at a time (`mlm_masking.loss`)
    predicted positions  their full logits, then torch's cross-entropy
    all positions        full logits of every position, as transformers' RobertaForMaskedLM has them

Each runs in a process of its own, forward and backward; the peak is what the process holds at most, less what it held
before (inputs made, a small head run once). `ratio` is theirs over ours; 2.5 is the aim against full logits.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from mlm_masking.loss import linear_cross_entropy
from shared.bench import write_record
from shared.provenance import Watch

ROOT = Path(__file__).resolve().parents[2]
SIDES = ("ours", "predicted positions", "all positions")
GIB = 2**30


def loss_of(side: str, hidden, weight, bias, labels) -> torch.Tensor:
    """The summed loss of one side; labels `(tokens,)` are -100 where nothing is predicted."""
    if side == "all positions":
        return F.cross_entropy(hidden @ weight.T + bias, labels, reduction="sum")
    positions = (labels != -100).nonzero().squeeze(1)
    if side == "ours":
        return linear_cross_entropy(hidden[positions], weight, bias, labels[positions])
    return F.cross_entropy(hidden[positions] @ weight.T + bias, labels[positions], reduction="sum")


def make(tokens: int, rate: float, width: int, vocabulary: int):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator)
    weight = 0.02 * torch.randn(vocabulary, width, generator=generator)
    labels = torch.randint(0, vocabulary, (tokens,), generator=generator)
    labels[torch.rand(tokens, generator=generator) >= rate] = -100
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensors = (hidden, weight, torch.zeros(vocabulary))
    return *(tensor.to(device).requires_grad_() for tensor in tensors), labels.to(device)


class Peak:
    """The most memory that this process holds inside the `with`, over what it held before (GPU, else resident)."""

    def __enter__(self):
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            self.before, self.most, self.running = resident(), 0, True
            self.thread = threading.Thread(target=self.watch, daemon=True)
            self.thread.start()
        return self

    def watch(self) -> None:
        while self.running:
            self.most = max(self.most, resident())
            time.sleep(0.002)

    def __exit__(self, *_) -> None:
        if torch.cuda.is_available():
            self.bytes = torch.cuda.max_memory_allocated() - self.before
        else:
            self.running = False
            self.thread.join()
            # The system's own high-water mark, where it is of this stretch: sampling may miss a short peak.
            self.bytes = max(self.most, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) - self.before


def resident() -> int:
    """Bytes of this process in memory."""
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * resource.getpagesize()


def measure(side: str, options: argparse.Namespace) -> dict[str, float]:
    """One side, in this process."""
    small = make(64, options.rate, options.width, 512)
    loss_of(side, *small).backward()
    hidden, weight, bias, labels = make(options.tokens, options.rate, options.width, options.vocabulary)
    begun = time.perf_counter()
    with Peak() as peak:
        loss = loss_of(side, hidden, weight, bias, labels)
        loss.backward()
    gradient = float(weight.grad.norm())
    return {
        "peak_bytes": peak.bytes,
        "seconds": time.perf_counter() - begun,
        "loss": float(loss.detach()),
        "gradient": gradient,
    }


def in_a_process(side: str, options: argparse.Namespace) -> dict[str, float]:
    names = ("tokens", "rate", "width", "vocabulary")
    command = [sys.executable, __file__, "--side", side]
    command += [part for name in names for part in (f"--{name}", str(getattr(options, name)))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side}: status {done.returncode} (out of memory?)\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--rate", type=float, default=0.4)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=50265)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--quick", action="store_true", help="2,048 tokens, once")
    parser.add_argument("--side", choices=SIDES, help="measure one side in this process and print it as JSON")
    parser.add_argument("--out", type=Path, help="default: mlm-masking/bench/records/<date>-<device>-head-memory.json")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options)))
        return
    if options.quick:
        options.tokens, options.repetitions = 2048, 1
    watch = Watch(ROOT, config=vars(options) | {"out": None}, seed=0)
    runs = {side: [in_a_process(side, options) for _ in range(options.repetitions)] for side in options.sides}
    peak = {side: statistics.median(run["peak_bytes"] for run in sides) for side, sides in runs.items()}
    seconds = {side: statistics.median(run["seconds"] for run in sides) for side, sides in runs.items()}
    ratio = {side: peak[side] / peak["ours"] for side in options.sides}
    table = Table(title=f"LM head, {options.tokens:,} tokens, {options.rate:.0%} predicted, {options.vocabulary:,} ids")
    for name in ("logits", "peak", "ratio", "seconds", "loss", "gradient"):
        table.add_column(name, justify="left" if name == "logits" else "right")
    for side in options.sides:
        first = runs[side][0]
        table.add_row(
            *(side, f"{peak[side] / GIB:.2f} GiB", f"{ratio[side]:.2f}", f"{seconds[side]:.1f}"),
            *(f"{first['loss']:.1f}", f"{first['gradient']:.2f}"),
        )
    Console().print(table)
    record = {
        "benchmark": "head_memory",
        "runs": runs,
        "peak_bytes": peak,
        "ratio": ratio,
        "seconds": seconds,
        "provenance": watch.record(),
    }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    write_record(record, __file__, f"{device}-head-memory", options.out)


if __name__ == "__main__":
    main()
