"""In which order examples are taken: shuffled, the same for any number of workers and ranks, and from any point on.

The order is a function of (seed, epoch, position), computed, not stored: a permutation of a thousand million examples
takes no memory, starts at once in mid-epoch, and does not change with the version of a library. Position p goes to rank
p mod W, so that the first N positions make the same set, whatever W and however many workers load them.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from shared import InputError

ROUNDS = 6
AT_ONCE = 4096
_MIX = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))


class Shuffle:
    """A random permutation of range(length): `shuffle(positions)` -> indices, int64, of the same shape.

    A Feistel network over the next even power of two that holds `length` (at least 2^8), walked until it lands inside.
    """

    def __init__(self, length: int, seed: int, epoch: int = 0):
        if length < 1:
            raise InputError(f"length={length}: there is nothing to shuffle")
        self.length = length
        self.half = np.uint64(max(4, -(-(length - 1).bit_length() // 2)))
        self.mask = np.uint64((1 << int(self.half)) - 1)
        self.keys = _keys(f"shuffle {seed} {epoch}", ROUNDS)

    def __call__(self, positions: np.ndarray | int) -> np.ndarray:
        positions = np.asarray(positions)
        if positions.size and (positions.min() < 0 or positions.max() >= self.length):
            raise IndexError(f"positions must lie in [0, {self.length})")
        values = self._permute(positions.astype(np.uint64).reshape(-1))
        outside = np.flatnonzero(values >= self.length)
        while len(outside):
            values[outside] = self._permute(values[outside])
            outside = outside[values[outside] >= self.length]
        return values.astype(np.int64).reshape(positions.shape)

    def _permute(self, values: np.ndarray) -> np.ndarray:
        left, right = values >> self.half, values & self.mask
        for key in self.keys:
            left, right = right, left ^ (_mixed(right ^ key) & self.mask)
        return (left << self.half) | right


class ShuffledSampler:
    """The indices that one rank takes, for `DataLoader(dataset, sampler=...)`; iterate it once per epoch.

    Args:
        length: examples in the data set. seed: of the order. epoch: which epoch the next iteration is.
        rank, world_size: this process, of how many. shuffle: False takes the examples as they come.
        start: examples that all ranks together have taken of the epoch already.
        uneven: where the examples left are no multiple of `world_size`: "repeat" the first of the epoch, or "drop" the
            last, so that no rank runs dry before the others.
    Raises:
        InputError: values that do not fit together.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        *,
        epoch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        shuffle: bool = True,
        uneven: str = "repeat",
    ):
        if length < 1:
            raise InputError(f"length={length}: the data set is empty")
        if not 0 <= rank < world_size:
            raise InputError(f"rank={rank}: must lie in [0, {world_size}) (world_size)")
        if not 0 <= start <= length:
            raise InputError(f"start={start}: must lie in [0, {length}] (the number of examples)")
        if uneven not in ("repeat", "drop"):
            raise InputError(f"uneven={uneven!r}: choose repeat or drop")
        self.length, self.seed, self.epoch, self.start = length, seed, epoch, start
        self.rank, self.world_size, self.shuffle, self.uneven = rank, world_size, shuffle, uneven

    def __len__(self) -> int:
        left = self.length - self.start
        return left // self.world_size if self.uneven == "drop" else -(-left // self.world_size)

    def __iter__(self) -> Iterator[int]:
        shuffle = Shuffle(self.length, self.seed, self.epoch) if self.shuffle else lambda positions: positions
        first, count = self.start + self.rank, len(self)
        for done in range(0, count, AT_ONCE):
            steps = np.arange(done, min(done + AT_ONCE, count))
            yield from shuffle((first + steps * self.world_size) % self.length).tolist()

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of another epoch; the epoch it is in already is left as it is."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def state(self, taken: int) -> dict[str, int]:
        """What a checkpoint keeps; `taken` is how many examples all ranks together took of this epoch."""
        return {"epoch": self.epoch, "start": taken, "seed": self.seed, "length": self.length}

    def resume(self, state: dict[str, int]) -> None:
        """Go on where a checkpoint was made, with any number of ranks. Raises InputError for another order's state."""
        for name in ("seed", "length"):
            if state[name] != getattr(self, name):
                raise InputError(
                    f"the checkpoint's order has {name}={state[name]}, but here it is {getattr(self, name)}"
                )
        self.epoch, self.start = state["epoch"], state["start"]


