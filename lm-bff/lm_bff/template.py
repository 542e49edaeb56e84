"""The template language: `*cls**sent_0*_It_was*mask*.*sep+*`, parsed into pieces and rendered by pure functions.

`*` separates literal text (even places) from variables (odd places); `_` in literal text is a space. Variables:

    cls, mask, sep      the tokenizer's special tokens; `sep+` also starts a new segment for what follows it
    sent_i              text of sentence i; `+sent_i` with a space in front; `sent-_i` without its last character;
                        `sentl_i`, `sentu_i` with the first letter lower- or upper-cased; these combine: `+sentl-_0`
    label_k             the label word of class k (in demonstrations)
    labelx_j            the label word of in-context example j

Every piece is tokenised alone, never jointly with its neighbours, so where a space stands decides the token: the label
word of RoBERTa is the one token " great", and no template puts a space in front of `*mask*`. (Gao, Fisch and Chen 2021,
appendix on templates, and the authors' release, whose treatment of every piece is kept.)

The template language of the T5 search adds `*label*` (the example's own label word) and `*<extra_id_k>*`; they are
understood by `parse(template, fill_in=True)` only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from shared import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SENTENCE = re.compile(r"(?P<space>\+?)sent(?P<case>[lu]?)(?P<cut>-?)_(?P<index>\d+)")
LABEL = re.compile(r"label(?P<context>x?)_(?P<index>\d+)")
SENTINEL = re.compile(r"<extra_id_\d+>")
SPECIALS = {"cls": "cls", "mask": "mask", "sep": "sep", "sep+": "sep"}
VARIABLES = "cls, mask, sep, sep+, sent_i (also +sent_i, sent-_i, sentl_i, sentu_i), label_k, labelx_j"
CASES = {"": lambda text: text, "l": lambda text: text[:1].lower() + text[1:], "u": lambda t: t[:1].upper() + t[1:]}


@dataclass(frozen=True)
class Literal:
    """Text as it is, spaces already in place of underscores."""

    text: str

    def __str__(self) -> str:
        return self.text.replace(" ", "_")


@dataclass(frozen=True)
class Special:
    """`cls`, `mask` or `sep`; `ends_segment` is the plus of `sep+`."""

    kind: str
    ends_segment: bool = False

    def __str__(self) -> str:
        return f"*{self.kind}{'+' if self.ends_segment else ''}*"


@dataclass(frozen=True)
class Sentence:
    """Sentence `index`, with a leading space, without its last character, or with its first letter's case changed."""

    index: int
    space: bool = False
    case: str = ""
    cut: bool = False

    def __str__(self) -> str:
        return f"*{'+' if self.space else ''}sent{self.case}{'-' if self.cut else ''}_{self.index}*"

    def apply(self, text: str) -> str:
        """The text that is tokenised. `cut` takes the last character, punctuation or not, as in the release."""
        text = CASES[self.case](text[:-1] if self.cut else text)
        return f" {text}" if self.space else text


@dataclass(frozen=True)
class LabelWord:
    """The word of class `index`, or with `context` the word of in-context example `index`."""

    index: int
    context: bool = False

    def __str__(self) -> str:
        return f"*label{'x' if self.context else ''}_{self.index}*"


@dataclass(frozen=True)
class OwnLabel:
    """The label word of the example itself (templates given to T5)."""

    def __str__(self) -> str:
        return "*label*"


@dataclass(frozen=True)
class Sentinel:
    """A token such as `<extra_id_0>`, by name (templates given to T5)."""

    token: str

    def __str__(self) -> str:
        return f"*{self.token}*"


Piece = Literal | Special | Sentence | LabelWord | OwnLabel | Sentinel


class Rendered(NamedTuple):
    """One example as token ids; nothing is padded.

    `input_ids` and `token_type_ids` have the same length; `mask_position` is the index of the mask in them (None for
    templates without one).
    """

    input_ids: list[int]
    mask_position: int | None
    token_type_ids: list[int]


class TooManyMasks(InputError):
    """The input text itself holds the mask token."""


