"""From text to ids with a tokenizer of the `tokenizers` library, and what identifies that tokenizer.

Byte-level BPE (GPT-2, RoBERTa) works word by word, and text repeats its words: the 11 MB that begin the offline corpus
have 2.7 million words, 55 thousand different ones. So each different word is encoded once, by the library, and looked
up ever after: on one core 11 MB/s where the library's `encode_batch` makes 2.2 and `encode_batch_fast` 3.4. The ids
are the library's own. What is cut is a run of the library's words whose bounds do not depend on what stands beyond
(`PIECES`); anything not plain ASCII is cut at white space only, where every version of Unicode agrees. Other kinds of
tokenizers take `encode_batch_fast`.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from shared import InputError

ROLES = ("bos", "eos", "pad", "unk", "mask", "cls", "sep")
CACHED_WORDS = 2**18  # some 50 MB in each process
CACHED_LETTERS = 64
TEXTS_PER_CALL = 256

# White space as the library's \s has it; Python's has four control characters more.
_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_PLAIN = r"(?![^\t\n\r -~])"  # what follows is plain too: a letter beyond ASCII would belong to the word before it
# GPT-2's 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ for ASCII, in this order, and then
# whatever is left up to the next white space.
PIECES = re.compile(
    rf"'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]++{_PLAIN}| ?[0-9]++{_PLAIN}| ?[!-/:-@\[-`{{-~]++{_PLAIN}"
    rf"|[\t\n\r ]+(?=[\t\n\r ][!-~])|[\t\n\r](?=[!-~])|[{_SPACE}]*[^{_SPACE}]+|[{_SPACE}]+"
)
# Words that may be joined by a line feed and encoded as one text: it stays a word of its own between them.
_JOINABLE = re.compile(r" ?[!-~]+\Z")
_PROBE = "It's  we'll \n\n\tdon'tS 12ab3 x--y!'s naïve café's 中文 a\xa0b\u2028 </s><mask>\r\n  end  "


@dataclass(frozen=True)
class TokenizerFacts:
    """What a token file remembers of its tokenizer.

    sha256       of everything that decides which ids a text gets: normalizer, splitting, vocabulary, merges and added
                 tokens. Truncation, padding, templates and decoding do not: they change between uses of one tokenizer.
    vocab_size   the largest id + 1.
    special_ids  role -> id.
    """

    sha256: str
    vocab_size: int
    special_ids: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def backend(tokenizer: Any) -> Any:
    """The `tokenizers.Tokenizer` of a transformers or tokenizers object. Raises InputError for one without."""
    for name in ("backend_tokenizer", "_tokenizer"):
        inner = getattr(tokenizer, name, None)
        if hasattr(inner, "encode_batch_fast"):
            return inner
    if hasattr(tokenizer, "encode_batch_fast") and hasattr(tokenizer, "to_str"):
        return tokenizer
    raise InputError(
        f"{type(tokenizer).__name__} is no fast tokenizer: load one with AutoTokenizer, or a tokenizers.Tokenizer"
    )


def tokenizer_facts(tokenizer: Any) -> TokenizerFacts:
    """Hash, size and special ids of a tokenizer; TokenizerFacts are returned as they are."""
    if isinstance(tokenizer, TokenizerFacts):
        return tokenizer
    described = json.loads(backend(tokenizer).to_str())
    added = [(token["id"], token["content"]) for token in described.get("added_tokens") or ()]
    deciding = {name: described.get(name) for name in ("normalizer", "pre_tokenizer", "model")}
    content = json.dumps({**deciding, "added": sorted(added)}, sort_keys=True)
    vocab = backend(tokenizer).get_vocab(with_added_tokens=True)
    special = {role: getattr(tokenizer, f"{role}_token_id", None) for role in ROLES}
    return TokenizerFacts(
        hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest(),
        max(vocab.values(), default=-1) + 1,
        {role: int(number) for role, number in special.items() if number is not None},
    )


def without_special_tokens(serialized: str) -> Any:
    """A `tokenizers.Tokenizer` that neither truncates nor pads, and for which `</s>` in a text is text."""
    import tokenizers

    own = tokenizers.Tokenizer.from_str(serialized)
    own.no_truncation()
    own.no_padding()
    own.encode_special_tokens = True
    return own


class Encoder:
    """Texts to ids without special tokens, the same ids as `encode_batch(texts, add_special_tokens=False)` gives.

    Args:
        serialized: the tokenizer as JSON (`backend(tokenizer).to_str()`).
        dtype: of the ids, little-endian uint16 or uint32.
    """

    def __init__(self, serialized: str, dtype: np.dtype):
        self.tokenizer = without_special_tokens(serialized)
        self.dtype = np.dtype(dtype)
        self.known: dict[str, bytes] = {}
        newline = self.tokenizer.encode("\n", add_special_tokens=False).ids
        self.newline = newline[0] if len(newline) == 1 else None
        self.by_words = works_by_words(json.loads(serialized)) and self.newline is not None and self._agrees(_PROBE)

    def __call__(self, texts: Sequence[str]) -> list[bytes]:
        """The ids of each text, as bytes of `dtype`; half of a surrogate pair (JSON may hold one) is U+FFFD."""
        encode, encoded = self._by_words if self.by_words else self._by_library, []
        for start in range(0, len(texts), TEXTS_PER_CALL):
            call = texts[start : start + TEXTS_PER_CALL]
            try:
                encoded += encode(call)
            except TypeError:
                encoded += encode([text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in call])
        return encoded

    def _by_library(self, texts: Iterable[str]) -> list[bytes]:
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, self.dtype).tobytes() for encoding in encodings]

    def _by_words(self, texts: Sequence[str]) -> list[bytes]:
        pieces = list(map(PIECES.findall, texts))
        unknown = list(set().union(*pieces).difference(self.known))
        joinable = [piece for piece in unknown if _JOINABLE.match(piece)]
        single = [piece for piece in unknown if not _JOINABLE.match(piece)]
        self.known.update(zip(single, self._by_library(single), strict=True))
        self.known.update(zip(joinable, self._joined(joinable), strict=True))
        find = self.known.__getitem__
        encoded = [b"".join(map(find, words)) for words in pieces]
        for piece in unknown:
            if len(piece) > CACHED_LETTERS:
                del self.known[piece]  # a word that long does not come again
        if len(self.known) > CACHED_WORDS:
            self.known.clear()  # the frequent ones are back within a megabyte
        return encoded

    def _joined(self, pieces: list[str]) -> list[bytes]:
        """Ids of each piece, from one call of the library: it spends longer on a text of its own than on a word."""
        if not pieces:
            return []
        ids = np.array(
            self.tokenizer.encode_batch_fast(["\n".join(pieces)], add_special_tokens=False)[0].ids, self.dtype
        )
        ends = [*np.flatnonzero(ids == self.newline).tolist(), len(ids)]
        if len(ends) != len(pieces):
            return self._by_library(pieces)
        starts = [0, *(end + 1 for end in ends[:-1])]
        return [ids[start:end].tobytes() for start, end in zip(starts, ends, strict=True)]

    def _agrees(self, text: str) -> bool:
        """Whether this version of the library cuts words as it should."""
        return self._by_words([text, ""]) == self._by_library([text, ""])


def works_by_words(described: dict[str, Any]) -> bool:
    """Whether a tokenizer (its JSON) is a BPE that cuts text by GPT-2's expression and does nothing else to it."""
    splitting = described.get("pre_tokenizer") or {}
    return (
        described.get("normalizer") is None
        and splitting.get("type") == "ByteLevel"
        and splitting.get("use_regex", True)
        and not splitting.get("add_prefix_space", True)
        and described["model"].get("type", "BPE") == "BPE"
        and not described["model"].get("dropout")
        # A special token in a text is text, but an added word that is not special is found anywhere.
        and all(token["special"] for token in described.get("added_tokens") or ())
    )
