"""From the texts of a comparison's stages to its winners, and from the first stage's texts to the second stage's
prompts.

Used by whoever asks a model (`judges`) and by whoever re-scores recorded answers (`replay`), so that both follow one
rule: a second stage runs only where the first stage's two orders name different outputs. Where they agree, or where
one answer names no output, the first stage is final (LLMBar, "Swap and Synthesize").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmbar.data import Instance
from llmbar.parsing import COMPARISON_RULES
from llmbar.prompts import Template, explanations
from llmbar.scores import mirror
from llmbar.strategies import Stage, Strategy

Winners = tuple[str | None, str | None]


@dataclass(frozen=True)
class Verdict:
    """One stage read: winners name data outputs, `positions` what stood in the prompt ("1" = first); given, swapped."""

    winners: Winners
    positions: Winners


def read_stage(stage: Stage, texts: Sequence[str], judge: str, parsing: str) -> Verdict:
    """The winners of one stage's two answers (given order, swapped order)."""
    parse = COMPARISON_RULES[stage.rule_for(judge, parsing)]
    positions = (parse(texts[0]), parse(texts[1]))
    return Verdict((positions[0], mirror(positions[1])), positions)


def needs_second_stage(strategy: Strategy, winners: Winners) -> bool:
    """Whether the first stage's winners are in conflict and the strategy has a stage to settle it."""
    return len(strategy.stages) == 2 and set(winners) == {"1", "2"}


def ordered_outputs(instance: Instance, swapped: bool) -> dict[str, str]:
    """The template fields of a comparison in one order."""
    first, second = instance.output_1, instance.output_2
    if swapped:
        first, second = second, first
    return {"input": instance.input, "output_1": first, "output_2": second}


def second_stage_prompts(
    instance: Instance, template: Template, first: Sequence[str], winners: Winners
) -> tuple[str, str]:
    """The filled second-stage prompt in the given and in the swapped order.

    first: the first stage's texts (given order, swapped order); winners: what they voted for, one "1" and one "2".
    """
    filled = []
    for swapped in (False, True):
        explanation_1, explanation_2 = explanations(first, winners, swapped)
        outputs = ordered_outputs(instance, swapped)
        filled.append(template.fill(**outputs, explanation_1=explanation_1, explanation_2=explanation_2))
    return filled[0], filled[1]
