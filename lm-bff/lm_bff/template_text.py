"""From what T5 wrote to a template: <extra_id_0> It was<extra_id_1>.<extra_id_2> -> *cls**sent_0*_It_was*mask*.*sep+*

Three forms (section 5.1 of the paper, and the authors' release). T5 is shown a training sentence and its label word
with a blank on either side of the word, and what it writes into the blanks stands there in the template:

    A     <sentence> [blank] label [blank]             <sentence> X [MASK] Y
    B     [blank] label [blank] <sentence>             X [MASK] Y <sentence>
    pair  <first> [blank] label [blank] <second>       <first> X [MASK] Y <second>

In form B the input begins with a full stop, so that the first blank begins a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lm_bff.template import parse
from shared import InputError

SPACE = "▁"
END = "</s>"


@dataclass(frozen=True)
class Form:
    """Input template for T5, what its parts become in the template, and how an input that is too long is cut.

    max_length: None for no limit; truncate_head: whether the beginning is cut instead of the end.
    """

    name: str
    shown: str
    before: str
    after: str
    max_length: int | None = None
    truncate_head: bool = False


SENTENCE_FIRST = Form(
    "A", "*cls**sentu_0**<extra_id_0>**label**<extra_id_1>**sep+*", "*cls**sent_0*", "*sep+*", 256, truncate_head=True
)
SENTENCE_LAST = Form("B", "*cls*.*<extra_id_0>**label**<extra_id_1>**+sentu_0**sep+*", "*cls*", "*+sent_0**sep+*", 256)
PAIR = Form(
    "pair", "*cls**sent-_0**<extra_id_0>**label**<extra_id_1>**+sentl_1**sep+*", "*cls**sent-_0*", "*+sentl_1**sep+*"
)


def forms(num_sentences: int) -> tuple[Form, ...]:
    """The forms for tasks of one or two sentences."""
    if num_sentences not in (1, 2):
        raise InputError(f"template search: tasks have one or two sentences, not {num_sentences}")
    return (SENTENCE_FIRST, SENTENCE_LAST) if num_sentences == 1 else (PAIR,)


def to_template(tokens: Sequence[str], form: Form) -> str | None:
    """The template of generated tokens, or None where they are no template.

    They have to be `<extra_id_0> ... <extra_id_1> ... <extra_id_2>` (or an end of sequence at the end), with no other
    sentinel, and nothing in between that a template would take for something else (`*`, `_`).
    """
    if len(tokens) < 3 or tokens[0] != "<extra_id_0>" or tokens[-1] not in ("<extra_id_2>", END):
        return None
    inner = list(tokens[1:-1])
    if inner.count("<extra_id_1>") != 1:
        return None
    mask = inner.index("<extra_id_1>")
    before, after = "".join(inner[:mask]), "".join(inner[mask + 1 :])
    for text in (before, after):
        if "<extra_id_" in text or END in text or "*" in text or "_" in text or "<pad>" in text or "<unk>" in text:
            return None
    template = f"{form.before}{before}*mask*{after}{form.after}".replace(SPACE, "_")
    try:
        parse(template)
    except InputError:
        return None
    return template
