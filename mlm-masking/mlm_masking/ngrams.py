"""Collocations as masking units: a list of word n-grams, and the segmentation of a block by it (PMI masking).

Levine et al., "PMI-Masking: Principled masking of correlated spans" (ICLR 2021). A block's words are joined into the
listed n-grams: the longest one wins over those inside it, of overlapping ones a random order decides, and every word
that is left is a unit of its own. `mlm_masking.pmi` builds a list; the authors' published lists are read as they are:
one n-gram per line, lower case, words parted by spaces.

Words are GPT-2's pre-tokens in lower case: runs of letters, of digits, of other signs, and contractions ('s, 't, ...
after a letter). They are compared by 64-bit hashes that can be put together from hashes of tokens, so that a batch is
segmented by a handful of array operations whatever its tokenization, and n-grams are looked up in sorted arrays.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlm_masking.arrays import Array, is_torch, table_like
from mlm_masking.philox import Purpose, words
from mlm_masking.vocabulary import Vocabulary
from shared import InputError

log = logging.getLogger(__name__)

LENGTHS = (2, 3, 4, 5)
CONTRACTION = r"'(?:s|t|re|ve|m|ll|d)"
WORD = re.compile(rf"(?<!\s){CONTRACTION}|[^\W\d_]+|\d+|(?:[^\w\s]|_)+")
UPPER = re.compile(r"[A-Z]")
PIECES = re.compile(r"(?:^|\s)(?:##\w|\S*[Ġ▁])")

# Hash of bytes b1..bk: sum of BYTE[bi] * BASE ** (k - i) modulo 2**64; of two strings joined: h(a) * BASE ** len(b) +
# h(b). BASE is odd, so its powers have inverses and hashes of any stretch come from running sums.
BASE = 0x5851F42D4C957F2D
NGRAM_BASE = 0xD1342543DE82EF95
FILTER_BITS = 23
_U64 = np.uint64


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: every input bit moves every output bit."""
    values = (values ^ (values >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> _U64(27))) * _U64(0x94D049BB133111EB)
    return values ^ (values >> _U64(31))


BYTE = _mix(np.arange(1, 257, dtype=_U64) * _U64(0x9E3779B97F4A7C15))
_BYTE_LIST = [int(each) for each in BYTE]


def raw_hash(text: bytes) -> int:
    total = 0
    for byte in text:
        total = (total * BASE + _BYTE_LIST[byte]) & 0xFFFFFFFFFFFFFFFF
    return total


def word_hashes(texts: list[str]) -> np.ndarray:
    """`(n,)` uint64, one per word, of its lower-case UTF-8."""
    return _mix(np.array([raw_hash(text.lower().encode()) for text in texts], dtype=_U64))


def ngram_hashes(hashes: np.ndarray, length: int) -> np.ndarray:
    """Of every `length` consecutive words: `(n,)` word hashes -> `(n - length + 1,)` uint64."""
    count = len(hashes) - length + 1
    if count <= 0:
        return np.empty(0, _U64)
    total = hashes[:count].copy()
    for place in range(1, length):
        total = total * _U64(NGRAM_BASE) + hashes[place : place + count]
    return _mix(total)


class NgramList:
    """A set of word n-grams, 2 to 5 words each, by their hashes.

    Args:
        hashes: n -> uint64 hashes of the listed n-grams (`ngram_hashes`).
    """

    def __init__(self, hashes: dict[int, np.ndarray]):
        self.hashes = {length: np.unique(hashes.get(length, np.empty(0, _U64))) for length in LENGTHS}
        # Most looked-up n-grams are not listed; a table of one byte per slot turns nearly all of them away at once.
        self._filters = {}
        for length, known in self.hashes.items():
            slots = np.zeros(2**FILTER_BITS, bool)
            slots[known >> _U64(64 - FILTER_BITS)] = True
            self._filters[length] = slots

    def __len__(self) -> int:
        return sum(len(known) for known in self.hashes.values())

    def contains(self, hashes: np.ndarray, length: int) -> np.ndarray:
        """`(n,)` bool: which n-grams of `length` words are listed."""
        known = self.hashes[length]
        found = self._filters[length][hashes >> _U64(64 - FILTER_BITS)]
        maybe = np.flatnonzero(found)
        if len(maybe):
            place = np.searchsorted(known, hashes[maybe]).clip(max=len(known) - 1)
            found[maybe] = known[place] == hashes[maybe]
        return found


