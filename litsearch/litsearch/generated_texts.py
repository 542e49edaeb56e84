"""Texts of any number and length, for benchmarks: resampled from real ones, or drawn from Zipf's law."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from litsearch.keys import title_abstract
from litsearch.locations import open_benchmark

SEGMENT_TERMS = 20
SENTENCE_WORDS = 24
EXPONENT = 1.15


def real_texts(max_papers: int = 8000) -> tuple[str, list[str], list[str]]:
    """(name, texts, questions): the real small corpus where the mirror has it, else what is installed here."""
    benchmark = open_benchmark({"source": "auto", "max_papers": max_papers, "max_queries": 136})
    texts = [title_abstract(paper) for paper in benchmark.corpus.papers]
    return benchmark.name, texts, [query.query for query in benchmark.queries]


def resampled(documents: Sequence[Sequence[str]], count: int, seed: int = 0) -> list[list[str]]:
    """`count` documents as long as the given ones, each put together from runs of 20 terms of several of them.

    Terms keep their frequencies and (within a run) their company, so that postings are as long as in a real corpus.
    """
    generator = np.random.default_rng(seed)
    usable = [document for document in documents if len(document) > SEGMENT_TERMS]
    made = []
    for length in generator.choice([len(document) for document in usable], count):
        document: list[str] = []
        for source in generator.integers(len(usable), size=-(-int(length) // SEGMENT_TERMS)):
            start = int(generator.integers(len(usable[source]) - SEGMENT_TERMS))
            document += usable[source][start : start + SEGMENT_TERMS]
        made.append(document)
    return made


def zipf_texts(count: int, words: int, vocabulary: int = 500_000, seed: int = 0) -> Iterator[str]:
    """`count` texts of `words` words, one at a time, with a full stop after every 24th.

    Frequencies fall as (rank + 2.7) ** -1.15, so that a text of 6,000 words has about 1,500 different ones, as a paper
    has. Frequent words are short, and most are unlike English enough that the stemmer leaves them alone.
    """
    generator = np.random.default_rng(seed)
    cumulative = np.cumsum((np.arange(vocabulary) + 2.7) ** -EXPONENT)
    cumulative /= cumulative[-1]
    known = np.array([_word(rank) for rank in range(vocabulary)], dtype=object)
    for _ in range(count):
        drawn = known[np.searchsorted(cumulative, generator.random(words)).clip(max=vocabulary - 1)].tolist()
        for i in range(SENTENCE_WORDS - 1, words, SENTENCE_WORDS):
            drawn[i] += "."
        yield " ".join(drawn)


def _word(rank: int) -> str:
    letters = ""
    rank += 26
    while rank:
        rank, letter = divmod(rank, 26)
        letters = "abcdefghijklmnopqrstuvwxyz"[letter] + letters
    return letters
