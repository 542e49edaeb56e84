"""What is asked and what is answered: `Request`, `Completion`, and the errors of a run.

A request carries its own decoding, so one call may mix greedy judging with sampled answers. Its `key` is a digest of
everything that decides the answer: two greedy requests with the same key are the same question, whatever their ids.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from shared import InputError

Message = Mapping[str, str]
ROLES = ("system", "user", "assistant", "developer", "tool")


@dataclass(frozen=True)
class Request:
    """One question to a model.

    id                  the caller's name for it, unique within a call; errors and journals name it.
    messages | prompt   chat turns ({"role", "content"}, for the model's chat template) or plain text to continue.
    max_tokens          limit of new tokens; 0 asks for `candidates` alone.
    temperature, top_p  0 is greedy. A sampled request without a `seed` gets one derived from its id and content, so
                        that neither batching nor a restart changes its draw; n samples are n requests with n ids.
    stop                strings that end the answer; they are not part of it.
    logit_bias          {token id: added to the logit, within [-100, 100]}.
    candidates          strings to score as the continuation of the prompt: sum of log p(token | prompt, tokens before),
                        of the model itself (no temperature, no bias). Each is tokenised on its own.
    add_special_tokens  plain prompts only: whether the tokenizer adds BOS and the like. A chat template brings its own.
    """

    id: str
    messages: Sequence[Message] | None = None
    prompt: str | None = None
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop: Sequence[str] = ()
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    candidates: Sequence[str] = ()
    add_special_tokens: bool = True

    def __post_init__(self) -> None:
        problem = _problem(self)
        if problem:
            raise InputError(f"request {self.id!r}: {problem}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @cached_property
    def key(self) -> str:
        """sha256 over prompt and decoding; over the id too if sampled, since two samples of one prompt differ."""
        content = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "id"}
        content["messages"] = self.messages and [[m["role"], m["content"]] for m in self.messages]
        content["logit_bias"] = sorted((int(token), float(bias)) for token, bias in self.logit_bias.items())
        content |= {"stop": list(self.stop), "candidates": list(self.candidates)}
        content |= {"temperature": float(self.temperature), "top_p": float(self.top_p)}
        if not self.greedy:
            content["id"] = self.id
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @cached_property
    def sampling_seed(self) -> int | None:
        """None if greedy; else `seed`, or 31 bits of the key."""
        if self.greedy:
            return None
        return self.seed if self.seed is not None else int(self.key[:8], 16) & 0x7FFFFFFF


def _problem(request: Request) -> str | None:
    """What is wrong with a request, or None."""
    if not isinstance(request.id, str) or not request.id:
        return "id must be a non-empty string"
    if (request.messages is None) == (request.prompt is None):
        return "give either messages or prompt"
    if request.prompt is not None and not (isinstance(request.prompt, str) and request.prompt):
        return "prompt must be a non-empty string"
    if request.messages is not None:
        if not request.messages:
            return "messages is empty"
        for i, message in enumerate(request.messages):
            if set(message) != {"role", "content"} or not isinstance(message["content"], str):
                return f"messages[{i}] needs exactly role and content (strings), not {sorted(message)}"
            if message["role"] not in ROLES:
                return f"messages[{i}] has role {message['role']!r}; choose from {', '.join(ROLES)}"
    if isinstance(request.max_tokens, bool) or not isinstance(request.max_tokens, int) or request.max_tokens < 0:
        return f"max_tokens={request.max_tokens!r} must be a whole number, 0 or more"
    if request.max_tokens == 0 and not request.candidates:
        return "max_tokens=0 asks for nothing: raise it, or give candidates to score"
    if not 0 <= request.temperature < float("inf"):
        return f"temperature={request.temperature!r} must be 0 (greedy) or a positive number"
    if not 0 < request.top_p <= 1:
        return f"top_p={request.top_p!r} must lie in (0, 1]"
    for token, bias in request.logit_bias.items():
        if not str(token).isdigit() or not -100 <= bias <= 100:
            return f"logit_bias {{{token!r}: {bias!r}}} must map a token id to a number in [-100, 100]"
    for name in ("stop", "candidates"):
        strings = getattr(request, name)
        if isinstance(strings, str) or not all(isinstance(s, str) and s for s in strings):
            return f"{name}={strings!r} must be a sequence of non-empty strings"
    return None


@dataclass(frozen=True)
class Completion:
    """One answer.

    finish_reason       "stop" (end token or stop string), "length", "content_filter" (text is empty), "error".
    prompt_tokens, completion_tokens   as the model counts them (end token included); None where a server does not say.
    candidate_logprobs  {candidate: log-probability}, None if none were asked for.
    error               why there is no answer; only with finish_reason "error".
    """

    id: str
    text: str
    finish_reason: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    candidate_logprobs: dict[str, float] | None = None
    error: str | None = None

    @property
    def failed(self) -> bool:
        return self.finish_reason == "error"

    def to_record(self) -> dict[str, Any]:
        """The fields that say something, as a JSON object."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], id: str | None = None) -> "Completion":
        """The inverse of `to_record`; keys it does not know are ignored. `id` replaces the recorded one."""
        known = {name: record[name] for name in cls.__dataclass_fields__ if name in record}
        return cls(**(known | ({"id": id} if id is not None else {})))

    @classmethod
    def failure(cls, request: Request, why: str) -> "Completion":
        return cls(request.id, "", "error", error=why)


class FailedItems(InputError):
    """Some items have no answer. What was answered is in the journal: the same run again asks only for the rest.

    completions   all of them, in order, the failed ones with `.error`.
    """

    def __init__(self, completions: list[Completion], journal: object = None) -> None:
        self.completions = completions
        self.failed = [completion for completion in completions if completion.failed]
        shown = "\n".join(f"  {completion.id}: {completion.error}" for completion in self.failed[:5])
        more = f"\n  and {len(self.failed) - 5} more" if len(self.failed) > 5 else ""
        fix = (
            f"the others are kept in {journal}: run the same again to ask only for these"
            if journal
            else "give a journal to keep the others"
        )
        super().__init__(f"{len(self.failed)} of {len(completions)} items have no answer ({fix}):\n{shown}{more}")


def unique_by_key(requests: Sequence[Request]) -> dict[str, Request]:
    """{key: first request with it}, in order. Refuses two requests with one id.

    Raises InputError for an id that stands for two requests.
    """
    ids: set[str] = set()
    unique: dict[str, Request] = {}
    for request in requests:
        if request.id in ids:
            raise InputError(f"two requests have the id {request.id!r}: ids must be unique within a call")
        ids.add(request.id)
        unique.setdefault(request.key, request)
    return unique
