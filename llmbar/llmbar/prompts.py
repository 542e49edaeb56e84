"""Prompts are files: filled with `str.format`, split into chat messages, made one string where a model needs it.

The files are the benchmark (the three rule blocks look alike and are not the same string), so they are used byte for
byte and never assembled. Braces inside data are safe because data are arguments of `format`, never part of the
template.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmbar.strategies import Strategy
from shared import InputError

START, END = "<|im_start|>", "<|im_end|>"
Messages = list[dict[str, str]]

_DATA_FIELDS = {
    "comparison": {"input", "output_1", "output_2"},
    "swap_and_synthesize": {"input", "output_1", "output_2", "explanation_1", "explanation_2"},
    "rating": {"input", "output"},
    "auxiliary": {"input"},
}
_LETTER = re.compile(r"([Oo]utput) \(([ab])\)")


@dataclass(frozen=True)
class Template:
    """One prompt file. `fill` gives the exact string that a recorded `prompt_sha256` was taken of."""

    name: str
    text: str

    def fill(self, **fields: str) -> str:
        return self.text.format(**fields)

    def messages(self, **fields: str) -> Messages:
        return split_messages(self.fill(**fields))


def read_template(folder: Path, name: str, auxiliary: int = 0) -> Template:
    """Read `folder/name` and check it: known kind, all its fields and no others, turns that end with the user.

    `auxiliary` is how many texts the strategy makes beforehand: exactly `auxiliary_input_0 ... auxiliary_input_{n-1}`
    must appear. Raises InputError naming the file, the field and the fix.
    """
    path = folder / name
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"prompt {name}: no such file in {folder}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"prompt {path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    kind = name.partition("/")[0]
    if kind not in _DATA_FIELDS:
        raise InputError(
            f"prompt {name}: its folder must be one of {', '.join(_DATA_FIELDS)}, which decides its fields"
        )
    needed = _DATA_FIELDS[kind] | {f"auxiliary_input_{k}" for k in range(auxiliary)}
    found = _fields(path, text)
    if missing := needed - found:
        raise InputError(f"prompt {path}: the field {{{sorted(missing)[0]}}} is missing")
    if unknown := found - needed:
        raise InputError(
            f"prompt {path}: unknown field {{{sorted(unknown)[0]}}}; it may use {', '.join(sorted(needed))} "
            "(write {{ and }} for braces that are meant as such)"
        )
    template = Template(name, text)
    _check_turns(path, template.messages(**dict.fromkeys(needed, "x")))
    return template


def read_templates(folder: Path, strategies: Mapping[str, Strategy]) -> dict[str, Template]:
    """File name -> checked template, for every prompt the strategies use."""
    templates: dict[str, Template] = {}
    for strategy in strategies.values():
        for auxiliary in strategy.auxiliary:
            templates.setdefault(auxiliary.prompt, read_template(folder, auxiliary.prompt))
        for stage in strategy.stages:
            templates.setdefault(stage.prompt, read_template(folder, stage.prompt, len(strategy.auxiliary)))
    return templates


def split_messages(filled: str) -> Messages:
    """Chat messages of a filled text: split at <|im_start|>, role = first line, content up to the first <|im_end|>."""
    messages = []
    for block in filled.strip().split(START):
        if block.strip():
            role, _, content = block.partition("\n")
            messages.append({"role": role.strip(), "content": content.partition(END)[0].strip()})
    return messages


def swap_letters(text: str) -> str:
    """Every "Output (a)" / "output (a)" becomes "(b)" and the other way round, at the same time."""
    return _LETTER.sub(lambda match: f"{match[1]} ({'b' if match[2] == 'a' else 'a'})", text)


def explanations(first: Sequence[str], winners: Sequence[str], swapped: bool) -> tuple[str, str]:
    """(explanation_1, explanation_2) for the second stage in one order (LLMBar, "Swap and Synthesize").

    first: the first stage's two texts (given order, swapped order); winners: what they voted for, one "1" and one "2".
    Each text is used as it is if it was written under the order now asked, else with its letters exchanged;
    explanation_1 is the one that votes for the output now shown as (a).
    """
    by_vote = {
        vote: text if (order == 1) == swapped else swap_letters(text)
        for order, (text, vote) in enumerate(zip(first, winners, strict=True))
    }
    return (by_vote["2"], by_vote["1"]) if swapped else (by_vote["1"], by_vote["2"])


def sha256_16(filled: str) -> str:
    """First 16 hex digits of the SHA-256 of a filled template: how recorded second stages are checked."""
    return hashlib.sha256(filled.encode("utf-8")).hexdigest()[:16]


# ------------------------------------------------------------------------- messages -> one string, per family of models


def llama2_chat(messages: Messages) -> str:
    """Llama-2 chat, exactly as released; tokenise it with special-token parsing and no added BOS."""
    system, turns = messages[0]["content"], messages[1:]
    text = f"<s>[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{turns[0]['content']} [/INST]"
    for assistant, user in zip(turns[1::2], turns[2::2], strict=True):
        text += f" {assistant['content']} </s><s>[INST] {user['content']} [/INST]"
    return text


def falcon_chat(messages: Messages) -> str:
    """Falcon chat, exactly as released; the tokenizer's defaults apply."""
    names = {"system": "System", "user": "User", "assistant": "Falcon"}
    return "".join(f"{names[message['role']]}: {message['content']}\n" for message in messages) + "Falcon:"


def palm_text(messages: Messages) -> str:
    """PaLM 2's text interface: system, blank line, user. It has no turns, so few-shot prompts are refused."""
    if len(messages) != 2:
        raise InputError(
            f"chat_format=palm takes a system and a user message, not {len(messages)} messages; "
            "few-shot strategies need a judge with chat turns"
        )
    return f"{messages[0]['content']}\n\n{messages[1]['content']}"


def merge_system(messages: Messages) -> Messages:
    """The system text put before the first user message, for chat templates that refuse a system message (Gemma 2)."""
    if messages[0]["role"] != "system":
        return messages
    first = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
    return [first, *messages[2:]]


CHAT_FORMATS: dict[str, Callable[[Messages], str]] = {
    "llama2": llama2_chat,
    "falcon": falcon_chat,
    "palm": palm_text,
}


def _fields(path: Path, text: str) -> set[str]:
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise InputError(
            f"prompt {path}: not a template ({error}); write {{{{ and }}}} for braces meant as such"
        ) from None
    return names


def _check_turns(path: Path, messages: Messages) -> None:
    roles = [message["role"] for message in messages]
    if not roles:
        raise InputError(f"prompt {path}: no message; write {START}system ... {END} and {START}user ... {END}")
    if roles[0] != "system":
        raise InputError(f"prompt {path}: the first message is from {roles[0]!r}; it must be the system message")
    if roles[-1] != "user":
        raise InputError(f"prompt {path}: the last message is from {roles[-1]!r}; it must be from the user")
    expected = ["user", "assistant"] * (len(roles) // 2)
    if roles[1:] != expected[: len(roles) - 1]:
        raise InputError(
            f"prompt {path}: its turns are {', '.join(roles[1:])}; demonstrations are pairs of user and assistant, "
            "then the user asks"
        )
