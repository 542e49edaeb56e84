"""The objective's forward and backward: one matrix product against broadcasting, time and memory.

    python simcse/bench/contrastive_loss.py                             # B = 512, H = 768, with and without negatives
    python simcse/bench/contrastive_loss.py --batch 64 512 2048 8192          # what does not fit in memory is left out
    python simcse/bench/contrastive_loss.py --device cuda --batch 512 2048 8192

Every cell is measured in a process of its own, the two forms in turn, `--rounds` times. Two memories are reported:
`tensor_bytes`, what torch's allocator holds at the peak of one forward and backward beyond the inputs, exact at any
size; and `process_bytes`, the most that the whole process needed then, interpreter and libraries included (the kernel's
high-water mark, on Linux and the CPU only). Times are medians over `--repeats` after a warm-up, then over rounds. Loss
and gradients of the two forms are compared on the same inputs.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from simcse.contrastive import contrastive_loss

ROOT = Path(__file__).resolve().parents[2]
TEMPERATURE = 0.05
HARD_NEGATIVE_WEIGHT = 0.5
# Tensors of batch x batch x hidden that broadcasting holds at its peak, per block of similarities, as measured here at
# B = 256. Only to tell beforehand what will not fit; the record holds what was measured.
BROADCAST_TENSORS = 4


def broadcast_loss(anchor: Tensor, positive: Tensor, hard_negative: Tensor | None = None) -> Tensor:
    """The same objective by torch's cosine over `(batch, 1, hidden)` and `(1, batch, hidden)`."""
    blocks = [positive] if hard_negative is None else [positive, hard_negative]
    logits = [F.cosine_similarity(anchor.unsqueeze(1), block.unsqueeze(0), dim=-1) / TEMPERATURE for block in blocks]
    if hard_negative is not None:
        logits[1] = logits[1] + HARD_NEGATIVE_WEIGHT * torch.eye(len(anchor), device=anchor.device)
    return F.cross_entropy(torch.cat(logits, dim=1), torch.arange(len(anchor), device=anchor.device))


def matmul_loss(anchor: Tensor, positive: Tensor, hard_negative: Tensor | None = None) -> Tensor:
    """`simcse.contrastive.contrastive_loss` with this benchmark's settings."""
    weight = 0.0 if hard_negative is None else HARD_NEGATIVE_WEIGHT
    return contrastive_loss(anchor, positive, hard_negative, temperature=TEMPERATURE, hard_negative_weight=weight)


FORMS = {"matmul": matmul_loss, "broadcast": broadcast_loss}


def inputs(batch: int, hidden: int, hard: bool, device: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    count = 3 if hard else 2
    rows = [torch.randn(batch, hidden, generator=generator).to(device) for _ in range(count)]
    return [row.requires_grad_() for row in rows]


def step(form: str, rows: list[Tensor]) -> Tensor:
    for row in rows:
        row.grad = None
    loss = FORMS[form](*rows)
    loss.backward()
    if loss.is_cuda:
        torch.cuda.synchronize()
    return loss


def tensor_peak(form: str, rows: list[Tensor]) -> int:
    """Bytes of tensors beyond the inputs at the peak of one step."""
    if rows[0].is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(form, rows)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step(form, rows)
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))


def process_peak(form: str, rows: list[Tensor]) -> int | None:
    """The most bytes that this process holds during one step; None on a GPU and off Linux."""
    reset = Path("/proc/self/clear_refs")
    if rows[0].is_cuda or not reset.exists():
        return None
    reset.write_text("5")  # high-water mark := what is resident now
    step(form, rows)
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def measure(form: str, batch: int, hidden: int, hard: bool, device: str, repeats: int, threads: int) -> dict:
    """One cell, in this process: memory of the first full step, then times."""
    torch.set_num_threads(threads)
    step(form, inputs(8, hidden, hard, device))  # libraries load their kernels: not the loss's memory
    rows = inputs(batch, hidden, hard, device)
    process, tensors = process_peak(form, rows), tensor_peak(form, rows)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        loss = step(form, rows)
        seconds.append(time.perf_counter() - start)
    gradient = torch.cat([row.grad for row in rows])
    return {
        "tensor_bytes": tensors,
        "process_bytes": process,
        "seconds": seconds,
        "loss": loss.item(),
        "gradient_norm": gradient.norm().item(),
    }


