"""What every forward pass of a run reads: a function of (seed, number of the pass, rank), computed, not stored.

Update u takes `batch_size` blocks in the shuffled order of its epoch (`shared.tokenization.Shuffle`); an epoch ends
where fewer than a batch are left. How an update is cut into micro-batches and ranks changes nothing in what it reads,
so a run may go on with another number of processes. Several streams (the release's 16 shards) take turns, one an epoch.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mlm_masking.data import BlockDataset
from shared import InputError
from shared.tokenization import Shuffle


class MicroBatches(Dataset):
    """All micro-batches of one rank; item n is {"input_ids": (rows, length), "index": (rows,), "epoch": int}, int64.

    Args:
        streams: blocks, one data set an epoch, in turn. batch_size: blocks of an update, over all ranks.
        rows: blocks of a micro-batch. updates: of the run. seed: of the order.
        rank, world_size: this process, of how many.
    Raises:
        InputError: rows x ranks that do not divide the batch, or a corpus smaller than a batch.
    """

    def __init__(
        self,
        streams: Sequence[BlockDataset],
        batch_size: int,
        rows: int,
        updates: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
    ):
        if updates < 1:
            raise InputError(f"optim.max_steps={updates}: give the number of updates, 1 or more")
        if batch_size < 1 or rows < 1 or batch_size % (rows * world_size):
            raise InputError(
                f"batch_size={batch_size} is no multiple of {rows} rows x {world_size} process(es): choose "
                "forward_batch_size and the number of processes so that their product divides it"
            )
        for stream in streams:
            if len(stream) < batch_size:
                raise InputError(
                    f"{stream.source} has {len(stream)} blocks, fewer than one batch (batch_size={batch_size}): give "
                    "more text, shorter blocks (data.block_length) or a smaller batch"
                )
        self.streams, self.batch_size, self.rows, self.updates = streams, batch_size, rows, updates
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.accumulation = batch_size // (rows * world_size)
        self.ends = list(accumulate(len(stream) // batch_size for stream in streams))

    def __len__(self) -> int:
        return self.updates * self.accumulation

    def epoch_of(self, update: int) -> tuple[int, int]:
        """(epoch, updates of it that went before) of an update, both from 0."""
        turn, place = divmod(update, self.ends[-1])
        number = bisect_right(self.ends, place)
        return turn * len(self.ends) + number, place - (self.ends[number - 1] if number else 0)

    def passes(self, updates: float) -> float:
        """Passes over the data (over the streams, where there are several) after so many updates."""
        return updates / self.ends[-1]

    def __getitem__(self, number: int) -> dict[str, Any]:
        update, part = divmod(number, self.accumulation)
        epoch, before = self.epoch_of(update)
        stream = self.streams[epoch % len(self.streams)]
        first = before * self.batch_size + (part * self.world_size + self.rank) * self.rows
        index = Shuffle(len(stream), self.seed, epoch)(np.arange(first, first + self.rows))
        ids = pad([stream[place]["input_ids"] for place in index.tolist()], stream.pad_id)
        return {"input_ids": torch.from_numpy(ids), "index": torch.from_numpy(index), "epoch": epoch}

    def loader(self, workers: int = 0, pin_memory: bool = False) -> DataLoader:
        """A loader of the items in order; `accelerate.skip_first_batches` skips in it without reading."""
        return DataLoader(self, batch_size=1, collate_fn=_only, num_workers=workers, pin_memory=pin_memory)


def pad(rows: Sequence[np.ndarray], pad_id: int) -> np.ndarray:
    """Rows of different length -> `(rows, longest)` int64, padded at the end."""
    table = np.full((len(rows), max(map(len, rows))), pad_id, np.int64)
    for row, ids in zip(table, rows, strict=True):
        row[: len(ids)] = ids
    return table


def _only(items: list[dict[str, Any]]) -> dict[str, Any]:
    (item,) = items
    return item
