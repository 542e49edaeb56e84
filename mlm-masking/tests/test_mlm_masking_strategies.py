"""Spans and whole words: what is masked together, how much of it, and over which tokens."""

import numpy as np
import pytest
import torch

from mlm_masking.spans import check_span_rate, span_order, t5_spans
from mlm_masking.whole_words import unit_heads, unit_order, word_begins
from shared import InputError

LENGTH = 128
ROWS = np.arange(4000)


def runs(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of masked positions in one row."""
    edges = np.flatnonzero(np.diff(mask.astype(int), prepend=0, append=0))
    return (edges[1::2] - edges[::2]).tolist()


# ------------------------------------------------------------------------------------------------------- spans


def test_published_sampler_positions():
    expected = [5, 6, 31, 32, 33, 34, 37, 38, 39, 43, 44, 45, 60, 61, 62, 63]
    assert t5_spans(64, 16, np.random.RandomState(0)).tolist() == expected


@pytest.mark.parametrize(("length", "masked"), [(64, 0), (64, 64), (128, 102)])
def test_spans_that_cannot_be_placed_are_refused(length, masked):
    with pytest.raises(InputError, match="cannot be masked"):
        t5_spans(length, masked, np.random.RandomState(0))


@pytest.mark.parametrize("rate", [0.15, 0.4, 0.75])
def test_span_counts_and_shapes(rate):
    masks = span_order(1, 0, ROWS, LENGTH, rate).first(rate)
    total, spans = round(rate * LENGTH), round(round(rate * LENGTH) / 3)
    assert (masks.sum(1) == total).all()
    assert {len(runs(mask)) for mask in masks} == {spans}
    assert not masks[:, 0].any() and masks[:, -1].all()  # a gap first, a span last, as the published sampler


def test_spans_are_distributed_as_the_published_sampler_draws_them():
    """Position by position, and span length by span length."""
    random, count = np.random.RandomState(3), 6000
    reference = np.zeros((count, 64), bool)
    for row in reference:
        row[t5_spans(64, 16, random)] = True
    ours = span_order(1, 0, np.arange(count), 64, 0.25).first(0.25)
    share = reference.mean(0)
    deviation = np.sqrt(np.maximum(share * (1 - share), 1e-4) * 2 / count)
    assert np.abs((ours.mean(0) - share) / deviation).max() < 4.5
    lengths = [
        np.bincount([length for mask in masks for length in runs(mask)], minlength=17)[:17]
        for masks in (reference, ours)
    ]
    z = (lengths[1] - lengths[0]) / np.sqrt(np.maximum(lengths[0] + lengths[1], 1))
    assert np.abs(z).max() < 4.5


def test_a_lower_rate_takes_the_first_spans():
    order = span_order(1, 0, ROWS, LENGTH, 0.4)
    some, every = order.first(0.2), order.first(0.4)
    assert not (some & ~every).any() and (some.sum(1) == round(0.2 * LENGTH)).all()
    for one, all_of_it, unit in zip(some, every, order.unit, strict=True):  # whole spans, the last one cut
        left_out = {span for span in set(unit[one].tolist()) if (all_of_it & ~one)[unit == span].any()}
        assert len(left_out) <= 1


def test_tokens_of_a_span_share_a_unit_and_those_of_two_do_not():
    order = span_order(1, 0, ROWS[:200], LENGTH, 0.4)
    masks = order.first(0.4)
    for mask, unit in zip(masks, order.unit, strict=True):
        places = np.flatnonzero(mask)
        same = unit[places[1:]] == unit[places[:-1]]
        assert (same == (np.diff(places) == 1)).all()


def test_spans_lie_over_what_may_be_masked():
    maskable = np.ones((500, LENGTH), bool)
    maskable[:, [0, 17, 40]] = False
    maskable[::2, 90:] = False
    masks = span_order(1, 0, ROWS[:500], LENGTH, 0.4, maskable=maskable).first(0.4)
    assert not (masks & ~maskable).any()
    assert (masks.sum(1) == np.floor(0.4 * maskable.sum(1) + 0.5)).all()


def test_rows_too_short_for_their_spans_get_fewer():
    maskable = np.arange(12)[None, :] < np.arange(13)[:, None]
    masks = span_order(1, 0, np.arange(13), 12, 0.75, maskable=maskable).first(0.75)
    assert not (masks & ~maskable).any()
    assert (masks.sum(1)[2:] >= 1).all() and not masks[0].any()


def test_spans_are_the_same_in_torch():
    maskable = np.random.default_rng(0).random((300, 40)) < 0.8
    ours = span_order(7, 1, np.arange(300), 40, 0.4, maskable=maskable)
    theirs = span_order(7, 1, torch.arange(300), 40, 0.4, maskable=torch.from_numpy(maskable))
    assert (ours.first(0.4) == theirs.first(0.4).numpy()).all() and (ours.unit == theirs.unit.numpy()).all()
    assert (ours.first(0.2) == theirs.first(0.2).numpy()).all()


@pytest.mark.parametrize(("rate", "mean"), [(0.8, 3.0), (0.6, 1.0), (0.4, 0.5)])
def test_rates_that_leave_no_room_between_spans_are_refused(rate, mean):
    with pytest.raises(InputError, match=r"masking\.(rate|mean_span)"):
        check_span_rate(rate, mean)


def test_the_highest_span_rate_is_accepted():
    check_span_rate(0.75, 3.0)


# ------------------------------------------------------------------------------------------------- whole words

# <s> and the line's first word (no space before it), then words of 1, 3 and 2 tokens, </s> and the next line's first.
BEGIN = np.array([True, True, True, True, True, False, True, False])  # ids 0-3 special, 4 and 6 begin, 5 and 7 go on
ROW = [0, 5, 4, 6, 5, 7, 6, 7, 2, 5, 4]
UNITS = [0, 0, 2, 3, 3, 3, 6, 6, 8, 8, 10]


def test_words_run_from_a_begin_to_the_next():
    begins = word_begins(np.array([ROW]), BEGIN)
    assert unit_heads(begins)[0].tolist() == UNITS


def test_words_are_masked_whole_and_the_rate_counts_them():
    ids = np.tile(ROW, (6000, 1))
    masks = unit_order(1, 0, np.arange(6000), word_begins(ids, BEGIN)).first(0.4)
    by_word = np.stack([masks[:, [at for at, unit in enumerate(UNITS) if unit == word]] for word in (0,)], axis=1)
    assert (by_word.all(2) | ~by_word.any(2)).all()
    heads = masks[:, sorted(set(UNITS))]
    assert set(heads.sum(1).tolist()) == {2, 3} and heads.sum(1).mean() == pytest.approx(6 * 0.4, abs=0.03)
    assert (masks == heads[:, np.searchsorted(sorted(set(UNITS)), UNITS)]).all()
    assert heads.mean(0) == pytest.approx(np.full(6, 0.4), abs=0.03)


def test_protected_tokens_leave_their_word_and_a_word_of_these_alone_is_none():
    ids = np.tile([0, 4, 5, 2, 5, 6], (4000, 1))  # words: <s> | 4 5 | </s> 5 | 6
    maskable = ids > 3
    masks = unit_order(1, 0, np.arange(4000), word_begins(ids, BEGIN), maskable).first(0.5)
    assert not masks[:, [0, 3]].any()
    words = masks[:, [1, 4, 5]]
    assert set(words.sum(1).tolist()) == {1, 2} and words.sum(1).mean() == pytest.approx(1.5, abs=0.03)
    assert words.mean(0) == pytest.approx([0.5, 0.5, 0.5], abs=0.04)


def test_a_token_budget_takes_the_unit_that_reaches_it_whole():
    ids = np.tile(ROW, (2000, 1))
    order = unit_order(1, 0, np.arange(2000), word_begins(ids, BEGIN), count_tokens=True)
    counts = order.first(0.4).sum(1)  # 4.4 tokens: 4 or 5, and up to 2 more
    assert counts.min() == 4 and counts.max() <= 7


def test_words_are_the_same_in_torch():
    ids = np.random.default_rng(0).integers(0, 8, (300, 40))
    for maskable in (None, ids > 3):
        for count_tokens in (False, True):
            ours = unit_order(1, 0, np.arange(300), word_begins(ids, BEGIN), maskable, count_tokens)
            tensors = (torch.arange(300), word_begins(torch.from_numpy(ids), BEGIN))
            theirs = unit_order(1, 0, *tensors, None if maskable is None else torch.from_numpy(maskable), count_tokens)
            assert (ours.first(0.3) == theirs.first(0.3).numpy()).all()
