"""Asking a model: a strategy is a small state machine over messages, and all its questions are asked in at most three
waves.

    wave 1   auxiliary texts, and first stages that need none
    wave 2   first stages that show an auxiliary text
    wave 3   second stages, where the first stage's two orders disagree

Each wave is one call of the generator over all instances, strategies and orders, so a batching back end sees everything
that can run at once, and a restarted run finds what was answered in the generator's journal. A question is asked once,
however many strategies need its answer: an auxiliary text does not depend on the strategy, and CoT is the first stage
of Swap and Swap_CoT. The ten comparison strategies cost 18 to 22 calls per instance so, instead of 24 to 28.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llmbar.data import Instance
from llmbar.decoding import Decoding
from llmbar.prompts import CHAT_FORMATS, Messages, Template, merge_system, sha256_16, split_messages
from llmbar.stages import Verdict, needs_second_stage, ordered_outputs, read_stage, second_stage_prompts
from llmbar.strategies import Auxiliary, Stage, Strategy
from shared import InputError
from shared.generation import Completion, Request

log = logging.getLogger(__name__)

ANSWERS = ("Output (a)", "Output (b)")
ORDERS = ("given", "swapped")
Ask = Callable[[Sequence[Request]], list[Completion]]


@dataclass
class Calls:
    """What a run asks. `naive`: every strategy on its own; `asked`: distinct questions, as they go to the generator."""

    naive: int = 0
    asked: int = 0

    def per_instance(self, instances: int) -> dict[str, float]:
        return {"naive": self.naive / instances, "asked": self.asked / instances}


@dataclass
class Judged:
    """What came of a run: records in the replay format, the questions counted, and what has no answer."""

    records: list[dict[str, Any]] = field(default_factory=list)
    calls: Calls = field(default_factory=Calls)
    failed: dict[str, str] = field(default_factory=dict)  # "set[i] strategy" -> why

    def __add__(self, other: Judged) -> Judged:
        calls = Calls(self.calls.naive + other.calls.naive, self.calls.asked + other.calls.asked)
        return Judged(self.records + other.records, calls, self.failed | other.failed)


class Questions:
    """Asks each distinct question once per run and remembers the answers."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._waiting: dict[str, Request] = {}
        self._answers: dict[str, Completion] = {}
        self.calls = Calls()

    def want(self, request: Request) -> str:
        """Put a question into the next wave unless it was asked before; returns its id, the answer's name."""
        self.calls.naive += 1
        if request.id not in self._answers and request.id not in self._waiting:
            self._waiting[request.id] = request
        return request.id

    def ask(self) -> None:
        """Ask the wave. Failed items stay failed for their instances; the others go on."""
        wave = list(self._waiting.values())
        self._waiting = {}
        if not wave:
            return
        self.calls.asked += len(wave)
        self._answers |= {request.id: answer for request, answer in zip(wave, self._ask(wave), strict=True)}

    def answer(self, request_id: str) -> Completion:
        return self._answers[request_id]


class PromptJudge:
    """A language model with prompting strategies (LLMBar, "Prompting strategies").

    ask: requests in, completions out, in order, failed ones as such (`Generator.generate` with `keep_failures`).
    templates: file name -> template, for all the strategies' prompts. chat_format: None for the model's own chat
    template, or a name in `prompts.CHAT_FORMATS`, or "merge_system" for templates that know no system message. name,
    parsing: as in `replay`, they decide the rule by which a first stage is read.
    """

    def __init__(
        self,
        ask: Ask,
        strategies: Mapping[str, Strategy],
        templates: Mapping[str, Template],
        *,
        decoding: Decoding | None = None,
        chat_format: str | None = None,
        name: str = "",
        parsing: str = "released",
    ) -> None:
        if chat_format is not None and chat_format not in (*CHAT_FORMATS, "merge_system"):
            known = ", ".join([*CHAT_FORMATS, "merge_system"])
            raise InputError(f"judge.chat_format={chat_format!r} is unknown; use {known}, or null for the model's own")
        self.ask, self.strategies, self.templates = ask, strategies, templates
        self.decoding, self.chat_format = decoding or Decoding(), chat_format
        self.name, self.parsing = name, parsing

    def run(self, instances: Iterable[Instance]) -> Judged:
        """Judge all instances with all strategies; a judgement with an unanswered question is left out and named."""
        questions = Questions(self.ask)
        jobs = [_Job(self, one, strategy, questions) for one in instances for strategy in self.strategies.values()]
        for step in (_Job.prepare, _Job.compare, _Job.settle):
            for job in jobs:
                step(job)
            questions.ask()
        failed = {f"{job.instance.id} {job.strategy.name}": why for job in jobs if (why := job.failure())}
        return Judged([job.record() for job in jobs if not job.failure()], questions.calls, failed)

    def request(self, one: Instance, part: Auxiliary | Stage, filled: str, tag: str) -> Request:
        """The question for one filled prompt; its id names instance, prompt file, order and limit."""
        scored = isinstance(part, Stage) and part.decide_by == "logprob"
        limit = part.max_new_tokens
        bias: dict[int, float] = {}
        if isinstance(part, Stage):
            limit = 0 if scored else self.decoding.limit(part.rule, limit)
            bias = {} if scored else self.decoding.logit_bias(part.bias)
        messages = split_messages(filled)
        request = Request(
            id=f"{one.id} {part.prompt} {tag} {'logprob' if scored else limit}",
            messages=messages,
            max_tokens=limit,
            temperature=0.0 if scored else self.decoding.temperature,
            top_p=1.0 if scored else self.decoding.top_p,
            logit_bias=bias,
            candidates=ANSWERS if scored else (),
        )
        return self._in_chat_format(request, messages)

    def _in_chat_format(self, request: Request, messages: Messages) -> Request:
        if self.chat_format is None:
            return request
        if self.chat_format == "merge_system":
            return replace(request, messages=merge_system(messages))
        # Llama 2's string carries its own <s>; the other formats leave special tokens to the tokenizer, as released.
        text = CHAT_FORMATS[self.chat_format](messages)
        return replace(request, messages=None, prompt=text, add_special_tokens=self.chat_format != "llama2")


