"""The release's logit biases, as token ids of whatever tokenizer the judge has.

The release held GPT-4 and ChatGPT to the answer forms by biases: -100 on each of eleven strings ("Both", "Sorry",
...) that is a single token, +7 on *every* token of "Output (a)" and "Output (b)". Token ids belong to one tokenizer
(cl100k_base for the originals), so they are recomputed here for the model that is asked, or switched off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llmbar.strategies import Strategy
from shared import InputError

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn. `bias` maps a strategy's bias sets ("avoid", "favor") to {token id: bias}."""

    temperature: float = 0.0
    top_p: float = 1.0
    bias: dict[str, dict[int, float]] = field(default_factory=dict)
    short_limit: int | None = None

    def logit_bias(self, sets: Sequence[str]) -> dict[int, float]:
        """One dictionary for a stage's bias sets; a token in both is favoured."""
        merged: dict[int, float] = {}
        for name in sets:
            merged |= self.bias.get(name, {})
        return merged

    def limit(self, rule: str, max_new_tokens: int) -> int:
        """The stage's limit, lowered to `short_limit` for answers of a few words."""
        if rule == "short" and self.short_limit is not None:
            return min(self.short_limit, max_new_tokens)
        return max_new_tokens


def bias_sets(
    encode: Encode, avoid: Sequence[str], favor: Sequence[str], avoid_bias: float = -100.0, favor_bias: float = 7.0
) -> dict[str, dict[int, float]]:
    """{"avoid": {id: bias}, "favor": {id: bias}}; `encode` gives a string's token ids without special tokens."""
    singles = [ids[0] for ids in map(encode, avoid) if len(ids) == 1]
    return {
        "avoid": dict.fromkeys(singles, float(avoid_bias)),
        "favor": dict.fromkeys((token for text in favor for token in encode(text)), float(favor_bias)),
    }


def tiktoken_encoder(model: str) -> Encode:
    """OpenAI's tokenizer for a model of that name. Raises InputError where it is unknown or cannot be had offline."""
    import tiktoken

    fix = "set decoding.tokenizer=FOLDER_OR_HUB_ID of the served model, or decoding.logit_bias=false"
    try:
        encoding = tiktoken.encoding_for_model(model)
    except KeyError:
        raise InputError(f"decoding.logit_bias: the tokenizer of {model!r} is not known; {fix}") from None
    except OSError as error:  # requests' errors: tiktoken downloads its vocabularies
        raise InputError(
            f"decoding.logit_bias: the tokenizer of {model!r} cannot be downloaded ({error}); {fix}"
        ) from None
    return encoding.encode_ordinary


def uses_bias(strategies: dict[str, Strategy]) -> bool:
    return any(stage.bias for strategy in strategies.values() for stage in strategy.stages)
