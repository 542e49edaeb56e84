"""Scoring every assignment of label words at once (section 4.1 of the paper, steps 1 to 3).

Given the vocabulary's logits at the mask of every training example, each class proposes its k likeliest words, and each
element of the cartesian product of the proposals, a pairing, is scored by the accuracy that its argmax has on the
training set: 10^4 pairings for two classes of 100 words, 2.4 x 10^7 for five of 30.

An example of class g is right when its logit of g's word is above those of all earlier classes' words and not below
those of all later ones (argmax takes the first of equals). So for each ordered pair of classes (g, c) one table says
for each pair of words which examples of g survive c, as the bits of one integer; a pairing's right answers are the AND
of C - 1 table entries per class, and its accuracy is the number of bits left. The tables are small (k x k integers),
and the product over them is a broadcast: no example and no logit is touched again.

Pairings are numbered as `itertools.product` yields them, and sorted by falling score with a stable sort: among the many
ties (accuracy on 32 examples takes 33 values) the one with the likelier words of the first classes comes first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from shared import InputError

WORD_BITS = 64
BLOCK = 1 << 20  # pairings scored at once
SAMPLED_ABOVE = 200_000_000


def proposals(logits: np.ndarray, labels: np.ndarray, num_labels: int, allowed: np.ndarray, k: int) -> list[np.ndarray]:
    """Each class's k likeliest allowed tokens, by the mean logit over the class's examples.

    Args:
        logits: (examples, vocabulary) at the mask. labels: (examples,) class numbers.
        allowed: (vocabulary,) whether a token may be a label word.
    Returns:
        Per class `(<= k,)` token ids, likeliest first; equal means in order of the token's id.
    Raises:
        InputError: a class without examples.
    """
    found = []
    for label in range(num_labels):
        own = logits[labels == label]
        if not len(own):
            raise InputError(f"label search: class number {label} has no training example")
        mean = own.mean(axis=0, dtype=np.float64)
        order = np.argsort(-mean, kind="stable")
        found.append(order[allowed[order]][:k])
    return found


def nearest(candidates: Sequence[int], rows: np.ndarray, seed: int, keep: int) -> np.ndarray:
    """The `keep` candidates whose decoder rows have the largest cosine with the row of the seed word, nearest first.

    Args:
        rows: (vocabulary, width). seed: the token id of the manual label word.
    """
    candidates = np.asarray(candidates)
    unit = rows[candidates].astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    target = rows[seed].astype(np.float64)
    cosine = unit @ (target / np.linalg.norm(target))
    return candidates[np.argsort(-cosine, kind="stable")[:keep]]


class Survivors:
    """Which examples each pair of words gets right, as bits: `accuracy` counts them for any pairings.

    Args:
        logits: (examples, vocabulary). labels: (examples,). words: per class the proposed token ids.
    """

    def __init__(self, logits: np.ndarray, labels: np.ndarray, words: Sequence[np.ndarray]):
        self.sizes = tuple(len(some) for some in words)
        self.examples = len(labels)
        if min(self.sizes, default=0) < 1:
            raise InputError("label search: a class has no proposed word")
        # tables[g][c]: list over groups of at most 64 examples of class g, each (k_g, k_c)
        self.tables: list[list[list[np.ndarray] | None]] = []
        logits = logits[:, np.concatenate(words)]  # of the vocabulary only the proposed words
        columns = np.split(np.arange(logits.shape[1]), np.cumsum(self.sizes)[:-1])
        for g, own_words in enumerate(columns):
            own = logits[labels == g]
            groups = [own[i : i + WORD_BITS] for i in range(0, len(own), WORD_BITS)]
            row: list[list[np.ndarray] | None] = []
            for c, other_words in enumerate(columns):
                if c == g:
                    row.append(None)
                    continue
                row.append([_bits(group[:, own_words], group[:, other_words], c < g) for group in groups])
            self.tables.append(row)

    @property
    def total(self) -> int:
        """How many pairings there are."""
        return math.prod(self.sizes)

    def right(self, choice: Sequence[np.ndarray]) -> np.ndarray:
        """How many examples are right, for pairings given as broadcastable index arrays, one per class."""
        count: np.ndarray | int = 0
        for g, row in enumerate(self.tables):
            others = [c for c in range(len(row)) if c != g]
            for group in range(len(row[others[0]])):
                alive = _entries(row[others[0]][group], choice[g], choice[others[0]])
                for c in others[1:]:
                    alive = alive & _entries(row[c][group], choice[g], choice[c])
                count = count + np.bitwise_count(alive).astype(np.int32)
        return count

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(number of the first pairing, right answers of a run of pairings) over the whole product, in order."""
        inner = len(self.sizes)
        size = 1
        while inner > 0 and size * self.sizes[inner - 1] <= BLOCK:
            inner -= 1
            size *= self.sizes[inner]
        outer_sizes = self.sizes[:inner]
        axes = np.ix_(*(np.arange(n) for n in self.sizes[inner:])) if inner < len(self.sizes) else ()
        for number, outer in enumerate(np.ndindex(*outer_sizes)):
            choice = [np.intp(i) for i in outer] + list(axes)
            shape = self.sizes[inner:]
            yield number * size, np.broadcast_to(self.right(choice), shape).reshape(-1)


