"""What the tiny masked language model reads: plain sentences, and labelled sentences put into words.

Two sources. Where the mirror has SentEval's movie and product reviews and questions, those; else what was written for
this project and docstrings of installed packages (`offline_tasks`).

No sentence of an evaluated task is ever read, nor part of one, neither of its test set nor of its few-shot train and
dev sets (`held_out` says what that means). The data sets share sentences, so those of all tasks are held out of all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lm_bff.data import read_examples
from lm_bff.held_out import HeldOut, without
from lm_bff.tasks import TASKS, get_task
from shared import InputError, hub

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
# What a question asks for; half of them get TREC's own label words, half others.
QUESTION_TEMPLATES = (
    "*cls**mask*:*+sent_0**sep+*",
    "*cls**sent_0*_Answer:*mask*.*sep+*",
    "*cls**mask*:*+sent_0**sep+*",
    "*cls*_About*mask*:*+sent_0**sep+*",
)
QUESTION_WORDS = (
    ("Description", "Entity", "Expression", "Human", "Location", "Number"),
    ("Reason", "Thing", "Letters", "Person", "Place", "Amount"),
)
QUESTION_TYPES = ("DESC", "ENTY", "ABBR", "HUM", "LOC", "NUM")  # in the order of TREC's classes
UNRELATED_WORDS = ("cat", "dog")  # Table 2 of the paper
SOURCES = ("auto", "mirror", "house")
PHRASES = 30_000
PLAIN_QUESTIONS = 1_000
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
    """The label words of every task and those that the text is put into: each has to be one token."""
    tasks = [*TASKS.values(), *(get_task(name) for name in HOUSE_TASKS)]
    manual = [word for task in tasks for word in task.mapping.values()]
    said = [word for words in (*SENTIMENT_WORDS, *QUESTION_WORDS) for word in words]
    return tuple(dict.fromkeys([*manual, *said, *UNRELATED_WORDS]))


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
    typed = [line.split(" ", 1) for line in _lines(folder / "TREC" / "train_5500.label")]
    pairs = [line.rsplit("\t", 1) for line in _lines(folder / "SST" / "binary" / "sentiment-train")]
    held_out = HeldOut(held_out_sentences())
    reviews = _allowed([(text, label) for file, label in files for text in _lines(folder / file)], held_out)
    phrases = _allowed([(text.strip(), int(label)) for text, label in pairs], held_out, PHRASES)
    questions = _allowed([(text, QUESTION_TYPES.index(kind.split(":")[0])) for kind, text in typed], held_out)
    verbalised = put_into_words(
        *zip(*reviews, *phrases, strict=True), SENTIMENT_TEMPLATES, SENTIMENT_WORDS
    ) + put_into_words(*zip(*questions, *questions, strict=True), QUESTION_TEMPLATES, QUESTION_WORDS)
    about = (
        f"SentEval: {len(reviews)} reviews (MR, CR), {len(phrases)} phrases (SST), {len(questions)} questions (TREC)"
    )
    plain = tuple(text for text, _ in questions[:PLAIN_QUESTIONS])
    return Text(plain, tuple(verbalised), task_words(), about)


def _allowed(labelled: Sequence[tuple[str, int]], held_out: HeldOut, most: int | None = None) -> list[tuple[str, int]]:
    return [labelled[number] for number in without([text for text, _ in labelled], held_out, most)]


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError:
        text = path.read_text("latin-1")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    return [line.strip() for line in text.split("\n") if line.strip()]
