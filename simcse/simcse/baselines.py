"""Encoders that have learned nothing: the floor that every table at laptop scale has to show.

A randomly initialised two-layer encoder with mean pooling already reaches a Spearman correlation of about 0.6 on STS-B
dev, and counting words reaches 0.56, because overlap of words explains much of a similarity score. An improvement that
is not measured from there means nothing. Both functions are `encode(list[str]) -> (n, dim) float32`, deterministic on
every machine (crc32 of the token, not Python's salted hash).
"""

import zlib
from collections.abc import Sequence

import numpy as np

BUCKETS = 4096
DIMENSIONS = 300


def bag_of_words(sentences: Sequence[str], buckets: int = BUCKETS) -> np.ndarray:
    """Counts of lower-cased whitespace tokens in crc32 buckets, shape (n, buckets)."""
    counts = np.zeros((len(sentences), buckets), dtype=np.float32)
    for row, sentence in enumerate(sentences):
        for token in sentence.lower().split():
            counts[row, zlib.crc32(token.encode()) % buckets] += 1
    return counts


def random_vectors(sentences: Sequence[str], dimensions: int = DIMENSIONS) -> np.ndarray:
    """The mean of fixed Gaussian vectors, one per token, shape (n, dimensions): word overlap without sparsity."""
    known: dict[str, np.ndarray] = {}
    means = np.zeros((len(sentences), dimensions), dtype=np.float32)
    for row, sentence in enumerate(sentences):
        tokens = sentence.lower().split()
        for token in tokens:
            if token not in known:
                known[token] = np.random.RandomState(zlib.crc32(token.encode())).standard_normal(dimensions)
        if tokens:
            means[row] = np.mean([known[token] for token in tokens], axis=0)
    return means
