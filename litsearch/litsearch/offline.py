"""A corpus for machines without the benchmark: what is installed here, laid out as papers, questions and citations.

Documents of `shared.corpus` (docstrings and package descriptions) become papers: qualified name as title, first
paragraph as abstract, the whole body as full text. The summary line, which is no part of the body, is the question; it
was written by the same author about the same thing, so finding its body is a real retrieval task. A summary that
several documents share is a broad question with all of them as answers. Names of other documents of the same package
that a body refers to (in backticks, roles or "see also") are its citations.

The numbers mean nothing beside the paper's: other texts, other questions.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from litsearch.data import Corpus, Paper, Query
from shared import InputError
from shared.corpus import Document, documents

MIN_QUESTION_WORDS = 5
MOST_ANSWERS = 5
# A docstring's summary is nobody's question in so many words; a package's one line was written to be found by.
SETS = {"docstring": "inline_docstring", "description": "manual_description"}
REFERENCE = re.compile(r"`~?\.?([A-Za-z_][\w.]*)(?:\(\))?`")
SEE_ALSO = re.compile(r"^\s*see also\s*:?\s*(?:\n\s*-+)?(.*?)(?:\n\s*\n|\Z)", re.IGNORECASE | re.MULTILINE | re.DOTALL)
NAME = re.compile(r"[A-Za-z_][\w.]{3,}")


def offline_benchmark(max_papers: int = 4000, max_queries: int = 400) -> tuple[Corpus, list[Query]]:
    """Papers and questions, the same for the same installed packages.

    Raises InputError: a limit below 1, or too little installed to make questions of.
    """
    for name, limit in (("max_papers", max_papers), ("max_queries", max_queries)):
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise InputError(f"data.{name}={limit!r}: give a whole number of at least 1")
    found = documents(tuple(SETS), max_papers)
    corpus = Corpus(papers_of(found))
    queries = questions_of(found)[:max_queries]
    if not queries:
        raise InputError("data=offline: nothing that is installed here has a summary to make a question of")
    return corpus, queries


def papers_of(found: Sequence[Document]) -> list[Paper]:
    """One paper per document, corpusid = position."""
    by_name: dict[tuple[str, str], list[int]] = defaultdict(list)
    for position, document in enumerate(found):
        by_name[document.package, document.title.rsplit(".")[-1]].append(position)
    papers = []
    for position, document in enumerate(found):
        abstract = document.text.strip().split("\n\n", 1)[0]
        names = [match.rsplit(".")[-1] for match in REFERENCE.findall(document.text)]
        names += [match.rsplit(".")[-1] for part in SEE_ALSO.findall(document.text) for match in NAME.findall(part)]
        cited = (by_name.get((document.package, name), []) for name in dict.fromkeys(names))
        # A name that several documents bear is no reference to any one of them.
        citations = tuple(places[0] for places in cited if len(places) == 1 and places[0] != position)
        papers.append(Paper(position, document.title, abstract, citations, document.text, document.origin))
    return papers


def questions_of(found: Sequence[Document]) -> list[Query]:
    """Summary lines of at least 5 words; shared by 2 to 5 documents: broad, by one: specific."""
    answers: dict[str, list[int]] = defaultdict(list)
    for position, document in enumerate(found):
        summary = " ".join(document.summary.split())
        if len(summary.split()) >= MIN_QUESTION_WORDS and document.kind in SETS:
            answers[summary].append(position)
    queries = []
    for summary, positions in answers.items():
        if len(positions) <= MOST_ANSWERS:
            query_set = SETS[found[positions[0]].kind]
            queries.append(Query(query_set, summary, int(len(positions) == 1), 2, tuple(positions)))
    return _with_broad_first(queries)


def _with_broad_first(queries: list[Query]) -> list[Query]:
    """The rare kinds (broad, descriptions) in front, so that a limit does not cut them away."""
    common = [query for query in queries if query.specificity and query.query_set == SETS["docstring"]]
    rare = [query for query in queries if not (query.specificity and query.query_set == SETS["docstring"])]
    return rare + common
