"""Texts to vectors with a stock transformers model: instruction, tokens, mean (or first, last) token, projection.

One class covers the paper's four encoders, which differ in their settings (configs/retriever/*.yaml):

E5          BERT; "query: " or "passage: " in front, part of the mean
GTR         T5's encoder, mean, then a linear projection (a sentence-transformers `Dense` module)
Instructor  the same with an instruction in front, which is attended to and left out of the mean
GritLM      Mistral with attention in both directions; the instruction, BOS included, is left out of the mean

An instruction stands directly in front of the text and both are tokenized as one string, as their authors' code does;
how many tokens it has is counted on the instruction alone. Pooling, projection and normalisation are in float32,
whatever the model computes in.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shared import InputError, hub
from shared.generation.fingerprint import model_fingerprint
from shared.quiet import quiet_transformers

log = logging.getLogger(__name__)

POOLINGS = ("mean", "cls", "last")
DTYPES = ("float32", "bfloat16", "float16", "auto")
ACTIVATIONS = {"torch.nn.modules.linear.Identity": nn.Identity, "torch.nn.modules.activation.Tanh": nn.Tanh}
# Tokens of one forward pass, padding included: what fits a CPU's cache, and what keeps a GPU busy.
BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}


class TransformerEmbedder:
    """An encoder and what is done with its last layer.

    Args:
        model: local folder, name in sources.yaml, or hub id.
        query_instruction, key_instruction: put in front of the texts.
        exclude_instruction: leave its tokens out of the mean.
        bidirectional: attention in both directions in a decoder.
        pooling: one of `POOLINGS`.
        projection: apply the `Dense` modules of a sentence-transformers folder.
        normalize: to unit length.
        query_dtype, key_dtype: what the model computes in, one of `DTYPES` ("auto": what it is stored in).
        max_length: tokens of instruction and text together, special ones included; the rest is cut off.
        batch_tokens: of one forward pass, padding included. device: None is CUDA where there is one.
    """

    def __init__(
        self,
        model: str,
        query_instruction: str = "",
        key_instruction: str = "",
        exclude_instruction: bool = False,
        bidirectional: bool = False,
        pooling: str = "mean",
        projection: bool = True,
        normalize: bool = True,
        query_dtype: str = "float32",
        key_dtype: str = "float32",
        max_length: int = 512,
        batch_tokens: int | None = None,
        device: str | None = None,
    ) -> None:
        check_choice("pooling", pooling, POOLINGS)
        check_choice("query_dtype", query_dtype, DTYPES)
        check_choice("key_dtype", key_dtype, DTYPES)
        check_count("max_length", max_length)
        if batch_tokens is not None:
            check_count("batch_tokens", batch_tokens)
        self.model_name = model
        self.instructions = {"query": query_instruction, "key": key_instruction}
        self.dtypes = {"query": query_dtype, "key": key_dtype}
        self.exclude_instruction, self.bidirectional, self.pooling = exclude_instruction, bidirectional, pooling
        self.projection, self.normalize, self.max_length = projection, normalize, max_length
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.batch_tokens = batch_tokens or BATCH_TOKENS[self.device.type]
        self.full = 0  # texts that reached max_length
        self._path: str | None = None
        self._loaded: tuple[str, nn.Module] | None = None
        self._tokenizer: Any = None
        self._dense: nn.Module | None = None

    @property
    def path(self) -> str:
        """Folder of the model. Raises NotAvailable (an InputError) where it is not to be had."""
        if self._path is None:
            self._path = hub.model_path(self.model_name, "litsearch")
        return self._path

    def metadata(self) -> dict[str, Any]:
        """What decides the vectors."""
        return {
            "model": model_fingerprint(self.path),
            "query_instruction": self.instructions["query"],
            "key_instruction": self.instructions["key"],
            "exclude_instruction": self.exclude_instruction,
            "bidirectional": self.bidirectional,
            "pooling": self.pooling,
            "projection": self.projection,
            "normalize": self.normalize,
            "query_dtype": self.dtypes["query"],
            "key_dtype": self.dtypes["key"],
            "max_length": self.max_length,
        }

    @property
    def hidden(self) -> int:
        """Dimensions of a vector."""
        return self._width(self._load(self.dtypes["key"]))

    def _width(self, model: nn.Module) -> int:
        return self._dense[-1][0].out_features if len(self._dense) else model.config.hidden_size

    def encode_keys(self, texts: Sequence[str]) -> np.ndarray:
        """`(len(texts), hidden)` float32."""
        return self._encode(texts, "key")

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """`(len(texts), hidden)` float32."""
        return self._encode(texts, "query")

    # ------------------------------------------------------------------------------------------------------- encoding

    def _encode(self, texts: Sequence[str], side: str) -> np.ndarray:
        model = self._load(self.dtypes[side])
        rows, skipped = self._tokenize(texts, self.instructions[side])
        vectors = np.empty((len(texts), self._width(model)), np.float32)

        def embed(batch: list[int]) -> None:
            with torch.inference_mode():
                vectors[batch] = self._embed(model, [rows[i] for i in batch], skipped).cpu().numpy()

        on_all_cores(embed, length_batches([len(row) for row in rows], self.batch_tokens), self.device)
        return vectors

    def _tokenize(self, texts: Sequence[str], instruction: str) -> tuple[list[list[int]], int]:
        """Token ids of instruction + text, cut to max_length, and how many of their first tokens are left out."""
        tokenizer = self._tokenizer
        plain = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        rows = tokenizer([instruction + text for text in texts], truncation=True, max_length=self.max_length, **plain)
        rows = rows["input_ids"]
        self.full += sum(len(row) >= self.max_length for row in rows)
        skipped = instruction_tokens(tokenizer, instruction) if self.exclude_instruction and instruction else 0
        if skipped >= self.max_length:
            raise InputError(
                f"max_length={self.max_length} leaves no room behind the {skipped} tokens of the instruction"
            )
        for text, row in zip(texts, rows, strict=True):
            if not row:
                raise InputError(f"the text {text!r} has no tokens under the tokenizer of {self.model_name}")
        return rows, skipped

    def _embed(self, model: nn.Module, rows: list[list[int]], skipped: int) -> Tensor:
        """`(len(rows), hidden)` float32."""
        longest = max(map(len, rows))
        pad = self._tokenizer.pad_token_id or 0
        input_ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows], device=self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        places = torch.arange(longest, device=self.device)
        attention_mask = (places < lengths[:, None]).long()
        hidden = model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
        vectors = pool(hidden, lengths, skipped, self.pooling)
        vectors = self._dense(vectors)
        return nn.functional.normalize(vectors, dim=1) if self.normalize else vectors

    # --------------------------------------------------------------------------------------------------------- loading

    def _load(self, dtype: str) -> nn.Module:
        """The model in one precision; the other one is let go of, and read again when it is needed."""
        if self._loaded is None or self._loaded[0] != dtype:
            self._loaded = None
            model = load_backbone(self.path, dtype, self.bidirectional)
            positions = getattr(model.config, "max_position_embeddings", None)
            if positions is not None and model.config.model_type not in ("t5", "mt5") and self.max_length > positions:
                raise InputError(
                    f"max_length={self.max_length} is more than the {positions} positions of {self.model_name}"
                )
            self._loaded = dtype, model.eval().to(self.device)
        if self._tokenizer is None:
            from shared.generation.prompts import load_tokenizer

            self._tokenizer = load_tokenizer(self.path)
            modules = dense_modules(Path(self.path)) if self.projection else nn.Sequential()
            self._dense = modules.eval().to(self.device)
        return self._loaded[1]


def pool(hidden_states: Tensor, lengths: Tensor, skipped: int, pooling: str) -> Tensor:
    """One vector per row of `(rows, seq, hidden)`, `lengths` tokens each and padded on the right.

    The mean leaves out the first `skipped` tokens; of a row that has no others it is zero.
    """
    places = torch.arange(hidden_states.shape[1], device=hidden_states.device)
    if pooling == "cls":
        return hidden_states[:, 0]
    if pooling == "last":
        return hidden_states[torch.arange(len(lengths), device=lengths.device), lengths - 1]
    kept = (places >= skipped) & (places < lengths[:, None])
    # Not a product with the mask: NaN times 0 is NaN.
    summed = hidden_states.masked_fill(~kept[..., None], 0.0).sum(1)
    return summed / kept.sum(1, keepdim=True).clamp(min=1)


def instruction_tokens(tokenizer: Any, instruction: str) -> int:
    """Tokens in front of a text: the instruction's, with special ones in front of it, without those behind it."""
    with_special = tokenizer(instruction, verbose=False)["input_ids"]
    without = tokenizer(instruction, add_special_tokens=False, verbose=False)["input_ids"]
    for start in range(len(with_special) - len(without) + 1):
        if with_special[start : start + len(without)] == without:
            return start + len(without)
    return len(with_special)


