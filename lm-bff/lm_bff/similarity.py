"""Sentence embeddings, by which demonstrations are filtered (section 6.2 of the paper).

The paper embeds with Sentence-BERT (`filter=sbert`; `filter=roberta` is Table 7's other choice, the mean of plain
RoBERTa's vectors). `filter=minilm` is the small encoder that comes with the dependencies, for machines without either.
Texts are embedded in batches, each distinct one once; a pair of sentences is embedded as "first second".
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

import numpy as np

from lm_bff.data import PAPER, Example
from shared import InputError, hub
from shared.quiet import quiet_transformers


def text_of(example: Example) -> str:
    """What is embedded: the sentence, or both with a space between."""
    return " ".join(example.sentences)


class Embedder:
    """Texts -> unit vectors, remembered by text."""

    def __init__(self, path: str, device: str | None = None, batch_size: int = 64):
        from sentence_transformers import SentenceTransformer

        logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
        try:
            with quiet_transformers():
                self.encoder = SentenceTransformer(path, device=device, local_files_only=True)
        except (OSError, ValueError) as error:
            raise InputError(f"filter.model={path} cannot be loaded: {str(error).splitlines()[0]}") from None
        self.batch_size = batch_size
        self.known: dict[str, np.ndarray] = {}

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(n, width) float32 rows of length 1."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if new:
            vectors = self.encoder.encode(
                new, batch_size=self.batch_size, normalize_embeddings=True, show_progress_bar=False
            )
            self.known.update(zip(new, vectors, strict=True))
        return np.stack([self.known[text] for text in texts])

    def similarities(self, queries: Sequence[Example], support: Sequence[Example]) -> np.ndarray:
        """(queries, support) cosine similarities."""
        return cosine(self.embed([text_of(e) for e in queries]), self.embed([text_of(e) for e in support]))


@functools.lru_cache(maxsize=4)
def embedder(model: str, device: str | None = None) -> Embedder:
    """The embedder of a name (`minilm`, a source of sources.yaml, a folder), loaded once per process."""
    return Embedder(hub.model_path(model, PAPER), device)


def cosine(queries: np.ndarray, support: np.ndarray) -> np.ndarray:
    """(q, d) and (s, d) -> (q, s): one matrix product of the rows brought to length 1.

    Raises InputError where the widths differ: the embeddings come from two encoders.
    """
    queries, support = np.asarray(queries, np.float32), np.asarray(support, np.float32)
    if queries.ndim != 2 or support.ndim != 2 or queries.shape[1] != support.shape[1]:
        raise InputError(
            f"demonstration filter: embeddings of shapes {queries.shape} and {support.shape} do not belong together; "
            "make both with the same model"
        )
    return _unit(queries) @ _unit(support).T


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