class MixtureSampler:
    """Several data sets mixed by weight: indices into their concatenation (`torch.utils.data.ConcatDataset`).

    Which set position p is taken from is drawn by (seed, p) with probability proportional to its weight; within a set
    examples come in a shuffled order, and in another one when the set has been gone through. Each iteration takes the
    next `examples` positions; weights may be changed between iterations.

    Args:
        lengths: examples in each set. weights: not negative, scaled to sum to 1.
        examples: positions in an iteration, over all ranks.
    Raises:
        InputError: lengths and weights of different number, a negative weight, all zero, weight on an empty set.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        weights: Sequence[float],
        examples: int,
        seed: int = 0,
        *,
        rank: int = 0,
        world_size: int = 1,
    ):
        if not 0 <= rank < world_size:
            raise InputError(f"rank={rank}: must lie in [0, {world_size}) (world_size)")
        if examples < world_size or examples % world_size:
            raise InputError(f"examples={examples}: give a multiple of the {world_size} process(es)")
        self.lengths = np.asarray(lengths, np.int64)
        self.offsets = np.cumsum([0, *self.lengths[:-1]])
        self.examples, self.seed, self.rank, self.world_size = examples, seed, rank, world_size
        self.position, self.counts = 0, np.zeros(len(self.lengths), np.int64)
        self.key = _keys(f"mixture {seed}", 1)[0]
        self.set_weights(weights)

    def set_weights(self, weights: Sequence[float]) -> None:
        """Weights of the next iteration on."""
        weights = np.asarray(weights, np.float64)
        if weights.shape != self.lengths.shape:
            raise InputError(f"weights={weights.tolist()}: give one for each of the {len(self.lengths)} data sets")
        if not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum():
            raise InputError(f"weights={weights.tolist()}: must be finite, not negative, and not all 0")
        if (weights[self.lengths < 1] > 0).any():
            raise InputError(f"weights={weights.tolist()}: an empty data set must have weight 0")
        self.weights = weights / weights.sum()

    def __len__(self) -> int:
        return self.examples // self.world_size

    def __iter__(self) -> Iterator[int]:
        begin, counts, bounds = self.position, self.counts.copy(), np.cumsum(self.weights)
        bounds[np.flatnonzero(self.weights)[-1] :] = np.inf  # sums may fall short of 1 by a rounding error
        self.position, self.counts = self._after(bounds)
        for done in range(0, self.examples, AT_ONCE):
            positions = begin + np.arange(done, min(done + AT_ONCE, self.examples))
            indices = self._indices(self._drawn(positions, bounds), counts)
            yield from indices[(positions - begin) % self.world_size == self.rank].tolist()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps between iterations."""
        return {"position": self.position, "counts": self.counts.tolist(), "weights": self.weights.tolist()}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on after the iterations that were done when `state` was taken."""
        self.set_weights(state["weights"])
        self.position, self.counts = state["position"], np.asarray(state["counts"], np.int64)

    def _drawn(self, positions: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        """The data set of each position."""
        uniform = (_mixed(positions.astype(np.uint64) ^ self.key) >> np.uint64(11)) * 2.0**-53
        return np.searchsorted(bounds, uniform, side="right")

    def _after(self, bounds: np.ndarray) -> tuple[int, np.ndarray]:
        counts, end = self.counts.copy(), self.position + self.examples
        for start in range(self.position, end, AT_ONCE):
            drawn = self._drawn(np.arange(start, min(start + AT_ONCE, end)), bounds)
            counts += np.bincount(drawn, minlength=len(counts))
        return end, counts

    def _indices(self, drawn: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Indices into the concatenation; `counts` (taken of each set so far) is moved on."""
        indices = np.empty(len(drawn), np.int64)
        for number, length in enumerate(self.lengths):
            chosen = np.flatnonzero(drawn == number)
            places = counts[number] + np.arange(len(chosen))
            for epoch in np.unique(places // max(length, 1)).tolist():
                now = places // length == epoch
                shuffle = Shuffle(int(length), self.seed, f"{epoch} of {number}")
                indices[chosen[now]] = self.offsets[number] + shuffle(places[now] % length)
            counts[number] += len(chosen)
        return indices


def _keys(name: str, count: int) -> list[np.uint64]:
    digest = hashlib.blake2b(name.encode(), digest_size=8 * count).digest()
    return list(np.frombuffer(digest, "<u8"))


def _mixed(values: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit numbers after which all bits depend on all (the finalizer of MurmurHash3)."""
    for factor in _MIX:
        values = (values ^ (values >> np.uint64(33))) * factor
    return values ^ (values >> np.uint64(33))