def load_backbone(path: str, dtype: str, bidirectional: bool) -> nn.Module:
    """A stock model without heads, every weight of it from the checkpoint. Raises InputError where that is not so."""
    from transformers import MODEL_MAPPING, AutoConfig, AutoModel, AutoModelForTextEncoding

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"model={path} cannot be read: {str(error).strip().splitlines()[0]}") from None
    options: dict[str, Any] = {
        "config": config,
        "dtype": dtype,
        "trust_remote_code": False,
        "output_loading_info": True,
    }
    kind = AutoModelForTextEncoding if config.model_type in ("t5", "mt5", "umt5") else AutoModel
    if kind is AutoModel and type(config) in MODEL_MAPPING:
        parameters = inspect.signature(MODEL_MAPPING[type(config)].__init__).parameters
        options |= {"add_pooling_layer": False} if "add_pooling_layer" in parameters else {}
    if bidirectional:
        # A window of attention counts tokens before; ours are shorter than any window.
        config.is_causal, config.sliding_window = False, None
    try:
        with quiet_transformers():
            model, report = kind.from_pretrained(path, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"model={path} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    if missing := sorted(report["missing_keys"]):
        raise InputError(f"model={path} lacks {len(missing)} of the model's weights, the first is {missing[0]}")
    if bidirectional:
        for module in model.modules():  # what is used where no mask is needed, because nothing is padded
            if hasattr(module, "is_causal"):
                module.is_causal = False
    return model


def dense_modules(folder: Path) -> nn.Sequential:
    """The `Dense` modules that a sentence-transformers folder puts behind its pooling, in order; none elsewhere.

    Raises InputError for a module that changes vectors in a way that is not known here.
    """
    listed = folder / "modules.json"
    found = nn.Sequential()
    if not listed.is_file():
        return found
    for module in json.loads(listed.read_text(encoding="utf-8")):
        kind = module["type"].rsplit(".", 1)[-1]
        if kind == "Dense":
            found.append(_dense(folder / module["path"]))
        elif kind not in ("Transformer", "Pooling", "Normalize", "INSTRUCTOR_Transformer", "INSTRUCTOR_Pooling"):
            raise InputError(f"{listed}: a module of type {kind}; take embedder=sentence_transformers for this model")
    return found


def _dense(folder: Path) -> nn.Sequential:
    try:
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if (folder / "model.safetensors").is_file():
            from safetensors.torch import load_file

            weights = load_file(folder / "model.safetensors")
        else:
            weights = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
        if about.get("use_residual"):
            raise ValueError("it has a residual connection; take embedder=sentence_transformers for this model")
        activation = ACTIVATIONS[about.get("activation_function", "torch.nn.modules.activation.Tanh")]
        linear = nn.Linear(about["in_features"], about["out_features"], bias=about.get("bias", True))
        linear.load_state_dict({name.removeprefix("linear."): tensor.float() for name, tensor in weights.items()})
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{folder}: the projection cannot be loaded ({error})") from None
    return nn.Sequential(linear, activation())


# ------------------------------------------------------------------------------------------------------------- batches


def length_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Rows by falling length, as many together as `batch_tokens` allow with padding; a longer one stands alone."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > batch_tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


def on_all_cores(work, batches: Sequence[list[int]], device: torch.device) -> None:
    """Run batches; on a CPU one per core, because threads that share a batch wait for each other at every operator."""
    cores = torch.get_num_threads() if device.type == "cpu" else 1
    if min(cores, len(batches)) < 2:
        for batch in batches:
            work(batch)
        return
    try:
        with ThreadPoolExecutor(cores, "embed", initializer=torch.set_num_threads, initargs=(1,)) as pool_of_threads:
            for _ in pool_of_threads.map(work, batches):
                pass
    finally:
        torch.set_num_threads(cores)  # the initializer also set what later threads begin with


def check_choice(name: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(f"retriever.{name}={value!r} is not one of {', '.join(known)}")


def check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"retriever.{name}={value!r}: give a whole number of at least 1")
