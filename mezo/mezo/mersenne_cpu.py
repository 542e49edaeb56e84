"""The normal numbers of torch's CPU generator, from compiled loops: the same bits in less than half the time.

torch makes them serially: a Mersenne twister (MT19937, Matsumoto and Nishimura 1998) gives one 32-bit word after the
other, 24 bits of each become a uniform number, and Box-Muller turns 16 uniform numbers into 16 normal ones, u1 from the
first eight and u2 from the others. Here the twister makes 624 words per loop and the rest runs over arrays, as vector
instructions; and since words are cheap (a tenth of the work), each thread makes all words before its part and turns
only its own into numbers.

    z[j] = sqrt(-2 ln(1 - u[j])) cos(2 pi u[j + 8]),    z[j + 8] = the same with sin,    j < 8

ln, sin and cos are Cephes' polynomials (Moshier 1989) with fused multiply-adds exactly where torch's AVX2 code has
them. A tensor whose size is no multiple of 16 has its last 16 elements drawn again from new words. Another build of
torch may differ, so `torch_stream` compares some thousand numbers with torch's own before it uses any of these.
"""

import numba
import numpy as np

from mezo.compiled import bits_of, copy_eight, float_of, fused, share_out, wide_vectors
from mezo.gaussian import COS, LN2_HIGH, LN2_LOW, LOG, SIN, SQRT_HALF

WORDS = 624  # of the twister's state
CHUNK = 2048  # numbers made at once: 20 KiB of arrays, in the first-level cache
SHARED_OUT = 1 << 16  # numbers per thread; fewer are made sooner than handed over
f32, i32, u32 = np.float32, np.int32, np.uint32
UPPER, LOWER, MATRIX = u32(0x80000000), u32(0x7FFFFFFF), u32(0x9908B0DF)
L0, L1, L2, L3, L4, L5, L6, L7, L8 = (f32(c) for c in LOG)
S0, S1, S2 = (f32(c) for c in SIN)
C0, C1, C2 = (f32(c) for c in COS)
HIGH, LOW, ROOT_BITS, SIGN = f32(LN2_HIGH), f32(LN2_LOW), f32(SQRT_HALF).view(i32), i32(-(2**31))
ZERO, HALF, ONE, TWO, STEP = f32(0.0), f32(0.5), f32(1.0), f32(2.0), f32(2.0**-24)
TWO_PI, FOUR_OVER_PI = f32(2 * np.pi), f32(4 / np.pi)
# pi/4 in three parts, so that subtracting a multiple of it loses nothing
P0, P1, P2 = f32(-0.78515625), f32(-2.4187564849853515625e-4), f32(-3.77489497744594108e-8)


@numba.njit(cache=True, inline="always")
def _mix(a, b):
    return (((a & UPPER) | (b & LOWER)) >> u32(1)) ^ ((u32(0) - (b & u32(1))) & MATRIX)


@numba.njit(cache=True)
def _twist(old, new):
    """The next 624 words of state. Three loops: each reads words that an earlier one has written."""
    wide_vectors()
    for k in range(227):
        new[k] = old[k + 397] ^ _mix(old[k], old[k + 1])
    for k in range(227, 454):
        new[k] = new[k - 227] ^ _mix(old[k], old[k + 1])
    for k in range(454, 623):
        new[k] = new[k - 227] ^ _mix(old[k], old[k + 1])
    new[623] = new[396] ^ _mix(old[623], new[0])


@numba.njit(cache=True)
def _skip(state, place, spare, count):
    """Pass over `count` words."""
    place[0] += count
    while place[0] > WORDS:
        _twist(state, spare)
        state[:] = spare
        place[0] -= WORDS


@numba.njit(cache=True)
def _take(state, place, spare, out, count):
    """24 bits of each of the next `count` words."""
    wide_vectors()
    done = 0
    while done < count:
        if place[0] == WORDS:
            _twist(state, spare)
            state[:] = spare
            place[0] = 0
        some = min(count - done, WORDS - place[0])
        source, target = state[place[0] : place[0] + some], out[done : done + some]
        for k in range(some):
            y = source[k]
            y ^= y >> u32(11)
            y ^= (y << u32(7)) & u32(0x9D2C5680)
            y ^= (y << u32(15)) & u32(0xEFC60000)
            y ^= y >> u32(18)
            target[k] = y & u32(0xFFFFFF)
        place[0] += some
        done += some


