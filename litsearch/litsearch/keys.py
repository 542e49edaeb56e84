"""Text keys: what of a paper is indexed, and from the ranked keys back to ranked papers.

title_abstract   "Title: " + title + newline + "Abstract: " + abstract, the paper's default
full_paper       the full text as it is
paragraphs       the pieces of the full text between two newlines that have at least 10 words; a paper's score is that
                 of its best paragraph (the release stops at lists of paragraphs, from which no recall can be computed)

`dedup_keys` is what the release does, because it keeps its index in a dict from text to id: papers with identical text
collapse into one key, at the place of the first of them and with the id of the last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from litsearch.data import Paper
from shared import InputError

KEYS = ("title_abstract", "full_paper", "paragraphs")
PARAGRAPH_WORDS = 10

Search = Callable[[Sequence[str], int], tuple[np.ndarray, np.ndarray]]


def title_abstract(paper: Paper) -> str:
    return f"Title: {paper.title}\nAbstract: {paper.abstract}"


def paragraphs(full_paper: str) -> list[str]:
    """Split at exactly two newlines (a third one stays at the start of the next piece); keep those of 10 words."""
    return [piece for piece in full_paper.split("\n\n") if len(piece.split()) >= PARAGRAPH_WORDS]


def needs_full_paper(key: str) -> bool:
    return key in ("full_paper", "paragraphs")


def texts_of(paper: Paper, key: str) -> list[str]:
    """A paper's keys: one, or as many as it has paragraphs. Raises InputError for an unknown key."""
    if key == "title_abstract":
        return [title_abstract(paper)]
    if key == "full_paper":
        return [paper.full_paper]
    if key == "paragraphs":
        return paragraphs(paper.full_paper)
    raise InputError(f"key={key!r} is not one of {', '.join(KEYS)}")


class Keys(Iterable[str]):
    """The keys of papers as a stream of texts; whose they are is known when they have been gone through.

        keys = Keys(corpus.papers, "paragraphs")
        retriever.index(keys)
        keys.owners                              # (n_keys,) int64: position of each key's paper

    Args:
        papers: in order; a generator can be gone through once, a list as often as needed.
        key: one of `KEYS`.
        dedup_keys: collapse identical texts as the release does.
    """

    def __init__(self, papers: Iterable[Paper], key: str = "title_abstract", dedup_keys: bool = False):
        if key not in KEYS:
            raise InputError(f"key={key!r} is not one of {', '.join(KEYS)}")
        self.papers, self.key, self.dedup_keys = papers, key, dedup_keys
        self._owners: np.ndarray | None = None

    def __iter__(self) -> Iterator[str]:
        owners: list[int] = []
        seen: dict[bytes, int] = {}
        for position, paper in enumerate(self.papers):
            for text in texts_of(paper, self.key):
                if self.dedup_keys:
                    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
                    first = seen.setdefault(digest, len(owners))
                    if first < len(owners):
                        owners[first] = position
                        continue
                owners.append(position)
                yield text
        self._owners = np.array(owners, np.int64)
        if not owners:
            raise InputError(
                f"key={self.key}: there is nothing to index"
                + ("; the papers have no full text" if needs_full_paper(self.key) else "")
            )

    @property
    def owners(self) -> np.ndarray:
        """Position of each key's paper. Raises RuntimeError before the keys have been gone through."""
        if self._owners is None:
            raise RuntimeError("owners are known only when all keys have been read")
        return self._owners


def rank_papers(
    search: Search, owners: np.ndarray, queries: Sequence[str], k: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The k best papers per question, by each paper's best key, exactly.

    A paper's rank among papers follows from the first place where one of its keys is found, so it is enough to look as
    deep into the ranked keys as it takes to see k papers; the depth is doubled where that is not deep enough.

    Args:
        search: (queries, k) -> positions and scores of keys, as `Retriever.search`.
        owners: `(n_keys,)` position of each key's paper.
        k: papers wanted; fewer are returned where fewer papers have a key.

    Returns:
        positions of papers and their scores, one array per question.
    """
    positions, _, scores = rank_papers_by_keys(search, owners, queries, k)
    return positions, scores


def rank_papers_by_keys(
    search: Search, owners: np.ndarray, queries: Sequence[str], k: int
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """As `rank_papers`, with each paper's best key: positions of papers, positions of keys, scores."""
    many = len(owners) > 1 and bool((np.diff(np.sort(owners)) == 0).any())
    depth = min(len(owners), 4 * k if many else k)
    positions: list[np.ndarray] = [np.empty(0, np.int64)] * len(queries)
    keys: list[np.ndarray] = [np.empty(0, np.int64)] * len(queries)
    scores: list[np.ndarray] = [np.empty(0, np.float32)] * len(queries)
    open_ = list(range(len(queries)))
    while open_:
        found, found_scores = search([queries[i] for i in open_], depth)
        still_open = []
        for row, i in enumerate(open_):
            papers = owners[found[row]]
            first = np.sort(np.unique(papers, return_index=True)[1])[:k]
            positions[i], keys[i], scores[i] = papers[first], found[row][first], found_scores[row][first]
            if len(first) < k and depth < len(owners):
                still_open.append(i)
        open_, depth = still_open, min(len(owners), 2 * depth)
    return positions, keys, scores
