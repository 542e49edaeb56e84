"""The page of `python -m litsearch.search serve=true`, and the JSON under it.

    GET /                         the page (search_page.html); no other host is asked for anything
    GET /api/about                what is searched and with what, and a few titles to begin with
    GET /api/search?query=...&k=10
                                  {"query", "seconds", "results": [{rank, score, corpusid, title, snippet, abstract,
                                  whole, source, cites, cited_by}]}
    GET /api/paper?id=7&query=... {corpusid, title, abstract, source, cites: [{corpusid, title}], cited_by: [...]}

Texts that a question marks come in pieces, [[text, whether it matches], ...], so that the page never has to read markup
out of a text. `cites` and `cited_by` of a result are counts. Bad parameters: status 400 and {"error": message}
(`shared.serving`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from litsearch.data import Paper
from litsearch.highlight import Matches
from litsearch.library import Hit, Library
from shared import InputError
from shared.serving import PageServer, number, single_values

EXAMPLES = 5
MOST = 100  # results that the page may ask for
LISTED = 200  # papers of a list of citations


class SearchPage(PageServer):
    """The server of one library.

    Args:
        address: host and port; port 0 takes a free one. k: results where none are asked for. words: of a snippet.
        max_query: characters of a question.
    """

    def __init__(
        self, library: Library, address: tuple[str, int], k: int = 10, words: int = 45, max_query: int = 2000
    ) -> None:
        if isinstance(max_query, bool) or not isinstance(max_query, int) or max_query < 1:
            raise InputError(f"max_query={max_query!r}: give a whole number of characters, at least 1")
        self.library, self.k, self.words, self.max_query = library, min(k, MOST), words, max_query
        answers = {"/api/about": self.about, "/api/search": self.search, "/api/paper": self.paper}
        super().__init__(files("litsearch").joinpath("search_page.html").read_bytes(), answers, address)

    def about(self, parameters: dict[str, list[str]]) -> dict[str, Any]:
        """The answer of /api/about."""
        single_values(parameters, ())
        titled = [paper.title for paper in self.library.corpus.papers if paper.title.strip()]
        titles = list(dict.fromkeys(titled))
        examples = [titles[i * len(titles) // EXAMPLES] for i in range(EXAMPLES)] if len(titles) > EXAMPLES else titles
        return {**self.library.about(), "examples": examples, "k": self.k, "max_query": self.max_query}

    def search(self, parameters: dict[str, list[str]]) -> dict[str, Any]:
        """The answer of /api/search."""
        values = single_values(parameters, ("query", "k"))
        query = self._query(values)
        if not query:
            raise InputError("query is missing or empty: /api/search?query=a+question")
        k = number(values, "k", int, self.k)
        if not 1 <= k <= MOST:
            raise InputError(f"k is {k}, but must be from 1 to {MOST}")
        started = time.perf_counter()
        hits = self.library.search(query, k)
        seconds = time.perf_counter() - started
        matches = Matches(query)
        return {"query": query, "seconds": seconds, "results": [self._result(hit, matches) for hit in hits]}

    def _query(self, values: dict[str, str]) -> str:
        query = values.get("query", "").strip()
        if len(query) > self.max_query:
            raise InputError(f"query has {len(query)} characters, but at most {self.max_query} are accepted")
        return query

    def _result(self, hit: Hit, matches: Matches) -> dict[str, Any]:
        snippet = matches.snippet(hit.text, self.words)
        return {
            "rank": hit.rank,
            "score": hit.score,
            **self._shown(hit.paper, matches),
            "snippet": snippet,
            "whole": "".join(text for text, _ in snippet).strip() == hit.paper.abstract.strip(),
            "cites": len(self.library.cites(hit.paper)),
            "cited_by": len(self.library.cited_by(hit.paper)),
        }

    def paper(self, parameters: dict[str, list[str]]) -> dict[str, Any]:
        """The answer of /api/paper."""
        values = single_values(parameters, ("id", "query"))
        if "id" not in values:
            raise InputError("id is missing: /api/paper?id=7")
        paper = self.library.corpus.paper(number(values, "id", int, 0))
        return {
            **self._shown(paper, Matches(self._query(values))),
            "cites": _listed(self.library.cites(paper)),
            "cited_by": _listed(self.library.cited_by(paper)),
        }

    @staticmethod
    def _shown(paper: Paper, matches: Matches) -> dict[str, Any]:
        return {
            "corpusid": paper.corpusid,
            "title": matches.pieces(paper.title),
            "abstract": matches.pieces(paper.abstract),
            "source": paper.source,
        }


def _listed(papers: Sequence[Paper]) -> list[dict[str, Any]]:
    return [{"corpusid": paper.corpusid, "title": paper.title} for paper in papers[:LISTED]]
