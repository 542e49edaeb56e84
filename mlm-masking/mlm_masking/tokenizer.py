"""The byte-level BPE of GPT-2 with RoBERTa's id layout: trained on the spot, or loaded.

    id 0 <s>, 1 <pad>, 2 </s>, 3 <unk>, then bytes and merges, and <mask> last

The released vocabulary (50,265 entries) numbers its BPE entries by their frequency in the corpus and has three fillers
before `<mask>`; a vocabulary trained here numbers the 256 bytes first and the merges in the order they were found. Same
lines and size give the same file on every machine: the alphabet is given beforehand, so that no hash order decides.
"""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from shared import InputError

log = logging.getLogger(__name__)

BOS, PAD, EOS, UNK, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
FIRST_IDS = {BOS: 0, PAD: 1, EOS: 2, UNK: 3}
# Four specials, the 256 bytes, <mask>: below that a text could not be written at all.
MIN_VOCAB_SIZE = len(FIRST_IDS) + 256 + 1


def train_tokenizer(lines: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on lines of text. `vocab_size` counts everything, specials and `<mask>` too.

    Raises:
        InputError: a `vocab_size` below 261, no text, or text that gives fewer entries than that.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise InputError(
            f"tokenizer.vocab_size={vocab_size}: give at least {MIN_VOCAB_SIZE} (256 bytes and five special tokens)"
        )
    raw = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        special_tokens=list(FIRST_IDS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    empty = True

    def counted() -> Iterator[str]:
        nonlocal empty
        for line in lines:
            empty = empty and not line.strip()
            yield line

    raw.train_from_iterator(counted(), trainer)
    if empty:
        raise InputError("no tokenizer can be trained: the text is empty, or empty lines alone")
    if raw.get_vocab_size() < vocab_size - 1:
        raise InputError(
            f"tokenizer.vocab_size={vocab_size}: this text gives only {raw.get_vocab_size() + 1} entries; "
            "give fewer, or more text"
        )
    return _wrap(raw)


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
    """Load a tokenizer from a folder: `tokenizer.json`, or `vocab.json` with `merges.txt`; or from the one file.

    Raises:
        InputError: none of these there, a damaged file, or ids that are not laid out as above.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    file = path if path.is_file() else folder / "tokenizer.json"
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    try:
        if file.is_file() and file.name != vocab.name:
            raw = Tokenizer.from_file(str(file))
        elif vocab.is_file() and merges.is_file():
            entries = json.loads(vocab.read_text("utf-8"))
            raw = _byte_level(models.BPE.from_file(str(vocab), str(merges)))
            raw.add_special_tokens([token for token in FIRST_IDS if token in entries])
        else:
            raise InputError(f"tokenizer {path}: needs tokenizer.json, or vocab.json and merges.txt")
    except InputError:
        raise
    except Exception as error:  # the library raises bare Exception for a file it cannot parse
        raise InputError(f"tokenizer {path} cannot be read: {error}") from None
    return _wrap(raw, where=str(path))


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> Path:
    """Save as a folder that AutoTokenizer loads; it appears whole or not at all."""
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def _byte_level(model: Any) -> Tokenizer:
    raw = Tokenizer(model)
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return raw


def _wrap(raw: Tokenizer, where: str = "the trained tokenizer") -> PreTrainedTokenizerFast:
    for token, number in FIRST_IDS.items():
        found = raw.token_to_id(token)
        if found != number:
            raise InputError(f"{where}: {token} must have id {number}, not {found}")
    # RoBERTa's mask takes the blank before it along, so that "the <mask>" is two tokens.
    raw.add_special_tokens([AddedToken(MASK, lstrip=True, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=BOS, cls_token=BOS, eos_token=EOS, sep_token=EOS, pad_token=PAD, unk_token=UNK,
        mask_token=MASK,
    )  # fmt: skip
