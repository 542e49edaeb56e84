"""SentEval's logistic regression, with every fold and every l2 value trained at once.

The transfer protocol fits, per task, folds x folds x 4 small linear classifiers one after the other: 410 trainings,
over a million optimizer steps of some 300 us, nearly all of it call overhead. Here they are one batched linear layer:

* The classifiers of one fold differ only in their l2 value. Every construction re-seeds, so they share the initial
  weights, the permutations and with them every mini-batch: the batch is gathered once and multiplied by all their
  weights together.
* Folds differ in their rows, so each has a mini-batch of its own; `bmm` takes a block of folds per call. A block is
  kept in the cache (`_BLOCK_BYTES`); blocks are independent and run on as many threads as torch was given.
* Early stopping is bookkeeping: a classifier that has stopped keeps its best weights and is no longer looked at; a fold
  leaves the block when its last classifier has stopped.

Per classifier and step this costs about 4 us at 256 features on one core (75 % of it the two products and the gather)
against 320 us for nn.Linear + CrossEntropyLoss + Adam, at the same arithmetic: the bias is the weight of a constant
feature, the l2 term enters the gradient (torch's `weight_decay`), moments and bias correction are torch's. Accuracies
equal `sequential.py`'s to within a tie or two that float32 rounding breaks the other way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

SEED = 1111
L2_VALUES = (1e-5, 1e-4, 1e-3, 1e-2)
MAX_EPOCHS = 200
# Mini-batches of a block, gathered. Half of it costs 15-30 % in calls, twice as much gains nothing.
_BLOCK_BYTES = 1_400_000
_ALIGN = 16  # floats: rows of 64 bytes, without which the products at 513 or 769 columns take up to twice as long


@dataclass(frozen=True)
class Protocol:
    """How one classifier is trained (SentEval): `test` is what tables report, `fast` the look in between."""

    folds: int
    optimizer: str
    batch_size: int
    tenacity: int
    epochs_per_round: int


PROTOCOLS = {
    "test": Protocol(folds=10, optimizer="adam", batch_size=64, tenacity=5, epochs_per_round=4),
    "fast": Protocol(folds=5, optimizer="rmsprop", batch_size=128, tenacity=3, epochs_per_round=2),
}


@dataclass(frozen=True)
class Split:
    """Rows of the feature matrix that one classifier is fitted on, and rows that stop it.

    `drawn` lists permutation lengths taken from the seeded stream before the first epoch (the 5 % hold-out draws one).
    """

    train: np.ndarray
    dev: np.ndarray
    drawn: tuple[int, ...] = ()


@dataclass(frozen=True)
class Fits:
    """Best classifiers of `splits` x `l2 values`.

    Attributes:
        dev_accuracy: (splits, l2) float64, fraction right on the split's dev rows, at the kept round.
        weight: (splits, l2, classes, features + 1) float32, the last column is the bias.
    """

    dev_accuracy: np.ndarray
    weight: Tensor

    def accuracy(self, features: Tensor, labels: Tensor, split: int, l2: int, rows: np.ndarray) -> float:
        """Fraction of `rows` that classifier (`split`, `l2`) labels rightly."""
        index = torch.as_tensor(rows, device=features.device)
        return (self.predict(features[index], split, l2) == labels[index]).double().mean().item()

    def predict(self, features: Tensor, split: int, l2: int) -> Tensor:
        """(n, features) -> (n,) class indices."""
        weight = self.weight[split, l2].to(features.device)
        return torch.addmm(weight[:, -1], features, weight[:, :-1].T).argmax(dim=1)


def held_out(rows: np.ndarray, fraction: float = 0.05) -> Split:
    """The final fit's split: a random `fraction` of the training rows becomes the dev part."""
    order = np.random.RandomState(SEED).permutation(len(rows))
    cut = int(fraction * len(rows))
    return Split(train=rows[order[cut:]], dev=rows[order[:cut]], drawn=(len(rows),))


