"""Cost first: prompts, tokens and money of a reranking, before anything is loaded or asked.

Counted with the model's tokenizer where it can be had (its own folder for local models, `tokenizer` or tiktoken's for
servers), else estimated from characters, and then it says so.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from litsearch.rerank.failures import answered
from litsearch.rerank.listwise import Candidates, Settings
from litsearch.rerank.prompt import messages
from shared import InputError
from shared.generation import Cost, Price, Request
from shared.generation.cost import count_cost
from shared.generation.prompts import PromptEncoder, load_tokenizer
from shared.generation.requests import unique_by_key

log = logging.getLogger(__name__)
CHARACTERS_PER_TOKEN = 4.5  # of English scientific text with today's vocabularies
TURN_TOKENS = 4  # that a chat format adds to each message, about


def planned_requests(items: Sequence[Candidates], settings: Settings) -> list[Request]:
    """Every request a run asks if everything fits: windows as they would be shown before any paper has moved."""
    return [
        Request(
            id=f"{item.id} {start}:{end}",
            messages=messages(item.query, item.documents[start:end], settings.key),
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
        )
        for item in items
        for start, end in settings.windows(len(item.documents))
    ]


def estimate(
    items: Sequence[Candidates],
    settings: Settings,
    generator: Mapping[str, Any],
    journal: Path | None = None,
) -> tuple[Cost, str]:
    """The cost, and by what it was counted.

    Args:
        generator: the back end's options (`backend`, `model`, `tokenizer`, `chat_template`, `price`).
        journal: what it holds an answer to is not counted.
    """
    requests = unique_by_key(planned_requests(items, settings))
    known = answered(journal) & set(requests)
    to_ask = [request for key, request in requests.items() if key not in known]
    price = generator.get("price")
    price = Price(**price) if price else None
    encoder = _encoder(generator)
    if encoder is not None:
        counted = count_cost(to_ask, encoder, price, None, "the model", len(requests), len(known))
        return counted, f"the tokenizer of {encoder.tokenizer.name_or_path}"
    lengths, by = _lengths(to_ask, str(generator.get("model")))
    most = settings.max_tokens * len(to_ask)
    total, longest = sum(lengths), max(lengths, default=0)
    return Cost(len(requests), len(requests), len(known), total, most, longest, price), by


def print_cost(cost: Cost, by: str, console: Console | None = None) -> None:
    console = console or Console()
    cost.print(console)
    console.print(f"tokens by {by}", style="dim", highlight=False)


def _encoder(generator: Mapping[str, Any]) -> PromptEncoder | None:
    """The prompt encoder of a back end that has a tokenizer; None for a server without one, mocks and recordings."""
    name = generator.get("tokenizer")
    if name is None and generator.get("backend") in ("vllm", "transformers"):
        from shared.hub import model_path

        if generator.get("model") is None:
            raise InputError("model is missing: counting tokens needs the model's tokenizer (model=...)")
        name = model_path(generator["model"], "litsearch")
    return PromptEncoder(load_tokenizer(name), generator.get("chat_template")) if name is not None else None


def _lengths(requests: Sequence[Request], model: str) -> tuple[list[int], str]:
    """Tokens of each prompt by OpenAI's tokenizer of a model of that name, else estimated."""
    count, by = _tiktoken_count(model)
    return [sum(TURN_TOKENS + count(turn["content"]) for turn in request.messages) for request in requests], by


def _tiktoken_count(model: str):
    try:
        import tiktoken

        encoding = tiktoken.encoding_for_model(model)
    except (ImportError, KeyError, OSError) as error:  # not installed, another provider's model, or no network
        log.info("tiktoken has no vocabulary for %s here (%s)", model, type(error).__name__)
        return (
            lambda text: round(len(text) / CHARACTERS_PER_TOKEN),
            f"an estimate of {CHARACTERS_PER_TOKEN} characters per token; set llm.generator.tokenizer to count them",
        )
    return lambda text: len(encoding.encode_ordinary(text)), f"tiktoken's vocabulary of {model}"
