"""Which texts have something of held-out sentences in them: what a model is evaluated on must not be read before.

Data sets share sentences in different tokenisations (SST and MR are the same reviews), sentences occur with a word more
or less, and phrases are parts of sentences. A text is therefore refused when it

* is a held-out sentence, letter by letter (`letters`: no spaces, punctuation, accents or capitals), however short;
* has three words or more and lies within held-out text: all its runs of 12 letters are in some held-out sentence, which
  is a little more than asked for and needs no search through all of them. One or two words are no part of a sentence;
* contains a held-out sentence of four words or more;
* shares half of the 3-word shingles, of its own or of the sentence's, with one held-out sentence (both of six words or
  more).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from shared.duplicates import shingles, words

RUN = 12  # letters
WITHIN, CONTAINED, ALIKE = 3, 4, 6  # words from which on a text is looked at in these ways
OVERLAP = 0.5


def letters(text: str) -> str:
    """Letters and digits only, lower-case, without accents: equal for the same sentence in two tokenisations."""
    text = re.sub(r"-?[lr]rb-?", "", text.lower())
    return re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFKD", text))


class HeldOut:
    """Held-out sentences; `text in held_out` says whether a text has something of them."""

    def __init__(self, sentences: Iterable[str]):
        sentences = list(sentences)
        keys = [letters(text) for text in sentences]
        self.exact = set(keys) - {""}
        self.runs = {run for key in keys for run in _runs(key)}
        self.joined = "\n".join(keys)
        self.starts: dict[str, list[str]] = defaultdict(list)
        self.with_shingle: dict[int, list[int]] = defaultdict(list)
        self.sizes: list[int] = []
        for text, key in zip(sentences, keys, strict=True):
            spoken = words(text)
            if len(spoken) >= CONTAINED and len(key) >= RUN:
                self.starts[key[:RUN]].append(key)
            own = shingles(spoken).tolist() if len(spoken) >= ALIKE else []
            for one in own:
                self.with_shingle[one].append(len(self.sizes))
            self.sizes.append(len(own))

    def __contains__(self, text: str) -> bool:
        key, spoken = letters(text), words(text)
        if key in self.exact:
            return True
        if len(spoken) >= WITHIN and self._within(key):
            return True
        if any(key.startswith(one, at) for at, run in enumerate(_runs(key)) for one in self.starts.get(run, ())):
            return True
        return len(spoken) >= ALIKE and self._alike(spoken)

    def _within(self, key: str) -> bool:
        return key in self.joined if len(key) < RUN else all(run in self.runs for run in _runs(key))

    def _alike(self, spoken: Sequence[str]) -> bool:
        own = shingles(spoken).tolist()
        shared = Counter(number for one in own for number in self.with_shingle.get(one, ()))
        return any(count >= OVERLAP * min(len(own), self.sizes[number]) for number, count in shared.items())


def without(texts: Sequence[str], held_out: HeldOut, most: int | None = None) -> list[int]:
    """Which of `texts` (at most `most`) have letters, nothing of a held-out sentence, not an earlier text's letters."""
    seen: set[str] = set()
    kept: list[int] = []
    for number, text in enumerate(texts):
        if most is not None and len(kept) == most:
            break
        key = letters(text)
        if key and key not in seen and text not in held_out:
            seen.add(key)
            kept.append(number)
    return kept


def _runs(key: str) -> Iterable[str]:
    return (key[at : at + RUN] for at in range(len(key) - RUN + 1))
