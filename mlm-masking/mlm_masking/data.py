"""Text as the blocks that are masked: a stream of token ids cut into blocks, each with `<s>` put before it.

Raw text: a line is a sentence or paragraph. Lines are stripped, encoded without a blank before them and ended by id 2;
an empty line stays as a lone id 2 and so marks the end of a document. With `block_length` L a block is `<s>` and up to
L - 1 ids of the stream (the authors' release, "break mode"):

    none          consecutive L - 1 ids, whatever ends inside them; the last, shorter one is kept
    complete      whole lines, as many as fit; a line longer than L - 1 stays whole and alone
    complete_doc  the same, never across an empty line; the empty lines themselves are dropped
    eos           one line each
"""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from mlm_masking.fairseq_bin import is_fairseq, read_fairseq, vocabulary_size
from shared import InputError
from shared.tokenization import TokenFile

log = logging.getLogger(__name__)

MODES = ("none", "complete", "complete_doc", "eos")
PARTS = ("all", "train", "valid")
READ_TOKENS = 2**24


class BlockDataset(Dataset):
    """Blocks of a token stream: `ds[i]` is {"input_ids": int64 (n,), "index": i}, n <= `max_length`.

    Args:
        tokens: ids of the whole stream, (tokens,), any unsigned or signed integer type, memory mapped or not.
        block_length: the most ids in a block, `<s>` included (single longer lines aside, see `mode`).
        vocab_size, bos_id, pad_id, eos_id, mask_id: the tokenizer's.
        mode: one of MODES. lines: returns the lines' bounds, int64 (lines + 1,); by default they end at `eos_id`.
    Raises:
        InputError: an unknown mode, a block shorter than 2, an empty stream, or one of empty lines alone. When an item
            is taken: an id outside the vocabulary, or `<mask>` in the data.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        block_length: int,
        *,
        vocab_size: int,
        mask_id: int,
        bos_id: int = 0,
        pad_id: int = 1,
        eos_id: int = 2,
        mode: str = "none",
        lines: Callable[[], np.ndarray] | None = None,
        source: str = "the data",
    ):
        self.opened: tuple | None = None
        if mode not in MODES:
            raise InputError(f"data.mode={mode!r}: choose one of {', '.join(MODES)}")
        if block_length < 2:
            raise InputError(f"data.block_length={block_length}: a block needs at least 2 ids (<s> and one more)")
        if not len(tokens):
            raise InputError(f"{source} is empty: it has no tokens")
        self.tokens, self.block_length, self.mode, self.source = tokens, block_length, mode, source
        self.vocab_size, self.mask_id = vocab_size, mask_id
        self.bos_id, self.pad_id, self.eos_id = bos_id, pad_id, eos_id
        _refuse_empty_lines(tokens, eos_id, source)
        bounds = None if mode == "none" else (lines() if lines is not None else line_bounds(tokens, eos_id))
        self.slices = None if bounds is None else block_slices(bounds, block_length - 1, mode)

    def __len__(self) -> int:
        return -(-len(self.tokens) // (self.block_length - 1)) if self.slices is None else len(self.slices)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | int]:
        index = range(len(self))[index]
        if self.slices is None:
            start, stop = index * (self.block_length - 1), (index + 1) * (self.block_length - 1)
        else:
            start, stop = self.slices[index]
        body = self.tokens[start:stop]
        block = np.empty(len(body) + 1, np.int64)
        block[0], block[1:] = self.bos_id, body
        self._check(block, index)
        return {"input_ids": block, "index": index}

    def __reduce__(self):
        # A worker process opens the files itself: pickling a mapped array would send it whole.
        return (open_blocks, self.opened) if self.opened else super().__reduce__()

    @property
    def max_length(self) -> int:
        """Ids in the longest block: what the model's positions must hold."""
        if self.slices is None:
            return min(self.block_length, len(self.tokens) + 1)
        return int((self.slices[:, 1] - self.slices[:, 0]).max()) + 1

    @property
    def lengths(self) -> np.ndarray:
        """Ids in each block, int64 (blocks,)."""
        if self.slices is not None:
            return self.slices[:, 1] - self.slices[:, 0] + 1
        lengths = np.full(len(self), self.block_length, np.int64)
        lengths[-1] = len(self.tokens) - (len(self) - 1) * (self.block_length - 1) + 1
        return lengths

    def _check(self, block: np.ndarray, index: int) -> None:
        smallest, largest = block.min(), block.max()
        if largest >= self.vocab_size or smallest < 0:
            raise InputError(
                f"{self.source}: block {index} holds id {smallest if smallest < 0 else largest}, but "
                f"the vocabulary has {self.vocab_size} ids. Data and tokenizer do not belong together."
            )
        if (block == self.mask_id).any():
            raise InputError(
                f"{self.source}: block {index} already contains <mask> (id {self.mask_id}). "
                "Give unmasked text, and the tokenizer it was made with."
            )