def _entries(table: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """table[rows, columns], faster where both are plain lists of positions."""
    if rows.ndim == columns.ndim == 1:
        return table.ravel().take(rows * table.shape[1] + columns)
    return table[rows, columns]


def _bits(own: np.ndarray, other: np.ndarray, strictly: bool) -> np.ndarray:
    """(n, k_g), (n, k_c) -> (k_g, k_c) integers, bit i set where example i prefers the own word to the other."""
    n = len(own)
    dtype = next(d for d, bits in ((np.uint8, 8), (np.uint16, 16), (np.uint32, 32), (np.uint64, 64)) if n <= bits)
    table = np.zeros((own.shape[1], other.shape[1]), dtype)
    for i in range(n):
        wins = own[i][:, None] > other[i][None] if strictly else own[i][:, None] >= other[i][None]
        table |= wins.astype(dtype) << dtype(i)
    return table


def best_pairings(
    logits: np.ndarray,
    labels: np.ndarray,
    words: Sequence[np.ndarray],
    n: int = 100,
    *,
    sample: int | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """The n pairings with the highest training accuracy.

    Args:
        logits: (examples, vocabulary). labels: (examples,) class numbers. words: per class the proposed token ids.
        sample: score this many pairings, drawn without repetition with `seed`, instead of all of them.
    Returns:
        (<= n, classes) token ids, best first, ties in the order of the product; and (<= n,) accuracies.
    Raises:
        InputError: no pairing asked for, or more than 2 x 10^8 to score.
    """
    if n < 1 or (sample is not None and sample < 1):
        raise InputError(f"label search: n_pairs={n}, sample={sample}; give 1 or more")
    survivors = Survivors(logits, labels, words)
    total = survivors.total
    if sample is None and total > SAMPLED_ABOVE:
        raise InputError(
            f"label search: {' x '.join(map(str, survivors.sizes))} = {total:,} pairings are too many to score; "
            "lower k_likely (the paper takes 30 for five and six classes), set k_neighbors, or give sample=1000000"
        )
    blocks = survivors.blocks() if sample is None or sample >= total else _sampled(survivors, sample, seed)
    kept = np.empty(0, np.int64)
    scores = np.empty(0, np.int64)
    for where, right in blocks:
        # A later pairing has to be better than the n-th, not equal: ties go to the earlier one.
        bar = scores[n - 1] if len(scores) >= n else -1
        better = np.flatnonzero(right > bar)
        if not len(better):
            continue
        better = _first_best(right, better, n)
        numbers = better + where if np.isscalar(where) else where[better]
        kept, scores = np.concatenate([kept, numbers]), np.concatenate([scores, right[better]])
        order = np.argsort(-scores, kind="stable")[:n]
        kept, scores = kept[order], scores[order]
    chosen = np.unravel_index(kept, survivors.sizes)
    ids = np.stack([words[c][chosen[c]] for c in range(len(words))], axis=1)
    return ids, scores / survivors.examples


def _first_best(values: np.ndarray, among: np.ndarray, n: int) -> np.ndarray:
    """Of the positions `among` (ascending), those of the n highest values, the first ones where values are equal."""
    if len(among) <= n:
        return among
    own = values[among]
    bar = np.partition(own, len(own) - n)[len(own) - n]
    above, equal = among[own > bar], among[own == bar]
    return np.sort(np.concatenate([above, equal[: n - len(above)]]))


def _sampled(survivors: Survivors, sample: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    numbers = _distinct(rng.integers(survivors.total, size=sample))
    while len(numbers) < sample:  # repetitions are few, and drawn again
        more = rng.integers(survivors.total, size=sample - len(numbers))
        numbers = _distinct(np.concatenate([numbers, more]))
    for start in range(0, sample, BLOCK):
        part = numbers[start : start + BLOCK]
        yield part, survivors.right(np.unravel_index(part, survivors.sizes))


def _distinct(numbers: np.ndarray) -> np.ndarray:
    """np.unique by sorting, which is ten times faster than its hash table."""
    numbers = np.sort(numbers)
    return numbers[np.concatenate([[True], numbers[1:] != numbers[:-1]])]


def best_regression_pairings(
    logits: np.ndarray, scores: np.ndarray, words: Sequence[np.ndarray], n: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """The n pairs of words whose probability of the second correlates most with the gold score (Pearson).

    A pair of twice the same word gets -1. Arguments and result as of `best_pairings`, `scores` being (examples,).
    """
    if n < 1:
        raise InputError(f"label search: n_pairs={n}; give 1 or more")
    low, high = (logits[:, ids].astype(np.float64) for ids in words)
    gold = scores - scores.mean()
    correlation = np.empty((len(words[0]), len(words[1])))
    for row in range(len(words[0])):
        with np.errstate(over="ignore"):
            probability = 1 / (1 + np.exp(low[:, row : row + 1] - high))  # (examples, k_1)
        centred = probability - probability.mean(axis=0)
        norm = np.sqrt((centred**2).sum(axis=0) * (gold**2).sum())
        with np.errstate(invalid="ignore", divide="ignore"):
            correlation[row] = np.where(norm > 0, gold @ centred / norm, -1.0)
    correlation[words[0][:, None] == words[1][None]] = -1.0
    order = np.argsort(-correlation.reshape(-1), kind="stable")[:n]
    chosen = np.unravel_index(order, correlation.shape)
    return np.stack([words[0][chosen[0]], words[1][chosen[1]]], axis=1), correlation.reshape(-1)[order]