_CACHES: WeakKeyDictionary[PreTrainedTokenizerBase, dict[str, list[int]]] = WeakKeyDictionary()
CACHE_ENTRIES = 200_000


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of `text` alone, without special tokens. Remembered: demonstrations are the same texts again and again.

    The list is shared; do not change it.
    """
    cache = _CACHES.setdefault(tokenizer, {})
    ids = cache.get(text)
    if ids is None:
        if len(cache) >= CACHE_ENTRIES:
            cache.clear()
        ids = cache[text] = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    return ids


@dataclass(frozen=True)
class Template:
    """A parsed template; `str(template)` writes it again. Layouts of several examples are made with its methods."""

    pieces: tuple[Piece, ...]

    def __str__(self) -> str:
        return "".join(str(piece) for piece in self.pieces)

    @property
    def num_sentences(self) -> int:
        """One more than the largest sentence index."""
        return max((piece.index for piece in self.pieces if isinstance(piece, Sentence)), default=-1) + 1

    @property
    def num_masks(self) -> int:
        return sum(piece == Special("mask") for piece in self.pieces)

    def without_cls(self) -> Template:
        """The same template without `*cls*`, as demonstrations have it."""
        return Template(tuple(piece for piece in self.pieces if piece != Special("cls")))

    def shifted(self, by: int) -> Template:
        """All sentence indices moved by `by`."""
        return Template(tuple(replace(p, index=p.index + by) if isinstance(p, Sentence) else p for p in self.pieces))

    def answered(self, answer: LabelWord) -> Template:
        """`answer` in the place of the mask."""
        return Template(tuple(answer if piece == Special("mask") else piece for piece in self.pieces))

    def __add__(self, other: Template) -> Template:
        return Template(self.pieces + other.pieces)

    def tokens(
        self,
        tokenizer: PreTrainedTokenizerBase,
        sentences: Sequence[str],
        *,
        label_word_ids: Sequence[int] = (),
        context_word_ids: Sequence[int] = (),
        own_label_ids: Sequence[int] = (),
        first_sent_limit: int | None = None,
        other_sent_limit: int | None = None,
    ) -> tuple[list[int], list[int]]:
        """(input_ids, segment ids from 0) without any limit on the whole; see `render` for the arguments."""
        if self.num_sentences > len(sentences):
            raise InputError(
                f"template {str(self)!r} asks for sentence {self.num_sentences - 1}, "
                f"but the example has {len(sentences)} (numbered from 0)"
            )
        ids: list[int] = []
        segments: list[int] = []
        segment = 0
        for piece in self.pieces:
            if isinstance(piece, Sentence):
                limit = first_sent_limit if piece.index == 0 else other_sent_limit
                new = encode(tokenizer, piece.apply(sentences[piece.index]))[:limit]
            elif isinstance(piece, Literal):
                new = _literal(tokenizer, piece.text)
            elif isinstance(piece, LabelWord):
                new = [_word(piece, context_word_ids if piece.context else label_word_ids, self)]
            elif isinstance(piece, OwnLabel):
                new = own_label_ids
            elif isinstance(piece, Sentinel):
                new = [tokenizer.convert_tokens_to_ids(piece.token)]
            else:
                new = _special(tokenizer, piece.kind)
            ids += new
            segments += [segment] * len(new)
            segment += isinstance(piece, Special) and piece.ends_segment
        return ids, segments

    def render(
        self,
        tokenizer: PreTrainedTokenizerBase,
        sentences: Sequence[str],
        *,
        label_word_ids: Sequence[int] = (),
        context_word_ids: Sequence[int] = (),
        own_label_ids: Sequence[int] = (),
        max_length: int | None = None,
        first_sent_limit: int | None = None,
        other_sent_limit: int | None = None,
        truncate_head: bool = False,
        name: str = "the example",
    ) -> Rendered:
        """Token ids of one example.

        Args:
            tokenizer: of the masked language model (T5's, which has no cls token, gets none).
            sentences: all texts the template numbers: the query's, then those of demonstrations.
            label_word_ids, context_word_ids: token ids behind `label_k` and `labelx_j`; own_label_ids: behind `label`.
            max_length: the most tokens; the end is cut, or with `truncate_head` the beginning.
            first_sent_limit, other_sent_limit: the most tokens of sentence 0, and of every other one.
            name: how to call the example in an error.

        Raises:
            InputError: a sentence or label word that is not there; the mask cut away; the mask token in the texts.
        """
        ids, segments = self.tokens(
            tokenizer,
            sentences,
            label_word_ids=label_word_ids,
            context_word_ids=context_word_ids,
            own_label_ids=own_label_ids,
            first_sent_limit=first_sent_limit,
            other_sent_limit=other_sent_limit,
        )
        return finish(ids, segments, tokenizer, self.num_masks, max_length, truncate_head, name)


def finish(
    ids: list[int],
    segments: list[int],
    tokenizer: PreTrainedTokenizerBase,
    masks: int = 1,
    max_length: int | None = None,
    truncate_head: bool = False,
    name: str = "the example",
) -> Rendered:
    """Cut to `max_length` and find the mask. Raises InputError where the cut took it, or the text brought another."""
    if masks and (found := ids.count(tokenizer.mask_token_id)) > masks:
        raise TooManyMasks(
            f"{name}: its text holds the mask token {tokenizer.mask_token!r} ({found} masks in the prompt instead "
            f"of {masks}); remove it from the text"
        )
    length = len(ids)
    if max_length is not None and length > max_length:
        kept = slice(length - max_length, None) if truncate_head else slice(max_length)
        ids, segments = ids[kept], segments[kept]
    position = None
    if masks:
        try:
            position = ids.index(tokenizer.mask_token_id)
        except ValueError:
            raise InputError(
                f"{name}: its prompt has {length} tokens, and cutting it to max_length={max_length} removed the mask. "
                "Set first_sent_limit (and other_sent_limit) to shorten the sentences, raise max_length, or set "
                "truncate_head=true"
            ) from None
    return Rendered(ids, position, segments)


def parse(template: str, *, fill_in: bool = False, masks: int | None = 1) -> Template:
    """Parse a template string.

    Args:
        template: see the module's docstring.
        fill_in: allow `*label*` and `*<extra_id_k>*`, and do not ask for a mask (templates given to T5).
        masks: how many `*mask*` there must be; None: any number.

    Raises:
        InputError: an odd number of `*`, an unknown variable, or another number of masks.
    """
    if not isinstance(template, str):
        raise InputError(f"template is {template!r}: give a text such as *cls**sent_0*_It_was*mask*.*sep+*")
    parts = template.split("*")
    if len(parts) % 2 == 0:
        raise InputError(f"template {template!r} has an odd number of *: every variable stands between two of them")
    pieces = [
        _variable(part, template, fill_in) if place % 2 else Literal(part.replace("_", " "))
        for place, part in enumerate(parts)
        if part or place % 2
    ]
    parsed = Template(tuple(pieces))
    if not fill_in and masks is not None and parsed.num_masks != masks:
        raise InputError(f"template {template!r} has {parsed.num_masks} *mask*, but must have exactly {masks}")
    return parsed


def _variable(name: str, template: str, fill_in: bool) -> Piece:
    if name in SPECIALS:
        return Special(SPECIALS[name], ends_segment=name == "sep+")
    if found := SENTENCE.fullmatch(name):
        return Sentence(int(found["index"]), bool(found["space"]), found["case"], bool(found["cut"]))
    if found := LABEL.fullmatch(name):
        return LabelWord(int(found["index"]), bool(found["context"]))
    if fill_in and name == "label":
        return OwnLabel()
    if fill_in and SENTINEL.fullmatch(name):
        return Sentinel(name)
    raise InputError(f"template {template!r} has the unknown variable *{name}*; known: {VARIABLES}")


def _literal(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """One character alone is looked up, not encoded: SentencePiece would put a space before it."""
    if len(text) == 1:
        token = tokenizer.convert_tokens_to_ids(text)
        # The release lets a character without a token of its own (a space, in byte-level BPE) become <unk>.
        if token is not None and token != tokenizer.unk_token_id:
            return [token]
    return encode(tokenizer, text)


def _special(tokenizer: PreTrainedTokenizerBase, kind: str) -> list[int]:
    token = {"cls": tokenizer.cls_token_id, "mask": tokenizer.mask_token_id, "sep": tokenizer.sep_token_id}[kind]
    if token is None and kind == "sep":
        token = tokenizer.eos_token_id
    if token is None and kind == "mask":
        raise InputError("the tokenizer has no mask token: prompts need a masked language model's tokenizer")
    return [] if token is None else [token]


def _word(piece: LabelWord, ids: Sequence[int], template: Template) -> int:
    if piece.index >= len(ids):
        raise InputError(f"template {str(template)!r} asks for {piece}, but there are {len(ids)} label words")
    return ids[piece.index]
