"""The tokenizer of the released BM25, frozen: lower case, NLTK's word_tokenize, 179 stop words dropped, Porter stems.

    terms("Title: Attention Is All You Need")         # ["titl", ":", "attent", "need"]
    for batch in tokenize(texts, vocabulary): ...      # term ids of many texts, in order, over several processes

Punctuation marks are terms too. What NLTK would download is in `english/`, and what NLTK would compute is recomputed in
`sentences`, `words` and `porter` (compared with NLTK by the tests): importing `nltk` takes 4 s of CPU time.

Speed comes from remembering. Text repeats its pieces (what lies between two spaces), so the terms of a piece are
computed once; Punkt's decisions likewise; and whole texts are remembered on disk (`litsearch.token_cache`).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import hashlib
import multiprocessing
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from litsearch import sentences
from litsearch.memo import Memo
from litsearch.porter import stem
from litsearch.sentences import sentence_spans
from litsearch.words import is_plain_end, is_plain_start, split_inside, split_last, split_sentence
from shared import InputError

STOP_WORDS = Path(__file__).parent / "english" / "stopwords.txt"
RULES = 1  # raise it when a rule changes: part of the version that caches are keyed by
PIECES = 1_000_000  # remembered per process, about 200 MB
BATCH_CHARACTERS = 1_000_000
WORTH_A_PROCESS = 500_000  # characters in a batch below which it is tokenized where it is


@functools.cache
def stop_words() -> frozenset[str]:
    """NLTK's 179 English stop words of 2023 and before."""
    return frozenset(STOP_WORDS.read_text(encoding="utf-8").split())


@functools.cache
def tokenizer_version() -> str:
    """Changes whenever the same text could give other terms: rules, frozen parameters, Python's Unicode tables."""
    digest = hashlib.sha256(STOP_WORDS.read_bytes() + sentences.PARAMETERS.read_bytes()).hexdigest()[:12]
    return f"{RULES}-{digest}-unicode{unicodedata.unidata_version}"


def _terms_of(words: Iterable[str]) -> tuple[str, ...]:
    stopped = stop_words()
    return tuple(_stems[word] for word in words if word not in stopped)


_stems = Memo(stem, PIECES)
_inside = Memo(lambda piece: _terms_of(split_inside(piece)), PIECES)
_last = Memo(lambda piece: _terms_of(split_last(piece)), PIECES)


def terms(text: str) -> list[str]:
    """The terms of a text, in order, repeats included."""
    text = text.lower()
    found: list[str] = []
    for start, end in sentence_spans(text):
        pieces = text[start:end].split(" ")
        if len(pieces) > 1 and is_plain_start(pieces[0]) and is_plain_end(pieces[-1]):
            last = pieces.pop()
            found.extend(chain.from_iterable(map(_inside.__getitem__, pieces)))
            found.extend(_last[last])
        else:
            found.extend(_terms_of(split_sentence(text[start:end])))
    return found


class Numbering(dict[str, int]):
    """Numbers terms in the order in which they first appear: `numbering[term]` adds what is new."""

    def __missing__(self, term: str) -> int:
        number = self[term] = len(self)
        return number


@dataclass(frozen=True)
class Tokens:
    """Several texts' terms: `ids` (all of them, one after the other, int32), and how many each text has (int32)."""

    ids: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class LocalTokens:
    """Tokens whose ids are positions in their own list of terms, as a worker returns them and the cache keeps them."""

    terms: list[str]
    tokens: Tokens

    def numbered(self, numbering: Numbering) -> Tokens:
        """The same with the ids of `numbering`, to which new terms are added in the order of their appearance."""
        numbers = np.fromiter(map(numbering.__getitem__, self.terms), np.int32, len(self.terms))
        return Tokens(numbers[self.tokens.ids], self.tokens.lengths)


def tokenize_locally(texts: list[str]) -> LocalTokens:
    """Terms of some texts, numbered in the order of their first appearance in these texts."""
    numbering = Numbering()
    per_text = [list(map(numbering.__getitem__, terms(text))) for text in texts]
    ids = np.fromiter(chain.from_iterable(per_text), np.int32, sum(map(len, per_text)))
    return LocalTokens(list(numbering), Tokens(ids, np.array(list(map(len, per_text)), np.int32)))


def tokenize(
    texts: Iterable[str],
    numbering: Numbering,
    processes: int = 1,
    cache: str | Path | None = None,
    batch_characters: int = BATCH_CHARACTERS,
) -> Iterator[Tokens]:
    """Term ids of many texts in order, batch by batch; ids are the same for any number of processes and any cache.

    Args:
        texts: read once, as far as needed, so a generator of any length will do.
        numbering: term -> id; new terms are added in the order of their first appearance.
        processes: worker processes; 1 is this one. Short inputs stay here too. (A script that asks for more needs
            `if __name__ == "__main__":`, because workers are spawned.)
        cache: a folder that remembers texts by their hash and the tokenizer's version.
        batch_characters: how much text makes a batch; two batches per process are under way, which bounds memory.

    Raises InputError for processes < 1 or a text that is no str.
    """
    if isinstance(processes, bool) or not isinstance(processes, int) or processes < 1:
        raise InputError(f"processes={processes!r}: give a whole number of at least 1")
    with contextlib.ExitStack() as stack:
        workers = stack.enter_context(_Workers(processes))
        if cache is None:
            remembered = None
        else:
            from litsearch.token_cache import TokenCache  # late: it is of no use to a worker, which imports this file

            remembered = stack.enter_context(TokenCache(Path(cache), tokenizer_version()))
        under_way: deque[Callable[[], LocalTokens]] = deque()
        for batch in _batches(texts, batch_characters):
            if remembered is None:
                under_way.append(workers.start(batch))
            else:
                known = remembered.look_up(batch)
                fresh = workers.start([batch[i] for i in known.missing])
                under_way.append(functools.partial(remembered.merge, known, fresh))
            while len(under_way) > 2 * processes - 1:
                yield under_way.popleft()().numbered(numbering)
        while under_way:
            yield under_way.popleft()().numbered(numbering)


def _batches(texts: Iterable[str], characters: int) -> Iterator[list[str]]:
    batch, size = [], 0
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {position} is {type(text).__name__}, not str")
        batch.append(text)
        size += len(text) + 1
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Workers:
    """Tokenizes lists of texts elsewhere, or here when asked for the result."""

    def __init__(self, processes: int):
        self.processes = processes
        self.pool: concurrent.futures.ProcessPoolExecutor | None = None

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def start(self, texts: list[str]) -> Callable[[], LocalTokens]:
        """Begin, and give back what waits for the result."""
        if self.processes == 1 or sum(map(len, texts)) < WORTH_A_PROCESS:
            return functools.partial(tokenize_locally, texts)
        if self.pool is None:
            # Spawned, not forked: the caller may have torch's threads running, which a fork would freeze in any state.
            spawn = multiprocessing.get_context("spawn")
            self.pool = concurrent.futures.ProcessPoolExecutor(self.processes, spawn)
        return functools.partial(self._result, self.pool.submit(tokenize_locally, texts))

    @staticmethod
    def _result(future: concurrent.futures.Future) -> LocalTokens:
        try:
            return future.result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise RuntimeError(
                "a tokenizing process died (memory?); a script needs `if __name__ == '__main__':`, or processes=1"
            ) from error
