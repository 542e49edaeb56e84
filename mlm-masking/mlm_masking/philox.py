"""Random numbers that are a function of what they are for: no state, no order of draws, no collisions.

Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011) maps a 128-bit counter to 128
random bits, one to one for each 64-bit key. Here the key is the seed, and the counter is written down from the epoch,
the example's index, the purpose of the number and a block number. So

- two examples, two epochs or two purposes never share a block: no two masks are forced to be equal;
- an example's numbers do not depend on the batch, worker or rank that it is in, nor on what was drawn before;
- numpy and torch, CPU and GPU give the same bits, because everything is 64-bit integer arithmetic that wraps.

    counter word 0     purpose (4 bits) and block number (28 bits); a block gives four words of 32 bits
    counter word 1     epoch
    counter words 2, 3 index, low and high half
    key words 0, 1     seed, low and high half
"""

from enum import IntEnum

import numpy as np

from mlm_masking.arrays import Array, arange, is_torch, stack

LOW = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
WORDS_PER_BLOCK = 4
BLOCK_BITS = 28
WORD_RANGE = 2**32
# Rows are done in groups whose intermediate arrays stay in the CPU's cache: 2-3 times faster than all at once.
BLOCKS_AT_A_TIME = 8192


class Purpose(IntEnum):
    """What a random word decides; part of the counter, so that decisions are independent."""

    ORDER = 0  # which positions (or units) come first
    ROUNDING = 1  # whether m * n is rounded up or down
    REPLACEMENT = 2  # kept, replaced at random, or masked
    RANDOM_ID = 3  # the token that replaces
    SPAN_CUTS = 4  # where masked tokens are cut into spans
    GAP_CUTS = 5  # where the tokens between spans are cut
    OVERLAP = 6  # which of two overlapping n-grams is kept


def philox(counter: tuple[Array | int, Array, Array, Array], key: tuple[int, int]) -> tuple[Array, ...]:
    """Philox4x32-10: four words of the counter and two of the key, each in [0, 2**32), -> four random words.

    The words are int64 arrays of numpy or torch that broadcast against each other. A 32 x 32-bit product overflows
    int64, which wraps; its halves are then read as bits.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        even, odd = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1 = ((odd >> 32) & LOW) ^ c1 ^ k0, odd & LOW
        c2, c3 = ((even >> 32) & LOW) ^ c3 ^ k1, even & LOW
        k0, k1 = (k0 + KEY_STEPS[0]) & LOW, (k1 + KEY_STEPS[1]) & LOW
    return c0, c1, c2, c3


def blocks(seed: int, epoch: int, index: Array, number: Array, purpose: Purpose) -> tuple[Array, Array, Array, Array]:
    """The four words of blocks `number` of examples `index`; the two broadcast against each other."""
    word0 = number | (int(purpose) << BLOCK_BITS)
    low, high = index & LOW, index >> 32
    return philox((word0, low * 0 + epoch, low, high), (seed & LOW, seed >> 32))


def words(seed: int, epoch: int, index: Array, length: int, purpose: Purpose) -> Array:
    """Random words of every example: `(rows,)` indices -> `(rows, length)` int64 in [0, 2**32)."""
    number = arange(-(-length // WORDS_PER_BLOCK), index)[None, :]
    rows = len(index)
    step = rows if is_torch(index) else max(1, BLOCKS_AT_A_TIME // number.shape[1])
    if rows <= step:
        drawn = stack(list(blocks(seed, epoch, index[:, None], number, purpose)), axis=2)
        return drawn.reshape(rows, -1)[:, :length]
    out = np.empty((rows, number.shape[1], WORDS_PER_BLOCK), np.int64)
    for start in range(0, rows, step):
        some = slice(start, start + step)
        for place, word in enumerate(blocks(seed, epoch, index[some, None], number, purpose)):
            out[some, :, place] = word
    return out.reshape(rows, -1)[:, :length]