def read_ngrams(path: str | Path) -> NgramList:
    """A list of n-grams, one per line in lower case, words parted by spaces; what follows a tab is not read.

    Raises:
        InputError: no such file, nothing in it, capitals, subword pieces, or lines that have not 2 to 5 words.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(
            f"masking.ngrams={path}: no such file; build a list with `python -m mlm_masking.pmi text=<files>`, or "
            "give the path of a published one"
        )
    ids: dict[str, int] = {}
    by_length: dict[int, list[list[int]]] = {length: [] for length in LENGTHS}
    left_out = 0
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            ngram = line.split("\t", 1)[0].strip()
            if not ngram:
                continue
            _check_ngram(ngram, f"{path}, line {number}")
            parts = [part for word in ngram.split() for part in WORD.findall(word)]  # "don't" is two, as in a block
            if len(parts) in by_length:
                by_length[len(parts)].append([ids.setdefault(part, len(ids)) for part in parts])
            else:
                left_out += 1
    if not ids:
        raise InputError(f"masking.ngrams={path} has no n-gram in it: expected one per line, words parted by spaces")
    if left_out:
        log.warning(
            "%s: %d n-grams have more than 5 words once punctuation is parted, and are left out", path, left_out
        )
    table = word_hashes(list(ids))
    hashes = {}
    for length, rows in by_length.items():
        flat = table[np.array(rows, dtype=np.int64).reshape(-1)]
        hashes[length] = ngram_hashes(flat, length)[::length] if rows else np.empty(0, _U64)
    return NgramList(hashes)


def _check_ngram(ngram: str, where: str) -> None:
    if UPPER.search(ngram):
        raise InputError(f"{where}: {ngram!r} has capitals; words are looked up in lower case, so lower-case the list")
    if PIECES.search(ngram):
        raise InputError(f"{where}: {ngram!r} holds subword pieces; the list must be of whole words, parted by spaces")
    if not 2 <= (count := len(ngram.split())) <= 5:
        raise InputError(
            f"{where}: {ngram!r} has {count} words; n-grams of 2 to 5 words, parted by spaces, can be listed"
        )


@dataclass(frozen=True)
class _TokenTables:
    """Per token: its place in a word, and its part of a word's hash."""

    begins: np.ndarray  # carries the leading space, or is special
    special: np.ndarray
    first: np.ndarray  # kind of its first character
    last: np.ndarray
    value: np.ndarray  # hash of its bytes in lower case
    power: np.ndarray  # BASE ** number of bytes
    inverse: np.ndarray  # of that


LETTER, DIGIT, SIGN, SHORT, SPACE, JOIN = range(6)
SIGN_LEADS = (0xC2, 0xE2)  # first bytes of most signs outside ASCII: Latin-1's, and general punctuation


def _kind(character: str) -> int:
    if character.isspace():
        return SPACE
    if character.isdecimal():
        return DIGIT
    return LETTER if character.isalnum() else SIGN


def _kinds(raw: bytes) -> tuple[int, int]:
    """Kinds of a token's first and last character; JOIN where the token goes on with whatever is before it, or after.

    Tokens stay within a pre-token, so that the kind changes only between tokens. Of a character that is split over
    tokens only a guess is possible; a wrong one parts or joins two words, and masks them apart or together. A
    contraction is seen where it is one token, as it is in all but very small vocabularies.
    """
    if not raw:
        return JOIN, JOIN  # a space on its own: the word follows
    text = raw.decode("utf-8", "replace")
    if re.fullmatch(CONTRACTION, text):
        return SHORT, SHORT
    if "\ufffd" in (text[0], text[-1]):
        if raw[0] & 0xC0 == 0x80:
            return JOIN, LETTER
        kind = SIGN if raw[0] in SIGN_LEADS else LETTER
        return kind, kind
    return _kind(text[0]), _kind(text[-1])


def _token_tables(vocabulary: Vocabulary) -> _TokenTables:
    size = vocabulary.size
    first, last = np.zeros(size, np.int8), np.zeros(size, np.int8)
    value, power, inverse = np.zeros(size, _U64), np.ones(size, _U64), np.ones(size, _U64)
    base_inverse = pow(BASE, -1, 2**64)
    special = np.zeros(size, bool)
    special[[*vocabulary.special_ids, vocabulary.mask_id]] = True
    for token in np.flatnonzero(~special):
        raw = vocabulary.texts[token]
        first[token], last[token] = _kinds(raw)
        text = raw.decode("utf-8", "replace")
        lower = raw if "\ufffd" in text else text.lower().encode()
        value[token] = raw_hash(lower)
        power[token], inverse[token] = (pow(each, len(lower), 2**64) for each in (BASE, base_inverse))
    return _TokenTables(vocabulary.word_begin | special, special, first, last, value, power, inverse)