def open_blocks(
    path: str | Path, block_length: int, mode: str = "none", part: str = "all", valid_percent: float = 5.0
) -> BlockDataset:
    """Open a token file, or a shard of fairseq's (`mlm_masking.fairseq_bin`), as blocks.

    Args:
        part: "all", or "train" and "valid": the stream is divided where a line ends, so that `valid_percent` of it lies
            behind.
    Raises:
        InputError: see `TokenFile.open`, `read_fairseq` and `BlockDataset`; or a tokenizer without the special ids.
    """
    if part not in PARTS:
        raise InputError(f"data.part={part!r}: choose one of {', '.join(PARTS)}")
    if part != "all" and not 0 < valid_percent < 100:
        raise InputError(f"data.valid_percent={valid_percent}: must lie between 0 and 100")
    stream, known, lines = (_fairseq_stream if is_fairseq(path) else _token_stream)(path)
    start, stop = 0, len(stream)
    if part != "all" and stop:
        cut = _line_end(stream, int(stop * (1 - valid_percent / 100)), known["eos_id"])
        start, stop = (0, cut) if part == "train" else (cut, stop)
        if start == stop:
            raise InputError(f"{path}: valid_percent={valid_percent} leaves nothing for part={part}; give more text")
    within = None if lines is None else lambda: _bounds_within(lines, start, stop)
    source = str(path) if part == "all" else f"{path} ({part})"
    blocks = BlockDataset(stream[start:stop], block_length, **known, mode=mode, lines=within, source=source)
    blocks.opened = (path, block_length, mode, part, valid_percent)
    return blocks


def _token_stream(path: str | Path) -> tuple[np.ndarray, dict[str, int], None]:
    file = TokenFile.open(path)
    lacking = [role for role in ("bos", "pad", "eos", "mask") if role not in file.special_ids]
    if lacking:
        raise InputError(f"{path}: its tokenizer has no {lacking[0]} token, which masked language modelling needs")
    ids = {f"{role}_id": file.special_ids[role] for role in ("bos", "pad", "eos", "mask")}
    return file.tokens, {"vocab_size": file.vocab_size, **ids}, None


def _fairseq_stream(path: str | Path) -> tuple[np.ndarray, dict[str, int], np.ndarray]:
    shard, size = read_fairseq(path), vocabulary_size(path)
    ids = {"bos_id": 0, "pad_id": 1, "eos_id": 2, "mask_id": size - 1}
    return shard.tokens, {"vocab_size": size, **ids}, shard.bounds


def _line_end(stream: np.ndarray, position: int, eos_id: int) -> int:
    """Where the line around `position` ends, and the stream's end if none does after it."""
    for start in range(position, len(stream), READ_TOKENS):
        ends = np.flatnonzero(stream[start : start + READ_TOKENS] == eos_id)
        if len(ends):
            return start + int(ends[0]) + 1
    return len(stream)


def _bounds_within(bounds: np.ndarray, start: int, stop: int) -> np.ndarray:
    return np.unique(np.clip(bounds, start, stop)) - start if start or stop < bounds[-1] else bounds


def line_bounds(tokens: np.ndarray, eos_id: int) -> np.ndarray:
    """Where lines begin, and the end of the last: int64 (lines + 1,). What follows the last `eos_id` is one too."""
    ends = [
        np.flatnonzero(tokens[start : start + READ_TOKENS] == eos_id) + start + 1
        for start in range(0, len(tokens), READ_TOKENS)
    ]
    bounds = np.concatenate([np.zeros(1, np.int64), *ends])
    return bounds if bounds[-1] == len(tokens) else np.append(bounds, len(tokens))


def block_slices(bounds: np.ndarray, limit: int, mode: str) -> np.ndarray:
    """[start, stop) of each block of whole lines, int64 (blocks, 2); `limit` is the most ids of the stream in one."""
    starts, stops = bounds[:-1], bounds[1:]
    if mode == "eos":
        return np.stack([starts, stops], axis=1)
    # A block that begins with line i ends before line after[i]: the first line that does not fit any more, or that is
    # empty; never before i + 1, so that a line longer than the limit stays whole.
    after = np.searchsorted(stops, starts + limit, side="right")
    if mode == "complete_doc":
        empty = np.append(np.flatnonzero(stops - starts <= 1), len(starts))
        after = np.minimum(after, empty[np.searchsorted(empty, np.arange(len(starts)))])
    first, total, chosen = 0, len(starts), []
    is_empty = stops - starts <= 1 if mode == "complete_doc" else np.zeros(total, bool)
    after, is_empty = np.maximum(after, np.arange(1, total + 1)).tolist(), is_empty.tolist()
    while first < total:
        if not is_empty[first]:
            chosen.append(first)
        first = after[first]
    chosen = np.array(chosen, np.int64)
    return np.stack([starts[chosen], stops[np.asarray(after)[chosen] - 1]], axis=1)


def _refuse_empty_lines(tokens: np.ndarray, eos_id: int, source: str) -> None:
    """The first token that is not an end of line is nearly always at the very beginning, so this costs nothing."""
    for start in range(0, len(tokens), READ_TOKENS):
        if (tokens[start : start + READ_TOKENS] != eos_id).any():
            return
    raise InputError(f"{source} holds empty lines alone")
