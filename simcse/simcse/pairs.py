"""Which sentence is the positive: the objectives of Table 2, drawn so that a resumed run draws the same again.

| objective | x+ of x |
|---|---|
| same_sentence | x itself (unsupervised SimCSE: only the dropout mask differs) |
| next_sentence | the sentence after x in its document |
| next_3_sentences | one of the three after it |
| (delete one word) | x without one word: `simcse.augment`, kind delete_one_word |

A draw is a function of (seed, epoch, example) and of nothing else: a counter hashed by splitmix64, vectorised, about
1 us per batch of 64. A random generator with a state would have to be saved and replayed on resume.
"""

from dataclasses import dataclass

import numpy as np

from shared import InputError

OBJECTIVES = {"same_sentence": 0, "next_sentence": 1, "next_3_sentences": 3}
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniform(seed: int, epoch: int | np.ndarray, index: np.ndarray) -> np.ndarray:
    """One float64 in [0, 1) per example, the same for the same (seed, epoch, index) on every machine."""
    with np.errstate(over="ignore"):
        key = _splitmix64(np.uint64(seed) + _GOLDEN)
        key = _splitmix64(key ^ np.asarray(epoch, dtype=np.uint64))
        key = _splitmix64(key ^ np.asarray(index, dtype=np.uint64))
    return (key >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _splitmix64(x: np.ndarray) -> np.ndarray:
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Positives:
    """Anchors and their positives as sentence numbers.

    `anchors` (n,) are the sentences that have a positive; an example's index counts in them. `reach` (n,) is how many
    of the following sentences may be drawn; 0 means the sentence itself.
    """

    anchors: np.ndarray
    reach: np.ndarray
    seed: int

    def __len__(self) -> int:
        return len(self.anchors)

    def pick(self, epoch: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sentence numbers (anchor, positive), each (batch,), for examples `index` in epoch `epoch`."""
        anchor, reach = self.anchors[index], self.reach[index]
        step = 1 + (uniform(self.seed, epoch, index) * reach).astype(np.int64)
        return anchor, anchor + np.where(reach > 0, step, 0)


def positives(objective: str, document: np.ndarray | None, count: int, seed: int) -> Positives:
    """Set up an objective of Table 2 over `count` sentences.

    Args:
        document: (count,) document number of each sentence, in order; needed by the objectives on neighbours.

    Raises:
        InputError: an unknown objective, text without document order, or no two sentences of one document.
    """
    if objective not in OBJECTIVES:
        raise InputError(f"objective={objective}: give one of {', '.join(OBJECTIVES)}.")
    span = OBJECTIVES[objective]
    if span == 0:
        return Positives(np.arange(count), np.zeros(count, dtype=np.int64), seed)
    if document is None:
        raise InputError(
            f"objective={objective} needs sentences in document order: a .txt file (blank lines between documents) "
            f"or data=corpus_sentences."
        )
    last = np.searchsorted(document, document, side="right") - 1
    reach = np.minimum(last - np.arange(count), span)
    anchors = np.flatnonzero(reach > 0)
    if not len(anchors):
        raise InputError(f"objective={objective}: no document has two sentences, so no sentence has a next one.")
    return Positives(anchors, reach[anchors], seed)
