"""Listwise reranking: a language model is shown the candidates of a question and answers with their order.

    reranker = ListwiseReranker(generator, Settings(), journal=Path("answers.jsonl"))
    rankings = reranker.rank([Candidates("q0", "a question", ["Title: ...", ...])])
    rankings[0].order                       # positions of the documents, best first

All questions are asked at once, wave by wave: a wave holds one request of every question that is not finished. A
question needs a second one where its papers did not fit (they are fewer then), or with sliding windows. What is
answered is in the journal before it is used, under a digest of the prompt: a killed run asks nothing twice, and answers
to another input or with other settings are never mistaken for this one's.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from litsearch.rerank.failures import OVERFLOW, kind_of, known_overflows
from litsearch.rerank.permutation import MODES, Reading, read_reply
from litsearch.rerank.prompt import WORDS, messages
from litsearch.rerank.window import LEAST, sliding_windows, window_sizes
from shared import InputError
from shared.generation import Completion, Generator, Request

log = logging.getLogger(__name__)

PASSES = ("single", "sliding")
CHARACTERS_AT_ONCE = 300_000_000  # of documents whose prompts are held in memory


@dataclass(frozen=True)
class Settings:
    """How papers are ranked (defaults: the paper's).

    key: what is shown of a paper. parser: compat | strict. mode: single | sliding, with `window` papers at a time and
    `step` between windows. max_tokens, temperature: of a reply.
    """

    key: str = "title_abstract"
    parser: str = "compat"
    mode: str = "single"
    window: int = 20
    step: int = 10
    max_tokens: int = 2000
    temperature: float = 0.0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("key", self.key, WORDS),
            ("parser", self.parser, MODES),
            ("mode", self.mode, PASSES),
        ):
            if value not in known:
                raise InputError(f"{name}={value!r} is not one of {', '.join(known)}")
        if self.mode == "sliding":
            sliding_windows(1, self.window, self.step)
        if isinstance(self.max_tokens, bool) or not isinstance(self.max_tokens, int) or self.max_tokens < 1:
            raise InputError(f"max_tokens={self.max_tokens!r}: give a whole number of at least 1")

    def about(self) -> dict[str, Any]:
        """The settings that matter, for metadata."""
        unused = () if self.mode == "sliding" else ("window", "step")
        return {name: value for name, value in asdict(self).items() if name not in unused}

    def windows(self, n: int) -> list[tuple[int, int]]:
        """What is ranked one after the other; nothing where there is nothing to order."""
        if n < LEAST:
            return []
        return [(0, n)] if self.mode == "single" else sliding_windows(n, self.window, self.step)


@dataclass(frozen=True)
class Candidates:
    """One question and its candidate documents, best first. `id` is unique within a call."""

    id: str
    query: str
    documents: Sequence[str]


@dataclass
class Window:
    """What came of one window: papers shown, how the reply was read, why it ended, tokens."""

    size: int
    shown: int
    reading: Reading | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass
class Ranking:
    """A question's result.

    order: positions of its documents, best first. failure: why a request has no answer (the order is then the one that
    was reached before). A window that fits at no size is no failure: its papers keep their order (`shown` 0).
    """

    order: list[int]
    windows: list[Window] = field(default_factory=list)
    failure: str | None = None

    def about(self) -> dict[str, Any]:
        """What is kept of it in a run file: replies' statistics, summed over the windows."""
        read = [window.reading for window in self.windows if window.reading is not None]
        return {
            "shown": [window.shown for window in self.windows],
            "finish_reason": [window.finish_reason for window in self.windows],
            **{
                name: sum(getattr(reading, name) for reading in read)
                for name in ("missing", "repeated", "out_of_range")
            },
            **({"failure": self.failure} if self.failure else {}),
        }


class ListwiseReranker:
    """Ranks with any back end of `shared.generation`, or a `litsearch.rerank.mock` one."""

    def __init__(self, generator: Generator, settings: Settings | None = None, journal: Path | None = None) -> None:
        self.generator, self.settings, self.journal = generator, settings or Settings(), journal

    def rank(self, items: Sequence[Candidates], progress: bool = True) -> list[Ranking]:
        """Rankings in the order of the items.

        Raises:
            InputError: what concerns every question: no key or one that is not accepted, a model that is not served, a
                server that does not answer, a journal of another model. What was answered is in the journal.
        """
        # The binding is checked first, so that nothing is concluded from a journal of another model.
        self.generator.generate([], self.journal, progress=False)
        overflows = known_overflows(self.journal)
        rankings: list[Ranking] = []
        for some in in_memory(items):
            jobs = [_Job(item, self.settings) for item in some]
            while waiting := [job for job in jobs if not job.done]:
                self._wave(waiting, overflows, progress)
            rankings += [job.ranking for job in jobs]
        return rankings

    def _wave(self, jobs: Sequence[_Job], overflows: set[str], progress: bool) -> None:
        asked: list[tuple[_Job, Request]] = []
        for job in jobs:
            request = self._fitting(job, overflows)
            if request is not None:
                asked.append((job, request))
        requests = [request for _, request in asked]
        answers = self.generator.generate(requests, self.journal, progress=progress, keep_failures=True)
        for (job, request), answer in zip(asked, answers, strict=True):
            if not answer.failed:
                job.take(answer)
            elif kind_of(answer.error) == OVERFLOW:
                overflows.add(request.key)
                job.shrink()
            else:
                job.fail(answer.error)

    def _fitting(self, job: _Job, overflows: set[str]) -> Request | None:
        """The job's next request, with as many papers as fit where that can be known; None where none do."""
        at = job.at
        while not job.done and job.at == at:
            request = job.request()
            if request.key not in overflows and self._fits(request):
                return request
            job.shrink()
        return None

    def _fits(self, request: Request) -> bool:
        encoder, limit = self.generator.encoder, self.generator.max_model_len
        if encoder is None or limit is None:
            return True  # the server will say
        [encoded] = encoder.encode([request])
        return encoded.longest <= limit


class _Job:
    """One question on its way through its windows."""

    def __init__(self, item: Candidates, settings: Settings) -> None:
        self.item, self.settings = item, settings
        self.ranking = Ranking(list(range(len(item.documents))))
        self.windows = settings.windows(len(item.documents))
        self.at = 0
        self._open()

    @property
    def done(self) -> bool:
        return self.at >= len(self.windows) or self.ranking.failure is not None

    def _open(self) -> None:
        if not self.done:
            start, end = self.windows[self.at]
            self.sizes = window_sizes(end - start)

    def request(self) -> Request:
        start, _ = self.windows[self.at]
        shown = [self.item.documents[position] for position in self.ranking.order[start : start + self.sizes[0]]]
        return Request(
            id=f"{self.item.id} {start}:{start + self.sizes[0]}",
            messages=messages(self.item.query, shown, self.settings.key),
            max_tokens=self.settings.max_tokens,
            temperature=self.settings.temperature,
        )

    def take(self, answer: Completion) -> None:
        start, end = self.windows[self.at]
        shown, order = self.sizes[0], self.ranking.order
        reading = read_reply(answer.text, shown, self.settings.parser)
        before = order[start : start + shown]
        order[start : start + shown] = [before[position] for position in reading.order]
        tokens = answer.prompt_tokens, answer.completion_tokens
        self._close(Window(end - start, shown, reading, answer.finish_reason, *tokens))

    def shrink(self) -> None:
        """Show fewer papers; where that is not allowed any more, leave the window as it is."""
        start, end = self.windows[self.at]
        self.sizes = self.sizes[1:]
        if not self.sizes:
            self._close(Window(end - start, 0, finish_reason=OVERFLOW))

    def _close(self, window: Window) -> None:
        self.ranking.windows.append(window)
        self.at += 1
        self._open()

    def fail(self, error: str) -> None:
        self.ranking.failure = error


def in_memory(items: Sequence[Candidates], characters: int = CHARACTERS_AT_ONCE) -> Iterator[list[Candidates]]:
    """Consecutive groups of items whose prompts can be held at once; an item that is larger stands alone."""
    group: list[Candidates] = []
    held = 0
    for item in items:
        size = sum(map(len, item.documents))
        if group and held + size > characters:
            yield group
            group, held = [], 0
        group.append(item)
        held += size
    if group:
        yield group


def statistics(rankings: Sequence[Ranking]) -> dict[str, Any]:
    """How the replies were: what a run reports beside its scores."""
    windows = [window for ranking in rankings for window in ranking.windows]
    read = [window.reading for window in windows if window.reading is not None]
    failures = Counter(kind_of(ranking.failure) for ranking in rankings if ranking.failure)
    return {
        "questions": len(rankings),
        "replies": len(read),
        "reordered": sum(ranking.order != sorted(ranking.order) for ranking in rankings),
        "shrunk": sum(0 < window.shown < window.size for window in windows),
        "too_long_at_any_size": sum(window.shown == 0 for window in windows),
        "unparsable": sum(reading.unparsable for reading in read),
        "complete": sum(not (r.missing or r.repeated or r.out_of_range) for r in read),
        "missing": sum(reading.missing for reading in read),
        "repeated": sum(reading.repeated for reading in read),
        "out_of_range": sum(reading.out_of_range for reading in read),
        "strict_fell_back": sum(reading.fell_back for reading in read),
        "finish_reasons": dict(Counter(window.finish_reason for window in windows if window.reading is not None)),
        "prompt_tokens": sum(window.prompt_tokens or 0 for window in windows),
        "completion_tokens": sum(window.completion_tokens or 0 for window in windows),
        "failures": dict(failures),
    }
