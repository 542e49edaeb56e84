"""From a stream of documents to examples of a model's length, with the bounds that attention needs.

    fixed_blocks      the stream cut every `length` tokens, across documents
    whole_documents   one document each; those longer than `max_length` in pieces, cut off or left out
    packed_documents  as many whole documents, in their order, as fit into `max_length`

Each is a map-style data set: `blocks[i]` is a dict of

    input_ids      int64 (n,)
    position_ids   int64 (n,): 0, 1, ... anew at the beginning of each document in the block
    cu_seqlens     int32 (documents in the block + 1,): where each begins, and n, as variable-length attention wants it
"""

from collections.abc import Sequence

import numpy as np

from shared import InputError
from shared.tokenization.token_file import TokenFile

Example = dict[str, np.ndarray]


class FixedBlocks(Sequence):
    """See `fixed_blocks`."""

    def __init__(self, file: TokenFile, length: int, keep_last: bool):
        _require_length("length", length)
        self.file, self.length = file, length
        self.count = -(-len(file) // length) if keep_last else len(file) // length
        if not self.count:
            raise InputError(f"{file.path} has {len(file)} tokens, less than one block of length={length}")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        start = range(self.count)[index] * self.length
        ids = self.file.tokens[start : start + self.length]
        starts = self.file.documents.starts
        inside = starts[np.searchsorted(starts, start, "right") : np.searchsorted(starts, start + len(ids), "left")]
        return _example(ids, np.unique(np.concatenate([[0], inside - start, [len(ids)]])))


class DocumentBlocks(Sequence):
    """Pieces of documents, one or several in a block.

    Args:
        pieces: [start, stop) of each in the stream, int64 (pieces, 2).
        first: block i is pieces[first[i]:first[i + 1]], int64 (blocks + 1,).
    """

    def __init__(self, file: TokenFile, pieces: np.ndarray, first: np.ndarray):
        if not len(pieces):
            raise InputError(f"{file.path} has no documents that can be taken")
        self.file, self.pieces, self.first = file, pieces, first

    def __len__(self) -> int:
        return len(self.first) - 1

    def __getitem__(self, index: int) -> Example:
        block = range(len(self))[index]
        pieces = self.pieces[self.first[block] : self.first[block + 1]]
        ids = np.concatenate([self.file.tokens[start:stop] for start, stop in pieces])
        return _example(ids, np.cumsum([0, *(pieces[:, 1] - pieces[:, 0])]))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each block, int64 (blocks,)."""
        return np.add.reduceat(self.pieces[:, 1] - self.pieces[:, 0], self.first[:-1])


def fixed_blocks(file: TokenFile, length: int, keep_last: bool = False) -> FixedBlocks:
    """Consecutive `length` tokens; the shorter rest at the end only with `keep_last`. InputError if there is none."""
    return FixedBlocks(file, length, keep_last)


def whole_documents(file: TokenFile, max_length: int | None = None, longer: str = "split") -> DocumentBlocks:
    """One document (or piece of one) each, at most `max_length` tokens.

    `longer` says what becomes of documents beyond it: "split" into pieces of `max_length`, "truncate", or "drop". Empty
    documents are left out. Raises InputError if none is left.
    """
    pieces = _document_pieces(file, max_length, longer)
    return DocumentBlocks(file, pieces, np.arange(len(pieces) + 1))


def packed_documents(file: TokenFile, max_length: int, longer: str = "split") -> DocumentBlocks:
    """Whole documents packed in their order: a block ends before the first that does not fit. See `whole_documents`."""
    pieces = _document_pieces(file, max_length, longer)
    # A block that begins with piece p ends before after[p].
    ends = np.cumsum(pieces[:, 1] - pieces[:, 0])
    begins = ends - (pieces[:, 1] - pieces[:, 0])
    after = np.searchsorted(ends, begins + max_length, side="right").tolist()
    first = [0]
    while first[-1] < len(pieces):
        first.append(after[first[-1]])
    return DocumentBlocks(file, pieces, np.array(first))


def _document_pieces(file: TokenFile, max_length: int | None, longer: str) -> np.ndarray:
    """[start, stop) in the stream of every piece, int64 (pieces, 2)."""
    if longer not in ("split", "truncate", "drop"):
        raise InputError(f"longer={longer!r}: choose split, truncate or drop")
    starts, stops = file.documents.starts[:-1], file.documents.starts[1:]
    if max_length is None:
        return np.stack([starts, stops], axis=1)[stops > starts]
    _require_length("max_length", max_length)
    if longer == "drop":
        kept = (stops > starts) & (stops - starts <= max_length)
        return np.stack([starts[kept], stops[kept]], axis=1)
    if longer == "truncate":
        return np.stack([starts, np.minimum(stops, starts + max_length)], axis=1)[stops > starts]
    counts = -(-(stops - starts) // max_length)
    nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    begins = np.repeat(starts, counts) + nth * max_length
    return np.stack([begins, np.minimum(begins + max_length, np.repeat(stops, counts))], axis=1)


def _example(ids: np.ndarray, bounds: np.ndarray) -> Example:
    lengths = np.diff(bounds)
    return {
        "input_ids": ids.astype(np.int64),
        "position_ids": np.arange(len(ids)) - np.repeat(bounds[:-1], lengths),
        "cu_seqlens": bounds.astype(np.int32),
    }


def _require_length(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name}={value}: must be at least 1")
