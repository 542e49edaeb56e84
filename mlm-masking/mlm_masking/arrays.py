"""The few operations that numpy and torch spell differently, so that one sampler serves both.

The samplers work on int64 and bool arrays with operators that the two libraries share. What is here is the rest. On a
CPU numpy is the faster of the two (its row sort is vectorised: about 2 ns per token against torch's 20), on a GPU there
is only torch, and the values are the same.
"""

from typing import Any

import numpy as np
import torch

Array = np.ndarray | torch.Tensor


def is_torch(array: Any) -> bool:
    return isinstance(array, torch.Tensor)


def arange(length: int, like: Array) -> Array:
    """0, 1, ..., length - 1 as int64, in `like`'s library and on its device."""
    return torch.arange(length, device=like.device) if is_torch(like) else np.arange(length)


def where(condition: Array, one: Array | int, other: Array | int) -> Array:
    return torch.where(condition, one, other) if is_torch(condition) else np.where(condition, one, other)


def sort_rows(array: Array) -> Array:
    """Each row of `(rows, length)`, smallest first."""
    return torch.sort(array, dim=1).values if is_torch(array) else np.sort(array, axis=1)


def take_rows(array: Array, columns: Array) -> Array:
    """`array[r, columns[r, j]]` for every r and j: `(rows, length)` and `(rows, n)` -> `(rows, n)`."""
    return torch.gather(array, 1, columns) if is_torch(array) else np.take_along_axis(array, columns, axis=1)


def running_total(array: Array) -> Array:
    """Sums over the columns up to and including each one, as int64."""
    return torch.cumsum(array, dim=1) if is_torch(array) else np.cumsum(array, axis=1, dtype=np.int64)


def running_max(array: Array) -> Array:
    """The largest entry of the columns up to and including each one."""
    return torch.cummax(array, dim=1).values if is_torch(array) else np.maximum.accumulate(array, axis=1)


def join_columns(*arrays: Array) -> Array:
    return torch.cat(arrays, dim=1) if is_torch(arrays[0]) else np.concatenate(arrays, axis=1)


def stack(arrays: list[Array], axis: int = 0) -> Array:
    return torch.stack(arrays, dim=axis) if is_torch(arrays[0]) else np.stack(arrays, axis=axis)


def nonzero(array: Array) -> tuple[Array, Array]:
    """Rows and columns of the true entries."""
    return array.nonzero(as_tuple=True) if is_torch(array) else np.nonzero(array)


def floor_int(array: Array) -> Array:
    """Floats >= 0, rounded down, as int64."""
    return array.to(torch.int64) if is_torch(array) else array.astype(np.int64)


def as_double(array: Array) -> Array:
    return array.to(torch.float64) if is_torch(array) else array.astype(np.float64)


def table_like(values: np.ndarray, like: Array) -> Array:
    """A lookup table in `like`'s library and on its device."""
    return torch.from_numpy(values).to(like.device) if is_torch(like) else values
