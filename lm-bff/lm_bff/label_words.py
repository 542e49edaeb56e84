"""Label words: the mapping from a task's labels to one token each (section 3 of the paper, M(y)).

A word is looked up with a space in front (" great"), because that is how it would stand in text, and has to be one
token of the tokenizer. A word that begins with one of `< [ . ,` is taken for a token's own name (`<mask>`, `.`).
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shared import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Label = str | int
RAW = ("<", "[", ".", ",")


@dataclass(frozen=True)
class LabelWords:
    """Words and token ids in the order of the task's labels, which is the order of the logits' columns."""

    labels: tuple[Label, ...]
    words: tuple[str, ...]
    ids: tuple[int, ...]


def parse_mapping(text: str | Mapping[Any, Any]) -> dict[Label, str]:
    """A mapping from a line of text, `{'0':'terrible','1':'great'}` in Python's or JSON's spelling, or from a config.

    Raises InputError for anything else, naming it.
    """
    if isinstance(text, Mapping):
        mapping = dict(text)
    else:
        try:
            mapping = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            try:
                mapping = json.loads(text)
            except ValueError:
                mapping = None
    if not isinstance(mapping, dict) or not mapping:
        raise InputError(f"mapping {text!r} cannot be read: give label words as {{'0':'terrible','1':'great'}}")
    for label, word in mapping.items():
        if isinstance(label, bool) or not isinstance(label, str | int) or not isinstance(word, str) or not word:
            raise InputError(f"mapping {text!r}: {label!r}: {word!r} is not a label and its word")
    return mapping


def check_mapping(mapping: Mapping[Label, str], labels: Sequence[Label], task: str) -> None:
    """Raise InputError unless the mapping's keys are the task's labels, text for text and number for number."""
    if set(mapping) == set(labels) and all(type(key) is type(_same(key, labels)) for key in mapping):
        return
    hint = ""
    if {str(key) for key in mapping} == {str(label) for label in labels}:
        kind = "numbers without quotes" if isinstance(labels[0], int) else "texts in quotes"
        hint = f"; the labels of this task are {kind}"
    raise InputError(f"mapping of task {task} has the keys {sorted(mapping, key=str)}, but needs {list(labels)}{hint}")


def _same(key: Label, labels: Sequence[Label]) -> Label | None:
    return next((label for label in labels if label == key), None)


def word_id(tokenizer: PreTrainedTokenizerBase, word: str) -> int:
    """The token of a label word.

    Raises:
        InputError: it is not a single token with a space in front (the message shows its pieces).
    """
    if word.startswith(RAW):
        token = tokenizer.convert_tokens_to_ids(word)
        if token is None or (token == tokenizer.unk_token_id and word != tokenizer.unk_token):
            raise InputError(
                f"label word {word!r} is no token of the tokenizer (words in {' '.join(RAW)} are taken so)"
            )
        return token
    ids = tokenizer.encode(" " + word, add_special_tokens=False)
    if len(ids) != 1:
        pieces = tokenizer.convert_ids_to_tokens(ids)
        raise InputError(
            f"label word {word!r} is not one token: with a space in front it becomes {pieces}; choose another word"
        )
    if ids[0] == tokenizer.unk_token_id:
        raise InputError(f"label word {word!r} is not in the tokenizer's vocabulary; choose another word")
    return ids[0]


def label_words(
    tokenizer: PreTrainedTokenizerBase, mapping: str | Mapping[Label, str], labels: Sequence[Label], task: str = "given"
) -> LabelWords:
    """Words and ids of `labels`, in their order. Raises InputError as `check_mapping` and `word_id` do."""
    mapping = parse_mapping(mapping)
    check_mapping(mapping, labels, task)
    words = tuple(mapping[label] for label in labels)
    return LabelWords(tuple(labels), words, tuple(word_id(tokenizer, word) for word in words))
