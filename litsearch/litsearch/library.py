"""An index as a library to ask: questions to papers, and from a paper to what it cites and what cites it.

    library = open_library("my_index")
    for hit in library.search("Which papers rank passages by cosine?", k=10):
        print(hit.rank, hit.score, hit.paper.title, hit.text)

It needs the index's folder alone (and, for a dense index, the model that made it): papers are shown from what
`litsearch.index` keeps beside the vectors.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from litsearch import storage
from litsearch.data import Paper
from litsearch.index import ENDS, PASSAGES, Index, open_index
from litsearch.keys import needs_full_paper, rank_papers_by_keys, title_abstract
from litsearch.text import terms
from shared import InputError

SCORES = {"bm25": "BM25", "tfidf": "cosine", "dense": "cosine", "random": "cosine", "hybrid": "fused ranks"}
LABELS = {
    "bm25": "BM25", "tfidf": "TF-IDF", "lsa": "LSA", "minilm": "MiniLM", "simcse": "SimCSE", "e5": "E5-large-v2",
    "gtr": "GTR-T5-large", "instructor": "Instructor-XL", "grit": "GritLM-7B", "random": "random vectors",
}  # fmt: skip
KEYS = {"title_abstract": "titles and abstracts", "full_paper": "full texts", "paragraphs": "paragraphs"}


@dataclass(frozen=True)
class Hit:
    """A paper that was found: `rank` from 1, `score` as the retriever gives it, `text` what was searched in it (the
    abstract, or the passage of the full text that matched best)."""

    rank: int
    score: float
    paper: Paper
    text: str


class Library:
    """An opened index. Searches run one at a time, because one takes all cores already."""

    def __init__(self, index: Index) -> None:
        self.index, self.corpus = index, index.corpus
        self._searching = threading.Lock()
        metadata = index.metadata
        self.retriever, self.key, self.data = index.retriever.name, metadata["key"], metadata.get("data")
        self.kind = metadata["config"].get("kind") or self.retriever
        if len(index.owners) and index.owners.max() >= len(self.corpus):
            raise InputError(f"{index.folder}: its files do not belong together; make the index again")

    def __len__(self) -> int:
        return len(self.corpus)

    def about(self) -> dict[str, Any]:
        """What is searched, and with what."""
        parts = (self.index.metadata["config"].get("parts") or {}).values()
        names = [part.get("name") for part in parts] or [self.retriever]
        return {
            "papers": len(self),
            "retriever": self.retriever,
            "label": " + ".join(LABELS.get(name, name) for name in names),
            "key": self.key,
            "searched": KEYS[self.key],
            "score": SCORES.get(self.kind, "score"),
            "data": self.data,
            "citations": bool(self._citing),
        }

    def warm_up(self) -> None:
        """Load the model of a dense retriever, which otherwise the first question waits for."""
        if self.kind in ("dense", "hybrid"):
            self.search("papers", 1)

    def search(self, question: str, k: int) -> list[Hit]:
        """The k best papers, best first; fewer where there are fewer.

        A retriever by words finds nothing where no word of the question occurs: papers that merely are in the corpus
        are no result. Raises InputError for an empty question and for k < 1.
        """
        if not isinstance(question, str) or not question.strip():
            raise InputError("the question is empty; ask in a few words")
        check_k(k)
        with self._searching:
            positions, keys, scores = rank_papers_by_keys(
                self.index.retriever.search, self.index.owners, [question], min(k, len(self))
            )
        hits: list[Hit] = []
        for position, key, score in zip(positions[0].tolist(), keys[0].tolist(), scores[0].tolist(), strict=True):
            paper = self.corpus.papers[position]
            text = self._passage(key) or paper.abstract
            if not self._by_words or score != 0 or _share_a_term(question, paper, text):
                hits.append(Hit(len(hits) + 1, score, paper, text))
        return hits

    @property
    def _by_words(self) -> bool:
        return self.kind in ("bm25", "tfidf") and not self.index.metadata["config"].get("components")

    @functools.cached_property
    def _ends(self) -> np.ndarray | None:
        has_passages = needs_full_paper(self.key) and (self.index.folder / f"{ENDS}.npy").is_file()
        return storage.open_array(self.index.folder, ENDS) if has_passages else None

    def _passage(self, key: int) -> str:
        if self._ends is None:
            return ""
        start, end = self._ends[key : key + 2].tolist()
        with (self.index.folder / PASSAGES).open("rb") as passages:
            passages.seek(start)
            return passages.read(end - start).decode("utf-8", "replace")

    # ------------------------------------------------------------------------------------------------------- citations

    @functools.cached_property
    def _citing(self) -> dict[int, list[int]]:
        citing: dict[int, list[int]] = {}
        for paper in self.corpus.papers:
            for cited in dict.fromkeys(paper.citations):
                if cited in self.corpus and cited != paper.corpusid:
                    citing.setdefault(cited, []).append(paper.corpusid)
        return citing

    def cites(self, paper: Paper) -> list[Paper]:
        """The papers of the corpus that a paper cites, in its order."""
        cited = dict.fromkeys(paper.citations)
        return [self.corpus.paper(i) for i in cited if i in self.corpus and i != paper.corpusid]

    def cited_by(self, paper: Paper) -> list[Paper]:
        """The papers of the corpus that cite a paper, in the corpus' order."""
        return [self.corpus.paper(corpusid) for corpusid in self._citing.get(paper.corpusid, ())]


def check_k(k: Any) -> None:
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InputError(f"k={k!r}: give a whole number of at least 1")


def _share_a_term(question: str, paper: Paper, text: str) -> bool:
    return not set(terms(question)).isdisjoint(terms(f"{title_abstract(paper)}\n{text}"))


def open_library(
    folder: str | Path | None,
    retriever: Mapping[str, Any] | None = None,
    key: str | None = None,
    corpus: str | None = None,
) -> Library:
    """The library of an index folder.

    Args:
        retriever: a `retriever` configuration the index must have been made with. key, corpus: the key and the corpus'
            fingerprint it must have. None does not ask.

    Raises InputError: no index there, one that was made of or with something else, or a model that is not to be had.
    """
    how = "`python -m litsearch.index data=own data.corpus=PAPERS index=FOLDER` makes one"
    if folder is None:
        raise InputError(f"index is missing: give an index's folder, index=FOLDER ({how})")
    if not Path(folder).expanduser().exists():
        raise InputError(f"index={folder} does not exist ({how})")
    metadata = storage.read_metadata(folder, {"key": key, "corpus": corpus})
    if retriever is not None:
        from litsearch.retrievers import make_retriever

        options = {name: value for name, value in retriever.items() if name not in ("folder", "cache")}
        wanted = make_retriever(options, metadata.get("key", "title_abstract")).metadata()
        storage.read_metadata(folder, wanted)
    return Library(open_index(folder))
