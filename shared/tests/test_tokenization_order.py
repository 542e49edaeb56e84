"""The order of examples: a permutation, the same for every layout, and resumable anywhere."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from shared import InputError
from shared.tokenization import MixtureSampler, Shuffle, ShuffledSampler, fixed_blocks, iterable, tokenize_documents


@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 100))
@settings(max_examples=40)
def test_every_index_comes_once(length, seed, epoch):
    assert np.array_equal(np.sort(Shuffle(length, seed, epoch)(np.arange(length))), np.arange(length))


def test_any_part_of_the_order_can_be_asked_for():
    shuffle = Shuffle(10**10, seed=1)
    at_once = shuffle(np.arange(5_000_000_000, 5_000_000_100))
    assert [int(shuffle(position)) for position in range(5_000_000_000, 5_000_000_100)] == at_once.tolist()
    assert len(set(at_once.tolist())) == 100 and at_once.max() < 10**10
    with pytest.raises(IndexError):
        shuffle(10**10)


def test_the_order_is_the_same_for_ever():
    assert Shuffle(1000, seed=1, epoch=0)(np.arange(5)).tolist() == [414, 17, 202, 205, 878]


def chi_square(counts: list[int]) -> float:
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts)


def test_seeds_and_epochs_give_unrelated_orders_that_are_uniform():
    firsts = [int(Shuffle(10, seed, epoch)(0)) for seed in range(30) for epoch in range(30)]
    assert chi_square(np.bincount(firsts, minlength=10).tolist()) < 33.7  # one in 10,000 is above, 9 degrees of freedom
    orders = [tuple(Shuffle(3, 7, epoch)(np.arange(3)).tolist()) for epoch in range(600)]
    assert chi_square([orders.count(order) for order in itertools.permutations(range(3))]) < 25.7  # 5 degrees
    one = Shuffle(20_000, 1, 0)(np.arange(20_000))
    for other in (
        np.arange(20_000),
        Shuffle(20_000, 1, 1)(np.arange(20_000)),
        Shuffle(20_000, 2, 0)(np.arange(20_000)),
    ):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.03
    assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 0.03


@pytest.fixture(scope="module")
def blocks(tmp_path_factory, bpe):
    source = iterable(lambda: [f"text number {i} " * 5 for i in range(60)], "sixty")
    return fixed_blocks(tokenize_documents(source, bpe, tmp_path_factory.mktemp("order") / "t", processes=1), 16)


def stream(blocks, *, world_size: int, workers: int, batch: int, **options) -> list[list[int]]:
    """The ids of all examples, global batch by global batch, as `world_size` ranks with `workers` each load them."""
    ranks = [
        DataLoader(
            blocks,
            batch_size=batch // world_size,
            sampler=ShuffledSampler(len(blocks), rank=rank, world_size=world_size, **options),
            num_workers=workers,
        )
        for rank in range(world_size)
    ]
    return [
        sorted(example for part in parts for example in part["input_ids"].tolist())
        for parts in zip(*ranks, strict=True)
    ]


@pytest.fixture(scope="module")
def plain_batches(blocks):
    class OnlyIds:  # cu_seqlens differ in length and are not for the default collator
        def __len__(self):
            return len(blocks)

        def __getitem__(self, index):
            return {"input_ids": blocks[index]["input_ids"]}

    return OnlyIds()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_global_batches_do_not_depend_on_workers_and_ranks(plain_batches, world_size, workers):
    layout = {"batch": 12, "seed": 3, "epoch": 2, "uneven": "drop"}
    alone = stream(plain_batches, world_size=1, workers=0, **layout)
    found = stream(plain_batches, world_size=world_size, workers=workers, **layout)
    assert len(alone) > 5 and found[: len(alone) - 1] == alone[:-1]  # the last batch is not a full one


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 3), (3, 2), (3, 1)])
def test_it_goes_on_in_mid_epoch_with_other_ranks(before, after):
    length, seed = 1009, 5
    order = list(ShuffledSampler(length, seed, epoch=4))
    taken_by_each = 111
    first = [list(ShuffledSampler(length, seed, epoch=4, rank=r, world_size=before)) for r in range(before)]
    taken = [index for step in zip(*first, strict=True) for index in step][: taken_by_each * before]
    state = ShuffledSampler(length, seed, epoch=4).state(len(taken))
    second = []
    for rank in range(after):
        sampler = ShuffledSampler(length, seed, rank=rank, world_size=after, uneven="drop")
        sampler.resume(state)
        sampler.set_epoch(4)  # as training loops do at the beginning of an epoch
        second.append(list(sampler))
    rest = [index for step in zip(*second, strict=True) for index in step]
    assert taken + rest == order[: len(taken) + len(rest)] and length - len(taken) - len(rest) < after


def test_another_epoch_begins_at_its_beginning():
    sampler = ShuffledSampler(10, 1, start=4)
    assert len(sampler) == len(list(sampler)) == 6
    sampler.set_epoch(1)
    assert list(sampler) == list(ShuffledSampler(10, 1, epoch=1)) != list(ShuffledSampler(10, 1, epoch=0))


def test_ranks_never_run_dry_one_before_the_other():
    repeat = [list(ShuffledSampler(10, 1, rank=r, world_size=4)) for r in range(4)]
    drop = [list(ShuffledSampler(10, 1, rank=r, world_size=4, uneven="drop")) for r in range(4)]
    assert [len(part) for part in repeat] == [3] * 4 and [len(part) for part in drop] == [2] * 4
    order = list(ShuffledSampler(10, 1))
    assert [i for step in zip(*repeat, strict=True) for i in step] == order + order[:2]
    assert [i for step in zip(*drop, strict=True) for i in step] == order[:8]


def test_without_shuffling_examples_come_in_order():
    assert list(ShuffledSampler(7, shuffle=False, rank=1, world_size=2, uneven="drop")) == [1, 3, 5]


def mixed(world_size: int = 1, examples: int = 600, iterations: int = 3, **options) -> list[int]:
    samplers = [
        MixtureSampler([50, 1000, 0, 200], [1, 2, 0, 1], examples, seed=9, rank=r, world_size=world_size, **options)
        for r in range(world_size)
    ]
    rounds = [[list(sampler) for sampler in samplers] for _ in range(iterations)]
    return [index for parts in rounds for step in zip(*parts, strict=True) for index in step]


def test_a_mixture_follows_its_weights_and_goes_through_each_set():
    found = np.array(mixed(examples=4000, iterations=2))
    share = [np.mean((found >= low) & (found < high)) for low, high in ((0, 50), (50, 1050), (1050, 1250))]
    assert share == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
    first_set = found[found < 50]
    for epoch in range(len(first_set) // 50):
        assert sorted(first_set[50 * epoch : 50 * epoch + 50]) == list(range(50))
    assert first_set[:50].tolist() != first_set[50:100].tolist()


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_mixture_is_the_same_for_any_number_of_ranks(world_size):
    assert mixed(world_size) == mixed(1)


def test_a_mixture_goes_on_after_a_checkpoint_with_other_weights():
    alone = MixtureSampler([50, 1000], [1, 3], 100, seed=2)
    first, state = list(alone), alone.state()
    alone.set_weights([3, 1])
    second = list(alone)
    resumed = MixtureSampler([50, 1000], [1, 1], 100, seed=2)
    resumed.resume(state)
    resumed.set_weights([3, 1])
    assert list(resumed) == second
    assert np.mean(np.array(first) < 50) < 0.4 < 0.6 < np.mean(np.array(second) < 50)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shuffle(0, 1), "length=0"),
        (lambda: ShuffledSampler(0), "length=0: the data set is empty"),
        (lambda: ShuffledSampler(5, rank=2, world_size=2), "rank=2"),
        (lambda: ShuffledSampler(5, start=6), "start=6"),
        (lambda: ShuffledSampler(5, uneven="pad"), "uneven='pad'"),
        (
            lambda: ShuffledSampler(5, 1).resume({"epoch": 0, "start": 0, "seed": 2, "length": 5}),
            "has seed=2, but here it is 1",
        ),
        (lambda: ShuffledSampler(5, 1).resume({"epoch": 0, "start": 0, "seed": 1, "length": 9}), "has length=9"),
        (lambda: MixtureSampler([5], [1, 1], 10), "give one for each of the 1 data sets"),
        (lambda: MixtureSampler([5, 5], [1, -1], 10), "not negative"),
        (lambda: MixtureSampler([5, 5], [0, 0], 10), "not all 0"),
        (lambda: MixtureSampler([5, 0], [1, 1], 10), "an empty data set must have weight 0"),
        (lambda: MixtureSampler([5], [1], 7, rank=0, world_size=2), "examples=7"),
        (lambda: MixtureSampler([5], [1], 8, rank=2, world_size=2), "rank=2"),
    ],
)
def test_what_does_not_fit_together_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
