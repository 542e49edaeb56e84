"""The masks of the authors' release, bit by bit: the values come from running it, or from Python itself."""

import random

import numpy as np
import pytest

from mlm_masking.fairseq_compat import fairseq_mask, fairseq_seed, tuple_hash
from mlm_masking.masking import fairseq_mask as exported
from shared import InputError

BLOCK = np.arange(4, 132)
FIRST_15_PERCENT = [1, 5, 11, 38, 39, 43, 45, 51, 53, 60, 64, 67, 72, 81, 82, 109, 111, 122, 125]


def mask(rate=0.15, seed=1, epoch=1, index=0, block=BLOCK, **options):
    options = {"mask_id": 50264, "pad_id": 1, "vocab_size": 50265} | options
    return fairseq_mask(block, rate=rate, seed=seed, epoch=epoch, index=index, **options)


def masked(**options) -> set[int]:
    return set(np.flatnonzero(mask(**options)[1] != 1).tolist())


def release_with_choice(x, rate, seed, p_same, p_random, vocab_size=50265, mask_id=50264, pad_id=1):
    """The release's procedure, drawn with `choice` as the release does, from a seed."""
    rng, n = np.random.RandomState(seed), len(x)
    hidden = np.zeros(n, bool)
    hidden[rng.choice(n, int(rate * n + rng.rand()), replace=False)] = True
    target, out, to_mask, drawn = np.where(hidden, x, pad_id), x.copy(), hidden, np.zeros(n, bool)
    if p_same + p_random > 0:
        some = hidden & (rng.rand(n) < p_same + p_random)
        if p_random == 0:
            kept = some
        elif p_same == 0:
            kept, drawn = np.zeros(n, bool), some
        else:
            decision = rng.rand(n) < p_same / (p_same + p_random)
            kept, drawn = some & decision, some & ~decision
        to_mask = hidden & ~kept
    out[to_mask] = mask_id
    if drawn.any():
        weights = np.ones(vocab_size)
        weights[:4] = 0
        out[drawn] = rng.choice(vocab_size, drawn.sum(), p=weights / weights.sum())
    return out, target


def test_the_stable_name_is_the_release_sampler():
    assert exported is fairseq_mask


@pytest.mark.parametrize(
    ("key", "seed"), [((1, 1, 0), 810752), ((1, 1, 1), 808832), ((1, 2, 0), 565248), ((42, 3, 1999), 603584)]
)
def test_seeds_of_blocks(key, seed):
    assert fairseq_seed(*key) == seed


def test_seed_under_python_3_7():
    assert fairseq_seed(1, 1, 0, python="3.7") == 820160


def test_hash_is_the_interpreters_own():
    draw = random.Random(0)
    keys = [
        tuple(draw.randrange(-(2**70), 2**70) >> draw.randrange(70) for _ in range(draw.randrange(1, 5)))
        for _ in range(2000)
    ]
    for key in [*keys, (0, 0, 0), (-1, -1, -1), (2**61 - 1, 2**61, 1)]:
        assert tuple_hash(key) == hash(key)


def test_an_unknown_python_is_refused():
    with pytest.raises(InputError, match=r"3\.8"):
        tuple_hash((1, 2, 3), python="3.12")


@pytest.mark.parametrize(("python", "distinct"), [("3.8", 21_664), ("3.7", 15_625)])
def test_few_seeds_survive_the_float(python, distinct):
    assert len({fairseq_seed(1, 1, index, python) for index in range(300_000)}) == distinct


def test_masked_positions_of_the_first_block():
    assert sorted(masked()) == FIRST_15_PERCENT


def test_masks_of_python_3_7_differ():
    assert masked(python="3.7") != masked()


def test_input_and_target_hold_what_the_release_puts_there():
    corrupted, target = mask()
    assert corrupted.dtype == target.dtype == np.int64
    for position in range(128):
        hidden = position in FIRST_15_PERCENT
        assert corrupted[position] == (50264 if hidden else BLOCK[position])
        assert target[position] == (BLOCK[position] if hidden else 1)


def test_the_block_itself_is_left_alone():
    before = BLOCK.copy()
    mask(p_same=0.1, p_random=0.1)
    assert (before == BLOCK).all()


def test_counts_are_the_product_rounded_up_or_down():
    counts = {rate: [len(masked(rate=rate, index=index)) for index in range(400)] for rate in (0.15, 0.4, 0.8)}
    assert {rate: set(each) for rate, each in counts.items()} == {0.15: {19, 20}, 0.4: {51, 52}, 0.8: {102, 103}}
    assert np.mean(np.array(counts[0.4]) == 51) == pytest.approx(0.8, abs=0.07)


def test_masks_are_nested_across_rates_apart_from_rounding():
    for index in range(200):
        low, middle, high = (masked(rate=rate, index=index) for rate in (0.15, 0.4, 0.8))
        assert len(low - middle) == 0 and len(middle - high) == 0


def test_the_first_token_is_masked_at_the_rate():
    share = np.mean([0 in masked(rate=0.4, index=index) for index in range(3000)])
    assert share == pytest.approx(0.4, abs=0.04)


@pytest.mark.parametrize("shares", [(0, 0), (0.1, 0.1), (0.05, 0), (0, 0.05), (0.3, 0.7)])
@pytest.mark.parametrize("rate", [0.15, 0.4, 0.8])
def test_replacement_draws_in_the_release_order(shares, rate):
    for index in range(5):
        expected = release_with_choice(BLOCK, rate, hash_seed(1, 1, index), *shares)
        for ours, theirs in zip(mask(rate, index=index, p_same=shares[0], p_random=shares[1]), expected, strict=True):
            assert (ours == theirs).all()


def hash_seed(*key: int) -> int:
    return int(hash(key) % 1e6)


def test_random_ids_leave_out_the_first_four_alone():
    ids = np.concatenate(
        [mask(0.8, index=index, p_random=1.0, vocab_size=8, mask_id=7, block=np.full(128, 5))[0] for index in range(40)]
    )
    assert set(ids.tolist()) == {4, 5, 6, 7}


def test_random_ids_follow_weights():
    weights = np.array([0, 0, 0, 0, 3.0, 1.0, 0, 0])
    options = {"p_random": 1.0, "vocab_size": 8, "mask_id": 7, "weights": weights, "block": np.full(128, 6)}
    drawn = np.concatenate([mask(0.8, index=index, **options)[0] for index in range(60)])
    drawn = drawn[drawn != 6]
    assert set(drawn.tolist()) == {4, 5}
    assert (drawn == 4).mean() == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"rate": 0.0}, "rate=0.0"),
        ({"rate": 1.0}, "rate=1.0"),
        ({"rate": 40}, "40 % is 0.4"),
        ({"p_same": 0.6, "p_random": 0.6}, "add up to 1.2"),
        ({"p_same": -0.1}, "p_same=-0.1"),
        ({"block": np.array([0])}, "1 tokens"),
        ({"block": np.array([0, 50265])}, "50265 is not in the vocabulary"),
        ({"block": np.array([0, -1])}, "-1 is not in the vocabulary"),
        ({"block": np.array([0, 50264, 7])}, "before masking"),
        ({"block": np.zeros((2, 8), np.int64)}, r"shape \(2, 8\)"),
        ({"block": np.array([0.0, 1.0])}, "integer ids"),
    ],
)
def test_bad_input_is_named(options, names):
    with pytest.raises(InputError, match=names):
        mask(**options)
