"""From examples to prompts: what a task, a template and label words make of them, demonstrations included.

A prompt is put together from blocks that are tokenised once: the query's, and one per (training example, class). So
sixteen sets of demonstrations for each of a thousand queries cost concatenations, not encodings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase

from lm_bff.data import Example
from lm_bff.in_context import InContext
from lm_bff.model import SEGMENTS
from lm_bff.template import LabelWord, Rendered, Special, Template, encode, finish
from shared import InputError

SEGMENT_STYLES = ("1", "2", "n")
Block = tuple[list[int], list[int]]


@dataclass
class PromptBuilder:
    """Renders the examples of one task with one template.

    Args:
        label_word_ids: token ids in the order of the task's labels.
        max_length, first_sent_limit, other_sent_limit, truncate_head: see `Template.render`.
        segments: how segment ids count: `n` (every `sep+` begins one), `2` (the query and the rest), `1` (none).
        limit_segments: whether the model has segments, and so at most ten.
        max_positions: the longest input the model can take.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template
    label_word_ids: Sequence[int]
    num_sentences: int
    max_length: int
    first_sent_limit: int | None = None
    other_sent_limit: int | None = None
    truncate_head: bool = False
    segments: str = "n"
    limit_segments: bool = False
    max_positions: int | None = None
    _blocks: dict[tuple[Example, int | None], Block] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if str(self.segments) not in SEGMENT_STYLES:
            raise InputError(f"segments={self.segments}: give one of {', '.join(SEGMENT_STYLES)}")
        if self.template.num_sentences > self.num_sentences:
            raise InputError(
                f"template {str(self.template)!r} asks for sentence {self.template.num_sentences - 1}, but examples "
                f"of this task have {self.num_sentences} (numbered from 0)"
            )
        self._answered: dict[int, Template] = {}
        self._ends = sum(piece.ends_segment for piece in self.template.pieces if isinstance(piece, Special))

    def query(self, example: Example) -> Block:
        """(token ids, segments) of the question itself."""
        return self._block(example, None, self.template, example.sentences)

    def demonstration(self, example: Example, label: int) -> Block:
        """The same for an answered example; its sentences are all "other" ones to the limits."""
        if label not in self._answered:
            shifted = self.template.without_cls().shifted(self.num_sentences)
            self._answered[label] = shifted.answered(LabelWord(label))
        sentences = ("",) * self.num_sentences + example.sentences
        return self._block(example, label, self._answered[label], sentences)

    def _block(self, example: Example, label: int | None, template: Template, sentences: Sequence[str]) -> Block:
        found = self._blocks.get((example, label))
        if found is None:
            found = self._blocks[example, label] = template.tokens(
                self.tokenizer,
                sentences,
                label_word_ids=self.label_word_ids,
                first_sent_limit=self.first_sent_limit,
                other_sent_limit=self.other_sent_limit,
            )
        return found

    def plain(self, examples: Sequence[Example]) -> list[Rendered]:
        """One prompt per example."""
        return [self._finish(*self.query(example), example) for example in examples]

    def demonstrated(
        self, examples: Sequence[Example], support: Sequence[Example], chosen: np.ndarray
    ) -> list[Rendered]:
        """Prompts with demonstrations.

        Args:
            chosen: (n, classes) or (draws, n, classes) support indices, from `demonstrations.select`.
        Returns:
            n or draws * n prompts, all examples of one draw after the other.
        """
        prompts = []
        for draw in chosen.reshape(-1, len(examples), chosen.shape[-1]).tolist():
            for example, members in zip(examples, draw, strict=True):
                blocks = [self.query(example)]
                blocks += [self.demonstration(support[member], label) for label, member in enumerate(members)]
                prompts.append(self._finish(*self._join(blocks), example))
        return prompts

    def in_context(
        self,
        examples: Sequence[Example],
        support: Sequence[Example],
        classes: Sequence[int],
        context: np.ndarray,
        options: InContext,
    ) -> list[Rendered]:
        """Prompts for in-context learning (the layout of `in_context.layout`).

        Args:
            classes: class number of each support example; context: (n, m) support indices.
        """
        cls = [] if self.tokenizer.cls_token_id is None else [self.tokenizer.cls_token_id]
        front = (
            options.placement == "head" and options.cls_position == "front" and Special("cls") in self.template.pieces
        )
        prompts = []
        for example, members in zip(examples, context.tolist(), strict=True):
            copies = [self.demonstration(support[member], classes[member]) for member in members]
            query = self.query(example)
            if options.placement == "tail":
                ids, segments = self._join([query, *copies])
            elif front:
                bare = self._block(example, -1, self.template.without_cls(), example.sentences)
                ids, segments = self._join([*reversed(copies), bare])
                cut = max(0, len(ids) + len(cls) - options.max_length)
                ids, segments = cls + ids[cut:], [0] * len(cls) + segments[cut:]
            else:
                ids, segments = self._join([*reversed(copies), query])
            prompts.append(self._finish(ids, segments, example, options.max_length, options.placement == "head"))
        return prompts

    def sequence_pairs(self, examples: Sequence[Example]) -> list[Rendered]:
        """Inputs of standard fine-tuning: cls, sentence, sep, and for a pair the second sentence, sep, in segment 1.

        RoBERTa gets one `</s>` between the sentences, as in the release, not the two of its own tokenizer.
        """
        tokenizer = self.tokenizer
        limits = (self.first_sent_limit, self.other_sent_limit)
        rendered = []
        for example in examples:
            ids, segments = [tokenizer.cls_token_id], [0]
            for number, text in enumerate(example.sentences):
                new = [*encode(tokenizer, text)[: limits[min(number, 1)]], tokenizer.sep_token_id]
                ids += new
                segments += [min(number, 1)] * len(new)
            done = finish(ids, segments, tokenizer, 0, self.max_length, self.truncate_head, example.name)
            rendered.append(self._checked(done, example))
        return rendered

    def _join(self, blocks: Sequence[Block]) -> Block:
        ids: list[int] = []
        segments: list[int] = []
        for number, (new, own) in enumerate(blocks):
            ids += new
            first = number * self._ends
            segments += [first + segment for segment in own] if first else own
        return ids, segments

    def _finish(
        self,
        ids: list[int],
        segments: list[int],
        example: Example,
        max_length: int | None = None,
        truncate_head: bool | None = None,
    ) -> Rendered:
        if self.segments != "n":
            highest = int(self.segments) - 1
            segments = [min(segment, highest) for segment in segments]
        head = self.truncate_head if truncate_head is None else truncate_head
        done = finish(ids, segments, self.tokenizer, 1, max_length or self.max_length, head, example.name)
        return self._checked(done, example)

    def _checked(self, done: Rendered, example: Example) -> Rendered:
        if self.max_positions is not None and len(done.input_ids) > self.max_positions:
            raise InputError(
                f"{example.name}: its prompt has {len(done.input_ids)} tokens, but the model has {self.max_positions} "
                f"positions; set max_length={self.max_positions} or less"
            )
        if self.limit_segments and max(done.token_type_ids, default=0) >= SEGMENTS:
            raise InputError(
                f"{example.name}: its prompt has {max(done.token_type_ids) + 1} segments, but the model has {SEGMENTS} "
                "token types; set segments=2 or segments=1"
            )
        return done
