"""Requests -> token ids, once and in one way for every back end that has the tokenizer.

vLLM and transformers are given the same ids, so their greedy texts can be equal; lengths are checked before anything is
generated; the dry run counts with the same code.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jinja2 import TemplateError

from shared import InputError
from shared.generation.requests import Request

if TYPE_CHECKING:  # two seconds of import that replay and servers do not need
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
# Texts per call of the (parallel, Rust) tokenizer: enough to keep its threads busy, few enough to hold long ones.
BATCH = 64


@dataclass(frozen=True)
class EncodedRequest:
    """A request with its token ids: `input_ids` (prompt length,) int32; `candidate_ids`, one array per candidate.

    int32 arrays, not lists: 600 prompts of 128K tokens are 0.3 GB instead of 2.7 GB.
    """

    request: Request
    input_ids: np.ndarray
    candidate_ids: tuple[np.ndarray, ...] = ()

    @property
    def longest(self) -> int:
        """Positions it needs: the prompt and the longest that may follow (vLLM adds a token to a scored text)."""
        return len(self.input_ids) + max([self.request.max_tokens, *(len(ids) + 1 for ids in self.candidate_ids)])


def load_tokenizer(name: str, revision: str | None = None) -> "PreTrainedTokenizerBase":
    """The (fast) tokenizer of a model: a local folder or hub id. Raises InputError where there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(
            f"tokenizer={name!r} cannot be loaded ({reason}): give a folder with tokenizer.json"
        ) from error
    if not tokenizer.is_fast:
        raise InputError(f"tokenizer={name!r} has no fast version (tokenizer.json): convert it, or name one that has")
    return tokenizer


class PromptEncoder:
    """Chat template and tokenizer of one model.

    chat_template: a Jinja file that replaces the tokenizer's own template (for models that come without one).
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", chat_template: str | Path | None = None) -> None:
        self.tokenizer = tokenizer
        self.chat_template = None
        if chat_template is not None:
            path = Path(chat_template).expanduser()
            if not path.is_file():
                raise InputError(f"chat_template={chat_template} is not a file: give a Jinja chat template")
            self.chat_template = path.read_text("utf-8")

    def text(self, request: Request) -> str:
        """The text the model continues. Raises InputError where there is no chat template, or it refuses the turns."""
        if request.prompt is not None:
            return request.prompt
        if self.chat_template is None and not self.tokenizer.chat_template:
            raise InputError(
                f"item {request.id!r} is a chat, but tokenizer {self.tokenizer.name_or_path} has no chat template: "
                "set chat_template=FILE, or ask with plain prompts (base models)"
            )
        try:
            return self.tokenizer.apply_chat_template(
                [dict(message) for message in request.messages],
                chat_template=self.chat_template,
                tokenize=False,
                add_generation_prompt=True,
            )
        except TemplateError as error:
            roles = [message["role"] for message in request.messages]
            raise InputError(f"item {request.id!r}: the chat template refuses the turns {roles}: {error}") from error

    def encode(self, requests: Sequence[Request]) -> Iterator[EncodedRequest]:
        """Encode in order. Chats get no further special tokens: their template writes them."""
        waiting = iter(requests)
        while batch := list(islice(waiting, BATCH)):
            rows: dict[int, np.ndarray] = {}
            for special in (False, True):
                at = [i for i, r in enumerate(batch) if (r.prompt is not None and r.add_special_tokens) == special]
                if at:
                    texts = [self.text(batch[i]) for i in at]
                    encoded = self.tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]
                    rows |= {i: np.asarray(ids, np.int32) for i, ids in zip(at, encoded, strict=True)}
            for i, request in enumerate(batch):
                if len(rows[i]) == 0:
                    raise InputError(f"item {request.id!r}: the prompt has no tokens under this tokenizer")
                yield EncodedRequest(request, rows[i], self._candidates(request))

    def _candidates(self, request: Request) -> tuple[np.ndarray, ...]:
        if not request.candidates:
            return ()
        encoded = self.tokenizer(list(request.candidates), add_special_tokens=False)["input_ids"]
        for candidate, ids in zip(request.candidates, encoded, strict=True):
            if not ids:
                raise InputError(f"item {request.id!r}: candidate {candidate!r} has no tokens under this tokenizer")
        return tuple(np.asarray(ids, np.int32) for ids in encoded)


def check_lengths(encoded: Sequence[EncodedRequest], limit: int | None, model: str) -> None:
    """Refuse prompts that do not fit, before anything is generated.

    Raises InputError naming the longest item and how many there are; nothing is ever cut here.
    """
    if limit is None:
        return
    too_long = [item for item in encoded if item.longest > limit]
    if too_long:
        worst = max(too_long, key=lambda item: item.longest)
        others = f" ({len(too_long)} such items)" if len(too_long) > 1 else ""
        raise InputError(
            f"item {worst.request.id!r}{others}: {len(worst.input_ids)} prompt tokens + "
            f"{worst.longest - len(worst.input_ids)} to come exceed the {limit} positions of {model}: "
            "shorten the prompt, lower max_tokens, or take a model with a longer context (max_model_len)"
        )


def check_biases(requests: Sequence[Request], vocabulary: int, model: str) -> None:
    """Refuse (InputError) logit biases on token ids the model does not have: they come from another tokenizer."""
    for request in requests:
        foreign = [token for token in request.logit_bias if not 0 <= int(token) < vocabulary]
        if foreign:
            raise InputError(
                f"item {request.id!r}: logit_bias names token {foreign[0]}, but {model} has {vocabulary} tokens: "
                "compute the ids with this model's tokenizer"
            )
