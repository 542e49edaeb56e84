"""The Porter stemmer with NLTK's extensions (its default mode), in the form the released BM25 uses.

M. F. Porter, "An algorithm for suffix stripping" (1980), and what NLTK adds to it: a table of irregular forms, words of
one or two characters left alone, `ies`/`ied` of four-letter words, `y` to `i` only after a consonant, `bli` for `abli`,
and the rules `fulli` and `logi`. Written here because importing `nltk` takes seconds (it imports scikit-learn and
scipy.stats), which every worker process and every search would pay; the tests compare it with NLTK's own.
"""

from __future__ import annotations

IRREGULAR = {
    "skies": "sky",
    "sky": "sky",
    "dying": "die",
    "lying": "lie",
    "tying": "tie",
    "news": "news",
    "innings": "inning",
    "inning": "inning",
    "outings": "outing",
    "outing": "outing",
    "cannings": "canning",
    "canning": "canning",
    "howe": "howe",
    "proceed": "proceed",
    "exceed": "exceed",
    "succeed": "succeed",
}
# Steps 2 and 3: the suffix is replaced where what is left of it has a measure above 0.
STEP_2 = {
    "ational": "ate",
    "tional": "tion",
    "enci": "ence",
    "anci": "ance",
    "izer": "ize",
    "bli": "ble",
    "entli": "ent",
    "eli": "e",
    "ousli": "ous",
    "ization": "ize",
    "ation": "ate",
    "ator": "ate",
    "alism": "al",
    "iveness": "ive",
    "fulness": "ful",
    "ousness": "ous",
    "aliti": "al",
    "iviti": "ive",
    "biliti": "ble",
    "fulli": "ful",
    "logi": "log",
}
STEP_3 = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": ""}
# Step 4: the suffix is dropped where what is left of it has a measure above 1.
STEP_4 = frozenset(
    "al ance ence er ic able ible ant ement ment ent ion ou ism ate iti ous ive ize".split()  # noqa: SIM905
)


def stem(word: str) -> str:
    """The stem of a word; the word is lower-cased first."""
    word = word.lower()
    if word in IRREGULAR:
        return IRREGULAR[word]
    if len(word) <= 2:
        return word
    word = _past_and_gerund(_plural(word))
    if len(word) > 2 and word[-1] == "y" and _shape(word[:-1])[-1] == "c":
        word = word[:-1] + "i"
    if word.endswith("alli") and _measure(word[:-4]) > 0:  # "exceptionalli" -> "exceptional" -> "exception"
        word = word[:-2]
    return _final_letters(_drop(_replace(_replace(word, STEP_2), STEP_3)))


def _shape(word: str) -> str:
    """ "c" or "v" per character; a y is a vowel after a consonant, and what is no letter counts as a consonant."""
    shape = []
    last = "v"
    for character in word:
        if character in "aeiou":
            last = "v"
        elif character == "y" and shape:
            last = "v" if last == "c" else "c"
        else:
            last = "c"
        shape.append(last)
    return "".join(shape)


def _measure(word: str) -> int:
    """m of [C](VC){m}[V]."""
    return _shape(word).count("vc")


def _is_short(shape: str, word: str) -> bool:
    """Ends consonant-vowel-consonant (the last not w, x or y), or is vowel-consonant: such a word takes an e."""
    return (shape[-3:] == "cvc" and word[-1] not in "wxy") or shape == "vc"


def _plural(word: str) -> str:
    if word.endswith("ies"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("sses"):
        return word[:-2]
    if word.endswith("s") and not word.endswith("ss"):
        return word[:-1]
    return word


def _past_and_gerund(word: str) -> str:
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    suffix = next((suffix for suffix in ("ed", "ing") if word.endswith(suffix)), None)
    if suffix is None or "v" not in _shape(word[: -len(suffix)]):
        return word
    word = word[: -len(suffix)]
    shape = _shape(word)
    if word.endswith(("at", "bl", "iz")):
        return word + "e"
    if len(word) >= 2 and word[-1] == word[-2] and shape[-1] == "c":
        return word if word[-1] in "lsz" else word[:-1]
    return word + "e" if shape.count("vc") == 1 and _is_short(shape, word) else word


def _replace(word: str, rules: dict[str, str]) -> str:
    for length in range(min(7, len(word)), 2, -1):
        suffix = word[-length:]
        if suffix in rules:
            left = word[:-length]
            # The l of "logi" counts with what is left, so that geologi and theologi are treated alike.
            return left + rules[suffix] if _measure(left + "l" if suffix == "logi" else left) > 0 else word
    return word


def _drop(word: str) -> str:
    for length in range(min(5, len(word)), 1, -1):
        suffix = word[-length:]
        if suffix in STEP_4:
            left = word[:-length]
            return left if _measure(left) > 1 and (suffix != "ion" or left[-1] in "st") else word
    return word


def _final_letters(word: str) -> str:
    if word.endswith("e"):
        shape = _shape(word[:-1])
        measure = shape.count("vc")
        if measure > 1 or (measure == 1 and not _is_short(shape, word[:-1])):
            word = word[:-1]
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word
