"""Peak memory of a training step against inference: the resident set of fresh processes, an OPT of any size.

    inference                     forward passes of the batch
    mezo-full                     a MeZO step on all weights, perturbed weights made as each module runs
    mezo-inplace                  the same, added to the weights and taken off again
    mezo-lora, mezo-prefix        a MeZO step on what the mode trains
    adam-full, adam-lora, adam-prefix    forward, backward, AdamW

Every way runs in a process of its own, on one thread. The kernel's mark of the peak is reset after the model is there,
so that what loading took does not count, and what the process held before the model (Python, torch) is subtracted. Two
steps are taken: the second one has Adam's states.

    python -m mezo.memory '{"way": "mezo-full", "layers": 12, ...}'      what `peak` starts
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared import InputError

WAYS = (
    "inference", "mezo-full", "mezo-inplace", "mezo-lora", "mezo-prefix", "adam-full", "adam-lora", "adam-prefix",
)  # fmt: skip
LR, EPS = 1e-6, 1e-3


@dataclass(frozen=True)
class Sizes:
    """Of the model and the batch; the defaults make 51 million parameters and the paper's 16 x 128 tokens."""

    layers: int = 12
    hidden: int = 512
    vocabulary: int = 25_000
    rows: int = 16
    tokens: int = 128


def build(sizes: Sizes) -> nn.Module:
    """An OPT with random weights, its embeddings tied, in evaluation mode."""
    from transformers import AutoModelForCausalLM, OPTConfig

    config = OPTConfig(
        vocab_size=sizes.vocabulary, hidden_size=sizes.hidden, word_embed_proj_dim=sizes.hidden,
        ffn_dim=4 * sizes.hidden, num_hidden_layers=sizes.layers, num_attention_heads=max(1, sizes.hidden // 64),
        max_position_embeddings=max(512, sizes.tokens),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


def batch_loss(model: nn.Module, sizes: Sizes) -> Callable[[], Tensor]:
    """A loss as of a task with one-token options: the logits behind the last token of every row."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, model.config.vocab_size, (sizes.rows, sizes.tokens), generator=generator)
    gold = torch.randint(5, model.config.vocab_size, (sizes.rows,), generator=generator)
    return lambda: F.cross_entropy(model(ids, use_cache=False, logits_to_keep=1).logits[:, -1], gold)


def peak(way: str, sizes: Sizes) -> dict[str, int]:
    """{"peak": bytes above what the process held before the model, "parameters"} of one way, in a fresh process."""
    if way not in WAYS:
        raise InputError(f"way={way}: give one of {', '.join(WAYS)}")
    command = [sys.executable, "-m", "mezo.memory", json.dumps({"way": way, **asdict(sizes)})]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{way}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (the peak since it was reset) of this process, in bytes."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def measure(way: str, sizes: Sizes) -> dict[str, int]:
    """Run one way in this process, which must be a fresh one."""
    from mezo.modes import Mode, attach

    torch.set_num_threads(1)
    _load_what_all_ways_use()
    before = resident("VmRSS")
    model = build(sizes)
    kind, _, mode = way.partition("-")
    attach(model, Mode(mode if mode in ("lora", "prefix") else "full"))
    loss = batch_loss(model, sizes)
    Path("/proc/self/clear_refs").write_text("5")
    _run(kind, mode, model, loss)
    return {"peak": resident("VmHWM") - before, "parameters": sum(p.numel() for p in model.parameters())}


def _load_what_all_ways_use() -> None:
    """numba's code, oneDNN's kernels, a backward pass: they belong to the process, not to a way."""
    from mezo.gaussian import add_normal_

    add_normal_(torch.zeros(8192), 0, 0, 0, 1.0)
    small = Sizes(1, 64, 100, 2, 4)
    warm = build(small)
    batch_loss(warm, small)().backward()
    torch.optim.AdamW(warm.parameters()).step()


def _run(kind: str, mode: str, model: nn.Module, loss: Callable[[], Tensor]) -> None:
    from mezo.modes import trainable
    from mezo.optimizer import MeZO

    if kind == "inference":
        with torch.no_grad():
            for _ in range(4):
                loss()
    elif kind == "mezo":
        exact = mode != "inplace"
        optimizer = MeZO(model.named_parameters(), LR, EPS, rng="counter", check=False, model=model if exact else None)
        for _ in range(2):
            optimizer.step(loss)
    else:
        adam = torch.optim.AdamW([tensor for _, tensor in trainable(model)], LR)
        for _ in range(2):
            adam.zero_grad(set_to_none=True)
            loss().backward()
            adam.step()


if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    print(json.dumps(measure(wanted.pop("way"), Sizes(**wanted))))
