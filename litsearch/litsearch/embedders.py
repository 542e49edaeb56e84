"""What turns texts into vectors for `litsearch.dense`, and the names under which the configuration finds it.

    embedder = make_embedder("transformer", "title_abstract", model="intfloat/e5-large-v2", query_instruction="query: ")
    embedder.encode_queries(["a question"])          # (1, hidden) float32

Options may depend on the key: a mapping from key names to values stands for the value of the key that is indexed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from litsearch.keys import KEYS
from litsearch.transformer_embedder import TransformerEmbedder, check_choice, check_count
from shared import InputError, hub
from shared.generation.fingerprint import model_fingerprint
from shared.quiet import quiet_transformers

log = logging.getLogger(__name__)


class Embedder(Protocol):
    """Texts to vectors; queries and keys may be treated differently."""

    @property
    def hidden(self) -> int:
        """Dimensions of a vector."""

    def encode_keys(self, texts: Sequence[str]) -> np.ndarray:
        """`(len(texts), hidden)` float32."""

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """`(len(texts), hidden)` float32."""

    def metadata(self) -> dict[str, Any]:
        """JSON values: everything that decides the vectors."""


class SentenceTransformersEmbedder:
    """Any model of the sentence-transformers library, whatever modules it is made of.

    Args:
        model: local folder, name in sources.yaml, or hub id; it may not bring code of its own.
        query_prompt, key_prompt: put in front of the texts; None takes the prompts the model comes with.
        max_length: tokens; None is the model's own limit. batch_size: texts. dtype: what the model computes in.
        truncate_dim: keep the first so many dimensions (Matryoshka models).
    """

    def __init__(
        self,
        model: str,
        query_prompt: str | None = None,
        key_prompt: str | None = None,
        max_length: int | None = None,
        batch_size: int = 32,
        dtype: str = "float32",
        truncate_dim: int | None = None,
        device: str | None = None,
    ) -> None:
        check_count("batch_size", batch_size)
        check_choice("dtype", dtype, ("float32", "bfloat16", "float16", "auto"))
        for name, value in (("max_length", max_length), ("truncate_dim", truncate_dim)):
            if value is not None:
                check_count(name, value)
        self.model_name, self.prompts = model, {"query": query_prompt, "key": key_prompt}
        self.max_length, self.batch_size, self.dtype, self.truncate_dim = max_length, batch_size, dtype, truncate_dim
        self.device = device
        self._path: str | None = None
        self._model: Any = None

    @property
    def path(self) -> str:
        if self._path is None:
            self._path = hub.model_path(self.model_name, "litsearch")
        return self._path

    @property
    def model(self) -> Any:
        if self._model is None:
            from sentence_transformers import SentenceTransformer

            options = {"dtype": self.dtype if self.dtype == "auto" else getattr(torch, self.dtype)}
            try:
                with quiet_transformers():
                    self._model = SentenceTransformer(
                        self.path,
                        device=self.device,
                        trust_remote_code=False,
                        model_kwargs=options,
                        truncate_dim=self.truncate_dim,
                    )
            except (OSError, ValueError, KeyError, RuntimeError) as error:
                reason = (str(error).strip() or repr(error)).splitlines()[0]
                raise InputError(f"model={self.model_name!r} cannot be loaded: {reason}") from None
            if self.max_length is not None:
                self._model.max_seq_length = self.max_length
        return self._model

    @property
    def hidden(self) -> int:
        return self.model.get_embedding_dimension()

    def encode_keys(self, texts: Sequence[str]) -> np.ndarray:
        return self._encode(self.model.encode_document, texts, self.prompts["key"])

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        return self._encode(self.model.encode_query, texts, self.prompts["query"])

    def _encode(self, encode: Any, texts: Sequence[str], prompt: str | None) -> np.ndarray:
        options = {"batch_size": self.batch_size, "show_progress_bar": False, "convert_to_numpy": True}
        return np.asarray(encode(list(texts), prompt=prompt, **options), np.float32)

    def metadata(self) -> dict[str, Any]:
        return {
            "model": model_fingerprint(self.path),
            "query_prompt": self.prompts["query"],
            "key_prompt": self.prompts["key"],
            "max_length": self.max_length,
            "dtype": self.dtype,
            "truncate_dim": self.truncate_dim,
        }


class SimcseEmbedder:
    """A SimCSE encoder, such as the one that `python -m simcse.train` leaves in its run folder.

    Args:
        model: local folder, hub id, or a name that simcse/ knows. pooler: None is the checkpoint's own.
    """

    def __init__(
        self, model: str, pooler: str | None = None, max_length: int | None = None, device: str | None = None
    ) -> None:
        if max_length is not None:
            check_count("max_length", max_length)
        self.model_name, self.pooler, self.max_length, self.device = model, pooler, max_length, device
        self._loaded: tuple[Any, Any] | None = None

    @property
    def _encoder(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from simcse.embedding import load_encoder

            self._loaded = load_encoder(self.model_name, self.pooler, self.device)
        return self._loaded

    @property
    def hidden(self) -> int:
        return self._encoder[0].config.hidden_size

    def encode_keys(self, texts: Sequence[str]) -> np.ndarray:
        from simcse.embedding import embed_sentences

        return embed_sentences(*self._encoder, list(texts), max_length=self._length)

    encode_queries = encode_keys

    @property
    def _length(self) -> int | None:
        """What was asked for, as far as the model has positions for it."""
        positions = self._encoder[0].max_length
        return self.max_length and min(self.max_length, positions)

    def metadata(self) -> dict[str, Any]:
        pooler = self._encoder[0].eval_pooler
        path = hub.model_path(self.model_name, "simcse")
        return {"model": model_fingerprint(path), "pooler": pooler, "max_length": self._length}


EMBEDDERS = {
    "transformer": TransformerEmbedder,
    "sentence_transformers": SentenceTransformersEmbedder,
    "simcse": SimcseEmbedder,
}


def make_embedder(kind: str, key: str, **options: Any) -> Embedder:
    """An embedder of a kind, with the options of the key that is indexed.

    Raises:
        InputError: an unknown kind, no model, or an option that has no value for this key.
        TypeError: an option that the kind does not have.
    """
    check_choice("embedder", kind, tuple(EMBEDDERS))
    chosen = {name: of_key(name, value, key) for name, value in options.items()}
    if chosen.get("model") is None:
        trained = kind == "simcse"
        what = "the folder that `python -m simcse.train` left" if trained else "a local folder or a hub id"
        raise InputError(f"retriever.model is missing: give {what}, retriever.model=...")
    return EMBEDDERS[kind](**chosen)


def of_key(name: str, value: Any, key: str) -> Any:
    """The value itself, or the key's where it is a mapping by keys. Raises InputError where the key has none."""
    if not isinstance(value, dict) or not value or not set(value) <= set(KEYS):
        return value
    if key not in value:
        raise InputError(f"retriever.{name} says nothing of key={key}; it has {', '.join(value)}")
    return value[key]
