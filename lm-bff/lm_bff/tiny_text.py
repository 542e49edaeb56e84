"""What the tiny masked language model reads: plain sentences, and labelled sentences put into words.

Two sources. Where the mirror has SentEval's movie and product reviews and questions, those; else what was written for
this project and docstrings of installed packages (`offline_tasks`).

No sentence of an evaluated task is ever read, neither of its test set nor of its few-shot train and dev sets: one is
dropped whose letters equal those of a held-out one, or whose 3-word shingles overlap with one by 0.7, and so is a
phrase of three words or more that lies within a held-out sentence. The data sets share sentences (SST and MR are the
same reviews, tokenised differently), so all of them are held out of all.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lm_bff.data import read_examples
from lm_bff.tasks import TASKS, get_task
from shared import InputError, hub
from shared.duplicates import NearDuplicates, signatures, words

# Ways to say that something was good or bad; half of the sentences get the paper's own.
SENTIMENT_TEMPLATES = (
    "*cls**sent_0*_It_was*mask*.*sep+*",
    "*cls**sent_0*_It_was*mask*.*sep+*",
    "*cls**sent_0*_A*mask*one.*sep+*",
    "*cls**sent_0*_This_is*mask*.*sep+*",
    "*cls**sent_0*_All_in_all*mask*.*sep+*",
    "*cls**sent_0*_It_was*mask*.*sep+*",
)
SENTIMENT_WORDS = (("terrible", "great"), ("terrible", "great"), ("bad", "good"), ("awful", "wonderful"))
UNRELATED_WORDS = ("cat", "dog")  # Table 2 of the paper
SOURCES = ("auto", "mirror", "house")
PHRASES, QUESTIONS = 30_000, 1_000
RUN = 12
HOUSE_TASKS = ("house-sentiment", "house-topic")
MIRRORED = ("mr", "cr", "sst-2", "sst-5", "trec")


@dataclass(frozen=True)
class Verbalised:
    """A sentence, a template that puts a word beside it, the words that could stand there, and which is right."""

    sentence: str
    template: str
    words: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Text:
    """What the tiny model is trained on. `words`: whole words of its vocabulary; `about`: where the text comes from."""

    plain: tuple[str, ...]
    verbalised: tuple[Verbalised, ...]
    words: tuple[str, ...]
    about: str

    @property
    def sentences(self) -> list[str]:
        """Every sentence once, for the tokenizer."""
        return list(dict.fromkeys([*self.plain, *(one.sentence for one in self.verbalised)]))

    @cached_property
    def digest(self) -> str:
        """sha256 of the whole content."""
        rows = [list(self.plain), [[o.sentence, o.template, o.words, o.label] for o in self.verbalised], self.words]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def letters(text: str) -> str:
    """Letters and digits only, lower-case, without accents: equal for the same sentence in two tokenisations."""
    text = re.sub(r"-?[lr]rb-?", "", text.lower())
    return re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFKD", text))


def without(sentences: Sequence[str], held_out: Iterable[str]) -> list[int]:
    """Which of `sentences` are neither equal nor near-duplicates of a held-out one, nor of an earlier one."""
    held_out = list(held_out)
    taken = {letters(text) for text in held_out}
    known = NearDuplicates()
    for text, keys in zip(held_out, signatures([words(text) for text in held_out]), strict=True):
        known.is_new(text, keys)
    kept = []
    for number, (text, keys) in enumerate(zip(sentences, signatures([words(t) for t in sentences]), strict=True)):
        key = letters(text)
        if key and key not in taken and known.is_new(text, keys):
            taken.add(key)
            kept.append(number)
    return kept


def not_within(phrases: Sequence[str], held_out: Iterable[str]) -> list[int]:
    """Which of `phrases` occur once and in no held-out sentence. One or two words alone are no part of a sentence.

    A phrase counts as within one when every run of 12 of its letters is in some held-out sentence, which is a little
    more than asked for and needs no search through all of them.
    """
    held_out = [letters(text) for text in held_out]
    runs = {text[i : i + RUN] for text in held_out for i in range(len(text) - RUN + 1)}
    short = "\n".join(held_out)
    seen: set[str] = set()
    kept = []
    for number, text in enumerate(phrases):
        key = letters(text)
        if not key or key in seen:
            continue
        if len(text.split()) > 2:
            within = (
                key in short if len(key) < RUN else all(key[i : i + RUN] in runs for i in range(len(key) - RUN + 1))
            )
            if within:
                continue
        seen.add(key)
        kept.append(number)
    return kept


def held_out_sentences(tasks: Sequence[str] = MIRRORED) -> list[str]:
    """Every sentence of the few-shot files of `tasks`: train and dev of all seeds, and the test sets."""
    root = hub.locate("lm-bff", "k-shot")
    found: dict[str, None] = {}
    for name in tasks:
        task = TASKS[name]
        files = [p for file in set(task.files.values()) for p in sorted((root / task.folder).rglob(file))]
        if not files:
            raise InputError(
                f"no few-shot files of task {name} at {root / task.folder}: its sentences cannot be held out"
            )
        for path in files:
            found.update((sentence, None) for one in read_examples(path, task) for sentence in one.sentences)
    return list(found)


def task_words() -> tuple[str, ...]:
    """The label words of every task and those of `SENTIMENT_WORDS`: each has to be one token."""
    tasks = [*TASKS.values(), *(get_task(name) for name in HOUSE_TASKS)]
    manual = [word for task in tasks for word in task.mapping.values()]
    return tuple(dict.fromkeys([*manual, *(word for pair in SENTIMENT_WORDS for word in pair), *UNRELATED_WORDS]))


def put_into_words(
    sentences: Sequence[str], labels: Sequence[int], templates: Sequence[str], choices: Sequence[Sequence[str]]
) -> list[Verbalised]:
    """Verbalise each sentence in one of the ways, dealt out in turn so that every way meets every label."""
    found, seen = [], [0] * (max(labels, default=0) + 1)
    for sentence, label in zip(sentences, labels, strict=True):
        turn = seen[label]
        seen[label] += 1
        template, words_ = templates[turn % len(templates)], choices[turn // len(templates) % len(choices)]
        found.append(Verbalised(sentence, template, tuple(words_), label))
    return found


def training_text(source: str = "auto") -> Text:
    """The text of the default tiny model: `mirror`, `house`, or the first of these that is at hand (`auto`).

    Raises:
        InputError: an unknown source; NotAvailable where the mirror was asked for and is not there.
    """
    if source not in SOURCES:
        raise InputError(f"text={source}: give one of {', '.join(SOURCES)}")
    if source != "house":
        try:
            return mirrored_text()
        except hub.NotAvailable:
            if source == "mirror":
                raise
    from lm_bff.offline_tasks import house_text

    return house_text()


def mirrored_text() -> Text:
    """Reviews (MR, CR), phrases of reviews (SST) and questions (TREC) of SentEval, without the few-shot files' own."""
    folder = hub.locate("lm-bff", "senteval")
    files = [
        (f"{name}.{end}", int(end == "pos")) for name in ("MR/rt-polarity", "CR/custrev") for end in ("neg", "pos")
    ]
    reviews = [(text, label) for file, label in files for text in _lines(folder / file)]
    questions = [line.split(" ", 1)[1] for line in _lines(folder / "TREC" / "train_5500.label")]
    held_out = held_out_sentences()
    reviews = [reviews[number] for number in without([text for text, _ in reviews], held_out)]
    questions = [questions[number] for number in without(questions, held_out)][:QUESTIONS]
    pairs = [line.rsplit("\t", 1) for line in _lines(folder / "SST" / "binary" / "sentiment-train")]
    phrases = [(text.strip(), int(label)) for text, label in pairs]
    phrases = [phrases[number] for number in not_within([text for text, _ in phrases], held_out)][:PHRASES]
    labelled = [*reviews, *phrases]
    verbalised = put_into_words(
        [text for text, _ in labelled], [label for _, label in labelled], SENTIMENT_TEMPLATES, SENTIMENT_WORDS
    )
    about = (
        f"SentEval: {len(reviews)} reviews (MR, CR), {len(phrases)} phrases (SST), {len(questions)} questions (TREC)"
    )
    return Text(tuple(questions), tuple(verbalised), task_words(), about)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError:
        text = path.read_text("latin-1")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    return [line.strip() for line in text.split("\n") if line.strip()]
