"""The k nearest of many float16 vectors by cosine, for all queries at once: fast in float32, exact in float64.

The release re-normalises and multiplies in float64, one query at a time, which turns the whole key matrix into float64
for each of them. Here a matrix product in float32 over blocks of keys finds the candidates; those within the product's
rounding error of the k-th best (a bound, not a guess) are then scored in float64 from the stored values. So the result
is that of float64, whatever the blocks, threads or device; equal vectors have equal scores, and ties fall to the
smaller position.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from shared import InputError

BLOCK_BYTES = 64 * 2**20  # of float32 keys at a time
KEEP_BYTES = 2**30  # up to this size float32 keys stay in memory between searches
QUERIES = 1024  # at a time
SLACK = 64  # candidates beyond k
ROUNDING = 2.0**-24


class CosineSearch:
    """Searches `vectors`, `(n, hidden)` float16 or float32, which may be memory-mapped; a zero vector's cosine is 0.

    Args:
        device: of the matrix products; None is CUDA where there is one.
    """

    def __init__(self, vectors: np.ndarray, device: str | torch.device | None = None) -> None:
        if vectors.ndim != 2 or not vectors.size:
            raise InputError(f"vectors have shape {vectors.shape}; (n, hidden) with n, hidden >= 1 is needed")
        self.vectors = vectors
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        n, hidden = vectors.shape
        self._rows = max(1, BLOCK_BYTES // (4 * hidden))
        self._keeps = 4 * n * hidden <= KEEP_BYTES
        self._kept: list[torch.Tensor] = []
        self._lengths: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def lengths(self) -> np.ndarray:
        """`(n,)` float64, 1 in place of 0."""
        if self._lengths is None:
            parts = [_lengths(self.vectors[start : start + self._rows]) for start in range(0, len(self), self._rows)]
            self._lengths = np.concatenate(parts)
        return self._lengths

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the k nearest `(n_queries, k)` int64, nearest first, and their cosines, float32.

        Args:
            queries: `(n_queries, hidden)`, any floating type, finite.
            k: 1 to n.

        Raises InputError for queries of another width, or k out of range.
        """
        if queries.ndim != 2 or queries.shape[1] != self.vectors.shape[1]:
            raise InputError(
                f"queries have shape {queries.shape}, but the indexed vectors have {self.vectors.shape[1]} dimensions: "
                "they come from another model"
            )
        if not 1 <= k <= len(self):
            raise InputError(f"k={k}: give a number from 1 to the {len(self)} vectors")
        exact = queries.astype(np.float64)
        exact /= _lengths(exact)[:, None]
        positions = np.empty((len(exact), k), np.int64)
        scores = np.empty((len(exact), k), np.float32)
        for start in range(0, len(exact), QUERIES):
            some = exact[start : start + QUERIES]
            for row, found in enumerate(self._candidates(some, k), start=start):
                cosines = self._cosines(found, exact[row])
                best = np.lexsort((found, -cosines))[:k]
                positions[row], scores[row] = found[best], cosines[best]
        return positions, scores

    def _candidates(self, queries: np.ndarray, k: int) -> Iterator[np.ndarray]:
        """For every query, positions among which its k nearest are."""
        n, hidden = self.vectors.shape
        wanted = min(n, k + max(SLACK, k // 2))
        units = torch.from_numpy(queries.astype(np.float32)).to(self.device)
        best = torch.empty(len(queries), 0, device=self.device)
        where = torch.empty(len(queries), 0, dtype=torch.int64, device=self.device)
        for start, block in self._blocks():
            scores, found = _largest(units @ block.T, wanted)
            best, where = torch.cat([best, scores], 1), torch.cat([where, found + start], 1)
            best, kept = _largest(best, wanted)
            where = where.gather(1, kept)
        # Each of two scores that are compared may be off by (hidden + 2) roundings of numbers up to 1.
        least = best.sort(1, descending=True).values[:, k - 1] - 4 * (hidden + 2) * ROUNDING
        inside = best >= least[:, None]
        open_ended = inside.all(1) & (wanted < n)
        for row in range(len(queries)):
            if open_ended[row]:
                scores = torch.cat([units[row] @ block.T for _, block in self._blocks()])
                yield torch.nonzero(scores >= least[row])[:, 0].cpu().numpy()
            else:
                yield where[row][inside[row]].cpu().numpy()

    def _blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """(first position, float32 unit vectors on the device), block by block."""
        for number, start in enumerate(range(0, len(self), self._rows)):
            if number < len(self._kept):
                yield start, self._kept[number]
                continue
            stored = np.array(self.vectors[start : start + self._rows])  # a copy: torch takes no read-only memory
            block = torch.from_numpy(stored).to(self.device).float()
            block /= torch.from_numpy(self.lengths[start : start + len(stored)]).to(self.device).float()[:, None]
            if self._keeps:
                self._kept.append(block)
            yield start, block

    def _cosines(self, positions: np.ndarray, query: np.ndarray) -> np.ndarray:
        """Float64 cosines. einsum sums each row in the same order, wherever the row stands; BLAS does not."""
        found = np.empty(len(positions))
        for start in range(0, len(positions), self._rows):
            some = positions[start : start + self._rows]
            rows = self.vectors[some].astype(np.float64)
            found[start : start + len(some)] = np.einsum("ij,j->i", rows, query) / self.lengths[some]
        return found


def _largest(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.topk(scores, min(k, scores.shape[1]), dim=1, sorted=False)


def _lengths(rows: np.ndarray) -> np.ndarray:
    """Euclidean lengths `(n,)` float64, 1 in place of 0."""
    rows = rows.astype(np.float64)
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    return np.where(lengths == 0, 1.0, lengths)
