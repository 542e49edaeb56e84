"""The one interface of all back ends: `Generator.generate(requests, journal)`.

Everything that must hold whatever answers is here, once: order, duplicates asked once, lengths checked beforehand, each
finished item journalled, failures collected and reported at the end. A back end only says how to answer what is left.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from shared.generation.cost import Cost, Price, count_cost
from shared.generation.journal import Journal
from shared.generation.prompts import EncodedRequest, PromptEncoder, check_biases, check_lengths
from shared.generation.requests import Completion, FailedItems, Request, unique_by_key

if TYPE_CHECKING:  # two seconds of import that replay and servers do not need
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class Generator:
    """Base of the back ends, which set the attributes and implement `_answer`. A context manager; or call `close()`.

    model           name for messages.
    encoder         tokenizer and chat template, None where the back end has none (a server without `tokenizer=`).
    max_model_len   prompt + new tokens the model can hold, None where unknown.
    price           of a priced API, for the dry run.
    """

    backend: str = ""
    model: str = ""
    encoder: PromptEncoder | None = None
    max_model_len: int | None = None
    price: Price | None = None

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase | None":
        """The model's tokenizer, for logit biases (token ids) and counts."""
        return self.encoder.tokenizer if self.encoder else None

    def binding(self) -> dict[str, Any]:
        """What the answers depend on beside the requests; a journal is bound to it."""
        raise NotImplementedError

    def _answer(self, items: Sequence[EncodedRequest | Request]) -> Iterable[Completion]:
        """Answer in any order, each as soon as it is finished; items are encoded if there is an encoder."""
        raise NotImplementedError

    def generate(
        self,
        requests: Sequence[Request],
        journal: Path | None = None,
        *,
        progress: bool = True,
        keep_failures: bool = False,
    ) -> list[Completion]:
        """Answer all requests, in order.

        Args:
            requests: with unique ids. Equal greedy requests are asked once and answered each.
            journal: JSONL file of finished items; what it holds is not asked again. The calls of a run may share it.
            progress: a bar on standard error (where that is a terminal).
            keep_failures: return failed items (`completion.failed`) instead of raising.

        Raises:
            InputError: a request that cannot be asked, before anything is generated; a journal of another run.
            FailedItems: some items failed; raised when all others are done.
        """
        requests = list(requests)
        unique = unique_by_key(requests)
        with Journal(journal, self.binding()) if journal else nullcontext() as book:
            answers = book.answers(unique) if book else {}
            if answers:
                logger.info("%s: %d of %d answers are there already", journal, len(answers), len(unique))
            pending = [request for key, request in unique.items() if key not in answers]
            keys = {request.id: request.key for request in pending}
            bar = tqdm(
                total=len(unique), initial=len(answers), desc=f"{self.backend} {self.model}", unit="prompt",
                disable=None if progress else True,
            )  # fmt: skip
            with bar:
                for completion in self._ask(pending):
                    answers[keys[completion.id]] = completion
                    if book:
                        book.write(unique[keys[completion.id]], completion)
                    bar.update()
        completions = [replace(answers[request.key], id=request.id) for request in requests]
        if not keep_failures and any(completion.failed for completion in completions):
            raise FailedItems(completions, journal)
        return completions

    def _ask(self, pending: list[Request]) -> Iterator[Completion]:
        if not pending:
            return
        items: Sequence[EncodedRequest | Request] = pending
        if self.encoder:
            items = list(self.encoder.encode(pending))
            check_lengths(items, self.max_model_len, self.model)
            check_biases(pending, len(self.encoder.tokenizer), self.model)
        yield from self._answer(items)

    def dry_run(self, requests: Sequence[Request], journal: Path | None = None) -> Cost:
        """What `generate` would cost: prompts, tokens, money. Asks nothing, and checks lengths as `generate` does."""
        unique = unique_by_key(requests)
        answered = 0
        if journal and Path(journal).exists():
            with Journal(journal, self.binding()) as book:
                known = book.answers(unique)
            answered, unique = len(known), {key: r for key, r in unique.items() if key not in known}
        return count_cost(
            list(unique.values()), self.encoder, self.price, self.max_model_len, self.model, len(requests), answered
        )

    def close(self) -> None:
        """Release the model or the connections. Safe to call twice."""

    def __enter__(self) -> "Generator":
        return self

    def __exit__(self, *_) -> None:
        self.close()
