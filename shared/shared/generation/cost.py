"""Cost first: the prompts and tokens a run would send, and for a priced API the money, before anything is asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from shared import InputError
from shared.generation.prompts import PromptEncoder, check_lengths
from shared.generation.requests import Request, unique_by_key

if TYPE_CHECKING:  # two seconds of import that replay and servers do not need
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Price:
    """Money per million tokens, as the provider's price list says (it changes: it belongs in a config, not in code)."""

    prompt: float
    completion: float
    currency: str = "USD"

    def __post_init__(self) -> None:
        for name in ("prompt", "completion"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise InputError(
                    f"price.{name}={value!r} must be a number, 0 or more ({self.currency} per million tokens)"
                )


@dataclass(frozen=True)
class Cost:
    """What a run would ask.

    prompts                requests as given; `unique` of them differ, `answered` of these are in the journal already.
    prompt_tokens          of those still to ask, by the model's tokenizer (a provider's chat format may add some).
    max_completion_tokens  upper bound: every answer as long as its limit.
    least, most            money: no answer at all, and every answer at its limit. None without a price.
    """

    prompts: int
    unique: int
    answered: int
    prompt_tokens: int
    max_completion_tokens: int
    longest_prompt: int
    price: Price | None = None

    @property
    def to_ask(self) -> int:
        return self.unique - self.answered

    @property
    def least(self) -> float | None:
        return self.price and self.prompt_tokens * self.price.prompt / 1e6

    @property
    def most(self) -> float | None:
        return self.price and self.least + self.max_completion_tokens * self.price.completion / 1e6

    def print(self, console: Console | None = None) -> None:
        table = Table("what a run would ask", "", title=None)
        table.columns[1].justify = "right"
        for label, value in (
            ("prompts", self.prompts),
            ("different", self.unique),
            ("answered already", self.answered),
            ("to ask", self.to_ask),
            ("prompt tokens", self.prompt_tokens),
            ("longest prompt", self.longest_prompt),
            ("new tokens at most", self.max_completion_tokens),
        ):
            table.add_row(label, f"{value:,}")
        if self.price:
            table.add_row("cost", f"{self.least:,.2f} to {self.most:,.2f} {self.price.currency}")
        (console or Console()).print(table)


def dry_run(
    requests: Sequence[Request],
    tokenizer: "PreTrainedTokenizerBase",
    price: Price | None = None,
    chat_template: str | Path | None = None,
) -> Cost:
    """The cost of requests without a generator: only the model's tokenizer is needed."""
    encoder = PromptEncoder(tokenizer, chat_template)
    return count_cost(list(unique_by_key(requests).values()), encoder, price, None, "the model", len(requests), 0)


def count_cost(
    to_ask: Sequence[Request],
    encoder: PromptEncoder | None,
    price: Price | None,
    limit: int | None,
    model: str,
    prompts: int,
    answered: int,
) -> Cost:
    """Count the tokens of the different requests still to ask. InputError without a tokenizer, or for one too long.

    Each candidate to score is one more pass over the prompt, so it counts as one more prompt.
    """
    if encoder is None:
        raise InputError(f"counting the tokens of {model} needs its tokenizer: set tokenizer=FOLDER_OR_HUB_ID")
    prompt_tokens = new_tokens = longest = 0
    for item in encoder.encode(to_ask):
        check_lengths([item], limit, model)
        passes = (item.request.max_tokens > 0) + len(item.candidate_ids)
        prompt_tokens += passes * len(item.input_ids) + sum(len(ids) for ids in item.candidate_ids)
        new_tokens += item.request.max_tokens
        longest = max(longest, len(item.input_ids))
    return Cost(prompts, len(to_ask) + answered, answered, prompt_tokens, new_tokens, longest, price)
