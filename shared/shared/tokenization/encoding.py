"""From text to ids with a tokenizer of the `tokenizers` library, and what identifies that tokenizer."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from shared import InputError

ROLES = ("bos", "eos", "pad", "unk", "mask", "cls", "sep")


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
        if hasattr(inner, "encode_batch"):
            return inner
    if hasattr(tokenizer, "encode_batch") and hasattr(tokenizer, "to_str"):
        return tokenizer
    raise InputError(
        f"{type(tokenizer).__name__} is no fast tokenizer: load one with AutoTokenizer, or a tokenizers.Tokenizer"
    )


def tokenizer_facts(tokenizer: Any) -> TokenizerFacts:
    """Hash, size and special ids of a tokenizer."""
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


class Encoder:
    """Texts to ids, without special tokens: text that looks like one (`</s>`) is text."""

    def __init__(self, tokenizer: Any, dtype: np.dtype):
        self.tokenizer = copy_of(tokenizer)
        self.dtype = dtype

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids of all texts after one another, int64 lengths (texts,))."""
        encoded = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return np.fromiter((i for ids in encoded for i in ids), self.dtype, int(lengths.sum())), lengths


def copy_of(tokenizer: Any) -> Any:
    """A `tokenizers.Tokenizer` of its own that neither truncates nor pads nor sees special tokens in text."""
    import tokenizers

    if not isinstance(tokenizer, str):
        tokenizer = backend(tokenizer).to_str()
    own = tokenizers.Tokenizer.from_str(tokenizer)
    own.no_truncation()
    own.no_padding()
    own.encode_special_tokens = True
    return own
