"""transformers' `generate` in left-padded, length-bucketed batches: for machines without vLLM, and as its reference.

Rows of a batch may differ in everything (limits, stop strings, biases, temperature), because decoding is per row here:
one logits processor applies each row's bias and draws its sample from the row's own generator (so a draw does not
depend on the batch), one stopping criterion reads each row's new token. The win over one-by-one `generate` is the
batch; vLLM has beyond that: a finished row's place is filled at once, and prefixes are shared.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers.decoders import DecodeStream
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from shared import InputError
from shared.generation.fingerprint import model_fingerprint, text_fingerprint
from shared.generation.generator import Generator
from shared.generation.prompts import EncodedRequest, PromptEncoder, load_tokenizer
from shared.generation.requests import Completion, Request

logger = logging.getLogger(__name__)


class TransformersGenerator(Generator):
    """A causal LM through transformers.

    Args:
        model: local folder or hub id (safetensors).
        tokenizer: folder or hub id, the model's own if not given; chat_template: a Jinja file in place of its template.
        dtype: "auto" is the checkpoint's own.
        device: "auto" takes the GPU if there is one; "balanced" spreads the model over all GPUs.
        batch_tokens: rows x (longest prompt + longest answer) of one batch; bounds the KV cache.
        max_model_len: a limit below the model's positions.
        attn_implementation: transformers' name, or its choice.
    """

    backend = "transformers"

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        tokenizer: str | None = None,
        chat_template: str | Path | None = None,
        dtype: str = "auto",
        device: str = "auto",
        batch_tokens: int = 16384,
        max_model_len: int | None = None,
        attn_implementation: str | None = None,
    ) -> None:
        self.encoder = PromptEncoder(load_tokenizer(tokenizer or model, None if tokenizer else revision), chat_template)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._model = AutoModelForCausalLM.from_pretrained(
                model,
                revision=revision,
                dtype=dtype,
                device_map=device,
                attn_implementation=attn_implementation,
                use_safetensors=True,
                trust_remote_code=False,
            ).eval()
        except (OSError, ValueError) as error:
            raise InputError(f"model={model!r} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
        positions = self._model.config.get_text_config().max_position_embeddings
        if max_model_len is not None and max_model_len > positions:
            raise InputError(f"max_model_len={max_model_len} exceeds the {positions} positions of {model}")
        if batch_tokens < 1:
            raise InputError(f"batch_tokens={batch_tokens} must be positive")
        self.model = Path(model).name if Path(model).is_dir() else model
        self.max_model_len = max_model_len or positions
        self._batch_tokens = batch_tokens
        self._binding = {
            "backend": self.backend,
            "model": model_fingerprint(model, revision),
            "tokenizer": tokenizer and model_fingerprint(tokenizer),
            "chat_template": text_fingerprint(self.encoder.chat_template),
            "dtype": str(self._model.dtype),
        }

    def binding(self) -> dict[str, Any]:
        return self._binding

    def _answer(self, items: Sequence[EncodedRequest]) -> Iterator[Completion]:
        for batch in length_buckets(items, self._batch_tokens):
            try:
                scores = self._score_candidates(batch)
                texts = self._generate(batch)
            except torch.cuda.OutOfMemoryError as error:
                raise InputError(f"batch_tokens={self._batch_tokens} is too much for this GPU: lower it") from error
            for item, answer, logprobs in zip(batch, texts, scores, strict=True):
                yield Completion(
                    item.request.id, answer.text, answer.finish_reason, len(item.input_ids), answer.tokens, logprobs
                )

    @torch.inference_mode()
    def _generate(self, batch: Sequence[EncodedRequest]) -> list["AnswerReader"]:
        readers = [AnswerReader(self.encoder.tokenizer, item, self._end_tokens) for item in batch]
        longest = max(item.request.max_tokens for item in batch)
        if longest == 0:
            return readers
        input_ids, attention_mask = self._padded([item.input_ids for item in batch])
        self._model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=self._greedy(longest),
            logits_processor=LogitsProcessorList([RowDecoding([item.request for item in batch], input_ids.device)]),
            stopping_criteria=StoppingCriteriaList([RowStopping(readers)]),
        )
        return readers

    @property
    def _end_tokens(self) -> frozenset[int]:
        """As vLLM: the generation config's end tokens and the tokenizer's."""
        ends = self._model.generation_config.eos_token_id
        ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        own = self.encoder.tokenizer.eos_token_id
        return frozenset(ends if own is None else [*ends, own])

    @staticmethod
    def _greedy(max_new_tokens: int) -> GenerationConfig:
        """Argmax after our processors: none of the checkpoint's sampling defaults (Llama-2-chat's 0.6, penalties)."""
        return GenerationConfig(
            max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, repetition_penalty=1.0, use_cache=True,
            pad_token_id=0, eos_token_id=None,
        )  # fmt: skip

    def _padded(self, rows: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Left-padded `input_ids`, `attention_mask`, both (rows, longest)."""
        width = max(map(len, rows))
        input_ids = torch.zeros(len(rows), width, dtype=torch.long)
        attention_mask = torch.zeros(len(rows), width, dtype=torch.long)
        for row, ids in enumerate(rows):
            input_ids[row, width - len(ids) :] = torch.from_numpy(ids)
            attention_mask[row, width - len(ids) :] = 1
        return input_ids.to(self._model.device), attention_mask.to(self._model.device)

    @torch.inference_mode()
    def _score_candidates(self, batch: Sequence[EncodedRequest]) -> list[dict[str, float] | None]:
        """Sum of log p over each candidate's tokens: forward passes over prompt + candidate rows in the budget."""
        pairs = [(row, i, ids) for row, item in enumerate(batch) for i, ids in enumerate(item.candidate_ids)]
        scores: list[dict[str, float] | None] = [{} if item.candidate_ids else None for item in batch]
        width = max((item.longest for item in batch), default=1)
        rows_at_once = max(1, self._batch_tokens // width)
        for start in range(0, len(pairs), rows_at_once):
            part = pairs[start : start + rows_at_once]
            sequences = [np.concatenate([batch[row].input_ids, ids]) for row, _, ids in part]
            input_ids, attention_mask = self._padded(sequences)
            kept = max(len(ids) for _, _, ids in part) + 1
            logits = self._model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0),
                logits_to_keep=kept,
                use_cache=False,
            ).logits[:, :-1]
            logprobs = torch.log_softmax(logits.float(), -1).gather(-1, input_ids[:, 1 - kept :, None])[..., 0]
            for (row, i, ids), values in zip(part, logprobs, strict=True):
                scores[row][batch[row].request.candidates[i]] = values[-len(ids) :].sum().item()
        return scores

    def close(self) -> None:
        self._model = None


