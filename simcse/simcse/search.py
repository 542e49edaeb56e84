"""The library: `from simcse import SimCSE`, sentence vectors and semantic search in five methods.

    model = SimCSE("princeton-nlp/sup-simcse-bert-base-uncased")
    model.similarity("A man plays.", "Someone makes music.")
    model.build_index(["first sentence", "second sentence"])
    model.search("a query", threshold=0.6, top_k=5)              # [("second sentence", 0.71), ...]

Signatures, shapes and defaults are those of the authors' package, so that code written for it runs. What differs is
what hurt its users: the caller's list is never changed, scores are Python floats (JSON can hold them), the pooler comes
from the checkpoint, an index remembers the encoder it was built with, and bad input is refused where it enters.

Search is a float32 matrix product in blocks of keys, with the best of each block kept by `argpartition`: at 100,000
sentences that is about as fast as faiss's flat index and returns the same neighbours, so faiss is only an option here
and pays from the point where an inverted file (`faiss_fast`) may trade recall for time (`bench/search_speed.py`).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from shared import InputError
from simcse.embedding import check_sentences, embed_sentences, load_encoder
from simcse.index import PROBE, SentenceIndex, read_sentences, unit_rows

MAX_LENGTH, BATCH_SIZE = 128, 64


class SimCSE:
    """A sentence encoder with an index.

    Args:
        model_name_or_path: hub id, local folder, name of a model in the mirror, or `minilm` (bundled).
        device: "cpu", "cuda", ...; None is CUDA where there is one.
        num_cells: cells of the inverted file of `faiss_fast`; fewer where the index is too small for them.
        num_cells_in_search: cells visited per query.
        pooler: evaluation pooler, one of `simcse.pooling.POOLERS`; None is the checkpoint's own, and for a checkpoint
            that names none the release's rule: `cls_before_pooler` if "unsup" occurs in the path, else `cls`.

    Raises: InputError if the model is not available or has no head that `pooler` needs.
    """

    def __init__(
        self,
        model_name_or_path: str,
        device: str | torch.device | None = None,
        num_cells: int = 100,
        num_cells_in_search: int = 10,
        pooler: str | None = None,
    ):
        for name, value in (("num_cells", num_cells), ("num_cells_in_search", num_cells_in_search)):
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value!r}, but must be a whole number of at least 1")
        self.model_name_or_path = str(model_name_or_path)
        self.encoder, self.tokenizer = load_encoder(self.model_name_or_path, pooler, device)
        self.num_cells, self.num_cells_in_search = num_cells, num_cells_in_search
        self.index: SentenceIndex | None = None

    @property
    def pooler(self) -> str:
        """The evaluation pooler; settable, but vectors of two poolers do not share an index."""
        return self.encoder.eval_pooler

    @pooler.setter
    def pooler(self, pooler: str) -> None:
        self.encoder.eval_pooler = pooler

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    def encode(
        self,
        sentence: str | Sequence[str],
        device: str | torch.device | None = None,
        return_numpy: bool = False,
        normalize_to_unit: bool = True,
        keepdim: bool = False,
        batch_size: int = BATCH_SIZE,
        max_length: int = MAX_LENGTH,
    ) -> torch.Tensor | np.ndarray:
        """Embed one sentence or a list.

        Args:
            sentence: a string, or a non-empty list of strings.
            device: moves the encoder there first, and it stays.
            return_numpy: an array instead of a CPU tensor.
            normalize_to_unit: divide each vector by its length.
            keepdim: `(1, hidden)` for a single string.
            batch_size: at most so many sentences in one forward pass.
            max_length: tokens per sentence, special ones included; what is longer is truncated and counted in the log.

        Returns: `(hidden,)` for a string, `(sentences, hidden)` for a list; float32.
        """
        single = isinstance(sentence, str)
        sentences = [sentence] if single else sentence
        check_sentences(sentences, "sentence")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"batch_size is {batch_size!r}, but must be a whole number of at least 1")
        if device is not None:
            self.encoder.to(device)
        # A model with fewer positions than the default length is not the caller's mistake.
        length = min(max_length, self.encoder.max_length) if max_length == MAX_LENGTH else max_length
        vectors = embed_sentences(self.encoder, self.tokenizer, sentences, max_length=length, batch_rows=batch_size)
        if normalize_to_unit:
            vectors = unit_rows(vectors)
        if single and not keepdim:
            vectors = vectors[0]
        return vectors if return_numpy else torch.from_numpy(vectors)

    def similarity(
        self,
        queries: str | Sequence[str],
        keys: str | Sequence[str] | np.ndarray,
        device: str | torch.device | None = None,
    ) -> float | np.ndarray:
        """Cosines of all queries with all keys.

        Args:
            queries: a string or a list of N.
            keys: a string, a list of M, or an array `(M, hidden)` (or `(hidden,)`) from `encode`.

        Returns: `(N, M)` float32; a string drops its axis, so that two strings give a float.
        """
        query_vectors = self.encode(queries, device=device, return_numpy=True)
        if isinstance(keys, np.ndarray):
            key_vectors = self._checked_vectors(keys, "keys")
        else:
            key_vectors = self.encode(keys, device=device, return_numpy=True)
        cosines = query_vectors @ key_vectors.T
        return float(cosines) if cosines.ndim == 0 else cosines

    def build_index(
        self,
        sentences_or_file_path: str | Path | Sequence[str],
        use_faiss: bool | None = None,
        faiss_fast: bool = False,
        device: str | torch.device | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        """Encode sentences and make them searchable, in place of what was indexed before.

        Args:
            sentences_or_file_path: a list, which is copied, or the PATH of a text file with one sentence per line.
            use_faiss: search with faiss instead of an exact matrix product; None (the default) is no.
            faiss_fast: with faiss, an inverted file instead of a flat index: approximate, for millions of sentences.

        Raises: InputError on a path that is not there, no sentences, or faiss asked for and not installed.
        """
        if faiss_fast and not use_faiss:
            raise InputError("faiss_fast is an index of faiss: give use_faiss=True with it")
        backend = ("faiss_fast" if faiss_fast else "faiss") if use_faiss else "exact"
        SentenceIndex.check_backend(backend)
        sentences = read_sentences(sentences_or_file_path)
        probe, vectors = self._probed_vectors(sentences, device, batch_size)
        self.index = SentenceIndex(
            sentences, vectors, probe, self.pooler, backend, self.num_cells, self.num_cells_in_search
        )

    def add_to_index(
        self,
        sentences_or_file_path: str | Path | Sequence[str],
        device: str | torch.device | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        """Add sentences to the index; arguments as in `build_index`.

        Raises: InputError before `build_index`, or if model or pooler are no longer those of the index.
        """
        index = self._index_for("add_to_index")
        sentences = read_sentences(sentences_or_file_path)
        probe, vectors = self._probed_vectors(sentences, device, batch_size)
        index.check_encoder(probe, self.pooler)
        index.add(sentences, vectors)

    def search(
        self,
        queries: str | Sequence[str],
        device: str | torch.device | None = None,
        threshold: float = 0.6,
        top_k: int = 5,
    ) -> list[tuple[str, float]] | list[list[tuple[str, float]]]:
        """The nearest sentences of the index.

        Args:
            queries: a string, or a list, which is encoded and searched as one batch.
            threshold: least cosine, in [-1, 1].
            top_k: at most so many, between 1 and the size of the index.

        Returns: `[(sentence, cosine), ...]`, best first, for a string; a list of such for a list.

        Raises: InputError before `build_index`, on a changed model or pooler, and on arguments out of range.
        """
        index = self._index_for("search")
        single = isinstance(queries, str)
        queries = [queries] if single else queries
        check_sentences(queries, "queries")
        index.check_request(threshold, top_k)
        probe, vectors = self._probed_vectors(queries, device)
        index.check_encoder(probe, self.pooler)
        found = index.search(vectors, threshold, top_k)
        return found[0] if single else found

    def save_index(self, folder: str | Path) -> Path:
        """Write the index to a folder: sentences, vectors, and what shows which encoder made them."""
        return self._index_for("save_index").save(folder)

    def load_index(self, folder: str | Path) -> None:
        """Read an index that `save_index` wrote; its vectors are memory-mapped, so it opens at once.

        Raises: InputError if it is incomplete, or was made with another model or pooler.
        """
        index = SentenceIndex.load(folder)
        probe, _ = self._probed_vectors([PROBE])
        index.check_encoder(probe, self.pooler)
        self.index = index

    def _probed_vectors(
        self, sentences: Sequence[str], device: str | torch.device | None = None, batch_size: int = BATCH_SIZE
    ) -> tuple[np.ndarray, np.ndarray]:
        vectors = self.encode([PROBE, *sentences], device=device, return_numpy=True, batch_size=batch_size)
        return vectors[0], vectors[1:]

    def _index_for(self, method: str) -> SentenceIndex:
        if self.index is None:
            raise InputError(f"{method} needs an index: call build_index first")
        return self.index

    def _checked_vectors(self, vectors: np.ndarray, field: str) -> np.ndarray:
        width = self.encoder.config.hidden_size
        if vectors.ndim not in (1, 2) or vectors.shape[-1] != width:
            raise InputError(f"{field} has shape {vectors.shape}, but this model's vectors have {width} columns")
        return unit_rows(vectors)
