"""Sentences and pairs as token ids: `<s> A </s>` or `<s> A </s></s> B </s>` (the release's input), without padding.

Rows lie one after another in one array with offsets, so 400,000 pairs cost what their tokens cost. Texts are stripped
and encoded without a leading space, as in pre-training. What a model's positions cannot hold is cut (of a pair, from
the longer side) and counted: nothing is cut silently.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared import InputError

CHUNK = 20_000


@dataclass(frozen=True)
class Sequences:
    """Token rows: `ids` of all of them (int32), `offsets` (rows + 1), and how many rows were cut to the limit."""

    ids: np.ndarray
    offsets: np.ndarray
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """(rows,) tokens per row."""
        return np.diff(self.offsets)

    def rows(self, chosen: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        return [self[row] for row in chosen]

    def statistics(self, trained_length: int | None = None) -> dict[str, float]:
        """Lengths, rows cut, and the share of rows longer than `trained_length`, whose positions were never trained."""
        lengths = self.lengths
        found = {
            "examples": len(self),
            "mean_length": round(float(lengths.mean()), 2),
            "max_length": int(lengths.max()),
            "truncated": self.truncated,
        }
        if trained_length is not None:
            found["beyond_trained_length"] = round(float((lengths > trained_length).mean()), 5)
        return found


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of `<s>`, `</s>`, `<pad>` and `<mask>` (None where the tokenizer has none)."""

    bos: int
    eos: int
    pad: int
    mask: int | None


def special_tokens(tokenizer: Any) -> SpecialTokens:
    """The special ids of a tokenizer. Raises InputError where start, end or padding is missing."""
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    for name, value in (("<s>", bos), ("</s>", eos), ("<pad>", tokenizer.pad_token_id)):
        if value is None:
            raise InputError(f"the tokenizer names no {name} token: its configuration is not a RoBERTa one")
    return SpecialTokens(bos, eos, tokenizer.pad_token_id, tokenizer.mask_token_id)


def encode(
    tokenizer: Any,
    text_a: Sequence[str],
    text_b: Sequence[str] | None = None,
    *,
    limit: int,
    vocab_size: int | None = None,
) -> Sequences:
    """Tokenise sentences, or pairs.

    Args:
        limit: tokens per row, special ones included.
        vocab_size: rows of the model's embedding; ids beyond it are refused.

    Raises:
        InputError: a limit without room for text, or an id that the model does not have.
    """
    special = special_tokens(tokenizer)
    room = limit - (2 if text_b is None else 4)
    if room < 1:
        raise InputError(f"max_length={limit} leaves no room for text beside the special tokens")
    rows: list[np.ndarray] = []
    truncated = 0
    for start in range(0, len(text_a), CHUNK):
        first = _ids(tokenizer, text_a[start : start + CHUNK])
        second = _ids(tokenizer, text_b[start : start + CHUNK]) if text_b is not None else None
        for index, a in enumerate(first):
            if second is None:
                truncated += len(a) > room
                row = [special.bos, *a[:room], special.eos]
            else:
                b = second[index]
                truncated += len(a) + len(b) > room
                a, b = cut_pair(a, b, room)
                row = [special.bos, *a, special.eos, special.eos, *b, special.eos]
            rows.append(np.array(row, dtype=np.int32))
    found = joined(rows, truncated)
    check_vocabulary(found.ids, vocab_size)
    return found


def joined(rows: Sequence[np.ndarray], truncated: int = 0) -> Sequences:
    """Rows of ids as one `Sequences`."""
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    ids = np.concatenate(rows).astype(np.int32) if rows else np.zeros(0, dtype=np.int32)
    return Sequences(ids, offsets, truncated)


def cut_pair(a: list[int], b: list[int], room: int) -> tuple[list[int], list[int]]:
    """Cut the longer side until both fit into `room`; equally long sides are cut alike."""
    over = len(a) + len(b) - room
    if over <= 0:
        return a, b
    longer, shorter = max(len(a), len(b)), min(len(a), len(b))
    first_cut = min(over, longer - shorter)
    rest = over - first_cut
    keep_a = len(a) - (first_cut if len(a) >= len(b) else 0) - rest // 2
    return a[:keep_a], b[: room - keep_a]


def check_vocabulary(ids: np.ndarray, vocab_size: int | None) -> None:
    """Raise InputError for ids the model's embedding does not have."""
    if vocab_size is not None and ids.size and int(ids.max()) >= vocab_size:
        raise InputError(
            f"token id {int(ids.max())} is beyond the model's {vocab_size} embeddings: "
            "tokenizer and checkpoint do not belong together"
        )


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    stripped = [text.strip() for text in texts]
    return tokenizer(stripped, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