def length_buckets(items: Sequence[EncodedRequest], batch_tokens: int) -> Iterator[list[EncodedRequest]]:
    """Batches of similar lengths, at most `batch_tokens` padded; longest first, so that out-of-memory shows at once."""
    ordered = sorted(items, key=lambda item: (item.request.max_tokens, len(item.input_ids)), reverse=True)
    batch: list[EncodedRequest] = []
    for item in ordered:
        width = max((other.longest for other in [*batch, item]), default=0)
        if batch and (len(batch) + 1) * width > batch_tokens:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


class AnswerReader:
    """Reads one row's new tokens until an end token, a stop string or the limit; text as vLLM writes it.

    The text continues the prompt's: a SentencePiece word-start blank is kept, as in vLLM, where decoding the new tokens
    alone would drop it. The stop string that is complete first ends it and is cut off; its tokens count.
    """

    def __init__(self, tokenizer: Any, item: EncodedRequest, end_tokens: frozenset[int]) -> None:
        self._decoder = tokenizer.backend_tokenizer
        self._stream = DecodeStream(ids=item.input_ids.tolist(), skip_special_tokens=True)
        self._request, self._end_tokens = item.request, end_tokens
        self.text, self.tokens = "", 0
        self.finish_reason = "length" if item.request.max_tokens == 0 else None

    def read(self, token: int) -> bool:
        """Take one token; whether the row is finished."""
        if self.finish_reason:
            return True
        self.tokens += 1
        if token in self._end_tokens:
            self.finish_reason = "stop"
            return True
        before = len(self.text)
        self.text += self._stream.step(self._decoder, token) or ""
        found = [(self.text.find(stop, max(0, before - len(stop) + 1)), stop) for stop in self._request.stop]
        found = [(at + len(stop), at) for at, stop in found if at >= 0]
        if found:
            _, at = min(found, key=lambda ends: ends[0])
            self.text, self.finish_reason = self.text[:at], "stop"
            return True
        if self.tokens >= self._request.max_tokens:
            self.finish_reason = "length"
        return self.finish_reason is not None


class RowStopping(StoppingCriteria):
    """Feeds each row's new token to its reader."""

    def __init__(self, readers: Sequence[AnswerReader]) -> None:
        self._readers = readers

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_) -> torch.Tensor:
        tokens = input_ids[:, -1].tolist()
        done = [reader.read(token) for reader, token in zip(self._readers, tokens, strict=True)]
        return torch.tensor(done, device=input_ids.device)


class RowDecoding(LogitsProcessor):
    """Each row's logit bias, temperature and top_p; sampling by adding Gumbel noise, so that argmax draws the sample.

    argmax(log p + Gumbel) is a draw from p; the noise comes from a CPU generator per row, seeded by the request, so a
    row's draws are the same in any batch and on any device.
    """

    def __init__(self, requests: Sequence[Request], device: torch.device) -> None:
        self._requests = requests
        self._biases = [
            (
                torch.tensor([int(token) for token in request.logit_bias], dtype=torch.long, device=device),
                torch.tensor(list(request.logit_bias.values()), dtype=torch.float32, device=device),
            )
            for request in requests
        ]
        self._generators = [
            None if request.greedy else torch.Generator().manual_seed(request.sampling_seed) for request in requests
        ]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.float().clone()
        for row, request in enumerate(self._requests):
            if request.logit_bias:
                tokens, biases = self._biases[row]
                scores[row, tokens] += biases
            if self._generators[row] is not None:
                scores[row] = self._sampled(scores[row] / request.temperature, request.top_p, self._generators[row])
        return scores

    @staticmethod
    def _sampled(logits: torch.Tensor, top_p: float, generator: torch.Generator) -> torch.Tensor:
        if top_p < 1:
            probabilities, order = torch.softmax(logits, -1).sort(descending=True)
            outside = probabilities.cumsum(-1) - probabilities >= top_p
            logits = logits.index_fill(0, order[outside], -torch.inf)
        uniform = torch.rand(logits.shape, generator=generator).clamp(min=torch.finfo(torch.float32).tiny)
        return logits - torch.log(-torch.log(uniform)).to(logits.device)
