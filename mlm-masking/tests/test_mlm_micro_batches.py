"""What every forward pass reads, and how it is masked: the same for all workers, ranks, cuts and resumptions."""

import numpy as np
import pytest
import torch
from accelerate import skip_first_batches

from mlm_masking.data import BlockDataset
from mlm_masking.masker import build_masker
from mlm_masking.micro_batches import MicroBatches
from mlm_masking.vocabulary import Vocabulary
from shared import InputError

SIZE, BATCH, UPDATES = 60, 12, 23
MASKER = {"masking": {"strategy": "uniform", "rate": 0.4}, "replace": {"p_same": 0.1, "p_random": 0.1}}


def stream(blocks: int, seed: int = 0) -> BlockDataset:
    """So many blocks of 16 ids, and one more, which is short."""
    tokens = np.random.default_rng(seed).integers(4, SIZE - 1, 15 * blocks + 4).astype(np.uint16)
    ids = {"bos_id": 0, "pad_id": 1, "eos_id": 2, "mask_id": SIZE - 1}
    return BlockDataset(tokens, 16, vocab_size=SIZE, **ids)


STREAMS = (stream(61), stream(40, seed=1))  # the first is 5 updates an epoch, the second 3


def masked(items) -> dict[tuple[int, int], tuple[list[int], list[int]]]:
    """(epoch, block) -> corrupted ids and labels, as a new masker makes them of some micro-batches."""
    make, found = build_masker(MASKER, Vocabulary(SIZE, mask_id=SIZE - 1), seed=1), {}
    for item in items:
        out = make(item["input_ids"], item["index"], item["epoch"], 0.5)
        for place, ids, labels, real in zip(item["index"], out.input_ids, out.labels, out.attention_mask, strict=True):
            kept = real.bool()
            found[item["epoch"], int(place)] = (ids[kept].tolist(), labels[kept].tolist())
    return found


def updates_of(rows: int, world_size: int, workers: int = 0, begin: int = 0) -> list[dict]:
    """The masked blocks of each update from `begin` on, over all ranks."""
    ranks = []
    for rank in range(world_size):
        batches = MicroBatches(STREAMS, BATCH, rows, UPDATES, seed=7, rank=rank, world_size=world_size)
        loader = skip_first_batches(batches.loader(workers), begin * batches.accumulation)
        ranks.append((list(loader), batches.accumulation))
    updates = []
    for number in range(UPDATES - begin):
        parts = [items[number * each : (number + 1) * each] for items, each in ranks]
        updates.append(masked(item for part in parts for item in part))
    return updates


@pytest.fixture(scope="module")
def whole() -> list[dict]:
    """All blocks of an update at once, on one rank, in this process."""
    return updates_of(BATCH, 1)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("rows", "world_size", "workers"), [(3, 1, 0), (6, 2, 0), (2, 3, 0), (4, 1, 2), (1, 4, 1)])
def test_blocks_and_masks_of_an_update_do_not_depend_on_cuts_ranks_and_workers(whole, rows, world_size, workers):
    assert updates_of(rows, world_size, workers) == whole


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("begin", [1, 7, 22])
def test_going_on_with_other_ranks_and_workers_reads_and_masks_what_is_left(whole, begin):
    assert updates_of(2, 2, workers=2, begin=begin) == whole[begin:]


def test_streams_take_turns_and_every_epoch_has_an_order_and_masks_of_its_own(whole):
    epochs = [{epoch for epoch, _ in update} for update in whole]
    assert all(len(epoch) == 1 for epoch in epochs)
    assert [min(epoch) for epoch in epochs] == [*[0] * 5, *[1] * 3, *[2] * 5, *[3] * 3, *[4] * 5, *[5] * 2]
    first, third = ({key[1]: value for update in whole[start : start + 5] for key, value in update.items()}
                    for start in (0, 8))  # fmt: skip
    assert len(first) == len(third) == 60 and list(first) != list(third)
    both = first.keys() & third.keys()
    assert len(both) >= 58 and sum(first[block] == third[block] for block in both) == 0
    assert MicroBatches(STREAMS, BATCH, 12, UPDATES, seed=7).passes(8) == 1.0


def test_a_short_block_is_padded(whole):
    batches = MicroBatches((stream(11),), BATCH, BATCH, 1, seed=0)
    (item,) = batches.loader()
    short = int((item["index"] == 11).nonzero())
    assert item["input_ids"].shape == (12, 16) and item["input_ids"].dtype == torch.int64
    assert (item["input_ids"][short, 5:] == 1).all() and (item["input_ids"] == 1).sum() == 11


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 12, "rows": 5}, "batch_size=12 is no multiple of 5 rows x 1 process"),
        ({"batch_size": 12, "rows": 4, "world_size": 2}, "batch_size=12 is no multiple of 4 rows x 2 process"),
        ({"batch_size": 64, "rows": 8}, "has 62 blocks, fewer than one batch"),
        ({"batch_size": 12, "rows": 12, "updates": 0}, "optim.max_steps=0"),
    ],
)
def test_what_makes_no_batches_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        MicroBatches(**{"streams": (STREAMS[0],), "updates": 3, "seed": 0, **options})
