"""How far each part of a model is moved: one d per block for MeZO's modified estimators (MeZO, appendix B.3 and B.4).

    perturb by eps z / d,  update by g d z (variance, Definition 6) or by g z (expectation, Definition 7)

Blocks are the embeddings, the output head, each layer, and what is left. d is a block's norm per weight (root mean
square, so that large blocks do not count as steep ones): of the weights, of the gradient by one backpropagation, or of
the gradient as SPSA finds it with that block moved alone. All d are divided by one number, so that a move has the
length it would have without them and eps keeps its meaning. d is measured before the first step, or again at the first
step of every epoch (Tables 8 and 9); what was measured then is kept beside the trajectory, which cannot be replayed
without it.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mezo.progress import JsonLines
from mezo.spsa import perturb, projected_gradient
from shared import InputError

KINDS = ("parameter_norm", "gradient_norm", "zo_norm")
SMALLEST = 1e-12


def block_of(name: str) -> str:
    """The block a parameter belongs to."""
    layer = re.search(r"\blayers?\.(\d+)\.", name)
    if layer:
        return f"layer {layer[1]}"
    if "embed" in name:
        return "embeddings"
    return "head" if re.search(r"lm_head|decoder_weight|decoder_bias|classifier", name) else "rest"


def blocks_of(names: Sequence[str]) -> dict[str, list[int]]:
    """Block -> numbers of its parameters."""
    found: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        found.setdefault(block_of(name), []).append(number)
    return found


def block_scales(
    kind: str, named: Sequence[tuple[str, Tensor]], loss: Callable[[], Tensor], eps: float, rng: str, seed: int = 0
) -> list[float]:
    """`block_lengths` as one d per parameter."""
    lengths = block_lengths(kind, named, loss, eps, rng, seed)
    return [lengths[block_of(name)] for name, _ in named]


def block_lengths(
    kind: str, named: Sequence[tuple[str, Tensor]], loss: Callable[[], Tensor], eps: float, rng: str, seed: int = 0
) -> dict[str, float]:
    """Block -> d.

    Args:
        loss: of one batch; gradient_norm backpropagates through it, zo_norm evaluates it twice per block.
    Raises:
        InputError: an unknown kind, or a block whose norm is 0 (LoRA's B at the start has no parameter norm).
    """
    if kind not in KINDS:
        raise InputError(f"zo.scale_by={kind}: give null or one of {', '.join(KINDS)}")
    blocks = blocks_of([name for name, _ in named])
    tensors = [tensor for _, tensor in named]
    measure = {"parameter_norm": _parameters, "gradient_norm": _gradients, "zo_norm": _estimates}[kind]
    sizes = {block: sum(tensors[k].numel() for k in numbers) for block, numbers in blocks.items()}
    norms = measure(tensors, blocks, loss, eps, rng, seed)
    d = {block: norms[block] / math.sqrt(sizes[block]) for block in blocks}
    if flat := [block for block, value in d.items() if not SMALLEST < value < math.inf]:
        raise InputError(f"zo.scale_by={kind}: the norm of block {flat[0]!r} is {d[flat[0]]}; use another one or null")
    same_length = math.sqrt(sum(sizes[block] / d[block] ** 2 for block in blocks) / sum(sizes.values()))
    return {block: value * same_length for block, value in d.items()}


class EpochScales:
    """`MeZO(scales=...)` measured again at the first step of every epoch, from the weights as they are at that step.

    Args:
        path: JSON lines {"step", "steps" (that they hold for), "lengths": {block: d}, "crc32"}; an epoch that is on
            file is not measured again.
        names: of the parameters, in order.
        per_epoch: steps per epoch.
        measure: step -> {block: d} with the weights of that step.
        first: whether this process writes; from_first: makes rank 0's value everyone's.

    Raises:
        InputError: a line of the file is not what was written.
    """

    def __init__(
        self,
        path: Path,
        names: Sequence[str],
        per_epoch: int,
        measure: Callable[[int], dict[str, float]],
        *,
        first: bool = True,
        from_first: Callable[[Any], Any] = lambda value: value,
    ) -> None:
        self.file, self.per_epoch, self.measure, self.from_first = (
            JsonLines(path, first),
            per_epoch,
            measure,
            from_first,
        )
        self.blocks = [block_of(name) for name in names]
        self.known = self._on_file()

    @classmethod
    def of_a_run(cls, path: Path, names: Sequence[str]) -> EpochScales:
        """For a replay. Raises InputError where the file, or at its time an epoch, is missing."""

        def missing(step: int) -> dict[str, float]:
            raise InputError(
                f"{path} has no step lengths for step {step}: fetch it again, it belongs to the trajectory"
            )

        found = cls(path, names, 1, missing, first=False)
        found.per_epoch = found.file.lines[0]["steps"] if found.known else missing(0)
        return found

    def keep_until(self, step: int) -> None:
        """Forget what was measured behind `step`."""
        self.file.keep_until(step)
        self.known = self._on_file()

    def __call__(self, step: int) -> list[float]:
        """One d per parameter in step `step`."""
        begin = step - step % self.per_epoch
        if begin not in self.known:
            self.known[begin] = self.from_first(self.measure(begin))
            line = {"step": begin, "steps": self.per_epoch, "lengths": self.known[begin]}
            self.file.append({**line, "crc32": _crc32(line)})
        lengths = self.known[begin]
        return [lengths[block] for block in self.blocks]

    def _on_file(self) -> dict[int, dict[str, float]]:
        for line in self.file.lines:
            if _crc32({name: value for name, value in line.items() if name != "crc32"}) != line.get("crc32"):
                raise InputError(f"{self.file.path}: the line of step {line.get('step')} is changed: fetch it again")
        return {line["step"]: line["lengths"] for line in self.file.lines}


def _crc32(line: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(line, sort_keys=True).encode())


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.detach().double().square().sum()) for tensor in tensors))


def _parameters(tensors, blocks, loss, eps, rng, seed) -> dict[str, float]:
    return {block: _norm([tensors[k] for k in numbers]) for block, numbers in blocks.items()}


def _gradients(tensors, blocks, loss, eps, rng, seed) -> dict[str, float]:
    with torch.enable_grad():
        found = torch.autograd.grad(loss(), tensors, allow_unused=True)
    zero = torch.zeros(())
    return {b: _norm([zero if found[k] is None else found[k] for k in numbers]) for b, numbers in blocks.items()}


@torch.no_grad()
def _estimates(tensors, blocks, loss, eps, rng, seed) -> dict[str, float]:
    """|projected gradient| of a move of the block alone, which is as long as the gradient in the mean."""
    found = {}
    for block, numbers in blocks.items():
        mine = [tensors[k] for k in numbers]
        kept = [tensor.detach().clone() for tensor in mine]
        losses = []
        for scale in (eps, -eps):
            perturb(mine, seed, scale, rng=rng)
            losses.append(float(loss()))
            for tensor, before in zip(mine, kept, strict=True):
                tensor.copy_(before)
        found[block] = abs(projected_gradient(*losses, eps))
    return found
