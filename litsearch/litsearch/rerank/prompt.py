"""The chat that asks a language model to order papers (LitSearch, section 4 and the authors' release).

The wording is part of the benchmark and must not be improved: 4 + 2n messages, each paper in a turn of its own, which
the model is made to have acknowledged. `{n}` is the number of papers shown, `{query}` the question as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from litsearch.data import Paper
from litsearch.keys import title_abstract
from shared import InputError

# Words (split at white space) that are shown of a paper.
WORDS = {"title_abstract": 300, "full_paper": 10_000}

SYSTEM = "You are RankGPT, an intelligent assistant that can rank papers based on their relevancy to a research query."
OPENING = {
    "title_abstract": (
        "I will provide you with the abstracts of {n} papers, each indicated by number identifier []. \n"
        "Rank the papers based on their relevance to research question: {query}."
    ),
    "full_paper": (
        "I will provide you with {n} papers, each indicated by number identifier []. \n"
        "Rank the papers based on their relevance to research question: {query}."
    ),
}
CONSENT = "Okay, please provide the papers."
QUESTION = (
    "Search Query: {query}. \n"
    "Rank the {n} papers above based on their relevance to the research query. The papers should be listed in "
    "descending order using identifiers. The most relevant papers should be listed first. The output format should be "
    "[] > [], e.g., [1] > [2]. Only respond with the ranking results, do not say any words or explain."
)


def document_text(paper: Paper, key: str) -> str:
    """What the model is shown of a paper: its first words, joined by single spaces (a newline becomes a space).

    Raises InputError for a key that is not in `WORDS`.
    """
    if key not in WORDS:
        raise InputError(f"key={key!r}: papers are shown by {' or '.join(WORDS)}")
    text = title_abstract(paper) if key == "title_abstract" else paper.full_paper
    return " ".join(text.split()[: WORDS[key]])


def messages(query: str, documents: Sequence[str], key: str = "title_abstract") -> list[dict[str, str]]:
    """The `4 + 2 * len(documents)` chat turns that ask for an order of `documents`, numbered from 1."""

    def turn(role: str, content: str) -> dict[str, str]:
        return {"role": role, "content": content}

    n = len(documents)
    # Plain replacement: questions and papers hold braces.
    opening = OPENING[key].replace("{n}", str(n)).replace("{query}", query)
    question = QUESTION.replace("{n}", str(n)).replace("{query}", query)
    turns = [turn("system", SYSTEM), turn("user", opening), turn("assistant", CONSENT)]
    for k, text in enumerate(documents, start=1):
        turns.append(turn("user", f"[{k}] {text}"))
        turns.append(turn("assistant", f"Received passage [{k}]."))
    return [*turns, turn("user", question)]
