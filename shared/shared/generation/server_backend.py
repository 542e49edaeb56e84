"""Any OpenAI-compatible server: OpenAI, Azure's v1 endpoint, `vllm serve`, TGI, Together, ...

Many requests in flight, each with a time limit. Tried again, with exponential back-off, jitter and a bound: 429, 5xx,
no answer in time, no connection; nothing else. What a 4xx says of one item (too long, malformed) is recorded as its
failure; what it says of the run (key, quota, model name, nobody there) ends the run at once. A content filter's refusal
is an answer: empty, with finish_reason "content_filter".

The key comes from an environment variable and goes nowhere but into the request's header: no log, error or journal.
"""

import asyncio
import json
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
from openai import AsyncOpenAI

from shared import InputError
from shared.generation.concurrency import BackgroundLoop
from shared.generation.cost import Price
from shared.generation.fingerprint import model_fingerprint, text_fingerprint
from shared.generation.generator import Generator
from shared.generation.prompts import EncodedRequest, PromptEncoder, load_tokenizer
from shared.generation.requests import Completion, Request

logger = logging.getLogger(__name__)
OPENAI = "https://api.openai.com/v1"
REPORTED_CHARACTERS = 300


class ItemFailed(Exception):
    """This item gets no answer; the message says why."""


class ServerGenerator(Generator):
    """A model behind an OpenAI-compatible HTTP API.

    Args:
        model: the name the server knows it by.
        base_url: up to and including `/v1`.
        api_key_env: environment variable that holds the key (servers without keys: leave it unset).
        concurrency: requests in flight.
        timeout_s: for one try, from sending to the end of the answer.
        max_retries: further tries of one item; waits double from backoff_s up to max_wait_s, or are what Retry-After
            says (an item for which the server asks for more than max_wait_s fails).
        tokenizer, chat_template: of the served model; needed for the dry run, for candidates, and to check lengths
            beforehand (else the server's refusal fails the item). max_model_len: asked of the server if it says.
        price: {prompt, completion, currency} per million tokens.
        max_tokens_field: OpenAI's newer models want "max_completion_tokens".
        omit: fields this server refuses, e.g. [temperature, seed].
        extra_body: further fields of every request, e.g. {reasoning_effort: low}.
    """

    backend = "openai"

    def __init__(
        self,
        model: str,
        *,
        base_url: str = OPENAI,
        api_key_env: str = "OPENAI_API_KEY",
        concurrency: int = 16,
        timeout_s: float = 120.0,
        max_retries: int = 6,
        backoff_s: float = 1.0,
        max_wait_s: float = 60.0,
        tokenizer: str | None = None,
        chat_template: str | Path | None = None,
        max_model_len: int | None = None,
        price: Mapping[str, Any] | None = None,
        max_tokens_field: str = "max_tokens",
        omit: Sequence[str] = (),
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value, least in (
            ("concurrency", concurrency, 1),
            ("timeout_s", timeout_s, 0.001),
            ("max_retries", max_retries, 0),
            ("backoff_s", backoff_s, 0),
        ):
            if not isinstance(value, int | float) or not value >= least:
                raise InputError(f"{name}={value!r} must be a number, {least} or more")
        if price is not None:
            try:
                self.price = Price(**price)
            except TypeError as error:
                raise InputError(f"price={dict(price)} needs prompt and completion (per million tokens)") from error
        self.model, self.base_url = model, _checked_url(base_url)
        self._key_env, self._key = api_key_env, os.environ.get(api_key_env) or None
        if self._key is None and urlsplit(base_url).hostname == urlsplit(OPENAI).hostname:
            raise InputError(f"the environment variable {api_key_env} holds no key for {base_url}: export it")
        self.encoder = PromptEncoder(load_tokenizer(tokenizer), chat_template) if tokenizer else None
        self._concurrency, self._timeout_s, self._max_retries = int(concurrency), timeout_s, max_retries
        self._backoff_s, self._max_wait_s = backoff_s, max_wait_s
        self._max_tokens_field, self._omit, self._extra_body = max_tokens_field, set(omit), dict(extra_body or {})
        self._binding = {
            "backend": self.backend,
            "model": model,
            "tokenizer": tokenizer and model_fingerprint(tokenizer),
            "chat_template": text_fingerprint(self.encoder and self.encoder.chat_template),
            "omit": sorted(self._omit),
            "extra_body": self._extra_body,
        }
        self._loop = BackgroundLoop()
        self._client = AsyncOpenAI(
            base_url=base_url, api_key=self._key or "none", timeout=timeout_s, max_retries=0
        )  # retries are ours: counted, bounded, and told apart
        self.max_model_len = max_model_len or (self._loop.run(self._served_length()) if self.encoder else None)

    def binding(self) -> dict[str, Any]:
        """Not the address: a server may move (another node, another port) while a run is interrupted."""
        return self._binding

    def _answer(self, items: Sequence[EncodedRequest | Request]) -> Iterator[Completion]:
        for item in items:
            if isinstance(item, Request) and item.candidates:
                raise InputError(
                    f"item {item.id!r} has candidates: scoring them on a server needs its model's tokenizer "
                    "(tokenizer=FOLDER_OR_HUB_ID) and a completions endpoint that takes token ids, as vLLM's"
                )
        return self._loop.each_as_finished(items, self._answer_one, self._concurrency)

    async def _answer_one(self, item: EncodedRequest | Request) -> Completion:
        request = item if isinstance(item, Request) else item.request
        try:
            logprobs = await self._score(item) if request.candidates else None
            if request.max_tokens == 0:
                return Completion(request.id, "", "length", len(item.input_ids), 0, logprobs)
            ask = self._chat if request.messages is not None else self._complete
            text, reason, usage = await self._tried(request, lambda: ask(request))
        except ItemFailed as failure:
            return Completion.failure(request, str(failure))
        reason = {"eos": "stop", "stop_sequence": "stop", None: "stop"}.get(reason, reason)
        if reason == "content_filter":
            text = ""
        return Completion(
            request.id,
            text or "",
            reason,
            getattr(usage, "prompt_tokens", None),
            getattr(usage, "completion_tokens", None),
            logprobs,
        )

    def _fields(self, request: Request) -> dict[str, Any]:
        """The decoding part of a body. What is at its default is not sent: servers differ in what they take."""
        body: dict[str, Any] = {"model": self.model, "temperature": request.temperature}
        body[self._max_tokens_field] = request.max_tokens
        if request.top_p != 1:
            body["top_p"] = request.top_p
        if request.stop:
            body["stop"] = list(request.stop)
        if request.logit_bias:
            body["logit_bias"] = {str(token): bias for token, bias in request.logit_bias.items()}
        if not request.greedy:
            body["seed"] = request.sampling_seed
        return {name: value for name, value in body.items() if name not in self._omit}

    async def _chat(self, request: Request) -> tuple[str, str, Any]:
        messages = [dict(message) for message in request.messages]
        body = self._fields(request)
        answer = await self._client.chat.completions.create(messages=messages, **body, extra_body=self._extra_body)
        return answer.choices[0].message.content, answer.choices[0].finish_reason, answer.usage

    async def _complete(self, request: Request) -> tuple[str, str, Any]:
        extra = dict(self._extra_body)
        if not request.add_special_tokens:
            extra["add_special_tokens"] = False
        answer = await self._client.completions.create(prompt=request.prompt, **self._fields(request), extra_body=extra)
        return answer.choices[0].text, answer.choices[0].finish_reason, answer.usage

    async def _score(self, item: EncodedRequest) -> dict[str, float]:
        """log p of each candidate: the server echoes prompt + candidate (token ids) with their log-probabilities."""
        scores = {}
        for candidate, ids in zip(item.request.candidates, item.candidate_ids, strict=True):
            start, end = len(item.input_ids), len(item.input_ids) + len(ids)
            prompt = [*item.input_ids.tolist(), *ids.tolist()]

            async def echo(prompt: list[int] = prompt) -> list[float]:
                answer = await self._client.completions.create(
                    model=self.model, prompt=prompt, max_tokens=1, temperature=0, echo=True, logprobs=1
                )
                return answer.choices[0].logprobs.token_logprobs

            scores[candidate] = sum((await self._tried(item.request, echo))[start:end])
        return scores

    async def _tried(self, request: Request, ask: Callable[[], Awaitable[Any]]) -> Any:
        """The result of `ask`, tried again where that may help. ItemFailed, or InputError where no item could pass."""
        for attempt in range(self._max_retries + 1):
            wait = min(self._max_wait_s, self._backoff_s * 2**attempt) * random.uniform(0.5, 1.0)
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await ask()
            except openai.APIStatusError as error:
                if _is_content_filter(error):
                    return "", "content_filter", None
                self._stop_if_hopeless(error)
                why = f"HTTP {error.status_code}: {self._said(error)}"
                if error.status_code not in (408, 429) and error.status_code < 500:
                    raise ItemFailed(why) from None
                wait = self._asked_wait(error, why) or wait
            except (openai.APITimeoutError, TimeoutError):
                why = f"no answer within {self._timeout_s:g} s"
            except openai.APIConnectionError as error:
                cause = error.__cause__ or error
                why = f"no connection ({self._clean(str(cause))})"
                if attempt == self._max_retries and type(cause).__name__ in ("ConnectError", "ConnectTimeout"):
                    raise InputError(f"base_url={self.base_url} does not answer: {why}") from None
            except (json.JSONDecodeError, openai.OpenAIError, AttributeError, IndexError, TypeError) as error:
                raise ItemFailed(f"the answer is not what an OpenAI-compatible server sends ({error!r:.100})") from None
            if attempt < self._max_retries:
                logger.info("%s: %s; trying again in %.1f s", request.id, why, wait)
                await asyncio.sleep(wait)
        raise ItemFailed(f"{why}, after {self._max_retries + 1} tries")

    def _stop_if_hopeless(self, error: openai.APIStatusError) -> None:
        """Raise InputError for what is wrong with every request: key, quota, model or address."""
        said = self._said(error)
        if error.status_code in (401, 403):
            state = "is not accepted" if self._key else "is not set"
            raise InputError(f"{self.base_url}: the key in {self._key_env} {state} (HTTP {error.status_code}: {said})")
        if error.code == "insufficient_quota":
            raise InputError(f"{self.base_url}: the account's quota is used up ({said}); what was answered is kept")
        if error.status_code == 404:
            raise InputError(f"model={self.model!r} is not served at base_url={self.base_url} (HTTP 404: {said})")

    def _asked_wait(self, error: openai.APIStatusError, why: str) -> float | None:
        """Seconds the server asks to wait (Retry-After: seconds or a date), None if it does not say."""
        asked = error.response.headers.get("retry-after")
        if not asked:
            return None
        try:
            seconds = float(asked)
        except ValueError:
            try:
                seconds = parsedate_to_datetime(asked).timestamp() - time.time()
            except ValueError:
                return None
        if seconds > self._max_wait_s:
            raise ItemFailed(f"{why}; the server asks to wait {seconds:.0f} s, max_wait_s is {self._max_wait_s:g}")
        return max(0.0, seconds)

    def _said(self, error: openai.APIStatusError) -> str:
        said = error.body.get("message") if isinstance(error.body, dict) else None
        return self._clean(said if isinstance(said, str) else error.message)

    def _clean(self, message: str) -> str:
        """A server's words, shortened, without the key should it echo it."""
        message = " ".join(message.split())
        return (message.replace(self._key, "***") if self._key else message)[:REPORTED_CHARACTERS]

    async def _served_length(self) -> int | None:
        """`max_model_len` as vLLM's model list states it; None where the server has no such list."""
        try:
            async for served in self._client.models.list():
                if served.id == self.model:
                    return getattr(served, "max_model_len", None)
        except openai.OpenAIError as error:
            logger.info("%s lists no models (%s): lengths are left to the server", self.base_url, type(error).__name__)
        return None

    def close(self) -> None:
        if self._client is not None:
            self._loop.run(self._client.close())
            self._client = None
            self._loop.close()


def _checked_url(base_url: str) -> str:
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"base_url={base_url!r} is not an http(s) address, such as http://127.0.0.1:8000/v1")
    if parts.username or parts.password:
        raise InputError(
            "base_url holds a user name or password: put the key into an environment variable (api_key_env)"
        )
    return base_url


def _is_content_filter(error: openai.APIStatusError) -> bool:
    """Whether a 400 is the provider's filter refusing the prompt (OpenAI and Azure: code content_filter)."""
    body = error.body if isinstance(error.body, dict) else {}
    inner = body.get("innererror") or {}
    codes = {error.code, body.get("code"), inner.get("code") if isinstance(inner, dict) else None}
    return error.status_code == 400 and bool(codes & {"content_filter", "ResponsibleAIPolicyViolation"})
