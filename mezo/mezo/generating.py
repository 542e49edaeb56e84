"""Answers of a model that is being trained, through the same back end as all generation of this repository.

`LoadedModel` is `shared.generation`'s transformers back end around weights in memory, so that batching by length,
stopping and decoding are written once; a generator from a configuration (vLLM) takes its place for untrained models.
The prompts come as token ids (which BOS, and what was cut, is `mezo.encoding`'s), not as text to be encoded again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from mezo.encoding import Encoded, Ids, Prompt
from mezo.prefix import generating
from shared.generation import Generator, Request
from shared.generation.prompts import EncodedRequest, PromptEncoder
from shared.generation.transformers_backend import TransformersGenerator

DEFAULT_BATCH_TOKENS = 16_384


class LoadedModel(TransformersGenerator):
    """A causal language model in memory as a generator. Its weights are used as they are when it is asked."""

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, batch_tokens: int | None = None) -> None:
        self.encoder = PromptEncoder(tokenizer)
        self._model = model
        self.model = getattr(model.config, "_name_or_path", "") or "model in memory"
        self.max_model_len = model.config.get_text_config().max_position_embeddings
        self._batch_tokens = batch_tokens or DEFAULT_BATCH_TOKENS
        self._binding = {"backend": self.backend, "model": "in memory"}

    def _generate(self, batch: Sequence[EncodedRequest]):
        with generating(self._model):
            return super()._generate(batch)


class GivenIds(PromptEncoder):
    """Gives each request the ids that were made for it."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        ids: Mapping[str, Ids],
        candidates: Mapping[str, Sequence[Ids]] | None = None,
    ) -> None:
        super().__init__(tokenizer)
        self.ids, self.candidates = ids, candidates or {}

    def encode(self, requests: Sequence[Request]) -> Iterator[EncodedRequest]:
        for request in requests:
            options = tuple(np.asarray(one, np.int32) for one in self.candidates.get(request.id, ()))
            yield EncodedRequest(request, np.asarray(self.ids[request.id], np.int32), options)


def continue_prompts(
    generator: Generator, prompts: Sequence[Prompt], max_new_tokens: int, journal: Path | None = None
) -> list[str]:
    """Greedy answers, to a line break, the end, or so many tokens; blanks at both ends stripped."""
    ids = {str(number): prompt.ids for number, prompt in enumerate(prompts)}
    requests = [
        # The text is for the journal: what is asked are the ids.
        Request(id=name, prompt=generator.tokenizer.decode(one), max_tokens=max_new_tokens, stop=("\n",))
        for name, one in ids.items()
    ]
    return [answer.text.strip() for answer in _ask(generator, requests, GivenIds(generator.tokenizer, ids), journal)]


def score_with_generator(
    generator: Generator, examples: Sequence[Encoded], *, mean: bool, journal: Path | None = None
) -> list[np.ndarray]:
    """Scores of candidates from a back end that shares common beginnings itself (vLLM's prefix cache)."""
    tokenizer = generator.tokenizer
    ids: dict[str, Ids] = {}
    options: dict[str, tuple[Ids, ...]] = {}
    requests = []
    for number, example in enumerate(examples):
        for candidate, (whole, length) in enumerate(zip(example.candidates, example.option_lens, strict=True)):
            name = f"{number}/{candidate}"
            ids[name], options[name] = whole[:-length], (whole[-length:],)
            text = tokenizer.decode(ids[name])
            requests.append(
                Request(id=name, prompt=text, max_tokens=0, candidates=(f"{tokenizer.decode(whole[-length:])}\x1f",))
            )
    answers = iter(_ask(generator, requests, GivenIds(tokenizer, ids, options), journal))
    found = []
    for example in examples:
        sums = np.array([next(iter(next(answers).candidate_logprobs.values())) for _ in example.candidates])
        found.append(sums / np.array(example.option_lens) if mean else sums)
    return found


def _ask(generator: Generator, requests: Sequence[Request], encoder: GivenIds, journal: Path | None):
    usual, generator.encoder = generator.encoder, encoder
    try:
        return generator.generate(requests, journal, progress=journal is not None)
    finally:
        generator.encoder = usual