class _Job:
    """One instance under one strategy, going through the waves."""

    def __init__(self, judge: PromptJudge, instance: Instance, strategy: Strategy, questions: Questions) -> None:
        self.judge, self.instance, self.strategy, self.questions = judge, instance, strategy, questions
        self.auxiliary: list[str] = []  # ids of questions
        self.stages: list[list[str]] = []
        self.hashes: list[str] | None = None
        self.first: Verdict | None = None

    def prepare(self) -> None:
        """Wave 1: the auxiliary texts; a strategy without any goes straight on to its first stage."""
        for auxiliary in self.strategy.auxiliary:
            filled = self.judge.templates[auxiliary.prompt].fill(input=self.instance.input)
            self.auxiliary.append(self._want(auxiliary, filled, "auxiliary"))
        if not self.strategy.auxiliary:
            self._ask_first_stage()

    def compare(self) -> None:
        """Wave 2: the first stage, with the auxiliary texts in it."""
        if self.strategy.auxiliary and not self.failure():
            self._ask_first_stage()

    def settle(self) -> None:
        """Wave 3: the second stage, where there is one and the first stage's orders disagree."""
        if len(self.strategy.stages) == 1 or self.failure():
            return
        texts = [self._text(request_id) for request_id in self.stages[0]]
        self.first = read_stage(self.strategy.stages[0], texts, self.judge.name, self.judge.parsing)
        if needs_second_stage(self.strategy, self.first.winners):
            stage = self.strategy.stages[1]
            template = self.judge.templates[stage.prompt]
            prompts = second_stage_prompts(self.instance, template, texts, self.first.winners)
            self.hashes = [sha256_16(prompt) for prompt in prompts]
            self.stages.append([self._want(stage, p, order) for p, order in zip(prompts, ORDERS, strict=True)])

    def failure(self) -> str | None:
        """Why an answer is missing, or None."""
        for request_id in (*self.auxiliary, *(x for stage in self.stages for x in stage)):
            answer = self.questions.answer(request_id)
            if answer.failed:
                return answer.error or "no answer"
        return None

    def record(self) -> dict[str, Any]:
        """The judgement as a line of the replay format."""
        record: dict[str, Any] = {"set": self.instance.set, "i": self.instance.i, "strategy": self.strategy.name}
        if self.auxiliary:
            record["aux"] = [self._answer(request_id) for request_id in self.auxiliary]
        if self.strategy.is_rating:
            return record | {"scores": [self._answer(request_id) for request_id in self.stages[0]]}
        record["stages"] = [{"out": [self._answer(request_id) for request_id in stage]} for stage in self.stages]
        if self.hashes:
            record["stages"][1]["prompt_sha256"] = self.hashes
        if self.strategy.stages[0].decide_by == "logprob":
            answers = [self.questions.answer(request_id) for request_id in self.stages[0]]
            record["logprobs"] = [[answer.candidate_logprobs[text] for text in ANSWERS] for answer in answers]
        return record

    def _ask_first_stage(self) -> None:
        stage = self.strategy.stages[0]
        template = self.judge.templates[stage.prompt]
        texts = {f"auxiliary_input_{k}": self._text(request_id) for k, request_id in enumerate(self.auxiliary)}
        if self.strategy.is_rating:
            fields = [{"input": self.instance.input, "output": text} for text in self._outputs()]
            tags = ("output_1", "output_2")
        else:
            fields = [ordered_outputs(self.instance, swapped) for swapped in (False, True)]
            tags = ORDERS
        made_from = "".join(f" after {auxiliary.prompt}" for auxiliary in self.strategy.auxiliary)
        self.stages.append(
            [
                self._want(stage, template.fill(**f, **texts), tag + made_from)
                for f, tag in zip(fields, tags, strict=True)
            ]
        )

    def _outputs(self) -> tuple[str, str]:
        return self.instance.output_1, self.instance.output_2

    def _want(self, part: Auxiliary | Stage, filled: str, tag: str) -> str:
        return self.questions.want(self.judge.request(self.instance, part, filled, tag))

    def _text(self, request_id: str) -> str:
        return self.questions.answer(request_id).text.strip()

    def _answer(self, request_id: str) -> list[str]:
        answer = self.questions.answer(request_id)
        if answer.candidate_logprobs is not None:
            first, second = (answer.candidate_logprobs[text] for text in ANSWERS)
            # Equal log-probabilities decide nothing: no winner, like an answer that names no output.
            return [ANSWERS[first < second] if first != second else "", "logprob"]
        return [answer.text.strip(), answer.finish_reason]
