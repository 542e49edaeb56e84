"""`gaussian.normal` on CUDA: one Triton kernel that reads a weight, makes its z in registers, and writes the sum.

4 bytes read and 4 written per fp32 weight (2 and 2 in half precision), nothing else: z never exists in memory. The
arithmetic is the definition's, operation by operation, with fusing switched off, so the bits are the CPU's.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mezo.gaussian import ANGLE, BLOCK, COS, LANE, LN2_HIGH, LN2_LOW, LOG, MASK, SIN, SQRT_HALF

TILE = 1024


@triton.jit
def _log(u):
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits >> 23) - 126
    mantissa = ((bits & 0x7FFFFF) | 0x3F000000).to(tl.float32, bitcast=True)
    small = mantissa < SQRT_HALF_C
    x = tl.where(small, mantissa + mantissa, mantissa) - 1.0
    e = tl.where(small, exponent - 1, exponent).to(tl.float32)
    y = LOG0 * x + LOG1
    y = y * x + LOG2
    y = y * x + LOG3
    y = y * x + LOG4
    y = y * x + LOG5
    y = y * x + LOG6
    y = y * x + LOG7
    y = y * x + LOG8
    square = x * x
    y = y * x * square
    y = y + e * LOW
    y = y - 0.5 * square
    return (x + y) + e * HIGH


(LOG0, LOG1, LOG2, LOG3, LOG4, LOG5, LOG6, LOG7, LOG8) = (tl.constexpr(c) for c in LOG)
SIN0, SIN1, SIN2 = (tl.constexpr(c) for c in SIN)
COS0, COS1, COS2 = (tl.constexpr(c) for c in COS)
HIGH, LOW, SQRT_HALF_C, TURN = (tl.constexpr(c) for c in (LN2_HIGH, LN2_LOW, SQRT_HALF, ANGLE))


@triton.jit
def _add_normal(
    out, count, start, scale, low, high, parameter, BLOCK: tl.constexpr, LANE: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    offset = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    valid = offset < count
    e = offset + start
    within = (e % BLOCK).to(tl.int32)
    lane = within // LANE
    counter = (e // BLOCK) * LANE + e % LANE
    c0, c1 = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
    zero = (within * 0).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox_impl(c0, c1, zero + parameter, zero, zero + low, zero + high)
    first = tl.where(lane < 2, w0, w2)
    second = tl.where(lane < 2, w1, w3)
    u = ((first >> 9).to(tl.int32).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    radius = tl.sqrt_rn(-2.0 * _log(u))
    shifted = second + 0x20000000
    quadrant = (shifted >> 30).to(tl.int32)
    rest = (shifted & 0x3FFFFFFF).to(tl.int32) - 0x20000000
    a = rest.to(tl.float32) * TURN
    square = a * a
    sine = ((SIN0 * square + SIN1) * square + SIN2) * square * a + a
    cosine = ((COS0 * square + COS1) * square + COS2) * square * square - 0.5 * square + 1.0
    odd = (lane % 2) == 1
    value = tl.where(((quadrant % 2) == 1) != odd, sine, cosine)
    negative = tl.where(odd, quadrant >= 2, (quadrant == 1) | (quadrant == 2))
    z = radius * tl.where(negative, -value, value)
    weight = tl.load(out + offset, mask=valid)
    tl.store(out + offset, (weight.to(tl.float32) + scale * z).to(out.dtype.element_ty), mask=valid)


def add_normal_cuda_(flat: Tensor, seed: int, parameter: int, start: int, scale: float) -> None:
    """`flat += scale * z` for a contiguous CUDA tensor of fp32, fp16 or bf16, in one pass over memory."""
    if flat.numel() == 0:
        return
    if flat.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(f"weights of type {flat.dtype}: fp32, fp16 and bf16 can be perturbed on CUDA")
    grid = (triton.cdiv(flat.numel(), TILE),)
    low, high = seed & MASK, (seed >> 32) & MASK
    _add_normal[grid](
        flat, flat.numel(), start, scale, low, high, parameter,
        BLOCK=BLOCK, LANE=LANE, TILE=TILE, enable_fp_fusion=False,
    )  # fmt: skip