def in_own_process(options: argparse.Namespace, form: str, batch: int, hard: bool) -> dict:
    command = [sys.executable, __file__, "--cell", form, "--batch", str(batch), "--hidden", str(options.hidden)]
    command += ["--device", options.device, "--repeats", str(options.repeats), "--threads", str(options.threads)]
    done = subprocess.run([*command, *(["--hard"] if hard else [])], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{form} at batch {batch} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def room(device: str) -> int:
    return torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available


def compare(options: argparse.Namespace, batch: int, hard: bool) -> dict:
    """Both forms at one size, in turn; what is too large for broadcasting is measured for the product alone."""
    needed = BROADCAST_TENSORS * (2 if hard else 1) * batch * batch * options.hidden * 4
    fits = needed < 0.8 * room(options.device)
    forms = list(FORMS) if fits else ["matmul"]
    cells = {form: [] for form in forms}
    for _ in range(options.rounds):
        for form in forms:
            cells[form].append(in_own_process(options, form, batch, hard))
    row = {"batch": batch, "hidden": options.hidden, "hard_negatives": hard}
    for form, rounds in cells.items():
        row[form] = {
            "seconds": statistics.median(statistics.median(each["seconds"]) for each in rounds),
            "tensor_bytes": statistics.median(each["tensor_bytes"] for each in rounds),
            "process_bytes": rounds[0]["process_bytes"] and statistics.median(each["process_bytes"] for each in rounds),
            "loss": rounds[0]["loss"],
            "gradient_norm": rounds[0]["gradient_norm"],
            "rounds": [{key: each[key] for key in ("seconds", "tensor_bytes", "process_bytes")} for each in rounds],
        }
    if not fits:
        return row | {"broadcast": None, "left_out": f"broadcasting would need about {needed / 2**30:.0f} GiB"}
    ours, theirs = row["matmul"], row["broadcast"]
    keys = ["seconds", "tensor_bytes", *(["process_bytes"] if ours["process_bytes"] else [])]
    row["ratios"] = {key: theirs[key] / ours[key] for key in keys}
    row["loss_difference"] = abs(theirs["loss"] - ours["loss"])
    row["gradient_norm_difference"] = abs(theirs["gradient_norm"] - ours["gradient_norm"])
    return row


def show(rows: list[dict]) -> None:
    table = Table(title="contrastive loss, forward and backward", title_justify="left")
    for name in (
        "B",
        "negatives",
        "ms",
        "broadcast ms",
        "faster",
        "MiB",
        "broadcast MiB",
        "less memory",
        "loss differs by",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        ours, theirs, ratios = row["matmul"], row["broadcast"], row.get("ratios", {})
        table.add_row(
            str(row["batch"]),
            "hard" if row["hard_negatives"] else "in-batch",
            f"{1e3 * ours['seconds']:.1f}",
            f"{1e3 * theirs['seconds']:.1f}" if theirs else row["left_out"],
            f"{ratios['seconds']:.1f}x" if theirs else "",
            f"{ours['tensor_bytes'] / 2**20:.1f}",
            f"{theirs['tensor_bytes'] / 2**20:.0f}" if theirs else "",
            f"{ratios['tensor_bytes']:.0f}x" if theirs else "",
            f"{ratios['process_bytes']:.1f}x" if "process_bytes" in ratios else "",
            f"{row['loss_difference']:.0e}" if theirs else "",
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[512])
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="default: simcse/bench/records/<date>-<device>-contrastive-loss.json")
    parser.add_argument("--cell", choices=list(FORMS), help=argparse.SUPPRESS)
    parser.add_argument("--hard", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        cell = measure(
            options.cell,
            options.batch[0],
            options.hidden,
            options.hard,
            options.device,
            options.repeats,
            options.threads,
        )
        print(json.dumps(cell))
        return
    from shared.bench import write_record  # not in the measured processes: its imports are memory too
    from shared.provenance import Watch

    watch = Watch(ROOT)
    rows = [compare(options, batch, hard) for batch in options.batch for hard in (False, True)]
    show(rows)
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "cell", "hard")}
    record = {"benchmark": "contrastive_loss", "settings": settings, "rows": rows, "provenance": watch.record()}
    write_record(record, __file__, f"{options.device}-contrastive-loss", options.out)


if __name__ == "__main__":
    main()
