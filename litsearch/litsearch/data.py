"""The benchmark's papers and questions, as typed values that were checked when they were read.

Three configurations of the release (`princeton-nlp/LitSearch`): `query` (597 questions), `corpus_clean` (64,183 papers)
and `corpus_s2orc` (the same papers as S2ORC records, `litsearch.s2orc`). Each is read from parquet, JSON or JSON
lines. One's own papers are read from JSON lines or from a folder of texts (`litsearch.own_papers`).

A question whose answer is not in the corpus, a set that belongs to no group of the paper's table, or an id of the wrong
type is an error here, because each of them would silently become a zero or a missing row in a table later.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from litsearch.records import iter_records
from shared import InputError

log = logging.getLogger(__name__)

# The prefix of query_set decides the group in the paper's Table 3.
GROUPS = {"inline_": "inline", "manual_": "author"}
BREADTHS = {0: "broad", 1: "specific"}
SHOWN = 5  # how many offending ids an error message lists


@dataclass(frozen=True, slots=True)
class Paper:
    """One paper; `citations` are corpusids. `source` is the file a paper of one's own was read from."""

    corpusid: int
    title: str
    abstract: str
    citations: tuple[int, ...] = ()
    full_paper: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Query:
    """One question. specificity: 0 broad, 1 specific; quality: 1 or 2, the authors' grade; corpusids: the answers."""

    query_set: str
    query: str
    specificity: int
    quality: int
    corpusids: tuple[int, ...]

    @property
    def group(self) -> str:
        """ "inline" (written by GPT-4 from inline citations) or "author" (written by authors of the papers)."""
        return next(group for prefix, group in GROUPS.items() if self.query_set.startswith(prefix))

    @property
    def breadth(self) -> str:
        """ "broad" or "specific"."""
        return BREADTHS[self.specificity]


class Fingerprint:
    """A sha256 over papers in their order, filled as they stream by: two corpora are the same if it is."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, paper: Paper) -> None:
        fields = [paper.corpusid, paper.title, paper.abstract, list(paper.citations), paper.full_paper]
        self._digest.update(json.dumps(fields).encode() + b"\n")

    def hex(self) -> str:
        return self._digest.hexdigest()


@dataclass
class Corpus:
    """Papers in the order of the file; a paper's position is its index in `papers`.

    `source` is the file or folder it was read from. Where the full texts were left there (they are 2.4 GB for the whole
    corpus), `has_full_papers` is False and `stream()` reads them again.
    """

    papers: list[Paper]
    source: Path | None = None
    has_full_papers: bool = True
    without_full_text: int | None = None
    known_fingerprint: str | None = None
    _positions: dict[int, int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.papers:
            raise InputError(f"{self.source or 'the corpus'} holds no papers")
        for position, paper in enumerate(self.papers):
            first = self._positions.setdefault(paper.corpusid, position)
            if first != position:
                raise InputError(
                    f"corpusid {paper.corpusid} appears twice, at positions {first} and {position}; "
                    "each paper needs an id of its own"
                )

    def __len__(self) -> int:
        return len(self.papers)

    def __contains__(self, corpusid: int) -> bool:
        return corpusid in self._positions

    def position(self, corpusid: int) -> int:
        """Index in `papers`. Raises InputError for an id that is not in the corpus."""
        try:
            return self._positions[corpusid]
        except KeyError:
            raise InputError(f"corpusid {corpusid!r} is not in the corpus of {len(self)} papers") from None

    def paper(self, corpusid: int) -> Paper:
        return self.papers[self.position(corpusid)]

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 over all fields of all papers: what runs and indexes are checked against."""
        if self.known_fingerprint is not None:
            return self.known_fingerprint
        fingerprint = Fingerprint()
        for paper in self.papers:
            fingerprint.add(paper)
        return fingerprint.hex()

    def stream(self) -> Iterator[Paper]:
        """The papers in order with their full texts, one at a time."""
        return iter(self.papers) if self.has_full_papers else iter_papers(self.source)

    def facts(self) -> dict[str, int]:
        """What is allowed but worth knowing: papers without any text, citations, and citations that lead outside."""
        citations = [cited for paper in self.papers for cited in paper.citations]
        lacking = self.without_full_text
        if lacking is None:
            lacking = sum(not paper.full_paper.strip() for paper in self.papers)
        return {
            "papers": len(self),
            "without_text": sum(not (p.title.strip() or p.abstract.strip()) for p in self.papers),
            "without_full_text": lacking,
            "citations": len(citations),
            "citations_outside": sum(cited not in self for cited in citations),
        }


# ------------------------------------------------------------------------------------------------------------ reading


def iter_papers(path: str | Path) -> Iterator[Paper]:
    """Papers of a `corpus_clean` or `corpus_s2orc` file or folder, one at a time (the full texts are 2.4 GB).

    Raises InputError naming file, record, field, value and fix.
    """
    from litsearch.s2orc import is_s2orc, paper_from_s2orc

    for where, record in iter_records(path):
        yield paper_from_s2orc(record, where) if is_s2orc(record) else _paper(record, where)


