"""SQuAD's questions, and their windows: `<s> question </s></s> part of the context </s>`.

A context that does not fit is cut into windows that overlap by `doc_stride` tokens. A context is tokenised once for all
its questions. A window that does not hold the whole answer is trained to point at `<s>`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlm_masking.sequences import Sequences, check_vocabulary, joined, special_tokens
from shared import InputError


@dataclass(frozen=True)
class Question:
    """One question; every answer is (text, first character in the context)."""

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]

    @property
    def golds(self) -> list[str]:
        return [text for text, _ in self.answers]


@dataclass(frozen=True)
class Windows:
    """Windows of questions.

    Attributes:
        rows: token ids. question: (windows,) index of the question.
        first: (windows,) position in the row of the window's first context token.
        tokens: (windows, 2) the window's context tokens [begin, end) in the whole context.
        spans: {context: (tokens, 2) characters of each token}.
        targets: (windows, 2) first and last answer token in the row; (0, 0) points at `<s>`.
    """

    rows: Sequences
    question: np.ndarray
    first: np.ndarray
    tokens: np.ndarray
    spans: dict[str, np.ndarray]
    targets: np.ndarray


def read_questions(file: Path) -> list[Question]:
    """Questions of the official JSON or of the hub's parquet files.

    Raises:
        InputError: not such a file, an empty one, or an answer that does not stand in the context where it says.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        questions = _from_parquet(file) if file.suffix == ".parquet" else _from_json(file)
    except (ValueError, KeyError, TypeError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} is not SQuAD v1.1 (json or parquet): {type(error).__name__} {error}") from None
    if not questions:
        raise InputError(f"{file}: no questions")
    for one in questions:
        check_answers(one, file)
    return questions


def _from_json(file: Path) -> list[Question]:
    articles = json.loads(file.read_text(encoding="utf-8"))["data"]
    return [
        Question(
            str(qa["id"]),
            qa["question"],
            paragraph["context"],
            tuple((answer["text"], int(answer["answer_start"])) for answer in qa["answers"]),
        )
        for article in articles
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]


def _from_parquet(file: Path) -> list[Question]:
    import pyarrow.parquet as parquet

    return [
        Question(
            str(row["id"]),
            row["question"],
            row["context"],
            tuple(zip(row["answers"]["text"], map(int, row["answers"]["answer_start"]), strict=True)),
        )
        for row in parquet.read_table(file).to_pylist()
    ]


def check_answers(question: Question, where: Path | str) -> None:
    """Raise InputError unless every answer stands in the context at its `answer_start`."""
    for text, start in question.answers:
        found = question.context[start : start + len(text)] if start >= 0 else ""
        if not text or found != text:
            hint = question.context.find(text) if text else -1
            elsewhere = f"; it stands at {hint}" if hint >= 0 else "; it is not in the context at all"
            raise InputError(
                f"{where}: question {question.id}: the answer {text[:60]!r} is not at answer_start={start}, where the "
                f"context has {found[:60]!r}{elsewhere if text else ''}"
            )


