"""The masks of the authors' release, bit by bit: its training framework's sampler for one block at a time.

A block's generator is numpy's legacy `RandomState`, seeded with `int(hash((seed, epoch, index)) % 1e6)`. Python's tuple
hash changed in 3.8, so it is written out here, both forms: masks do not depend on the interpreter that runs this. Two
properties of the release that the native sampler does not share, and that are kept here because they are its own:

- the 63-bit hash goes through a float before the remainder is taken, so that few seeds survive (300,000 blocks share
  21,664 of them): distant blocks get equal masks;
- `<s>` and `</s>` are masked like any other token.

The order of the draws is the contract: rounding, positions, then (where the scheme has them) the replaced positions,
kept or random, and the random ids.
"""

from functools import lru_cache

import numpy as np

from mlm_masking.rates import check_rate
from mlm_masking.replacement import check_shares
from mlm_masking.vocabulary import check_ids
from shared import InputError

MASK64 = 2**64 - 1
HASH_MODULUS = 2**61 - 1  # of Python's integers
SEEDS = 1e6
FIRST_RANDOM_ID = 4  # <s>, <pad>, </s> and <unk> never replace a token; the fillers and <mask> itself may


def _integer_hash(value: int) -> int:
    """Python's hash of an integer on a 64-bit machine."""
    hashed = abs(value) % HASH_MODULUS
    hashed = -hashed if value < 0 else hashed
    return -2 if hashed == -1 else hashed


def _signed(value: int) -> int:
    return value - 2**64 if value >> 63 else value


def tuple_hash(values: tuple[int, ...], python: str = "3.8") -> int:
    """Python's hash of a tuple of integers on a 64-bit machine, whatever runs this.

    Args:
        python: "3.8" for 3.8 and everything since (a variant of xxHash), "3.7" for 3.7 and before.
    """
    lanes = [_integer_hash(int(value)) & MASK64 for value in values]
    if python == "3.8":
        total = 2870177450012600261
        for lane in lanes:
            total = (total + lane * 14029467366897019727) & MASK64
            total = (total << 31 | total >> 33) & MASK64
            total = total * 11400714785074694791 & MASK64
        total = (total + (len(lanes) ^ 2870177450012600261 ^ 3527539)) & MASK64
        return 1546275796 if total == MASK64 else _signed(total)
    if python != "3.7":
        raise InputError(f'python={python!r}: give "3.8" (3.8 and since) or "3.7" (3.7 and before)')
    total, multiplier = 0x345678, 1000003
    for left, lane in zip(reversed(range(len(lanes))), lanes, strict=True):
        total = (total ^ lane) * multiplier & MASK64
        multiplier += 82520 + 2 * left
    total = (total + 97531) & MASK64
    return -2 if total == MASK64 else _signed(total)


def fairseq_seed(seed: int, epoch: int, index: int, python: str = "3.8") -> int:
    """The seed of one block's generator, in [0, 10**6)."""
    return int(tuple_hash((seed, epoch, index), python) % SEEDS)


@lru_cache(maxsize=8)
def _uniform_cumulative(vocab_size: int) -> np.ndarray:
    """What `RandomState.choice(vocab_size, p=weights)` searches: the release gives every id but the first four 1."""
    weights = np.ones(vocab_size)
    weights[:FIRST_RANDOM_ID] = 0
    return cumulative(weights / weights.sum())


def cumulative(probabilities: np.ndarray) -> np.ndarray:
    """A distribution's running sum, ending in exactly 1, as numpy's `choice` computes it."""
    running = probabilities.cumsum()
    return running / running[-1]


def fairseq_mask(
    input_ids: np.ndarray,
    *,
    rate: float,
    seed: int,
    epoch: int,
    index: int,
    p_same: float = 0.0,
    p_random: float = 0.0,
    mask_id: int = 50264,
    pad_id: int = 1,
    vocab_size: int = 50265,
    python: str = "3.8",
    weights: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """One block as the authors' release corrupts it.

    Args:
        input_ids: `(length,)` int64, the block with its `<s>`.
        rate: the masking rate m; round(m * length), up or down at random, positions are masked.
        seed, epoch, index: of the run, of the pass (the release counts from 1), of the block in its data set.
        p_same, p_random: the shares of masked tokens that are kept, and replaced by a random token; the rest is
        `<mask>`.
        python: "3.7" for the masks of Python 3.7 and before, "3.8" for those since.
        weights: `(vocab_size,)` weights of the random ids; None = equal for all but the first four.
    Returns:
        (input, target), both `(length,)` int64; the target holds the original id where it was masked, else `pad_id`.
    Raises:
        InputError: a rate outside (0, 1), shares that are no probabilities, a block that is not one row of ids below
            `vocab_size`, has fewer than 2 tokens, or holds `<mask>` already.
    """
    ids = check_block(input_ids, rate, p_same, p_random, mask_id, vocab_size)
    length = len(ids)
    random = np.random.RandomState(fairseq_seed(seed, epoch, index, python))
    count = int(rate * length + random.random_sample())
    masked = np.zeros(length, bool)
    masked[random.permutation(length)[:count]] = True  # `choice(length, count, replace=False)` is this
    target = np.where(masked, ids, pad_id)

    replaced, share = masked, p_same + p_random
    corrupted, drawn = ids.copy(), None
    if share > 0:
        changed = masked & (random.random_sample(length) < share)
        kept = changed
        if p_random > 0:
            kept = changed & (random.random_sample(length) < p_same / share) if p_same > 0 else np.zeros(length, bool)
            drawn = changed & ~kept
        replaced = masked & ~kept
    corrupted[replaced] = mask_id
    if drawn is not None and drawn.any():
        table = _uniform_cumulative(vocab_size) if weights is None else cumulative(weights / weights.sum())
        corrupted[drawn] = table.searchsorted(random.random_sample(drawn.sum()), side="right")
    return corrupted, target


def check_block(
    input_ids: np.ndarray, rate: float, p_same: float, p_random: float, mask_id: int, vocab_size: int
) -> np.ndarray:
    """The block as int64. Raises InputError: see `fairseq_mask`."""
    check_rate("rate", rate)
    check_shares(p_same, p_random)
    ids = np.asarray(input_ids)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise InputError(f"input_ids has shape {ids.shape} and type {ids.dtype}: give one row of integer ids")
    check_ids(ids, mask_id, vocab_size)
    return ids.astype(np.int64)