def load_corpus(path: str | Path, full_papers: bool = True) -> Corpus:
    """All papers of a file or folder.

    Args:
        full_papers: False leaves the full texts in the file (`Corpus.stream` reads them); the fingerprint is the same.

    Raises InputError (see `iter_papers`), also for an id that appears twice.
    """
    papers, fingerprint, lacking = [], Fingerprint(), 0
    for paper in iter_papers(path):
        fingerprint.add(paper)
        lacking += not paper.full_paper.strip()
        papers.append(paper if full_papers else replace(paper, full_paper=""))
    corpus = Corpus(papers, Path(path).expanduser(), full_papers, lacking, fingerprint.hex())
    facts = corpus.facts()
    for fact, text in (
        ("without_text", "papers have neither title nor abstract; they stay in the corpus"),
        ("citations_outside", "citations lead to papers outside the corpus; one-hop expansion leaves them out"),
    ):
        if facts[fact]:
            log.warning("%s: %d %s", path, facts[fact], text)
    return corpus


def load_queries(path: str | Path, corpus: Corpus | None = None) -> list[Query]:
    """The questions of a `query` file or folder.

    Args:
        corpus: where given, every answer must be in it.

    Raises:
        InputError: naming file, record, field, value and fix; a question that appears twice; answers that are missing.
    """
    queries = [query_from_record(record, where) for where, record in iter_records(path)]
    if not queries:
        raise InputError(f"{path} holds no questions")
    repeated = [query for query, count in Counter(q.query for q in queries).items() if count > 1]
    if repeated:
        raise InputError(f"{path}: {len(repeated)} questions appear more than once, the first is {repeated[0]!r}")
    if corpus is not None:
        check_answers(queries, corpus)
    return queries


def check_answers(queries: Iterable[Query], corpus: Corpus) -> None:
    """Raises InputError where a question's answers are not in the corpus; they would silently count as not found."""
    missing = [corpusid for query in queries for corpusid in query.corpusids if corpusid not in corpus]
    if missing:
        shown = ", ".join(map(str, missing[:SHOWN])) + (", ..." if len(missing) > SHOWN else "")
        raise InputError(
            f"corpusids: {len(missing)} answers are not in the corpus of {len(corpus)} papers ({shown}); "
            "use the corpus that belongs to the questions, or leave those questions out"
        )


def fingerprint_queries(queries: Sequence[Query]) -> str:
    """sha256 over questions and answers, in order."""
    fields = [[q.query_set, q.query, q.specificity, q.quality, list(q.corpusids)] for q in queries]
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------------- checked fields


def _paper(record: dict[str, Any], where: str) -> Paper:
    return Paper(
        corpusid=whole_number(record, "corpusid", where),
        title=text(record, "title", where),
        abstract=text(record, "abstract", where),
        citations=tuple(ids(record, "citations", where)),
        full_paper=text(record, "full_paper", where),
    )


def query_from_record(record: dict[str, Any], where: str) -> Query:
    """A checked question; `where` names its place in messages."""
    query_set = text(record, "query_set", where)
    if not query_set.startswith(tuple(GROUPS)):
        raise InputError(
            f"{where}: query_set is {query_set!r}; it must start with {' or '.join(GROUPS)}, which is its group"
        )
    query = text(record, "query", where)
    if not query.strip():
        raise InputError(f"{where}: query is empty; give the question's text or take the record out")
    specificity = whole_number(record, "specificity", where)
    if specificity not in BREADTHS:
        raise InputError(f"{where}: specificity is {specificity}; it must be 0 (broad) or 1 (specific)")
    answers = ids(record, "corpusids", where)
    if not answers:
        raise InputError(f"{where}: corpusids is empty; a question needs at least one answer")
    if len(set(answers)) < len(answers):
        raise InputError(f"{where}: corpusids {answers} repeats an id; each answer counts once")
    return Query(query_set, query, specificity, whole_number(record, "quality", where), tuple(answers))


def present(record: dict[str, Any], name: str, where: str) -> Any:
    if name not in record:
        raise InputError(f"{where}: there is no field {name!r}; it has {', '.join(map(str, record)) or 'none'}")
    return record[name]


def text(record: dict[str, Any], name: str, where: str) -> str:
    """A text; null is read as an empty one, which some abstracts of the release are."""
    value = present(record, name, where)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"{where}: {name} is {describe(value)}; it must be text")
    return value


def whole_number(record: dict[str, Any], name: str, where: str) -> int:
    value = present(record, name, where)
    if isinstance(value, bool) or not isinstance(value, int):
        fix = " (write it without quotes)" if isinstance(value, str) and value.strip().isdigit() else ""
        raise InputError(f"{where}: {name} is {describe(value)}; it must be a whole number{fix}")
    return value


def ids(record: dict[str, Any], name: str, where: str) -> list[int]:
    value = present(record, name, where)
    if value is None:
        return []
    if not isinstance(value, list):
        raise InputError(f"{where}: {name} is {describe(value)}; it must be a list of corpusids, e.g. [123]")
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int):
            raise InputError(f"{where}: {name} holds {describe(item)}; corpusids are whole numbers")
    return value


def describe(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "the text", bool: "the truth value", type(None): "null"}
    shown = repr(value)
    return f"{names.get(type(value), type(value).__name__)} {shown if len(shown) < 60 else shown[:57] + '...'}"
