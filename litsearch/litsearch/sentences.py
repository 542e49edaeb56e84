"""Where sentences end: the decisions of NLTK's Punkt (Kiss and Strunk, 2006) with its English parameters, frozen.

Word splitting separates a final period only at the end of a sentence, so a term is "model" or "model." depending on
what is decided here. The parameters are those of NLTK's English model (`english/punkt.json`); the decision about one
candidate depends only on the word before it and the one after, so it is made once per pair and remembered.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from litsearch.memo import Memo

PARAMETERS = Path(__file__).parent / "english" / "punkt.json"

# Bits of an orthographic context: seen with an upper or lower case first letter, and where in a sentence.
MID_UPPER = 1 << 2
BEGIN_LOWER = 1 << 4
UPPER = (1 << 1) + MID_UPPER + (1 << 3)
LOWER = BEGIN_LOWER + (1 << 5) + (1 << 6)

QUOTES = "\u2018\u2019\u201c\u201d\xab\xbb"
NON_WORD = r"(?:[)\";}\]\*:@\'\({\[" + QUOTES + r"?!])"
SEVERAL = r"(?:\-{2,}|\.{2,}|(?:\.\s){2,}\.)"
CANDIDATE = re.compile(rf"[.?!](?=(?P<after>{NON_WORD}|\s+(?P<next>\S+)))")
WORD = re.compile(
    rf"({SEVERAL}|(?=[^\(\"\`{{\[:;&\#\*@\)}}\]\-,])\S+?(?=\s|$|{NON_WORD}|{SEVERAL}|,(?=$|\s|{NON_WORD}|{SEVERAL}))|\S)"
)
CLOSING = re.compile(rf"[\"')\]}}{QUOTES}]+?(?:\s+|(?=--)|$)", re.MULTILINE)
ELLIPSIS = re.compile(r"\.\.+$")
NUMBER = re.compile(r"^-?[\.,]?\d[\d,\.-]*\.?$")
INITIAL = re.compile(r"[^\W\d]\.$")
SPACES = " \t\n\r\x0b\x0c"
REMEMBERED = 500_000


@dataclass(frozen=True)
class Parameters:
    abbreviations: frozenset[str]
    starters: frozenset[str]
    collocations: frozenset[tuple[str, str]]
    orthography: dict[str, int]


@functools.cache
def parameters() -> Parameters:
    """NLTK's English model: 156 abbreviations, 39 starters, 37 collocations, 20,366 orthographic contexts."""
    read = json.loads(PARAMETERS.read_text(encoding="utf-8"))
    return Parameters(
        frozenset(read["abbreviations"]),
        frozenset(read["sentence_starters"]),
        frozenset(map(tuple, read["collocations"])),
        read["orthographic_context"],
    )


class Token:
    """A word with what the two passes decide about it."""

    __slots__ = ("abbreviation", "breaks", "ellipsis", "text", "type")

    def __init__(self, text: str):
        self.text = text
        self.type = NUMBER.sub("##number##", text.lower())
        self.breaks = self.abbreviation = self.ellipsis = False
        if text in (".", "?", "!"):
            self.breaks = True
        elif ELLIPSIS.match(text):
            self.ellipsis = True
        elif text.endswith(".") and not text.endswith(".."):
            bare = text[:-1].lower()
            known = parameters().abbreviations
            self.abbreviation = bare in known or bare.split("-")[-1] in known
            self.breaks = not self.abbreviation

    @property
    def type_without_period(self) -> str:
        return self.type[:-1] if len(self.type) > 1 and self.type.endswith(".") else self.type

    @property
    def type_as_word(self) -> str:
        return self.type_without_period if self.breaks else self.type


def _starts_a_sentence(token: Token) -> bool | None:
    """What the case of a word says about its place; None where it says nothing."""
    if token.text in (";", ":", ",", ".", "!", "?"):
        return False
    seen = parameters().orthography.get(token.type_as_word, 0)
    if token.text[0].isupper() and seen & LOWER and not seen & MID_UPPER:
        return True
    if token.text[0].islower() and (seen & UPPER or not seen & BEGIN_LOWER):
        return False
    return None


def _reconsider(token: Token, following: Token) -> None:
    """The second pass: collocations, abbreviations before a sentence starter, initials and ordinals."""
    if not token.text.endswith("."):
        return
    model = parameters()
    bare, next_type = token.type_without_period, following.type_as_word
    if (bare, next_type) in model.collocations:
        token.breaks, token.abbreviation = False, True
        return
    initial = INITIAL.match(token.text) is not None
    if (token.abbreviation or token.ellipsis) and not initial:
        if _starts_a_sentence(following):
            token.breaks = True
            return
        if following.text[0].isupper() and next_type in model.starters:
            token.breaks = True
            return
    if initial or bare == "##number##":
        starts = _starts_a_sentence(following)
        always_upper = following.text[0].isupper() and not model.orthography.get(next_type, 0) & LOWER
        if starts is False or (starts is None and initial and always_upper):
            token.breaks, token.abbreviation = False, True


def has_break(context: str) -> bool:
    """Whether a sentence ends before the last word of `context` (the word before a candidate, it, what follows)."""
    tokens = [Token(word) for line in context.split("\n") if line.strip() for word in WORD.findall(line)]
    for token, following in pairwise(tokens):
        _reconsider(token, following)
    return any(token.breaks for token in tokens[:-1])


_decisions = Memo(has_break, REMEMBERED)


def _candidates(text: str) -> Iterator[tuple[re.Match, str]]:
    """Every place where a sentence may end, with its context; of candidates in one word the last one."""
    start = stop = 0  # of the word before the candidate last seen
    pending = None
    for match in CANDIDATE.finditer(text):
        here = match.start()
        # The last white space between the two; 0 stands for "none", as it does in NLTK.
        space = max(0, *(text.rfind(character, stop, here) - stop for character in SPACES))
        word_start = stop + space + 1 if space > 0 else start
        if pending is not None and stop <= word_start:
            yield pending, text[start:stop] + pending.group() + pending.group("after")
        pending, start, stop = match, word_start, here
    if pending is not None:
        yield pending, text[start:stop] + pending.group() + pending.group("after")


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    begin = 0
    for match, context in _candidates(text):
        if _decisions[context]:
            yield begin, match.end()
            begin = match.start("next") if match.group("next") else match.end()
    yield begin, len(text.rstrip())


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of every sentence, as NLTK's `span_tokenize` gives them (English Punkt)."""
    pieces = list(_pieces(text))
    spans, shift = [], 0
    for i, (start, end) in enumerate(pieces):
        start += shift
        # Closing quotes and brackets that follow the period belong to the sentence before them.
        closing = CLOSING.match(text, *pieces[i + 1]) if i + 1 < len(pieces) else None
        if closing is not None:
            spans.append((start, pieces[i + 1][0] + len(closing.group().rstrip())))
            shift = closing.end() - pieces[i + 1][0]
        else:
            shift = 0
            if end > start:
                spans.append((start, end))
    return spans
