"""Near-duplicates among many texts: MinHash signatures, banded, every suspicion checked exactly.

Two texts are near-duplicates when the sets of their 3-word shingles (words lower-cased, punctuation ignored) have a
Jaccard similarity of at least 0.7. Signatures of 64 hashes in 16 bands of 4 let a pair at 0.7 be seen with probability
1 - (1 - 0.7^4)^16 = 0.988 (at 0.8: 0.9998, at 1: 1); a pair that is seen is then decided on the real sets, so that
nothing is dropped by chance. A generated page that differs in one name per sentence stays, a vendored copy, a re-export
and a docstring repeated for each overload go.

Words are hashed by CRC-32, not by Python's seeded hash: signatures are equal in every process and on every machine.
Cost on two-gigahertz cores: about 25 MB of text per second and process, nearly all of it finding the words.
"""

import re
import zlib
from collections.abc import Sequence

import numpy as np

SHINGLE_WORDS = 3
JACCARD = 0.7
BANDS, ROWS = 16, 4
_WORDS = re.compile(r"\w+")
_random = np.random.RandomState(20210418)
_FACTORS = _random.randint(1, 2**62, size=(BANDS * ROWS, 1), dtype=np.int64).astype(np.uint64) * 2 + 1
_SHIFTS = _random.randint(0, 2**62, size=(BANDS * ROWS, 1), dtype=np.int64).astype(np.uint64)
_WORD_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)
_BAND_FACTORS = np.array(
    [0x9FB21C651E98DF25, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F, 0xE7037ED1A0B428DB], dtype=np.uint64
)
"""Odd 64-bit multipliers: hashing by multiplication keeps the high bits, which are the ones used."""


class _WordHashes(dict):
    def __missing__(self, word: str) -> int:
        value = self[word] = zlib.crc32(word.encode("utf-8", "surrogatepass"))
        return value


_hashes = _WordHashes()


def words(text: str) -> list[str]:
    return _WORDS.findall(text.lower())


def shingles(text_words: Sequence[str]) -> np.ndarray:
    """The distinct 3-word shingles as sorted uint64 hashes; a text of fewer words is one shingle."""
    return np.unique(_shingle_hashes(text_words))


def _shingle_hashes(text_words: Sequence[str]) -> np.ndarray:
    hashes = np.fromiter(map(_hashes.__getitem__, text_words), dtype=np.uint64, count=len(text_words))
    if len(hashes) < SHINGLE_WORDS:
        hashes = np.pad(hashes, (0, SHINGLE_WORDS - len(hashes)))
    count = len(hashes) - SHINGLE_WORDS + 1
    mixed = np.zeros(count, dtype=np.uint64)
    for offset, factor in enumerate(_WORD_FACTORS):
        mixed += hashes[offset : offset + count] * factor
    return mixed ^ (mixed >> np.uint64(29))


def signatures(texts_words: Sequence[Sequence[str]]) -> np.ndarray:
    """MinHash band keys of each text, uint64 `(texts, 16)`: two texts share a key where four of their minima agree."""
    if not texts_words:
        return np.zeros((0, BANDS), dtype=np.uint64)
    parts = [_shingle_hashes(text) for text in texts_words]
    starts = np.cumsum([0, *map(len, parts[:-1])])
    hashes = np.concatenate(parts)
    minima = np.empty((BANDS * ROWS, len(parts)), dtype=np.uint64)
    for row in range(BANDS * ROWS):  # one row at a time: 64 rows at once would need 64 x the memory of the hashes
        minima[row] = np.minimum.reduceat((hashes * _FACTORS[row] + _SHIFTS[row]) >> np.uint64(32), starts)
    keys = (minima.reshape(BANDS, ROWS, -1) * _BAND_FACTORS[:, None]).sum(axis=1, dtype=np.uint64)
    # The band's number goes into the key, so that one table serves all bands.
    return ((keys ^ (keys >> np.uint64(31))) * np.uint64(BANDS) + np.arange(BANDS, dtype=np.uint64)[:, None]).T.copy()


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Jaccard similarity of two sorted sets."""
    common = np.intersect1d(first, second, assume_unique=True).size
    return common / (first.size + second.size - common)


class NearDuplicates:
    """The texts kept so far. `is_new(text, keys)` says whether one is no near-duplicate of any, and then keeps it.

    The first of a group is kept, so the order of the calls decides which one it is.
    """

    def __init__(self) -> None:
        self._kept: list[str] = []
        self._tables: dict[int, list[int]] = {}

    def is_new(self, text: str, keys: np.ndarray) -> bool:
        keys = keys.tolist()
        suspects = {index for key in keys for index in self._tables.get(key, ())}
        if suspects:
            own = shingles(words(text))
            for index in sorted(suspects):
                if jaccard(own, shingles(words(self._kept[index]))) >= JACCARD:
                    return False
        for key in keys:
            self._tables.setdefault(key, []).append(len(self._kept))
        self._kept.append(text)
        return True
