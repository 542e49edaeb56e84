"""The baseline of in-context learning with a masked language model ("GPT-3 style", Table 3 of the paper).

No training: up to 32 training examples, in random order and whatever their classes, stand answered around the query,
512 tokens in all. `placement=head` puts them before the query (and cuts the beginning of what is too long), `tail`
behind it (and cuts the end).

In the release only the query's copy of the template keeps `*cls*`, so that with `head` the `<s>` stands in the middle,
and what comes first depends on where the cut falls. `cls_position=front` puts it at the beginning and keeps it there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lm_bff.template import LabelWord, Special, Template
from shared import InputError

PLACEMENTS = ("head", "tail")
CLS_POSITIONS = ("authors", "front")


@dataclass(frozen=True)
class InContext:
    """Options of the baseline."""

    examples: int = 32
    max_length: int = 512
    placement: str = "head"
    cls_position: str = "authors"

    def __post_init__(self) -> None:
        if self.placement not in PLACEMENTS:
            raise InputError(f"icl.placement={self.placement}: give one of {', '.join(PLACEMENTS)}")
        if self.cls_position not in CLS_POSITIONS:
            raise InputError(f"icl.cls_position={self.cls_position}: give one of {', '.join(CLS_POSITIONS)}")
        if self.examples < 1 or self.max_length < 1:
            raise InputError(f"icl.examples={self.examples} and icl.max_length={self.max_length}: give 1 or more")


def layout(template: Template, examples: int, num_sentences: int, options: InContext) -> Template:
    """The template of a query among `examples` answered ones: copy n-1 ... copy 0, query (or query, copy 0 ...).

    Copy j has sentences m + m j ... (m = `num_sentences`) and the word `labelx_j`.
    """
    copies = [
        template.without_cls().shifted(num_sentences * (j + 1)).answered(LabelWord(j, context=True))
        for j in range(examples)
    ]
    if options.placement == "tail":
        parts = [template, *copies]
    elif options.cls_position == "front" and template.without_cls() != template:
        parts = [Template((Special("cls"),)), *reversed(copies), template.without_cls()]
    else:
        parts = [*reversed(copies), template]
    whole = parts[0]
    for part in parts[1:]:
        whole += part
    return whole


def draw_context(support: int, num_queries: int, examples: int, rng: np.random.Generator | np.random.RandomState):
    """(num_queries, n) training examples of each query: the first n = min(examples, support) of a permutation."""
    return np.stack([rng.permutation(support)[:examples] for _ in range(num_queries)])
