"""What stands in place of a masked token: `<mask>`, the token itself, or a random one (paper, section 6).

| scheme | kept | random | `<mask>` |
|---|---|---|---|
| mask only | 0 | 0 | 1 |
| 80-10-10 | 0.1 | 0.1 | 0.8 |
| + 5 % same | 0.05 | 0 | 0.95 |
| 5 % random | 0 | 0.05 | 0.95 |

A kept token is predicted but corrupts nothing: under 80-10-10 the context that is really lost is 0.9 m.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlm_masking.arrays import Array, is_torch, nonzero, table_like, take_rows, where
from mlm_masking.philox import WORD_RANGE, Purpose, blocks, words
from shared import InputError


def check_shares(p_same: Any, p_random: Any) -> None:
    """Raise InputError where the two are not the probabilities of exclusive cases."""
    for name, share in (("p_same", p_same), ("p_random", p_random)):
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share <= 1:
            raise InputError(f"{name}={share} is not a share of the masked tokens: give a number from 0 to 1")
    if p_same + p_random > 1:
        raise InputError(
            f"p_same={p_same} and p_random={p_random} add up to {p_same + p_random:g}: the two are shares of the "
            "masked tokens and the rest becomes <mask>, so they may add up to 1 at most"
        )


@dataclass(frozen=True)
class Replacement:
    """A replacement scheme for one vocabulary.

    Args:
        mask_id: what most masked tokens become.
        drawable: ids that a random replacement is drawn from; the paper's are all but `<s>`, `<pad>`, `</s>`, `<unk>`.
        p_same, p_random: shares of the masked tokens that are kept, and replaced at random.
        weights: one weight per drawable id (word frequencies, for instance); None = all alike.
    """

    mask_id: int
    drawable: np.ndarray = field(repr=False)
    p_same: float = 0.0
    p_random: float = 0.0
    weights: np.ndarray | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_shares(self.p_same, self.p_random)
        if self.p_random > 0 and len(self.drawable) == 0:
            raise InputError("p_random > 0, but the vocabulary has no token besides the special ones to draw from")

    @property
    def mask_only(self) -> bool:
        return self.p_same == 0 and self.p_random == 0

    def corrupt(
        self, input_ids: Array, chosen: Array, seed: int, epoch: int, index: Array, unit: Array | None = None
    ) -> Array:
        """`(rows, length)` ids with the chosen positions replaced.

        Args:
            chosen: `(rows, length)` bool, the masked positions.
            unit: `(rows, length)` number of each token's unit, where a unit (a word, an n-gram, a span) is kept,
                masked or replaced as a whole; None = every token for itself. Random ids are drawn per token all the
                same.
        """
        if self.mask_only:
            return where(chosen, self.mask_id, input_ids)
        decision = words(seed, epoch, index, input_ids.shape[1], Purpose.REPLACEMENT)
        if unit is not None:
            decision = take_rows(decision, unit)
        kept_below = int(self.p_same * WORD_RANGE)
        random_below = kept_below + int(self.p_random * WORD_RANGE)
        corrupted = where(chosen & (decision >= kept_below), self.mask_id, input_ids)
        if self.p_random > 0:
            rows, columns = nonzero(chosen & (decision >= kept_below) & (decision < random_below))
            corrupted[rows, columns] = self._random_ids(seed, epoch, index[rows], columns)
        return corrupted

    def _random_ids(self, seed: int, epoch: int, index: Array, column: Array) -> Array:
        """One id for each (example, position): 64 random bits scaled to the number of drawable ids."""
        high, low, *_ = blocks(seed, epoch, index, column, Purpose.RANDOM_ID)
        if self.weights is not None:
            uniform = (high * 2**21 + (low >> 11)) * 2.0**-53
            running = self.weights.cumsum() / self.weights.sum()
            if is_torch(index):
                import torch

                place = torch.searchsorted(table_like(running, index), uniform, right=True)
            else:
                place = running.searchsorted(uniform, side="right")
            return table_like(self.drawable, index)[place.clip(max=len(self.drawable) - 1)]
        count = len(self.drawable)
        return table_like(self.drawable, index)[(high * count + ((low * count) >> 32)) >> 32]


def drawable_ids(vocab_size: int, special_ids: tuple[int, ...]) -> np.ndarray:
    """Every id but the special ones, ascending. `<mask>` and unused ids stay in, as in the authors' release."""
    return np.setdiff1d(np.arange(vocab_size), special_ids)
