"""Accuracy, and the F1 of texts (MeZO's protocol: SQuAD's F1 for DROP too, every span of which is an alternative)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Collection, Sequence

from shared import InputError

ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
NO_ANSWER = ("no answer", "CANNOTANSWER")


def normalise(text: str) -> str:
    """Lower case, no ASCII punctuation ("2.5" becomes "25"), no articles, single blanks."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split())


def f1(text: str, answers: Sequence[str]) -> float:
    """The best F1 over the answers' tokens, as multisets; an answer that says there is none has to be met exactly."""
    if not answers:
        raise InputError("f1: no answer to compare with")
    return max(_f1(normalise(text), answer) for answer in answers)


def _f1(text: str, answer: str) -> float:
    if answer in NO_ANSWER:
        return float(text == normalise(answer))
    found, wanted = Counter(text.split()), Counter(normalise(answer).split())
    common = sum((found & wanted).values())
    return 2 * common / (sum(found.values()) + sum(wanted.values())) if common else 0.0


def accuracy(predicted: Sequence[int], gold: Sequence[Collection[int]]) -> float:
    """The part of predictions that are among the right ones (ReCoRD has several)."""
    if len(predicted) != len(gold) or not gold:
        raise InputError(f"accuracy: {len(predicted)} predictions for {len(gold)} examples; give one each, at least 1")
    return sum(one in right for one, right in zip(predicted, gold, strict=True)) / len(gold)
