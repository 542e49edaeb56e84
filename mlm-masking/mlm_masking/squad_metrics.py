"""SQuAD v1.1's official scores: exact match and F1 of normalised answers, best over the gold answers, in percent."""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

from shared import InputError

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = frozenset(string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without (ASCII) punctuation and articles, single spaces."""
    text = "".join(character for character in text.lower() if character not in PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, gold: str) -> bool:
    return normalize_answer(prediction) == normalize_answer(gold)


def token_f1(prediction: str, gold: str) -> float:
    """F1 of the bags of words of two normalised answers; 0.0 where they share no word."""
    found, wanted = normalize_answer(prediction).split(), normalize_answer(gold).split()
    same = sum((Counter(found) & Counter(wanted)).values())
    return 0.0 if same == 0 else 2 * same / (len(found) + len(wanted))


def squad_scores(predictions: Mapping[str, str], golds: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Exact match and F1 in percent.

    Args:
        predictions: question id -> answer. golds: question id -> gold answers.

    Raises:
        InputError: no questions, a question without a prediction, or one without a gold answer.
    """
    if not golds:
        raise InputError("no questions to score")
    if absent := [key for key in golds if key not in predictions]:
        raise InputError(f"{len(absent)} questions have no prediction (first {absent[0]}): every question needs one")
    if empty := [key for key, answers in golds.items() if not answers]:
        raise InputError(f"question {empty[0]} has no gold answer: SQuAD v1.1 has at least one for each")
    exact = sum(max(exact_match(predictions[key], gold) for gold in answers) for key, answers in golds.items())
    f1 = sum(max(token_f1(predictions[key], gold) for gold in answers) for key, answers in golds.items())
    return {"exact_match": 100 * exact / len(golds), "f1": 100 * f1 / len(golds)}
