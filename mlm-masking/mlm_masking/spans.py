"""Masking in spans, as T5 does: M = round(m n) tokens in S = round(M / 3) spans, lengths and gaps uniformly at random.

M is cut into S parts by S - 1 of the M - 1 places between its tokens, all choices alike; the n - M tokens that stay
are cut into S gaps the same way; then gap, span, gap, span, ... So a sequence begins with a gap and ends with a span.

`t5_spans` draws that for one sequence with numpy's legacy generator, in the order of draws of the authors' release of
a later paper, which published this sampler. `span_order` draws it for a batch at once, with the keys of `masking`.
"""

import numpy as np

from mlm_masking.arrays import (
    Array,
    arange,
    as_double,
    floor_int,
    join_columns,
    running_total,
    sort_rows,
    take_rows,
    where,
)
from mlm_masking.masking import NEVER, POSITION_BITS, Order
from mlm_masking.philox import Purpose, words
from shared import InputError

MEAN_SPAN = 3.0


def check_span_rate(rate: float, mean_span: float) -> None:
    """Raise InputError where the unmasked tokens are too few to part the spans: m / mean > 1 - m."""
    if not mean_span >= 1:
        raise InputError(f"masking.mean_span={mean_span}: give the mean length of a span in tokens, 1 or more")
    highest = mean_span / (mean_span + 1)
    if rate > highest + 1e-9:
        raise InputError(
            f"masking.rate={rate:g} with spans of {mean_span:g} tokens needs more gaps than there are unmasked tokens: "
            f"use a rate up to {highest:.4g}, longer spans (masking.mean_span), or masking=uniform"
        )


def t5_spans(length: int, masked: int, random: np.random.RandomState, mean_span: float = MEAN_SPAN) -> np.ndarray:
    """The masked positions of one sequence, ascending; `random` is advanced by two shuffles.

    Raises:
        InputError: no token to mask, or fewer unmasked tokens than spans.
    """
    spans = max(1, round(masked / mean_span))
    if not 0 < masked < length or spans > length - masked:
        raise InputError(
            f"{masked} of {length} tokens cannot be masked in {spans} spans: every span follows at least one unmasked "
            f"token, and {length - masked} stay; lower the rate or lengthen the spans"
        )
    gaps, lengths = (_parts(total, spans, random) for total in (length - masked, masked))
    ends = np.cumsum(gaps + lengths)
    return np.concatenate([np.arange(end - size, end) for end, size in zip(ends, lengths, strict=True)])


def _parts(total: int, count: int, random: np.random.RandomState) -> np.ndarray:
    """`total` cut into `count` parts of at least 1."""
    places = np.arange(1, total)
    random.shuffle(places)
    return np.diff(np.sort(places[: count - 1]), prepend=0, append=total)


def span_order(
    seed: int,
    epoch: int,
    index: Array,
    length: int,
    rate: float,
    mean_span: float = MEAN_SPAN,
    maskable: Array | None = None,
) -> Order:
    """A random order of the tokens in spans drawn at `rate`, span by span: only these can be masked.

    `Order.first(rate)` is all of them; a lower rate takes the first spans, the last one cut where the count is reached.
    Spans lie over the maskable tokens as if the others were not there. A row too short for its spans (by rounding only:
    `check_span_rate` refuses what is not) gets fewer.
    """
    column = arange(length, index)[None, :]
    size = index * 0 + length if maskable is None else maskable.sum(1)
    masked = floor_int(as_double(size) * rate + 0.5)[:, None]
    masked = where(masked < size[:, None], masked, (size[:, None] - 1).clip(min=0))  # a span follows a gap
    kept = size[:, None] - masked
    spans = floor_int(as_double(masked) / mean_span + 0.5).clip(min=1)
    spans = where(spans < kept, spans, kept)

    # Sorting gap tokens (2 i) and span tokens (2 i + 1) by their number lays them out: gap 0, span 0, gap 1, span 1,
    # ...
    gap = _part_numbers(words(seed, epoch, index, length, Purpose.GAP_CUTS), kept, spans - 1)
    span = _part_numbers(words(seed, epoch, index, length, Purpose.SPAN_CUTS), masked, spans - 1)
    laid = join_columns(where(column < kept, 2 * gap, NEVER), where(column < masked, 2 * span + 1, NEVER))
    layout = sort_rows(laid)[:, :length]
    if maskable is not None:
        layout = where(maskable, take_rows(layout, (running_total(maskable) - 1).clip(min=0)), NEVER)

    chosen = (layout < NEVER) & (layout % 2 == 1)
    number = where(chosen, layout // 2, 0)
    word = take_rows(words(seed, epoch, index, length, Purpose.ORDER), number)
    keys = where(chosen, (word << POSITION_BITS) | column, NEVER)
    return Order(keys, sort_rows(keys), size, 0.5, number)


def _part_numbers(random: Array, total: Array, cuts: Array) -> Array:
    """`(rows, length)`: which part each of the first `total` tokens is in, when `cuts` of the places between are cut.

    Args:
        random: `(rows, length)` random words, one per place. total, cuts: `(rows, 1)`.
    """
    column = arange(random.shape[1], random)[None, :]
    keys = where((column > 0) & (column < total), (random << POSITION_BITS) | column, NEVER)
    last = take_rows(sort_rows(keys), (cuts - 1).clip(min=0))
    return running_total((keys <= where(cuts > 0, last, -1)) & (keys < NEVER))