class Segmenter:
    """Cuts blocks of token ids into units: listed n-grams, and single words.

    Raises:
        InputError: a vocabulary that does not tell its tokens' texts.
    """

    WARN_AFTER = 512  # blocks without a single listed n-gram

    def __init__(self, ngrams: NgramList, vocabulary: Vocabulary):
        if vocabulary.texts is None or vocabulary.word_begin is None:
            raise InputError(
                "masking.strategy=pmi needs the text of every token: build the Vocabulary from a byte-level BPE "
                "tokenizer (Vocabulary.from_tokenizer)"
            )
        self.ngrams, self._tables = ngrams, _token_tables(vocabulary)
        self._blocks, self._found = 0, False

    def unit_begins(self, seed: int, epoch: int, index: Array, input_ids: Array) -> Array:
        """`(rows, length)` bool: the first token of each unit. Overlaps are decided by (seed, epoch, index)."""
        ids = input_ids.cpu().numpy() if is_torch(input_ids) else input_ids
        places = index.cpu().numpy() if is_torch(index) else index
        begins, starts, hashes = self.words(ids)
        row = starts // ids.shape[1]
        first, last = self._candidates(hashes, row)
        if len(first):
            random = words(seed, epoch, places, ids.shape[1], Purpose.OVERLAP).reshape(-1)[starts[first]]
            first, last = resolve_overlaps(first, last, random)
            flat = begins.reshape(-1)
            for inner in range(1, max(LENGTHS)):
                flat[starts[first[first + inner < last] + inner]] = False
        self._warn_of_no_match(len(ids), len(first) > 0)
        return table_like(begins, input_ids)

    def words(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`(rows, length)` ids -> where words begin, the same as flat positions, and each word's hash.

        A special token is a word of its own, and so is what follows it, with or without a space.
        """
        tables = self._tables
        begins, special = tables.begins[ids], tables.special[ids]
        first, last = tables.first[ids[:, 1:]], tables.last[ids[:, :-1]]
        begins[:, 1:] |= special[:, :-1] | ((first != last) & (first != JOIN) & (last != JOIN))
        begins[:, 0] = True
        flat = ids.reshape(-1)
        power, inverse = np.cumprod(tables.power[flat]), np.cumprod(tables.inverse[flat])
        total = np.cumsum(tables.value[flat] * inverse)
        starts = np.flatnonzero(begins.reshape(-1))
        ends = np.append(starts[1:], len(flat)) - 1
        before = np.where(starts > 0, total[starts - 1], _U64(0))
        return begins, starts, _mix(power[ends] * (total[ends] - before))

    def _candidates(self, hashes: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First word, and word after the last, of every listed n-gram that is not inside another."""
        last = np.zeros(len(hashes), np.int64)
        for length in LENGTHS:
            found = np.flatnonzero(self.ngrams.contains(ngram_hashes(hashes, length), length))
            found = found[row[found] == row[found + length - 1]]
            last[found] = found + length
        reach = np.maximum.accumulate(last)
        outside = last > np.concatenate([[0], reach[:-1]])
        first = np.flatnonzero(outside & (last > 0))
        return first, last[first]

    def _warn_of_no_match(self, blocks: int, found: bool) -> None:
        self._found |= found
        before, self._blocks = self._blocks, self._blocks + blocks
        if not self._found and before < self.WARN_AFTER <= self._blocks:
            log.warning(
                "none of the %d n-grams of masking.ngrams is in the first %d blocks: every word is masked for itself; "
                "is the list of another language, or tokenized otherwise?",
                len(self.ngrams),
                self._blocks,
            )


def resolve_overlaps(first: np.ndarray, last: np.ndarray, random: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A random maximal set of disjoint intervals: they are taken by ascending `random`, if still free.

    Args:
        first, last: `(n,)` intervals [first, last), both strictly ascending, none longer than 5.
    Returns:
        The intervals taken.
    """
    order = random.astype(np.int64) << 32 | np.arange(len(first))  # no ties
    waiting, taken = np.ones(len(first), bool), np.zeros(len(first), bool)
    near = [(shift, first[shift:] < last[:-shift]) for shift in range(1, max(LENGTHS)) if shift < len(first)]
    while waiting.any():
        # Those that come before all waiting intervals that they overlap are taken, as one by one they would be.
        win = waiting.copy()
        for shift, overlap in near:
            both = overlap & waiting[shift:] & waiting[:-shift]
            win[shift:] &= ~(both & (order[:-shift] < order[shift:]))
            win[:-shift] &= ~(both & (order[shift:] < order[:-shift]))
        taken |= win
        lost = win.copy()
        for shift, overlap in near:
            lost[shift:] |= overlap & win[:-shift]
            lost[:-shift] |= overlap & win[shift:]
        waiting &= ~lost
    return first[taken], last[taken]
