"""Two few-shot tasks that need no download, and the text that the tiny model is trained on without one.

    house-sentiment   356 short opinions written for this project (data/sentiment.tsv): hotels, books, food, repairs
    house-topic       docstrings of installed packages: which of four does one come from, said as system (the standard
                      library), science (SciPy), learning (scikit-learn) or language (transformers)

Both become few-shot files in the layout of all others, `house-sentiment/16-13/train.tsv`, so that everything that reads
splits reads these. Train and dev of each seed are drawn from one pool, the test set is never in it, and neither is in
what the tiny model reads: its opinions are put together from data/opinions.yaml, its docstrings are others.

The texts of house-topic are those of the installed versions: numbers compare within one environment.
"""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import yaml

from lm_bff.data import SEEDS
from lm_bff.held_out import HeldOut, without
from lm_bff.tasks import Task, get_task
from lm_bff.tiny_text import HOUSE_TASKS, SENTIMENT_TEMPLATES, SENTIMENT_WORDS, Text, put_into_words, task_words
from shared import InputError, corpus, extraction, hub
from shared.duplicates import NearDuplicates, signatures, words
from shared.results import write_atomic

log = logging.getLogger(__name__)

DATA = Path(__file__).resolve().parents[1] / "data"
PACKAGES = ("python", "scipy", "scikit-learn", "transformers")  # in the order of house-topic's classes
NAMES = re.compile(r"python|scipy|sklearn|scikit|transformers|hugging", re.IGNORECASE)
TOPIC_TEMPLATES = ("*cls**sent_0*_Topic:*mask*.*sep+*", "*cls**sent_0*_This_is_about*mask*.*sep+*")
TOPIC_WORDS = (("system", "science", "learning", "language"),)

OPINIONS = 12_000
TEST = {"house-sentiment": 112, "house-topic": 120}  # examples per class
POOL = {"house-sentiment": 66, "house-topic": 80}
TOPIC_TEXTS = 320  # per class, beside test and pool
MOST_WORDS, FEWEST_WORDS = 30, 6
UNITS_AT_ONCE = 40
FORMAT = 1  # part of the cache key: raise it when the files change

Labelled = list[tuple[str, int]]


# ------------------------------------------------------------------------------------------------------------ examples


@cache
def sentiment_rows() -> tuple[tuple[str, str], ...]:
    """(negative, positive) opinions on the same kind of thing, in the order of the file."""
    lines = [line.split("\t") for line in (DATA / "sentiment.tsv").read_text("utf-8").splitlines()]
    texts = {label: [text for found, text in lines if found == label] for label in "01"}
    return tuple(zip(texts["0"], texts["1"], strict=True))


@cache
def topic_texts() -> tuple[tuple[str, ...], ...]:
    """For each of PACKAGES its first docstrings in the corpus's order: test, pool and training together."""
    needed = TEST["house-topic"] + POOL["house-topic"] + TOPIC_TEXTS
    known = NearDuplicates()
    found = []
    for package in PACKAGES:
        texts: list[str] = []
        for text in _docstrings(package):
            if known.is_new(text, signatures([words(text)])[0]):
                texts.append(text)
            if len(texts) == needed:
                break
        if len(texts) < needed:
            raise InputError(f"house-topic: {package} has {len(texts)} docstrings of use, but {needed} are needed")
        found.append(tuple(texts))
    return tuple(found)


def _docstrings(package: str) -> Iterator[str]:
    """Beginnings of a package's docstrings that do not name it, tidied to one line."""
    installed = corpus.installed()
    if package == "python":
        units = corpus.units(("docstring",), {}, None)
    elif package in installed:
        units = [u for u in corpus.units(("docstring",), {package: installed[package]}, None) if u.package == package]
    else:
        raise InputError(f"house-topic: the package {package} is not installed: pip install -r lm-bff/requirements.txt")
    for start in range(0, len(units), UNITS_AT_ONCE):
        documents, _ = extraction.extract(units[start : start + UNITS_AT_ONCE])
        for one in documents:
            text = " ".join(f"{one.summary} {one.text}".split()[:MOST_WORDS])
            if len(text.split()) >= FEWEST_WORDS and text.isascii() and not NAMES.search(text):
                yield text


def test_and_pool(name: str) -> tuple[Labelled, list[list[str]]]:
    """The test set, class by class, and each class's pool that train and dev are drawn from."""
    if name == "house-sentiment":
        rows = list(sentiment_rows())
        random.Random(0).shuffle(rows)
        per_class = list(zip(*rows, strict=True))
    else:
        per_class = topic_texts()
    test, pool = TEST[name], POOL[name]
    held = [(text, label) for label, texts in enumerate(per_class) for text in texts[:test]]
    return held, [list(texts[test : test + pool]) for texts in per_class]


# ------------------------------------------------------------------------------------------------------ few-shot files


