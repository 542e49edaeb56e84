"""Minimal pairs that need no download: a sentence of the held-out text, and the same with two neighbours exchanged.

BLiMP asks for knowledge of syntax that a model of a hundred thousand parameters has not got. Word order is the least
that a model of context must know, and a model of token frequencies cannot know it: both sentences have the same words.
The pairs are scored as BLiMP's are, by pseudo-log-likelihood (`mlm_masking.blimp`).
"""

import random
import re
from collections.abc import Iterable

import numpy as np
from transformers import PreTrainedTokenizerFast

from mlm_masking.blimp import Paradigm
from shared import InputError

NAME = "word_order"
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
WORD = re.compile(r"[A-Za-z][a-z']*")


def held_out_lines(tokens: np.ndarray, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The lines of a stretch of token ids, `(tokens,)`, without the first and last, which may be parts of one."""
    ends = np.flatnonzero(np.asarray(tokens) == tokenizer.eos_token_id)
    lines = np.split(np.asarray(tokens, np.int64), ends + 1)[1:-1]
    return tokenizer.batch_decode([line[:-1].tolist() for line in lines if len(line) > 1])


def order_pairs(lines: Iterable[str], count: int, seed: int = 0, shortest: int = 5, longest: int = 9) -> Paradigm:
    """`count` pairs of sentences of `shortest` to `longest` words, each once.

    The exchanged words are neighbours within the sentence, both plain words, not the same, and not its first or last.
    Raises InputError where the text has too few such sentences.
    """
    rng = random.Random(seed)
    found: dict[str, str] = {}
    for line in lines:
        for sentence in SENTENCE_END.split(line):
            words = sentence.split()
            if not shortest <= len(words) <= longest or "<unk>" in words:
                continue
            places = [
                place
                for place in range(1, len(words) - 2)
                if WORD.fullmatch(words[place]) and WORD.fullmatch(words[place + 1])
                and words[place].lower() != words[place + 1].lower()
            ]  # fmt: skip
            if places:
                place = rng.choice(places)
                exchanged = [*words[:place], words[place + 1], words[place], *words[place + 2 :]]
                found[" ".join(words)] = " ".join(exchanged)
    if len(found) < count:
        raise InputError(
            f"probes.order_pairs={count}: the held-out text has {len(found)} sentences of {shortest} to {longest} "
            "words; give fewer, or more text"
        )
    good = rng.sample(sorted(found), count)
    return Paradigm(NAME, "word order", good, [found[sentence] for sentence in good])
