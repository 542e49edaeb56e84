"""The native sampler: exact counts, uniform and independent masks, and the same ones wherever they are made."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from mlm_masking.masking import bernoulli_order, mask_uniform, masked_sets, uniform_order
from mlm_masking.philox import LOW, Purpose, blocks, philox, words
from shared import InputError

LENGTH = 128
SMALL = {"mask_id": 50, "pad_id": 1, "vocab_size": 51}


def chosen(rows: int, rate: float, seed: int = 1, epoch: int = 0, first: int = 0, length: int = LENGTH) -> np.ndarray:
    return uniform_order(seed, epoch, np.arange(first, first + rows), length).first(rate)


def batch(rows: int = 64, length: int = LENGTH, vocab_size: int = 50) -> np.ndarray:
    ids = np.random.default_rng(0).integers(4, vocab_size, (rows, length))
    ids[:, 0] = 0
    return ids


# ------------------------------------------------------------------------------------------------ the generator


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((LOW, LOW, LOW, LOW), (LOW, LOW), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
@pytest.mark.parametrize("library", [np.array, torch.tensor])
def test_philox_gives_its_known_answers(counter, key, expected, library):
    words_ = philox(tuple(library([word]) for word in counter), key)
    assert tuple(int(word[0]) for word in words_) == expected


def test_numbers_depend_on_every_part_of_the_key_and_on_nothing_else():
    key = (3, 2, 7)
    one = words(*key[:2], np.array([7]), 64, Purpose.ORDER)
    assert (words(*key[:2], np.array([9, 7, 1]), 64, Purpose.ORDER)[1] == one[0]).all()
    assert (words(*key[:2], np.array([7]), 32, Purpose.ORDER) == one[:, :32]).all()
    for seed, epoch, index, purpose in [
        (4, 2, 7, Purpose.ORDER),
        (3 + 2**32, 2, 7, Purpose.ORDER),
        (3, 3, 7, Purpose.ORDER),
        (3, 2, 8, Purpose.ORDER),
        (3, 2, 7 + 2**32, Purpose.ORDER),
        (3, 2, 7, Purpose.REPLACEMENT),
    ]:
        other = words(seed, epoch, np.array([index]), 64, purpose)
        assert (other == one).mean() < 0.1


def test_groups_of_rows_change_nothing():
    index = np.arange(3000)
    at_once = words(1, 0, torch.from_numpy(index), LENGTH, Purpose.ORDER)
    assert (words(1, 0, index, LENGTH, Purpose.ORDER) == at_once.numpy()).all()


def test_blocks_of_different_counters_differ():
    """Philox is one to one for a key: 200,000 different counters give 200,000 different blocks."""
    drawn = np.stack(blocks(1, 0, np.arange(50_000)[:, None], np.arange(4)[None, :], Purpose.ORDER), axis=2)
    assert len(np.unique(drawn.reshape(-1, 4), axis=0)) == 200_000


# -------------------------------------------------------------------------------------------------- the statistics


@pytest.mark.parametrize(("rate", "low", "share_low"), [(0.15, 19, 0.8), (0.4, 51, 0.8), (0.8, 102, 0.6)])
def test_counts_are_exact_and_rounded_at_random(rate, low, share_low):
    counts = chosen(20_000, rate).sum(1)
    assert set(counts.tolist()) == {low, low + 1}
    assert (counts == low).mean() == pytest.approx(share_low, abs=0.015)
    assert counts.mean() == pytest.approx(rate * LENGTH, abs=0.015)


@pytest.mark.parametrize("rate", [0.15, 0.4, 0.8])
def test_every_position_is_masked_at_the_rate(rate):
    rows = 40_000
    z = (chosen(rows, rate).sum(0) - rows * rate) / np.sqrt(rows * rate * (1 - rate))
    assert np.abs(z).max() < 4.5  # 128 positions: beyond it once in 1,000 seeds
    assert (z**2).sum() == pytest.approx(LENGTH, abs=5 * np.sqrt(2 * LENGTH))


def test_pairs_are_as_correlated_as_drawing_without_replacement_makes_them():
    rows, rate = 40_000, 0.4
    mask = chosen(rows, rate).astype(np.float64)
    correlation = np.corrcoef(mask, rowvar=False)[np.triu_indices(LENGTH, 1)]
    assert correlation.mean() == pytest.approx(-1 / (LENGTH - 1), abs=2e-4)
    z = (correlation + 1 / (LENGTH - 1)) * np.sqrt(rows)
    assert z.std() == pytest.approx(1, abs=0.05) and np.abs(z).max() < 5.5


@pytest.mark.parametrize("other", [{"first": 1}, {"epoch": 1}, {"seed": 2}])
def test_neighbouring_examples_epochs_and_seeds_are_independent(other):
    rows, rate = 20_000, 0.4
    both = (chosen(rows, rate) & chosen(rows, rate, **other)).mean()
    deviation = rate * (1 - rate) / np.sqrt(rows * LENGTH)
    assert both == pytest.approx(rate**2, abs=5 * deviation)


def test_rounding_is_independent_of_the_positions():
    mask = chosen(40_000, 0.4)
    up = mask.sum(1) == 52
    difference = mask[up].mean(0) - mask[~up].mean(0) - 1 / LENGTH
    assert np.abs(difference).max() < 5 * np.sqrt(0.24 * (1 / up.sum() + 1 / (~up).sum()))


def test_no_two_of_three_hundred_thousand_masks_are_equal():
    packed = [np.packbits(chosen(100_000, 0.4, epoch=epoch), axis=1).view("V16")[:, 0] for epoch in range(3)]
    assert len(np.unique(np.concatenate(packed))) == 300_000


def test_masks_are_nested_across_rates():
    masks = [chosen(2000, rate) for rate in (0.05, 0.15, 0.4, 0.8, 0.99)]
    for lower, higher in pairwise(masks):
        assert not (lower & ~higher).any()


def test_bernoulli_counts_vary_as_a_binomial_does():
    counts = bernoulli_order(1, 0, np.arange(20_000), LENGTH).first(0.4).sum(1)
    assert counts.mean() == pytest.approx(51.2, abs=0.2)
    assert counts.var() == pytest.approx(LENGTH * 0.24, rel=0.05)


# ------------------------------------------------------------------------------------------------- mask_uniform


def test_the_target_holds_the_original_where_the_input_is_masked():
    ids = batch()
    corrupted, target = mask_uniform(ids, 0.4, 1, 0, np.arange(64), **SMALL)
    hidden = corrupted == 50
    assert (target == np.where(hidden, ids, 1)).all() and (corrupted == np.where(hidden, 50, ids)).all()
    assert set(hidden.sum(1).tolist()) == {51, 52}
    assert corrupted.dtype == target.dtype == np.int64


def test_one_row_is_that_row_of_a_batch():
    ids = batch()
    whole = mask_uniform(ids, 0.4, 1, 5, np.arange(64), p_same=0.1, p_random=0.1, **SMALL)
    for row in (0, 17, 63):
        one = mask_uniform(ids[row], 0.4, 1, 5, row, p_same=0.1, p_random=0.1, **SMALL)
        assert (one[0] == whole[0][row]).all() and (one[1] == whole[1][row]).all()


def test_masks_do_not_depend_on_the_batch():
    ids, index = batch(), np.arange(64) * 1000
    order = np.random.default_rng(1).permutation(64)
    whole = mask_uniform(ids, 0.4, 1, 0, index, p_random=0.5, **SMALL)[0]
    assert (mask_uniform(ids[order], 0.4, 1, 0, index[order], p_random=0.5, **SMALL)[0] == whole[order]).all()
    parts = [
        mask_uniform(ids[i : i + 5], 0.4, 1, 0, index[i : i + 5], p_random=0.5, **SMALL)[0] for i in range(0, 64, 5)
    ]
    assert (np.concatenate(parts) == whole).all()


@pytest.mark.parametrize("options", [{}, {"p_same": 0.1, "p_random": 0.1}, {"protect_special": True, "p_random": 0.5}])
def test_torch_gives_the_masks_of_numpy(options):
    ids, index = batch(300), np.arange(300) + 2**33
    ids[::3, 100:] = 1
    ours = mask_uniform(ids, 0.4, 2**40 + 3, 2, index, **options, **SMALL)
    theirs = mask_uniform(torch.from_numpy(ids), 0.4, 2**40 + 3, 2, torch.from_numpy(index), **options, **SMALL)
    for one, other in zip(ours, theirs, strict=True):
        assert isinstance(other, torch.Tensor) and (one == other.numpy()).all()


@pytest.mark.parametrize(("protect", "expected"), [(False, 0.4), (True, 0.0)])
def test_the_first_token_is_masked_at_the_rate_unless_protected(protect, expected):
    ids = np.tile(batch(1), (10_000, 1))
    _, target = mask_uniform(ids, 0.4, 1, 0, np.arange(10_000), protect_special=protect, ignore_id=-100, **SMALL)
    assert (target[:, 0] != -100).mean() == pytest.approx(expected, abs=0.02 if expected else 0)


def test_protection_takes_the_rate_of_the_other_tokens():
    ids = batch(2000)
    ids[:, 60:70] = 2
    _, target = mask_uniform(ids, 0.4, 1, 0, np.arange(2000), protect_special=True, ignore_id=-100, **SMALL)
    assert (target[:, 60:70] == -100).all()
    assert (target != -100).sum(1).mean() == pytest.approx(0.4 * 117, abs=0.05)


def test_padding_is_never_masked_and_does_not_count():
    ids = batch(2000)
    ids[:, 30:] = 1
    corrupted, target = mask_uniform(ids, 0.4, 1, 0, np.arange(2000), **SMALL)
    assert (corrupted[:, 30:] == 1).all() and (target[:, 30:] == 1).all()
    assert set((target != 1).sum(1).tolist()) == {12} and 30 * 0.4 == 12


def test_shares_of_kept_and_random_tokens():
    ids = np.full((3000, LENGTH), 9)
    corrupted, target = mask_uniform(
        ids, 0.4, 1, 0, np.arange(3000), p_same=0.1, p_random=0.2, vocab_size=5000, mask_id=4999
    )
    after = corrupted[target != 1]
    assert (after == 9).mean() == pytest.approx(0.1, abs=0.005)
    assert (after == 4999).mean() == pytest.approx(0.7, abs=0.007)


def test_random_ids_are_uniform_over_all_but_the_first_four():
    ids = np.full((4000, LENGTH), 9)
    corrupted, target = mask_uniform(ids, 0.8, 1, 0, np.arange(4000), p_random=1.0, vocab_size=40, mask_id=39)
    counts = np.bincount(corrupted[target != 1], minlength=40)
    assert (counts[:4] == 0).all()
    expected = counts.sum() / 36
    assert ((counts[4:] - expected) ** 2 / expected).sum() < 36 + 5 * np.sqrt(72)


def test_copies_are_disjoint_and_their_union_is_the_prediction_rate():
    order = uniform_order(1, 0, np.arange(5000), LENGTH)
    sets = masked_sets(order, 0.15, 0.4)
    assert len(sets) == 3
    masks = np.stack([corrupt for corrupt, _ in sets])
    assert masks.sum(0).max() == 1
    assert (masks.any(0) == order.first(0.4)).all() and (masks[0] == order.first(0.15)).all()
    assert masks.sum(2).mean(1) == pytest.approx([19.2, 19.2, 12.8], abs=0.05)
    assert all((corrupt == predict).all() for corrupt, predict in sets)


def test_predicting_less_takes_the_first_of_what_is_hidden():
    order = uniform_order(1, 0, np.arange(1000), LENGTH)
    ((corrupt, predict),) = masked_sets(order, 0.4, 0.15)
    assert (corrupt == order.first(0.4)).all() and (predict == order.first(0.15)).all()
    assert not (predict & ~corrupt).any()


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"rate": 1.5}, "rate=1.5"),
        ({"seed": -1}, "seed=-1"),
        ({"epoch": 2**32}, "epoch=4294967296"),
        ({"index": np.arange(3)}, "3 indices"),
        ({"index": np.array([0, -4])}, "index=-4"),
        ({"input_ids": np.full((2, 1), 9)}, "at least 2"),
        ({"input_ids": np.array([[0, 9], [0, 51]])}, "51 is not in the vocabulary of 51"),
        ({"input_ids": np.array([[0, 9], [0, 50]])}, "holds <mask>"),
        ({"p_same": 0.9, "p_random": 0.2}, "add up to 1.1"),
    ],
)
def test_bad_input_is_named(change, names):
    arguments = {"input_ids": np.full((2, 8), 9), "rate": 0.4, "seed": 1, "epoch": 0, "index": np.arange(2)} | SMALL
    with pytest.raises(InputError, match=names):
        mask_uniform(**(arguments | change))
