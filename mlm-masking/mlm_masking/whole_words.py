"""Units of several tokens that are masked together: whole words, and whatever else says where its units begin.

All tokens of a unit get the unit's key, so an order of keys is an order of units (`masking.Order`). What the rate
counts is
a choice: units (whole-word masking of the authors' release: m of the words) or tokens (PMI masking: units are taken
until m n tokens are masked, the last one whole).
"""

import numpy as np

from mlm_masking.arrays import Array, arange, join_columns, running_max, sort_rows, table_like, take_rows, where
from mlm_masking.masking import NEVER, POSITION_BITS, Order, rounding
from mlm_masking.philox import Purpose, words


def word_begins(input_ids: Array, word_begin: np.ndarray) -> Array:
    """`(rows, length)` bool: where a word begins, by the tokens alone (the authors' release).

    A token begins a word where it carries the leading space, and every special token does. So the first word of a line,
    which has no space before it, forms one unit with the `</s>` or `<s>` before it.
    """
    begins = table_like(word_begin, input_ids)[input_ids]
    begins[:, 0] = True
    return begins


def unit_heads(begins: Array) -> Array:
    """`(rows, length)` column of the first token of each token's unit."""
    return running_max(where(begins, arange(begins.shape[1], begins)[None, :], 0))


def unit_order(
    seed: int, epoch: int, index: Array, begins: Array, maskable: Array | None = None, count_tokens: bool = False
) -> Order:
    """A random order of units.

    Args:
        begins: `(rows, length)` bool, True at the first token of each unit; the first column must be True.
        maskable: `(rows, length)` bool; a unit loses the tokens where this is False, and is none if it has no other.
        count_tokens: the rate is one of tokens, and the unit that reaches it is taken whole; else it is one of units.
    """
    length = begins.shape[1]
    head = unit_heads(begins)
    keys = take_rows((words(seed, epoch, index, length, Purpose.ORDER) << POSITION_BITS), head) | head
    if maskable is not None:
        keys = where(maskable, keys, NEVER)
    ranked = sort_rows(keys)
    if not count_tokens:
        repeated = ranked[:, 1:] == ranked[:, :-1]
        ranked = sort_rows(join_columns(ranked[:, :1], where(repeated, NEVER, ranked[:, 1:])))
    size = (ranked < NEVER).sum(1)
    return Order(keys, ranked, size, rounding(seed, epoch, index), head)
