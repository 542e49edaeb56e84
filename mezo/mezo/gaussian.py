"""Standard normal numbers from a counter: element e of parameter k under seed s is a function of (s, k, e) alone.

A generator with state makes z in one order, on one device, in one piece. MeZO draws the same z four times per step, for
billions of elements, and wants to draw any part of it anywhere: in chunks, on several threads, on the rank that holds a
shard, inside a kernel that adds it to the weight it has just read. So:

    counter    Philox4x32-10 (Salmon et al., SC 2011): key = (s low, s high), counter = (c low, c high, k, 0) gives four
               32-bit words; element e has c = 1024 (e div 4096) + e mod 1024 and takes word (e mod 4096) div 1024, so
               that 1024 counters fill 4096 neighbouring elements lane by lane
    normal     Box-Muller on the word pairs (0, 1) and (2, 3): radius sqrt(-2 ln u) with u of 23 bits, angle of 32 bits.
               ln, sin and cos are polynomials in IEEE single precision with a fixed order of operations and no fused
               multiply-add, so CPU, GPU and any vector width give the same bits. |z| <= 5.77.

Three implementations of this definition: torch operations (the reference, any device), numba (CPU, several threads),
and a Triton kernel (`gaussian_cuda`). The tests hold them to the same bits.
"""

import importlib.util
import math

import numpy as np
import torch
from torch import Tensor

LANE, BLOCK = 1024, 4096
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF
# ln(1 + x) on [sqrt(1/2) - 1, sqrt(2) - 1], sin and cos on [-pi/4, pi/4]: minimax coefficients in single precision
# (Cephes, Moshier 1989), highest power first.
LOG = (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
       2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)  # fmt: skip
SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
SQRT_HALF = 0.70710678118654752
ANGLE = 2 * math.pi / 2**32


def normal(seed: int, parameter: int, start: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Elements `start` to `start + count` of parameter number `parameter` under `seed`: (count,) float32.

    The reference in torch operations: slow (some hundred ns per element on a CPU) and the same everywhere.
    """
    e = torch.arange(start, start + count, dtype=torch.int64, device=device)
    within = e % BLOCK
    lane, counter = within // LANE, (e // BLOCK) * LANE + e % LANE
    words = _philox([counter & MASK, counter >> 32, torch.full_like(e, parameter), torch.zeros_like(e)], seed)
    first = torch.where(lane < 2, words[0], words[2])
    second = torch.where(lane < 2, words[1], words[3])
    return _box_muller(first, second, lane % 2 == 1)


def _philox(counter: list[Tensor], seed: int) -> list[Tensor]:
    """Four words per counter, as int64 in [0, 2^32)."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed & MASK, (seed >> 32) & MASK
    for _ in range(10):
        high0, low0 = _multiply(c0, MULTIPLIERS[0])
        high1, low1 = _multiply(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return [c0, c1, c2, c3]


def _multiply(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """(high, low) words of a 32 x 32 bit product; int64 would overflow, so the factor is split in halves."""
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    middle = (low >> 16) + (high & 0xFFFF)
    return (high >> 16) + (middle >> 16), ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def _box_muller(first: Tensor, second: Tensor, odd: Tensor) -> Tensor:
    """Radius from the first word, angle from the second; the sine where `odd`, else the cosine."""
    u = ((first >> 9).float() + 0.5) * 2.0**-23
    # Through fp64: torch's own fp32 square root on a CPU (MKL's) is not always correctly rounded.
    radius = torch.sqrt((-2.0 * _log(u)).double()).float()
    quadrant = ((second + 2**29) >> 30) & 3
    # The rest of the angle as a signed number of 2^-32 turns, in [-2^29, 2^29).
    rest = ((second + 2**29) & (2**30 - 1)) - 2**29
    a = rest.float() * ANGLE
    square = a * a
    sine = ((SIN[0] * square + SIN[1]) * square + SIN[2]) * square * a + a
    cosine = ((COS[0] * square + COS[1]) * square + COS[2]) * square * square - 0.5 * square + 1.0
    swap = (quadrant % 2 == 1) != odd
    value = torch.where(swap, sine, cosine)
    # cos(q pi/2 + a): c, -s, -c, s; sin: s, c, -s, -c.
    negative = torch.where(odd, quadrant >= 2, (quadrant == 1) | (quadrant == 2))
    return radius * torch.where(negative, -value, value)


def _log(u: Tensor) -> Tensor:
    """ln u for normal floats in (0, 1)."""
    bits = u.view(torch.int32)
    exponent = (bits >> 23) - 126
    mantissa = ((bits & 0x7FFFFF) | 0x3F000000).view(torch.float32)  # in [1/2, 1)
    small = mantissa < SQRT_HALF
    x = torch.where(small, mantissa + mantissa, mantissa) - 1.0
    e = torch.where(small, exponent - 1, exponent).float()
    polynomial = torch.full_like(x, LOG[0])
    for coefficient in LOG[1:]:
        polynomial = polynomial * x + coefficient
    square = x * x
    y = polynomial * x * square
    y = y + e * LN2_LOW
    y = y - 0.5 * square
    return (x + y) + e * LN2_HIGH


# ------------------------------------------------------------------------------------------------------- adding to a


def add_normal_(flat: Tensor, seed: int, parameter: int, start: int, scale: float) -> None:
    """`flat += scale * z` in place, for a contiguous 1-D piece that begins at element `start` of its parameter.

    The sum is formed in fp32 (fp64 for fp64 weights) and rounded once to the tensor's type. CPU: numba on torch's
    number of threads where numba is installed; CUDA: one fused kernel; else torch operations.
    """
    if flat.is_cuda:
        from mezo.gaussian_cuda import add_normal_cuda_

        add_normal_cuda_(flat, seed, parameter, start, scale)
    elif flat.device.type == "cpu" and importlib.util.find_spec("numba") is not None:
        _add_on_cpu(flat, seed, parameter, start, scale)
    else:
        _add_in_torch(flat, seed, parameter, start, scale)


def _add_in_torch(flat: Tensor, seed: int, parameter: int, start: int, scale: float, piece: int = 1 << 18) -> None:
    for begin in range(0, flat.numel(), piece):
        part = flat[begin : begin + piece]
        z = normal(seed, parameter, start + begin, part.numel(), flat.device)
        _add_rounded(part, z, scale)


def _add_rounded(part: Tensor, z: Tensor, scale: float) -> None:
    if part.dtype in (torch.float32, torch.float64):
        part.add_(z.to(part.dtype) * _single(scale, part.dtype))
    else:
        part.copy_(part.float() + z * _single(scale, torch.float32))


def _single(scale: float, dtype: torch.dtype) -> float:
    return float(np.float32(scale)) if dtype == torch.float32 else float(scale)


def _add_on_cpu(flat: Tensor, seed: int, parameter: int, start: int, scale: float, piece: int = 1 << 20) -> None:
    from mezo.gaussian_cpu import add_normal, fill_normal

    low, high = seed & MASK, (seed >> 32) & MASK
    if flat.dtype == torch.float32:
        add_normal(flat.numpy(), low, high, parameter, start, np.float32(scale), torch.get_num_threads())
        return
    z = torch.empty(min(piece, flat.numel()))
    for begin in range(0, flat.numel(), piece):
        part = flat[begin : begin + piece]
        fill_normal(z.numpy()[: part.numel()], low, high, parameter, start + begin, torch.get_num_threads())
        _add_rounded(part, z[: part.numel()], scale)