def house_splits(
    cache_dir: str | Path | None = None, k: int = 16, seeds: Sequence[int] = SEEDS, tasks: Sequence[str] = HOUSE_TASKS
) -> Path:
    """A folder of few-shot files of the house's tasks, for `data_dir`; what is there already is left as it is.

    Raises:
        InputError: an unknown task, or k larger than half of a class's pool.
    """
    root = Path(cache_dir) if cache_dir is not None else hub.cache_folder("lm-bff") / f"house-{FORMAT}-{_versions()}"
    for name in tasks:
        if name not in HOUSE_TASKS:
            raise InputError(f"task={name} is not one of the house's: {', '.join(HOUSE_TASKS)}")
        if not 1 <= k <= POOL[name] // 2:
            raise InputError(
                f"task={name} k={k}: the pool has {POOL[name]} of each class, so k is 1 to {POOL[name] // 2}"
            )
        folder = root / get_task(name).folder
        wanted = [seed for seed in seeds if not (folder / f"{k}-{seed}" / "dev.tsv").is_file()]
        if wanted or not (folder / "test.tsv").is_file():
            _write(get_task(name), folder, k, wanted)
    return root


def _write(task: Task, folder: Path, k: int, seeds: Sequence[int]) -> None:
    test, pools = test_and_pool(task.name)
    write_atomic(folder / "test.tsv", _lines(test))
    for seed in seeds:
        rng = np.random.RandomState(seed)
        drawn = [[texts[i] for i in rng.permutation(len(texts))[: 2 * k]] for texts in pools]
        split = folder / f"{k}-{seed}"
        for file, part in (("train.tsv", slice(0, k)), ("dev.tsv", slice(k, 2 * k))):
            write_atomic(
                split / file, _lines((text, label) for label, texts in enumerate(drawn) for text in texts[part])
            )


def _lines(examples: Sequence[tuple[str, int]] | Iterator[tuple[str, int]]) -> str:
    return "".join(f"{label}\t{text}\n" for text, label in examples)


def _versions() -> str:
    """Of the packages whose docstrings are read, so that another environment gets its own files."""
    installed = corpus.installed()
    return "-".join(installed[name].version for name in PACKAGES[1:] if name in installed)


# ---------------------------------------------------------------------------------------------- text of the tiny model


def opinions(count: int, seed: int = 0) -> Labelled:
    """Distinct sentences put together from data/opinions.yaml, positive and negative in turn."""
    parts = yaml.safe_load((DATA / "opinions.yaml").read_text("utf-8"))
    subjects = list(chain.from_iterable(parts["subjects"]))
    draw = random.Random(seed)
    found: dict[str, int] = {}
    for _ in range(20 * count):
        if len(found) == count:
            return list(found.items())
        label = len(found) % 2
        good = ("negative", "positive")[label]
        word_list = list(chain.from_iterable(parts["words"][good]))
        first, second = draw.sample(word_list, 2)
        subject, other = draw.sample(subjects, 2)
        remark, fact = draw.choice(parts["remarks"][good]), draw.choice(parts["facts"])
        degree = draw.choice([*parts["degrees"], "", "", ""])
        verb = draw.choice(list(chain.from_iterable(parts["verbs"][good])))
        opposite = draw.choice(list(chain.from_iterable(parts["words"][("positive", "negative")[label]])))
        text = draw.choice(
            (
                f"{subject} was {degree} {first} .",
                f"{subject} was {first} and {other} {second} .",
                f"{fact} , and {subject} was {degree} {first} .",
                f"{subject} was {degree} {first} , {remark} .",
                f"{fact} . {remark} .",
                f"{subject} may be {opposite} , but {other} was {degree} {first} , {remark} .",
                f"{degree} {first} {subject.removeprefix('the ')} , {second} {other.removeprefix('the ')} .",
                f"{subject} {verb} .",
                f"{subject} was {first} and {other} {verb} .",
                f"{fact} , and {subject} {verb} .",
                f"a {first} , {second} {subject.removeprefix('the ')} .",
                f"{first} .",
            )
        )
        found.setdefault(" ".join(text.split()), label)
    raise InputError(f"data/opinions.yaml yields fewer than {count} sentences")


def house_text(opinion_count: int = OPINIONS) -> Text:
    """Opinions and docstrings put into words, the latter also as they are; without the house's few-shot files' own."""
    rows = [(text, label) for pair in sentiment_rows() for label, text in enumerate(pair)]
    found = _allowed(opinions(opinion_count), [text for text, _ in rows])
    sentiment = put_into_words(*zip(*found, strict=True), SENTIMENT_TEMPLATES, SENTIMENT_WORDS)
    skipped = TEST["house-topic"] + POOL["house-topic"]
    topics = [(text, label) for label, texts in enumerate(topic_texts()) for text in texts[skipped:]]
    topics = _allowed(topics, [text for texts in topic_texts() for text in texts[:skipped]])
    topical = put_into_words(*zip(*topics, strict=True), TOPIC_TEMPLATES, TOPIC_WORDS)
    about = f"written for this project: {len(found)} opinions; {len(topics)} docstrings of {', '.join(PACKAGES)}"
    return Text(tuple(text for text, _ in topics), (*sentiment, *topical), task_words(), about)


def _allowed(labelled: Labelled, held_out: Sequence[str]) -> Labelled:
    return [labelled[number] for number in without([text for text, _ in labelled], HeldOut(held_out))]
