"""An embedding judge: the output whose sentence embedding is closer to the instruction's wins.

It needs no labels and no prompt. It likes what is *about* the instruction, whether or not it does what the instruction
says: 72 % on Neighbor and 78 % on GPTInst, whose wrong outputs answer something else, 38 % on GPTOut, whose do not.
The encoder is MiniLM (bundled with the dependencies), which reads the first 128 word pieces of a text as in its
training; how many texts were longer is reported, because such a judge has not read them to the end.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmbar.data import Instance

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbeddingValues:
    """`values` (n, 2): cosine similarity of instruction and output; `truncated`: distinct texts that were cut."""

    values: np.ndarray
    truncated: int
    texts: int


def embedding_values(
    instances: Sequence[Instance], model: str, batch_size: int = 32, max_length: int = 128
) -> EmbeddingValues:
    """Embed every distinct text once, cut at `max_length` tokens, with the sentence encoder in the folder `model`."""
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(model, device="cpu", local_files_only=True)
    encoder.max_seq_length = min(max_length, encoder.max_seq_length)
    texts = list(dict.fromkeys(t for one in instances for t in (one.input, one.output_1, one.output_2)))
    lengths = encoder.tokenizer(texts, add_special_tokens=True, truncation=False, verbose=False)["input_ids"]
    truncated = sum(len(ids) > encoder.max_seq_length for ids in lengths)
    if truncated:
        log.warning(
            "embedding: %d of %d texts are longer than %d tokens", truncated, len(texts), encoder.max_seq_length
        )
    vectors = encoder.encode(texts, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False)
    at = {text: k for k, text in enumerate(texts)}
    rows = np.array([(at[one.input], at[one.output_1], at[one.output_2]) for one in instances]).reshape(-1, 3)
    similarity = (vectors[rows[:, :1]] * vectors[rows[:, 1:]]).sum(axis=-1)
    return EmbeddingValues(similarity.astype(float), truncated, len(texts))