@numba.njit(cache=True, inline="always")
def _numbers(first, second):
    """Box-Muller of one pair of 24-bit words, operation by operation as torch's AVX2 code does it."""
    # Every int32 result is named as one: numba would go on in 64 bits.
    b = bits_of(ONE - f32(i32(first)) * STEP)
    # The exponent, and the mantissa in [sqrt(1/2), sqrt(2)): the same as with torch's comparison.
    b = i32(b - ROOT_BITS)
    e = f32(i32(b >> i32(23)))
    x = float_of(i32(i32(b & i32(0x7FFFFF)) + ROOT_BITS)) - ONE
    square = x * x
    y = fused(L0, x, L1)
    y = fused(y, x, L2)
    y = fused(y, x, L3)
    y = fused(y, x, L4)
    y = fused(y, x, L5)
    y = fused(y, x, L6)
    y = fused(y, x, L7)
    y = fused(y, x, L8)
    y = fused(y * x, square, e * LOW)
    y = fused(-square, HALF, y)
    radius = np.sqrt(-TWO * fused(e, HIGH, x + y))
    x = TWO_PI * (f32(i32(second)) * STEP)
    octant = i32(i32(i32(x * FOUR_OVER_PI) + i32(1)) & i32(~1))
    y = f32(octant)
    x = fused(y, P2, fused(y, P1, fused(y, P0, x)))
    square = x * x
    c = fused(fused(C0, square, C1), square, C2) * square
    c = fused(c, square, -(square * HALF)) + ONE
    s = fused(fused(S0, square, S1), square, S2) * square
    s = fused(s, x, x)
    swap = i32(octant & i32(2)) != i32(0)
    sine = c if swap else s
    cosine = s if swap else c
    # Signs: the sine is negative in octants 4 to 7, the cosine in 2 to 5.
    sine = float_of(i32(bits_of(sine) ^ SIGN & i32(octant << i32(29))))
    cosine = float_of(i32(bits_of(cosine) ^ SIGN & i32(i32(octant + i32(2)) << i32(29))))
    return radius * cosine + ZERO, radius * sine + ZERO  # torch adds the mean: -0 becomes 0


@numba.njit(cache=True)
def _box_muller(words, first, second, cosine, sine):
    """16 words and more -> their numbers; the other arrays have half the number of words."""
    wide_vectors()
    for k in range(0, cosine.size, 8):
        copy_eight(first, k, words, 2 * k)
        copy_eight(second, k, words, 2 * k + 8)
    for j in range(cosine.size):
        cosine[j], sine[j] = _numbers(first[j], second[j])


@numba.njit(cache=True, nogil=True)
def _run(state, place, out, scale, add):
    """out += scale * z, or out = z, for whole groups of 16."""
    wide_vectors()
    half = CHUNK // 2
    spare, words, first, second = np.empty(WORDS, u32), np.empty(CHUNK, u32), np.empty(half, u32), np.empty(half, u32)
    cosine, sine, numbers = np.empty(half, f32), np.empty(half, f32), np.empty(CHUNK, f32)
    for start in range(0, out.size, CHUNK):
        some = min(CHUNK, out.size - start)
        half = some // 2
        _take(state, place, spare, words, some)
        _box_muller(words, first, second, cosine[:half], sine)
        target = out[start : start + some]
        z = numbers if add else target
        for k in range(0, half, 8):
            copy_eight(z, 2 * k, cosine, k)
            copy_eight(z, 2 * k + 8, sine, k)
        if add:
            for k in range(some):
                target[k] += scale * z[k]


@numba.njit(cache=True, nogil=True)
def _end(state, place, out, scale, add):
    """The last elements of a tensor whose size is no multiple of 16, from its last whole group on: of that group's
    numbers the first remain, the words of the incomplete group are passed over, and the last 16 are drawn anew."""
    numbers = np.empty(16, f32)
    rest = out.size - 16
    _run(state, place, numbers, ONE, False)
    for j in range(rest):
        out[j] = out[j] + scale * numbers[j] if add else numbers[j]
    _skip(state, place, np.empty(WORDS, u32), rest)
    _run(state, place, numbers, ONE, False)
    for j in range(16):
        out[rest + j] = out[rest + j] + scale * numbers[j] if add else numbers[j]


@numba.njit(cache=True, nogil=True)
def _run_from(state, place, begin, out, scale, add):
    """`_run` for a part that begins `begin` numbers on."""
    _skip(state, place, np.empty(WORDS, u32), begin)
    _run(state, place, out, scale, add)


def skip(state: np.ndarray, place: np.ndarray, count: int) -> None:
    """Draw the numbers of a piece of `count` >= 16 elements and drop them."""
    _skip(state, place, np.empty(WORDS, u32), count + 16 * (count % 16 > 0))


def draw(state: np.ndarray, place: np.ndarray, out: np.ndarray, scale: float, add: bool, threads: int) -> None:
    """`out += scale * z` or `out = z` for the next numbers of the stream; `state` and `place` move on.

    Args:
        state: (624,) uint32, the twister's; place: (1,) int64, words of it that are used, 0 to 624.
        out: contiguous float32 of at least 16 elements; cuts between pieces of a tensor are at multiples of 16.
    """
    rest = out.size % 16
    whole = out.size - rest - 16 if rest else out.size
    threads = max(1, min(threads, whole // SHARED_OUT))
    if threads == 1:
        _run(state, place, out[:whole], f32(scale), add)
    else:
        begin = state.copy(), place.copy()

        def run(first: int, last: int) -> None:
            # The last part moves the stream itself; the others move copies.
            here = (state, place) if last == groups else (begin[0].copy(), begin[1].copy())
            _run_from(*here, first * 16, out[first * 16 : last * 16], f32(scale), add)

        groups = whole // 16
        share_out(run, 0, groups, threads)
    if rest:
        _end(state, place, out[whole:], f32(scale), add)
