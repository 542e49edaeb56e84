"""How far each part of a model is moved: one d per block for MeZO's modified estimators (MeZO, appendix B.3 and B.4).

    perturb by eps z / d,  update by g d z (variance, Definition 6) or by g z (expectation, Definition 7)

Blocks are the embeddings, the output head, each layer, and what is left. d is a block's norm per weight (root mean
square, so that large blocks do not count as steep ones): of the weights, of the gradient by one backpropagation, or of
the gradient as SPSA finds it with that block moved alone. All d are divided by one number, so that a move has the
length it would have without them and eps keeps its meaning.
"""

import math
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mezo.spsa import perturb, projected_gradient
from shared import InputError

KINDS = ("parameter_norm", "gradient_norm", "zo_norm")
SMALLEST = 1e-12


def blocks_of(names: Sequence[str]) -> dict[str, list[int]]:
    """Block -> numbers of its parameters."""
    found: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        layer = re.search(r"\blayers?\.(\d+)\.", name)
        if layer:
            block = f"layer {layer[1]}"
        elif "embed" in name:
            block = "embeddings"
        else:
            block = "head" if re.search(r"lm_head|decoder_weight|decoder_bias|classifier", name) else "rest"
        found.setdefault(block, []).append(number)
    return found


def block_scales(
    kind: str, named: Sequence[tuple[str, Tensor]], loss: Callable[[], Tensor], eps: float, rng: str, seed: int = 0
) -> list[float]:
    """One d per parameter, the same within a block.

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
    of = {number: d[block] * same_length for block, numbers in blocks.items() for number in numbers}
    return [of[number] for number in range(len(tensors))]


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
