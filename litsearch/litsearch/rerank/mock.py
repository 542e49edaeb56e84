"""Rerankers that need no model: they read the same prompts and write the same kind of replies.

identity  the papers in the order they came: what the pipeline does by itself.
oracle    the answers first: the ceiling, since no reranker can find what is not among the candidates.
noisy     an oracle with an error: seeded normal noise on what it knows, and now and then a slip in the reply (a paper
          left out, one named twice, a number that is none of them), as models make.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from shared import InputError
from shared.generation import Completion, Generator, Request

FLAVOURS = ("identity", "oracle", "noisy")
DOCUMENT = re.compile(r"\[(\d+)\] (.*)", re.DOTALL)
SLIP = 0.1  # probability of each kind of slip in a noisy reply


class MockReranker(Generator):
    """A back end that knows the answers.

    Args:
        flavour: one of `FLAVOURS`.
        answers: texts of the papers that answer a question, under the id of its `Candidates`.
        noise: standard deviation, where an answer is worth 1 and the candidates' order at most 0.5.
        seed: of the noise; a question's noise depends on nothing else but its prompt.
    """

    backend = "mock"

    def __init__(
        self, flavour: str, answers: Mapping[str, Sequence[str]] | None = None, noise: float = 0.5, seed: int = 0
    ) -> None:
        if flavour not in FLAVOURS:
            raise InputError(f"llm.flavour={flavour!r} is not one of {', '.join(FLAVOURS)}")
        if isinstance(noise, bool) or not isinstance(noise, int | float) or not 0 <= noise < float("inf"):
            raise InputError(f"llm.noise={noise!r}: give a number of at least 0")
        self.model, self.noise, self.seed = flavour, noise, seed
        self._answers = {question: frozenset(texts) for question, texts in (answers or {}).items()}

    def binding(self) -> dict[str, Any]:
        about: dict[str, Any] = {"backend": self.backend, "model": self.model}
        if self.model != "identity":
            known = json.dumps({question: sorted(texts) for question, texts in self._answers.items()}, sort_keys=True)
            about["answers"] = hashlib.sha256(known.encode()).hexdigest()
        return about | ({"noise": self.noise, "seed": self.seed} if self.model == "noisy" else {})

    def _answer(self, items: Sequence[Request]) -> Iterator[Completion]:
        for request in items:
            text = self._reply(request)
            words = sum(len(message["content"].split()) for message in request.messages)
            yield Completion(request.id, text, "stop", words, len(text.split()))

    def _reply(self, request: Request) -> str:
        shown = [DOCUMENT.fullmatch(turn["content"]) for turn in request.messages if turn["role"] == "user"]
        texts = [found[2] for found in shown if found is not None]
        n = len(texts)
        known = self._answers.get(request.id.rsplit(" ", 1)[0], frozenset())
        worth = np.array([text in known for text in texts], float) - 0.5 * np.arange(n) / n
        if self.model == "identity":
            worth = -np.arange(n, dtype=float)
        draw = np.random.default_rng([self.seed, zlib.crc32(request.key.encode())])
        if self.model == "noisy":
            worth += self.noise * draw.standard_normal(n)
        order = (np.argsort(-worth, kind="stable") + 1).tolist()
        if self.model == "noisy":
            order = _with_slips(order, draw)
        return " > ".join(f"[{k}]" for k in order)


def _with_slips(order: list[int], draw: np.random.Generator) -> list[int]:
    n = len(order)
    left_out, repeated, invented = draw.random(3) < SLIP
    if left_out:
        order.pop(int(draw.integers(n)))
    if repeated:
        order.append(order[0])
    if invented:
        order.append(n + 1)
    return order
