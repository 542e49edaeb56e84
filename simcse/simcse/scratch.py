"""`model=tiny`: a WordPiece tokenizer trained on the training text, and a randomly initialised BERT to go with it.

The laptop's encoder where no pre-trained weights can be assumed: 2 layers x 128, 4 heads, 6,000 pieces, 1.2 M
parameters. It is a floor, not a model: with mean pooling it scores about 0.6 on STS-B dev before any training, because
random projections of words already measure word overlap. Same text and seed give the same bytes.
"""

import logging
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertConfig, BertModel, BertTokenizer

from shared import InputError

log = logging.getLogger(__name__)

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MAX_POSITIONS = 512
# Wikipedia's rare scripts would fill the vocabulary with single letters.
MAX_LETTERS = 200


def train_tokenizer(texts: Iterable[str], vocab_size: int = 6000) -> BertTokenizer:
    """Train an uncased WordPiece tokenizer. Raises InputError if `vocab_size` is too small for the alphabet."""
    if vocab_size < 500:
        raise InputError(f"scratch.vocab_size={vocab_size}: give at least 500; letters alone take up to 400.")
    texts = list(texts)
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    letters = Counter(letter for text in texts for letter in normalizer.normalize_str(text) if not letter.isspace())
    alphabet = sorted(sorted(letters, key=lambda letter: (-letters[letter], letter))[:MAX_LETTERS])
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    # The trainer numbers the letters in the order of a hash map that differs from process to process, and breaks ties
    # between equally frequent merges by these numbers. Naming them all beforehand fixes the numbers, and so the result.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS + alphabet + [f"##{letter}" for letter in alphabet],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocab = dict(sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1]))
    return BertTokenizer(vocab=vocab, do_lower_case=True, model_max_length=MAX_POSITIONS)


def build_tiny(
    texts: Iterable[str],
    folder: Path,
    *,
    seed: int = 42,
    vocab_size: int = 6000,
    num_hidden_layers: int = 2,
    hidden_size: int = 128,
    num_attention_heads: int = 4,
) -> Path:
    """Train the tokenizer, draw the weights, and save both as a model folder that AutoModel loads.

    The folder appears whole or not at all. Returns it.

    Raises:
        InputError: sizes that do not fit together.
    """
    if hidden_size % num_attention_heads:
        raise InputError(
            f"scratch.hidden_size={hidden_size} is not a multiple of num_attention_heads={num_attention_heads}."
        )
    tokenizer = train_tokenizer(texts, vocab_size)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        intermediate_size=4 * hidden_size,
        max_position_embeddings=MAX_POSITIONS,
        pad_token_id=tokenizer.pad_token_id,
    )
    # A generator of its own: the draw must not depend on what ran before, nor disturb what runs after.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(config, add_pooling_layer=False)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    log.info("tiny encoder: %d pieces, %d parameters", len(tokenizer), model.num_parameters())
    return folder
