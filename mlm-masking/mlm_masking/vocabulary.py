"""What masking must know of a tokenizer: its special ids, where words begin, and the text of its tokens."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlm_masking.arrays import Array
from shared import InputError

WORD_BEGIN = "Ġ"  # how a byte-level BPE writes the space before a word


def _bytes_of_letters() -> dict[str, int]:
    """GPT-2's printable letter for each byte, inverted: visible Latin-1 stands for itself, the rest moves up by 256."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


LETTER_BYTES = _bytes_of_letters()


@dataclass(frozen=True)
class Vocabulary:
    """The ids that masking treats specially, and what word-level masking needs.

    Args:
        size: number of ids. bos_id, pad_id, eos_id, unk_id, mask_id: the special ones; RoBERTa's are 0, 1, 2, 3 and
        last.
        word_begin: `(size,)` bool, True for tokens that begin a word (a leading space, or special); None where unknown.
        texts: `(size,)` the bytes of each token, without its leading space, b"" for special ones; None where unknown.
    """

    size: int
    bos_id: int = 0
    pad_id: int = 1
    eos_id: int = 2
    unk_id: int = 3
    mask_id: int = 50264
    word_begin: np.ndarray | None = field(default=None, repr=False, compare=False)
    texts: list[bytes] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        ids = {"bos_id": self.bos_id, "pad_id": self.pad_id, "eos_id": self.eos_id, "unk_id": self.unk_id}
        ids["mask_id"] = self.mask_id
        for name, value in ids.items():
            if not 0 <= value < self.size:
                raise InputError(f"{name}={value} is not below the vocabulary's size {self.size}: check the tokenizer")
        if len(set(ids.values())) < len(ids):
            raise InputError(f"special ids {ids} are not distinct: masking needs five different ones")
        for name, table in (("word_begin", self.word_begin), ("texts", self.texts)):
            if table is not None and len(table) != self.size:
                raise InputError(f"{name} has {len(table)} entries for a vocabulary of {self.size}")

    @property
    def special_ids(self) -> tuple[int, int, int, int]:
        """The four that never replace a token and that `protect_special` keeps from being masked."""
        return self.bos_id, self.pad_id, self.eos_id, self.unk_id

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, size: int | None = None) -> "Vocabulary":
        """Of a byte-level BPE tokenizer, transformers' or `tokenizers.Tokenizer`.

        Args:
            size: ids of the model's embedding where it has more rows than the tokenizer has tokens.
        Raises:
            InputError: no `<s>`, `<pad>`, `</s>`, `<unk>` or `<mask>`.
        """
        vocab = tokenizer.get_vocab()
        special = {}
        for name in ("bos", "pad", "eos", "unk", "mask"):
            token = getattr(tokenizer, f"{name}_token", None) or {"bos": "<s>", "eos": "</s>"}.get(name, f"<{name}>")
            if token not in vocab:
                raise InputError(f"the tokenizer has no {token}: masking needs <s>, <pad>, </s>, <unk> and <mask>")
            special[f"{name}_id"] = vocab[token]
        size = max(max(vocab.values()) + 1, size or 0)
        word_begin, texts = np.zeros(size, bool), [b""] * size
        for token, place in vocab.items():
            if place in special.values():
                word_begin[place] = True
                continue
            word_begin[place] = token.startswith(WORD_BEGIN)
            text = token.removeprefix(WORD_BEGIN)
            if all(letter in LETTER_BYTES for letter in text):
                texts[place] = bytes(LETTER_BYTES[letter] for letter in text)
        return cls(size=size, word_begin=word_begin, texts=texts, **special)


def check_ids(ids: Array, mask_id: int, vocab_size: int) -> None:
    """Raise InputError where a block, or a batch of them, cannot be masked."""
    if ids.shape[-1] < 2:
        raise InputError(f"a block has {ids.shape[-1]} tokens: masking needs at least 2 (<s> and one more)")
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest >= vocab_size:
        raise InputError(
            f"token id {lowest if lowest < 0 else highest} is not in the vocabulary of {vocab_size}: the data was made "
            "with another tokenizer; tokenize the text again with this one"
        )
    if highest >= mask_id and bool((ids == mask_id).any()):
        raise InputError(
            f"the data holds <mask> (id {mask_id}) before masking: it is masked already, or its text contains the "
            "mask token; tokenize the original text without it"
        )
