"""Tasks without downloads, one of each kind, from what LM-BFF's laptop scale was written with.

    house-sentiment   short opinions written for that project: "... It was" terrible | great
    house-choice      a made-up beginning and two remarks, one of which agrees with it
    house-answer      a made-up passage of one or two opinions and a question about one of them: the answer is generated

The last two are put together from the lists of lm-bff/data/opinions.yaml, "the soup was cold". One such clause in five
is the tasks' own: they are made of these only, and the tiny causal language model reads none of them.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Mapping
from functools import cache
from itertools import chain
from typing import Any

import yaml

from lm_bff.offline_tasks import DATA, test_and_pool
from shared import InputError

NUMBERS = {"train": 700, "validation": 300}
HELD_OUT = 5
CLAUSE = re.compile(r"the \S+ was \S+")
QUESTION = "how was {subject} ?"
VERDICTS = {"negative": "terrible", "positive": "great"}


@cache
def lists() -> dict[str, Any]:
    """subjects and words, remarks by "positive" and "negative"."""
    parts = yaml.safe_load((DATA / "opinions.yaml").read_text("utf-8"))
    sides = ("negative", "positive")
    return {
        "subjects": list(chain.from_iterable(parts["subjects"])),
        "words": {side: list(chain.from_iterable(parts["words"][side])) for side in sides},
        "remarks": {side: list(parts["remarks"][side]) for side in sides},
    }


def held_out(text: str) -> list[bool]:
    """For each clause of a text whether it is the tasks', else it is the tiny model's: a matter of the clause."""
    return [zlib.crc32(clause.encode()) % HELD_OUT == 0 for clause in CLAUSE.findall(text)]


def passage(draw: random.Random) -> tuple[str, str, str]:
    """(passage, question, answer): how was <subject>."""
    found = lists()
    subjects = draw.sample(found["subjects"], draw.choice((1, 2)))
    sides = [draw.choice(("negative", "positive")) for _ in subjects]
    words = [draw.choice(found["words"][side]) for side in sides]
    facts = [f"{subject} was {word}" for subject, word in zip(subjects, words, strict=True)]
    asked = draw.randrange(len(facts))
    return f"{' and '.join(facts)} .", QUESTION.format(subject=subjects[asked]), VERDICTS[sides[asked]]


def agreement(draw: random.Random) -> tuple[str, str, str]:
    """(beginning, the remark that agrees with it, one that does not)."""
    found, side = lists(), draw.choice(("negative", "positive"))
    other = "positive" if side == "negative" else "negative"
    beginning = f"{draw.choice(found['subjects'])} was {draw.choice(found['words'][side])} ,"
    return beginning, draw.choice(found["remarks"][side]), draw.choice(found["remarks"][other])


def house_rows(name: str, split: str) -> list[Mapping[str, Any]]:
    """The rows of one of the house's tasks, always the same. Raises InputError for an unknown one."""
    if name == "house-sentiment":
        test, pools = test_and_pool(name)
        labelled = test if split == "validation" else [(t, k) for k, texts in enumerate(pools) for t in texts]
        return [{"sentence": text, "label": label} for text, label in labelled]
    if name == "house-choice":
        return [
            {"beginning": beginning, "choice1": (right, wrong)[label], "choice2": (wrong, right)[label], "label": label}
            for number, (beginning, right, wrong) in enumerate(_drawn(agreement, split))
            for label in (number % 2,)
        ]
    if name == "house-answer":
        return [
            {"passage": text, "question": question, "answers": [answer]}
            for text, question, answer in _drawn(passage, split)
        ]
    raise InputError(f"task={name} is not one of the house's: house-sentiment, house-choice, house-answer")


def _drawn(kind: Any, split: str) -> list[tuple[str, str, str]]:
    """Distinct ones that are held out from the tiny model; train and validation share no first text."""
    draw = random.Random(1)
    found: dict[str, tuple[str, str, str]] = {}
    while len(found) < sum(NUMBERS.values()):
        one = kind(draw)
        if all(held_out(one[0])):
            found.setdefault(one[0], one)
    rows = list(found.values())
    return rows[: NUMBERS["train"]] if split == "train" else rows[NUMBERS["train"] :]
