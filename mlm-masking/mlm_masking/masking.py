"""Which tokens are corrupted and which are predicted: the paper's subject, "Should You Mask 15% in Masked Language
Modeling?" (Wettig et al., EACL 2023).

Masking at rate m takes k = floor(m n + u), u ~ U[0, 1), of a sequence's n tokens: an exact count whose expectation is
m n. Here that is seen as an order. Every sequence has one random order of its tokens (or of its words, n-grams,
spans), drawn by a counter-based generator from (seed, epoch, index) alone, and masking takes the first k of it. All
that the paper varies
is then a matter of where to stop:

- the rate: 15 % is a prefix of 40 %, so masks are nested across rates;
- corruption and prediction apart (section 4): hide the first m_corr n, predict the first m_pred n of them; or, to
  predict more than is hidden, let copy c of the sequence hide the c-th stretch of m_corr n: disjoint by construction;
- the strategy (section 5): what the order is made of. A unit's tokens share one place in it and go together.

The order is never written down. A token's place is a random key, and the first k are the keys up to the k-th smallest.

`fairseq_mask` gives the masks of the authors' release instead, bit by bit. Everything else here takes numpy arrays or
torch tensors, on any device, and gives the same masks for both.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch

from mlm_masking.arrays import Array, arange, as_double, floor_int, is_torch, sort_rows, take_rows, where
from mlm_masking.fairseq_compat import fairseq_mask
from mlm_masking.philox import WORD_RANGE, Purpose, words
from mlm_masking.rates import check_rate, edges
from mlm_masking.replacement import Replacement, drawable_ids
from mlm_masking.vocabulary import check_ids
from shared import InputError

__all__ = ["Order", "bernoulli_order", "fairseq_mask", "mask_uniform", "masked_sets", "uniform_order"]

# A key is a 32-bit random word above the position: distinct, so that counts are exact. The word decides alone but for
# ties, once in 2**32 per pair.
POSITION_BITS = 20
NEVER = 2**62  # the key of a token that must not be masked


@dataclass(frozen=True)
class Order:
    """A random order of every row's tokens, by keys; `first(rate)` is its beginning.

    Args:
        keys: `(rows, length)` int64; the tokens of one unit share a key, tokens that must not be masked have NEVER.
        ranked: `(rows, length)` the keys that count, ascending: one per token, or one per unit where the rate is one of
            units. None: keys are 32-bit words, each compared with the rate for itself (Bernoulli).
        size: `(rows,)` how many that is, the n of m n.
        rounding: `(rows,)` u in [0, 1), or one number for all rows.
        unit: `(rows, length)` number below `length` of each token's unit; None where units are tokens.
    """

    keys: Array
    ranked: Array | None = None
    size: Array | None = None
    rounding: Array | float = 0.5
    unit: Array | None = None

    def first(self, rate: float) -> Array:
        """`(rows, length)` bool: the first floor(rate * size + rounding) of each row, whole units of them."""
        if self.ranked is None:
            return self.keys < int(rate * WORD_RANGE)
        count = floor_int(as_double(self.size) * rate + self.rounding)
        last = take_rows(self.ranked, (count[:, None] - 1).clip(min=0))
        return (self.keys <= where(count[:, None] > 0, last, -1)) & (self.keys < NEVER)


def uniform_order(seed: int, epoch: int, index: Array, length: int, maskable: Array | None = None) -> Order:
    """Every token for itself (the paper's main setting).

    Args:
        index: `(rows,)` int64, the examples' places in the data set.
        maskable: `(rows, length)` bool, False for padding and what is protected; None = every token.
    """
    keys = (words(seed, epoch, index, length, Purpose.ORDER) << POSITION_BITS) | arange(length, index)[None, :]
    if maskable is None:
        size = index * 0 + length
    else:
        keys, size = where(maskable, keys, NEVER), maskable.sum(1)
    return Order(keys, sort_rows(keys), size, rounding(seed, epoch, index))


def bernoulli_order(seed: int, epoch: int, index: Array, length: int, maskable: Array | None = None) -> Order:
    """Every token with probability m, whatever the others: a count that varies by sqrt(m (1 - m) n)."""
    keys = words(seed, epoch, index, length, Purpose.ORDER)
    return Order(keys if maskable is None else where(maskable, keys, NEVER))


def rounding(seed: int, epoch: int, index: Array) -> Array:
    """`(rows,)` float64 in [0, 1): what is added to m n before it is rounded down."""
    return as_double(words(seed, epoch, index, 1, Purpose.ROUNDING)[:, 0]) * (1.0 / WORD_RANGE)


def masked_sets(order: Order, corruption: float, prediction: float) -> list[tuple[Array, Array]]:
    """(corrupted, predicted) positions, `(rows, length)` bool each, of every copy of the rows.

    One copy where prediction <= corruption: a part of the corrupted is predicted. Else ceil(prediction / corruption)
    copies with disjoint corrupted sets whose union is the first `prediction` of the order.
    """
    if prediction == corruption:
        chosen = order.first(corruption)
        return [(chosen, chosen)]
    if prediction < corruption:
        return [(order.first(corruption), order.first(prediction))]
    until = [order.first(edge) for edge in edges(corruption, prediction)[1:]]
    sets = [until[0], *(after & ~before for before, after in pairwise(until))]
    return [(chosen, chosen) for chosen in sets]


def mask_uniform(
    input_ids: Array,
    rate: float,
    seed: int,
    epoch: int,
    index: Array | int,
    *,
    mask_id: int = 50264,
    pad_id: int = 1,
    vocab_size: int = 50265,
    p_same: float = 0.0,
    p_random: float = 0.0,
    protect_special: bool = False,
    special_ids: tuple[int, ...] = (0, 1, 2, 3),
    ignore_id: int | None = None,
) -> tuple[Array, Array]:
    """Mask exactly floor(rate * n + u) tokens of each row, uniformly; the same rows give the same masks anywhere.

    Args:
        input_ids: `(length,)` or `(rows, length)` ids, numpy or torch; n counts what is not padding.
        rate: m, between 0 and 1.
        seed, epoch, index: what the mask is a function of. index: the example's place in its data set; `(rows,)` for a
            batch.
        mask_id, pad_id, vocab_size, special_ids: RoBERTa's by default.
        p_same, p_random: shares of the masked tokens that are kept, and replaced by a random token.
        protect_special: leave special tokens alone and take the rate of the others; by default only padding is left
            alone, and `<s>` is masked with probability m, as in the authors' release.
        ignore_id: what the target holds where nothing is predicted; None = `pad_id`, as in `fairseq_mask`.
    Returns:
        (input, target), of the shape and library of `input_ids`, int64.
    Raises:
        InputError: a rate or share out of range, ids outside the vocabulary, `<mask>` in the data, fewer than 2 tokens,
            or not one index per row.
    """
    check_rate("rate", rate)
    ids = input_ids.to(torch.int64) if is_torch(input_ids) else np.asarray(input_ids, np.int64)
    rows = ids if ids.ndim == 2 else ids[None]
    if is_torch(ids):
        index = torch.as_tensor(index, dtype=torch.int64, device=ids.device).reshape(-1)
    else:
        index = np.asarray(index, np.int64).reshape(-1)
    check_keys(seed, epoch, index, rows)
    check_ids(rows, mask_id, vocab_size)
    protected = tuple({*special_ids, pad_id}) if protect_special else (pad_id,)
    order = uniform_order(seed, epoch, index, rows.shape[1], maskable_positions(rows, protected))
    chosen = order.first(rate)
    replacement = Replacement(mask_id, _drawable(vocab_size, special_ids), p_same, p_random)
    corrupted = replacement.corrupt(rows, chosen, seed, epoch, index)
    target = where(chosen, rows, pad_id if ignore_id is None else ignore_id)
    return corrupted.reshape(ids.shape), target.reshape(ids.shape)


@lru_cache(maxsize=8)
def _drawable(vocab_size: int, special_ids: tuple[int, ...]) -> np.ndarray:
    return drawable_ids(vocab_size, special_ids)


def maskable_positions(input_ids: Array, protected_ids: tuple[int, ...]) -> Array | None:
    """`(rows, length)` bool, False where an id is protected; None where none is (whole blocks need no table)."""
    protected = input_ids == protected_ids[0]
    for each in protected_ids[1:]:
        protected = protected | (input_ids == each)
    return ~protected if bool(protected.any()) else None


def check_keys(seed: int, epoch: int, index: Array, input_ids: Array) -> None:
    """Raise InputError where (seed, epoch, index) cannot be written into a counter, or rows and indices differ."""
    for name, value, bits in (("seed", seed, 64), ("epoch", epoch, 32)):
        if not 0 <= int(value) < 2**bits:
            raise InputError(f"{name}={value}: give a whole number from 0 to 2**{bits} - 1")
    if input_ids.ndim != 2 or len(index) != len(input_ids):
        raise InputError(f"{len(index)} indices for input_ids of shape {tuple(input_ids.shape)}: give one per row")
    if input_ids.shape[1] >= 2**POSITION_BITS:
        raise InputError(
            f"a row has {input_ids.shape[1]} tokens: at most {2**POSITION_BITS - 1} can be masked together"
        )
    if len(index) and int(index.min()) < 0:
        raise InputError(f"index={int(index.min())}: an example's place in its data set is 0 or more")
