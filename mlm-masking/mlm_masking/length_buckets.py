"""Which examples stand together in a batch.

    random    the examples of a batch are random (the release); how they are padded is another matter (padding_free.py)
    bucketed  the examples of a batch are of like length: windows of 50 batches of the shuffled epoch are sorted by
              length, cut into batches, and the batches shuffled
    tokens    for scoring: all examples by length, batches of a number of tokens

Order depends on (seed, epoch) alone: a resumed run, or one with other hardware, sees the same batches.
"""

from collections.abc import Sequence

import numpy as np

from shared import InputError

WINDOW_BATCHES = 50
ORDERS = ("random", "bucketed")


def epoch_batches(lengths: np.ndarray, batch_size: int, order: str, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of one epoch: every row once, all batches full but one.

    Args:
        lengths: (rows,) tokens per row.
        order: "random" or "bucketed".

    Raises:
        InputError: an unknown order, or a batch size below 1.
    """
    if order not in ORDERS:
        raise InputError(f"order={order}: give one of {', '.join(ORDERS)}")
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: give 1 or more")
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    shuffled = generator.permutation(len(lengths))
    if order == "bucketed":
        window = WINDOW_BATCHES * batch_size
        parts = [shuffled[start : start + window] for start in range(0, len(shuffled), window)]
        shuffled = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
    batches = [shuffled[start : start + batch_size] for start in range(0, len(shuffled), batch_size)]
    if order == "bucketed":
        # The short batch stays last, so that every update but the epoch's last one sees a full batch.
        full = len(batches) - (len(batches[-1]) < batch_size)
        batches = [batches[index] for index in generator.permutation(full)] + batches[full:]
    return batches


def token_batches(lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Rows by falling length in batches of at most `batch_tokens` padded tokens; a longer row is a batch of its own."""
    by_length = np.argsort(-np.asarray(lengths), kind="stable")
    batches, start = [], 0
    while start < len(by_length):
        rows = max(1, batch_tokens // int(lengths[by_length[start]]))
        batches.append(by_length[start : start + rows])
        start += rows
    return batches


def padded_share(lengths: np.ndarray, batches: Sequence[np.ndarray]) -> float:
    """The share of positions that are padding when each batch is padded to its longest row."""
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    real = sum(int(lengths[batch].sum()) for batch in batches)
    return 1 - real / padded
