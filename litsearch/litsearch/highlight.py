"""Which words of a text answer a question: what a result shows in bold.

    matches = Matches("reranking with language models")
    matches.pieces("It reranks passages.")        # [("It ", False), ("reranks", True), (" passages.", False)]
    matches.snippet(abstract, words=40)            # the part of a long text where most of the question is found

Words match as BM25's terms do (`litsearch.text`): without regard to case, by their stems, and stop words never; what is
shown is the text's own form of the word. Parts of a compound ("citation-based") match on their own, which is for the
reader: a term is the whole compound.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import Counter

from litsearch.memo import Memo
from litsearch.porter import stem
from litsearch.text import stop_words, terms

COMPOUND = re.compile(r"[^\W_]+(?:[^\w\s][^\W_]+)*")
PART = re.compile(r"[^\W_]+")
SHORTEST_PART = 3  # letters of a part of a compound: "t" of "don't" says nothing
SENTENCE_END = (".", "?", "!")

Piece = tuple[str, bool]
_stems = Memo(stem, 200_000)


class Matches:
    """The words that stand for a question's terms.

    `terms` are the question's terms that hold a letter or digit, with the longer parts of its compounds.
    """

    def __init__(self, question: str) -> None:
        found = {term for term in terms(question) if any(map(str.isalnum, term))}
        for compound in COMPOUND.findall(question.lower()):
            parts = PART.findall(compound)
            if len(parts) > 1:
                found |= {_stems[part] for part in parts if len(part) >= SHORTEST_PART and part not in stop_words()}
        self.terms = frozenset(found)

    def found(self, text: str) -> list[tuple[int, int, str]]:
        """(start, end, stem) of the words that match, in order."""
        spans = []
        for word in COMPOUND.finditer(text):
            known = self._matching(word[0])
            if known is not None:
                spans.append((*word.span(), known))
                continue
            for part in PART.finditer(word[0]):
                known = self._matching(part[0]) if part[0] != word[0] and len(part[0]) >= SHORTEST_PART else None
                if known is not None:
                    spans.append((word.start() + part.start(), word.start() + part.end(), known))
        return spans

    def _matching(self, word: str) -> str | None:
        found = _stems[word.lower()]
        return found if found in self.terms and word.lower() not in stop_words() else None

    def pieces(self, text: str) -> list[Piece]:
        """The whole text in pieces, each with whether it matches."""
        return _cut(text, self.found(text), 0, len(text))

    def snippet(self, text: str, words: int) -> list[Piece]:
        """At most `words` words where most of the question's terms are, in pieces; "…" stands for what is left out.

        Between equals the earliest; a part that begins with a sentence goes before one that does not.
        """
        places = [match.span() for match in re.finditer(r"\S+", text)]
        spans = self.found(text)
        if len(places) <= words:
            return _cut(text, spans, 0, len(text))
        first = self._best_start(text, places, spans, words)
        last = min(first + words, len(places)) - 1
        pieces = _cut(text, spans, places[first][0], places[last][1])
        before = [("… ", False)] if first else []
        after = [(" …", False)] if last < len(places) - 1 else []
        return [*before, *pieces, *after]

    @staticmethod
    def _best_start(text: str, places: list[tuple[int, int]], spans: list[tuple[int, int, str]], words: int) -> int:
        """Index of the word where the snippet begins."""
        ends = [end for _, end in places]
        positions = [bisect_right(ends, start) for start, _, _ in spans]  # of the word that each match is in
        latest = len(places) - words
        candidates = {0} | {
            i + 1 for i, (start, end) in enumerate(places[:latest]) if text[start:end].endswith(SENTENCE_END)
        }
        lead = min(3, words // 4)
        candidates |= {min(max(0, position - lead), latest) for position in positions}
        best, best_value = 0, (-1, False, -1)
        for first in sorted(candidates):
            inside = spans[bisect_left(positions, first) : bisect_left(positions, first + words)]
            starts_sentence = first == 0 or text[places[first - 1][0] : places[first - 1][1]].endswith(SENTENCE_END)
            value = (len({known for _, _, known in inside}), starts_sentence, len(inside))
            if value > best_value:
                best, best_value = first, value
        return best


def matched_words(pieces: list[Piece]) -> list[str]:
    """The different words that match, most frequent first."""
    return [word for word, _ in Counter(text for text, is_match in pieces if is_match).most_common()]


def _cut(text: str, spans: list[tuple[int, int, str]], start: int, end: int) -> list[Piece]:
    pieces: list[Piece] = []
    at = start
    for first, last, _ in spans:
        if first < start or last > end:
            continue
        if first > at:
            pieces.append((text[at:first], False))
        pieces.append((text[first:last], True))
        at = last
    if at < end:
        pieces.append((text[at:end], False))
    return pieces
