"""`gaussian.normal` on the CPU: numba, one block of 4096 elements at a time, in loops that the compiler vectorises.

Every loop runs over arrays of one lane (1024 numbers, in the first-level cache) with the same few operations, which
LLVM turns into vector instructions of whatever width the machine has. No fused multiply-add and no reordering (numba's
default without fastmath), so the bits are those of the definition. Blocks are shared out over threads; an element does
not depend on the thread that makes it.
"""

import numba
import numpy as np

from mezo.compiled import bits_of, float_of, share_out, wide_vectors
from mezo.gaussian import ANGLE, BLOCK, COS, LANE, LN2_HIGH, LN2_LOW, LOG, MULTIPLIERS, SIN, SQRT_HALF, WEYL

BLOCKS_PER_THREAD = 32  # fewer are made sooner than handed over
f32, i32, u32, u64 = np.float32, np.int32, np.uint32, np.uint64
M0, M1 = u64(MULTIPLIERS[0]), u64(MULTIPLIERS[1])
W0, W1 = u32(WEYL[0]), u32(WEYL[1])
L0, L1, L2, L3, L4, L5, L6, L7, L8 = (f32(c) for c in LOG)
S0, S1, S2 = (f32(c) for c in SIN)
C0, C1, C2 = (f32(c) for c in COS)
HIGH, LOW, ROOT_BITS = f32(LN2_HIGH), f32(LN2_LOW), f32(SQRT_HALF).view(i32)
TURN, HALF, ONE, TWO, STEP = f32(ANGLE), f32(0.5), f32(1.0), f32(2.0), f32(2.0**-23)


@numba.njit(cache=True, inline="always")
def _words(x0, x1, x2, x3, low, high, parameter, block):
    """Philox4x32-10 of the block's 1024 counters, one word per array."""
    first = u64(block) * u64(LANE)
    for j in range(LANE):
        c0 = u32((first + u64(j)) & u64(0xFFFFFFFF))
        c1 = u32((first + u64(j)) >> u64(32))
        c2, c3 = u32(parameter), u32(0)
        k0, k1 = u32(low), u32(high)
        for _ in range(10):
            p0, p1 = M0 * u64(c0), M1 * u64(c2)
            n0 = u32(p1 >> u64(32)) ^ c1 ^ k0
            n2 = u32(p0 >> u64(32)) ^ c3 ^ k1
            c1, c3 = u32(p1 & u64(0xFFFFFFFF)), u32(p0 & u64(0xFFFFFFFF))
            c0, c2 = n0, n2
            k0, k1 = u32(k0 + W0), u32(k1 + W1)
        x0[j], x1[j], x2[j], x3[j] = c0, c1, c2, c3


@numba.njit(cache=True, inline="always")
def _numbers(first, second):
    """Box-Muller of one pair of words, operation by operation as in `gaussian`."""
    b = bits_of((f32(i32(first >> u32(9))) + HALF) * STEP)
    # Exponent and mantissa as in the definition, the mantissa in [sqrt(1/2), sqrt(2)) without a comparison.
    # Every int32 result is named as one: numba would go on in 64 bits.
    b = i32(b - ROOT_BITS)
    e = f32(i32(b >> i32(23)))
    x = float_of(i32(i32(b & i32(0x7FFFFF)) + ROOT_BITS)) - ONE
    y = L0 * x + L1
    y = y * x + L2
    y = y * x + L3
    y = y * x + L4
    y = y * x + L5
    y = y * x + L6
    y = y * x + L7
    y = y * x + L8
    square = x * x
    y = y * x * square
    y = y + e * LOW
    y = y - HALF * square
    radius = np.sqrt(-TWO * ((x + y) + e * HIGH))
    shifted = u32(second + u32(0x20000000))
    a = f32(i32(i32(shifted & u32(0x3FFFFFFF)) - i32(0x20000000))) * TURN
    square = a * a
    sine = ((S0 * square + S1) * square + S2) * square * a + a
    cosine = ((C0 * square + C1) * square + C2) * square * square - HALF * square + ONE
    swap = (shifted & u32(0x40000000)) != u32(0)
    c = sine if swap else cosine
    s = cosine if swap else sine
    # Signs: the cosine is negative in the second and third quadrant, the sine in the third and fourth.
    c = float_of(i32(bits_of(c) ^ i32(u32(u32(shifted ^ u32(shifted << u32(1))) & u32(0x80000000)))))
    s = float_of(i32(bits_of(s) ^ i32(u32(shifted & u32(0x80000000)))))
    return radius * c, radius * s


@numba.njit(cache=True, inline="always")
def _pair(first, second, out, begin, scale, add, cosine, sine):
    """Two lanes, the first of which belongs to out[begin]; `cosine` and `sine` are room for two lanes."""
    if begin >= 0 and begin + 2 * LANE <= out.size:
        one, two = out[begin : begin + LANE], out[begin + LANE : begin + 2 * LANE]
        if add:
            for j in range(LANE):
                c, s = _numbers(first[j], second[j])
                one[j] += scale * c
                two[j] += scale * s
        else:
            for j in range(LANE):
                one[j], two[j] = _numbers(first[j], second[j])
        return
    for j in range(LANE):
        cosine[j], sine[j] = _numbers(first[j], second[j])
    _put(out, cosine, begin, scale, add)
    _put(out, sine, begin + LANE, scale, add)


@numba.njit(cache=True, inline="always")
def _put(out, z, begin, scale, add):
    """One lane as far as it lies in `out`."""
    first = max(0, begin)
    last = max(first, min(out.size, begin + LANE))
    target, source = out[first:last], z[first - begin : last - begin]
    if add:
        for j in range(target.size):
            target[j] += scale * source[j]
    else:
        for j in range(target.size):
            target[j] = source[j]


@numba.njit(cache=True, nogil=True)
def _run(out, low, high, parameter, start, scale, add, first, last):
    """Blocks `first` to `last` (exclusive) of the parameter, as far as they lie in `out`."""
    wide_vectors()
    x0, x1, x2, x3 = np.empty(LANE, u32), np.empty(LANE, u32), np.empty(LANE, u32), np.empty(LANE, u32)
    cosine, sine = np.empty(LANE, f32), np.empty(LANE, f32)
    for block in range(first, last):
        begin = block * BLOCK - start
        _words(x0, x1, x2, x3, low, high, parameter, block)
        _pair(x0, x1, out, begin, scale, add, cosine, sine)
        _pair(x2, x3, out, begin + 2 * LANE, scale, add, cosine, sine)


def add_normal(
    out: np.ndarray, low: int, high: int, parameter: int, start: int, scale: np.float32, threads: int
) -> None:
    """`out += scale * z` for a contiguous float32 array."""
    _with_threads(out, low, high, parameter, start, scale, True, threads)


def fill_normal(out: np.ndarray, low: int, high: int, parameter: int, start: int, threads: int) -> None:
    """`out = z` for a contiguous float32 array."""
    _with_threads(out, low, high, parameter, start, f32(1.0), False, threads)


def _with_threads(out, low, high, parameter, start, scale, add, threads) -> None:
    if out.size == 0:
        return
    first, last = start // BLOCK, (start + out.size - 1) // BLOCK + 1
    settings = (out, u32(low), u32(high), u32(parameter), int(start), f32(scale), add)
    threads = max(1, min(threads, (last - first) // BLOCKS_PER_THREAD))
    share_out(lambda begin, end: _run(*settings, begin, end), first, last, threads)