def make_windows(
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    max_length: int,
    doc_stride: int,
    vocab_size: int | None = None,
    labelled: bool = True,
) -> Windows:
    """Tokenise questions into windows.

    Args:
        max_length: tokens of a window, special ones included. doc_stride: tokens that two windows share.
        labelled: whether the first answer's tokens are wanted (training).

    Raises:
        InputError: a stride or length that leaves no room for new context, or a token id beyond `vocab_size`.
    """
    if doc_stride < 0:
        raise InputError(f"doc_stride={doc_stride}: give 0 or more")
    special = special_tokens(tokenizer)
    asked = tokenizer([one.question.strip() for one in questions], add_special_tokens=False, verbose=False)["input_ids"]
    contexts = list(dict.fromkeys(one.context for one in questions))
    encoded = tokenizer(contexts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = dict(zip(contexts, encoded["input_ids"], strict=True))
    spans = {
        context: np.array(offsets, dtype=np.int64).reshape(-1, 2)
        for context, offsets in zip(contexts, encoded["offset_mapping"], strict=True)
    }
    rows, owner, first, tokens, targets = [], [], [], [], []
    for index, (one, words) in enumerate(zip(questions, asked, strict=True)):
        room = max_length - len(words) - 4
        context = ids[one.context]
        if room < 1 or (len(context) > room and room <= doc_stride):
            raise InputError(
                f"question {one.id} has {len(words)} tokens: max_length={max_length} leaves {max(room, 0)} for the "
                f"context, which must be more than doc_stride={doc_stride}: raise max_length or lower doc_stride"
            )
        answer = answer_tokens(spans[one.context], *one.answers[0]) if labelled and one.answers else None
        head = [special.bos, *words, special.eos, special.eos]
        for begin, end in window_bounds(len(context), room, doc_stride):
            rows.append(np.array([*head, *context[begin:end], special.eos], dtype=np.int32))
            owner.append(index)
            first.append(len(head))
            tokens.append((begin, end))
            inside = answer is not None and begin <= answer[0] and answer[1] < end
            targets.append([token - begin + len(head) for token in answer] if inside else [0, 0])
    windows = joined(rows)
    check_vocabulary(windows.ids, vocab_size)
    arrays = (np.array(each, dtype=np.int64) for each in (owner, first, tokens, targets))
    owner, first, tokens, targets = arrays
    return Windows(windows, owner, first, tokens, spans, targets)


def window_bounds(length: int, room: int, doc_stride: int) -> list[tuple[int, int]]:
    """[begin, end) of windows of at most `room` tokens over `length`, each `doc_stride` tokens into the one before."""
    bounds = [(0, min(room, length))]
    while bounds[-1][1] < length:
        begin = bounds[-1][1] - doc_stride
        bounds.append((begin, min(begin + room, length)))
    return bounds


def answer_tokens(spans: np.ndarray, text: str, start: int) -> tuple[int, int]:
    """First and last token that cover the characters [start, start + len(text)) of the context."""
    first = int(np.searchsorted(spans[:, 0], start, side="right")) - 1
    last = int(np.searchsorted(spans[:, 1], start + len(text), side="left"))
    return max(first, 0), min(max(last, first), len(spans) - 1)


def best_answers(
    windows: Windows,
    questions: Sequence[Question],
    logits: Sequence[np.ndarray],
    *,
    n_best: int = 20,
    max_answer_length: int = 30,
) -> dict[str, str]:
    """The text with the highest sum of start and end logit over all windows of each question.

    Args:
        logits: per window (tokens of the row, 2).
        n_best: starts and ends that are combined. max_answer_length: in tokens.

    Returns: question id -> answer; "" where no window has an allowed span.
    """
    best: dict[int, tuple[float, str]] = {}
    for window, scores in enumerate(logits):
        index, first = int(windows.question[window]), int(windows.first[window])
        begin, end = windows.tokens[window]
        if end == begin:
            continue
        inner = scores[first : first + end - begin].astype(np.float64)
        starts = np.argsort(-inner[:, 0], kind="stable")[:n_best]
        ends = np.argsort(-inner[:, 1], kind="stable")[:n_best]
        length = ends[None, :] - starts[:, None]
        allowed = (length >= 0) & (length < max_answer_length)
        total = np.where(allowed, inner[starts, 0][:, None] + inner[ends, 1][None, :], -np.inf)
        row, column = np.unravel_index(int(total.argmax()), total.shape)
        if not allowed[row, column] or (index in best and best[index][0] >= total[row, column]):
            continue
        context = questions[index].context
        spans = windows.spans[context]
        text = context[spans[begin + starts[row], 0] : spans[begin + ends[column], 1]]
        best[index] = (float(total[row, column]), text)
    return {one.id: best.get(index, (0.0, ""))[1] for index, one in enumerate(questions)}
