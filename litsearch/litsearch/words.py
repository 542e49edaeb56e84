"""From a sentence to words: the rules of NLTK's `word_tokenize`, which go back to the Penn Treebank's tokenizer.

The rules are substitutions that put spaces around what is a word of its own; the order matters. All of them look only
at what lies between two spaces, except three: quotes at the start of a sentence, the final period (with the quotes and
brackets behind it), and an apostrophe at the very end. So the middle of a sentence can be split piece by piece, and the
same pieces occur again and again: `litsearch.text` remembers them.
"""

from __future__ import annotations

import re

# Opening quotes, before anything else.
OPENING = [
    (re.compile(r"([«“‘„]|[`]+)"), r" \1 "),
    (re.compile(r"^\""), r"``"),
    (re.compile(r"(``)"), r" \1 "),
    (re.compile(r"([ \(\[{<])(\"|\'{2})"), r"\1 `` "),
    (re.compile(r"(?<!\w)(\')(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", re.IGNORECASE), r"\1 "),
]
PUNCTUATION = [
    # A final period, with closing quotes and brackets behind it.
    (re.compile(r"([^\.])(\.)([\]\)}>\"\'»”’ ]*)\s*$"), r"\1 \2 \3 "),
    (re.compile(r"([:,])([^\d])"), r" \1 \2"),
    (re.compile(r"([:,])$"), r" \1 "),
    (re.compile(r"\.{2,}"), r" \g<0> "),
    (re.compile(r"[;@#$%&]"), r" \g<0> "),
    (re.compile(r"[\u2012-\u2015]"), r" \g<0> "),
    (re.compile(r"([^\.])(\.)([\]\)}>\"\']*)\s*$"), r"\1 \2\3 "),
    (re.compile(r"[?!]"), r" \g<0> "),
    (re.compile(r"([^'])' "), r"\1 ' "),
    (re.compile(r"[*]"), r" \g<0> "),
    (re.compile(r"[\]\[\(\)\{\}\<\>]"), r" \g<0> "),
    (re.compile(r"--"), r" -- "),
]
# Closing quotes and contractions, on the sentence with a space at both ends.
CLOSING = [
    (re.compile(r"([»”’])"), r" \1 "),
    (re.compile(r"''"), " '' "),
    (re.compile(r'"'), " '' "),
    (re.compile(r"\s+"), " "),
    (re.compile(r"([^' ])('[sS]|'[mM]|'[dD]|') "), r"\1 \2 "),
    (re.compile(r"([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) "), r"\1 \2 "),
    *(
        (re.compile(pattern, re.IGNORECASE), r" \1 \2 ")
        for pattern in (
            r"\b(can)(not)\b",
            r"\b(d)('ye)\b",
            r"\b(gim)(me)\b",
            r"\b(gon)(na)\b",
            r"\b(got)(ta)\b",
            r"\b(lem)(me)\b",
            r"\b(more)('n)\b",
            r"\b(wan)(na)(?=\s)",
            r" ('t)(is)\b",
            r" ('t)(was)\b",
        )
    ),
]
# What the final-period rule skips on its way to the end.
CLOSERS = "])}>\"'»”’ "
QUOTES = ('"', "'")


def split_sentence(sentence: str) -> list[str]:
    """The words and punctuation marks of one sentence, as NLTK's word tokenizer gives them."""
    for pattern, replacement in OPENING:
        sentence = pattern.sub(replacement, sentence)
    for pattern, replacement in PUNCTUATION:
        sentence = pattern.sub(replacement, sentence)
    sentence = f" {sentence} "
    for pattern, replacement in CLOSING:
        sentence = pattern.sub(replacement, sentence)
    return sentence.split()


def split_inside(piece: str) -> list[str]:
    """The words of a piece (what lies between two spaces) in the middle of a sentence."""
    if piece.isalpha() and piece.lower() not in ("cannot", "gimme", "gonna", "gotta", "lemme", "wanna"):
        return [piece]
    return split_sentence(f"a {piece} a")[1:-1]


def split_last(piece: str) -> list[str]:
    """The words of the last piece of a sentence that has others before it."""
    return split_sentence(f"a {piece}")[1:]


def is_plain_start(piece: str) -> bool:
    """Whether a first piece is split as it would be in the middle: it holds no quote."""
    return not any(quote in piece for quote in QUOTES)


def is_plain_end(piece: str) -> bool:
    """Whether the sentence's end is decided by this last piece alone: it is more than closing quotes and brackets."""
    return bool(piece.strip(CLOSERS).strip())