def initial_weight(num_features: int, num_classes: int) -> Tensor:
    """(classes, features + 1): nn.Linear's own initialisation after re-seeding, bias as last column."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        linear = torch.nn.Linear(num_features, num_classes)
    return torch.cat([linear.weight, linear.bias[:, None]], dim=1).detach()


def fit(
    features: Tensor, labels: Tensor, splits: Sequence[Split], l2: np.ndarray, num_classes: int, protocol: Protocol
) -> Fits:
    """Fit one linear classifier per split and l2 value, all together.

    Args:
        features: (n, d) float32 on the device that shall do the work.
        labels: (n,) int64 in [0, num_classes).
        splits: S train/dev row sets.
        l2: (S, R) l2 penalties; the R classifiers of a split share their mini-batches.
        num_classes: C.
        protocol: optimizer, batch size, stopping rule.

    Returns:
        `Fits` with (S, R) dev accuracies and weights.
    """
    used = features.shape[1] + 1
    padding = -used % _ALIGN  # columns of zeros: their weights start at 0 and get no gradient
    data = _Data(
        rows=torch.cat(
            [features, features.new_ones(len(features), 1), features.new_zeros(len(features), padding)], dim=1
        ),
        labels=labels,
        one_hot=one_hot(labels, num_classes).to(features.dtype),
        start=pad(initial_weight(features.shape[1], num_classes), (0, padding)).to(features.device),
    )
    accuracy = np.zeros((len(splits), l2.shape[1]))
    weight = torch.empty(len(splits), l2.shape[1], *data.start.shape)
    on_cpu = features.device.type == "cpu"
    threads = torch.get_num_threads() if on_cpu else 1
    bytes_per_split = protocol.batch_size * data.rows.shape[1] * data.rows.element_size()
    per_block = max(1, _BLOCK_BYTES // bytes_per_split) if on_cpu else len(splits)

    def run(block: list[int]) -> None:
        trained = _Block(data, [splits[i] for i in block], l2[block], protocol)
        accuracy[block], weight[block] = trained.run()

    blocks = list(_blocks(splits, protocol.batch_size, per_block, threads))
    with one_thread_per_operation(), ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, blocks))
    return Fits(accuracy, weight[..., :used].contiguous())


@contextmanager
def one_thread_per_operation() -> Iterator[None]:
    """Operations of ~100 us are not worth splitting: on a busy machine each waits for the slower half's time slice."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _blocks(splits: Sequence[Split], batch_size: int, per_block: int, threads: int) -> Iterator[list[int]]:
    """Splits with the same number of steps per epoch, in blocks of at most `per_block`, evenly over `threads`."""
    by_steps: dict[int, list[int]] = {}
    for i, split in enumerate(splits):
        by_steps.setdefault(-(-len(split.train) // batch_size), []).append(i)
    for members in by_steps.values():
        count = min(len(members), threads * -(-len(members) // (per_block * threads)))
        for part in np.array_split(members, count):
            yield part.tolist()


@dataclass(frozen=True)
class _Data:
    rows: Tensor  # (n, D): d features, a 1, zeros up to a multiple of _ALIGN
    labels: Tensor  # (n,)
    one_hot: Tensor  # (n, C)
    start: Tensor  # (C, D)


class _Block:
    """Training state of G splits x R l2 values x C classes; K = R * C rows of weights per split."""

    def __init__(self, data: _Data, splits: list[Split], l2: np.ndarray, protocol: Protocol):
        self.data, self.protocol = data, protocol
        self.splits = splits
        self.num_l2, self.num_classes = l2.shape[1], data.start.shape[0]
        device = data.rows.device
        self.weight = data.start.repeat(len(splits), self.num_l2, 1)  # (G, K, D)
        self.decay = torch.as_tensor(l2, dtype=self.weight.dtype, device=device).repeat_interleave(self.num_classes, 1)[
            :, :, None
        ]
        self.first, self.second = torch.zeros_like(self.weight), torch.zeros_like(self.weight)
        self.step_count = 0
        self.best = self.weight.clone()
        self.alive = np.arange(len(splits))
        self.dev = [torch.as_tensor(split.dev, device=device) for split in splits]
        self.streams = {}
        for split in splits:
            self._stream(split)

    def _stream(self, split: Split) -> np.random.RandomState:
        """Splits of equal size read the same numbers: one generator for all of them."""
        key = (len(split.train), split.drawn)
        if key not in self.streams:
            generator = self.streams[key] = np.random.RandomState(SEED)
            for length in split.drawn:
                generator.permutation(length)
        return self.streams[key]

    def run(self) -> tuple[np.ndarray, Tensor]:
        """Train until every classifier has stopped: (G, R) dev accuracies, (G, R, C, D) best weights."""
        shape = (len(self.splits), self.num_l2)
        accuracy, misses, stopped = np.full(shape, -1.0), np.zeros(shape, dtype=int), np.zeros(shape, dtype=bool)
        epochs = 0
        while epochs <= MAX_EPOCHS and len(self.alive):
            for _ in range(self.protocol.epochs_per_round):
                self._epoch()
            epochs += self.protocol.epochs_per_round
            now, alive = self._dev_accuracy(), self.alive
            better = (now > accuracy[alive]) & ~stopped[alive]
            self._keep(better)
            accuracy[alive] = np.where(better, now, accuracy[alive])
            # The counter is cumulative: an improvement does not reset it.
            stopped[alive] |= ~better & (misses[alive] >= self.protocol.tenacity)
            misses[alive] += ~better
            self._retire(~stopped[alive].all(axis=1))
        return accuracy, self.best.unflatten(1, (self.num_l2, self.num_classes)).cpu()

    def _epoch(self) -> None:
        size = self.protocol.batch_size
        drawn = {key: generator.permutation(key[0]) for key, generator in self.streams.items()}
        longest = max(len(self.splits[i].train) for i in self.alive)
        steps = -(-longest // size)
        order = np.zeros((len(self.alive), steps * size), dtype=np.int64)
        share = np.zeros((len(self.alive), 1, size), dtype=np.float32)  # weight of each row of the last batch
        for row, i in enumerate(self.alive):
            train = self.splits[i].train
            order[row, : len(train)] = train[drawn[len(train), self.splits[i].drawn]]
            left = len(train) - (steps - 1) * size
            share[row, 0, :left] = 1 / left
        device = self.weight.device
        batches = torch.as_tensor(order, device=device).view(len(self.alive), steps, size).transpose(0, 1).contiguous()
        last_share = torch.as_tensor(share, device=device)
        gradient, scratch = torch.empty_like(self.weight), torch.empty_like(self.weight)
        for index in batches[:-1]:
            self._gradient(index, None, gradient)
            self._update(gradient, scratch)
        self._gradient(batches[-1], last_share, gradient)
        self._update(gradient, scratch)

    def _gradient(self, index: Tensor, share: Tensor | None, out: Tensor) -> None:
        """d(mean cross-entropy)/d(weight) + l2 * weight for a batch of rows `index` (G, B), written to `out`."""
        groups, size = index.shape
        flat = index.view(-1)
        rows = self.data.rows.index_select(0, flat).view(groups, size, -1)
        target = self.data.one_hot.index_select(0, flat).view(groups, 1, size, -1).transpose(2, 3)
        logits = torch.bmm(self.weight, rows.transpose(1, 2))  # (G, K, B): softmax over a strided dimension vectorises
        error = logits.view(groups, self.num_l2, self.num_classes, size).softmax(dim=2).sub_(target).view_as(logits)
        if share is not None:
            error.mul_(share)
        torch.mul(self.weight, self.decay, out=out)
        out.baddbmm_(error, rows, alpha=1.0 if share is not None else 1 / size)

    def _update(self, gradient: Tensor, scratch: Tensor) -> None:
        """One step of torch.optim.Adam(lr=1e-3) or RMSprop(lr=1e-2), other defaults, in torch's order of operations."""
        self.step_count += 1
        if self.protocol.optimizer == "adam":
            self.first.lerp_(gradient, 0.1)
            self.second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            correction = (1 - 0.999**self.step_count) ** 0.5
            torch.sqrt(self.second, out=scratch).div_(correction).add_(1e-8)
            self.weight.addcdiv_(self.first, scratch, value=-1e-3 / (1 - 0.9**self.step_count))
        else:
            self.second.mul_(0.99).addcmul_(gradient, gradient, value=0.01)
            torch.sqrt(self.second, out=scratch).add_(1e-8)
            self.weight.addcdiv_(gradient, scratch, value=-1e-2)

    def _dev_accuracy(self) -> np.ndarray:
        """(alive, R) fraction right on each split's dev rows; one split at a time, 1 % of the training products."""
        right = []
        for weight, i in zip(self.weight, self.alive, strict=True):
            logits = (self.data.rows[self.dev[i]] @ weight.T).unflatten(1, (self.num_l2, self.num_classes))
            right.append((logits.argmax(dim=2) == self.data.labels[self.dev[i], None]).sum(dim=0))
        sizes = np.array([len(self.dev[i]) for i in self.alive])
        return torch.stack(right).cpu().numpy() / sizes[:, None]

    def _keep(self, better: np.ndarray) -> None:
        if not better.any():
            return
        rows = torch.as_tensor(better.repeat(self.num_classes, axis=1)[:, :, None], device=self.weight.device)
        alive = torch.as_tensor(self.alive, device=self.weight.device)
        self.best[alive] = torch.where(rows, self.weight, self.best[alive])

    def _retire(self, keep: np.ndarray) -> None:
        if keep.all():
            return
        kept = torch.as_tensor(np.flatnonzero(keep), device=self.weight.device)
        for name in ("weight", "decay", "first", "second"):
            setattr(self, name, getattr(self, name)[kept])
        self.alive = self.alive[keep]
