"""model=tiny: a Llama of 100,000 parameters that has learned the forms of the answers and nothing about their truth.

A random model never writes "Output (a)", so nothing after the first question would run. This one is trained for some
seconds to close each kind of prompt in its form, with verdicts drawn by chance: its answers parse, its orders
disagree often enough that second stages are asked, and its accuracy is chance. That makes it a test of the whole path
(templates, both orders, shared texts, synthesis, resuming), and of nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from llmbar.data import HOUSE, HOUSE_FOLDER, Instance, load_sets
from llmbar.prompts import Template, read_templates
from llmbar.strategies import all_strategies
from shared.generation.tiny_model import teach_replies, write_tiny_llama

NAME = "tiny"
STEPS = 100
# Trained on the ends of prompts only: the form of the answer is said there, and a step costs a tenth of a whole
# prompt's.
CONTEXT = 160


def tiny_judge(
    folder: Path, steps: int = STEPS, seed: int = 0, templates: Mapping[str, Template] | None = None
) -> Path:
    """Write the model to `folder`, unless it is there; every back end can load it.

    templates: prompts that it will be asked, beside those written for this project: it learns their forms as well.
    """
    if (folder / "config.json").is_file():
        return folder
    ours = read_templates(HOUSE_FOLDER / "prompts", all_strategies())
    known = [*ours.values(), *(templates or {}).values()]
    instances = [one for some in load_sets(HOUSE_FOLDER, list(HOUSE)).values() for one in some]
    texts = [text for one in instances for text in (one.input, one.output_1, one.output_2)]
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    write_tiny_llama(unfinished, [*texts, *(template.text for template in known)], seed=seed)
    draw = random.Random(seed)
    teach_replies(
        unfinished,
        lambda tokenizer: _example(tokenizer, draw.choice(known), draw.choice(instances), draw),
        steps=steps,
    )
    unfinished.rename(folder)
    return folder


def _example(
    tokenizer: PreTrainedTokenizerBase, template: Template, one: Instance, draw: random.Random
) -> tuple[list[int], int]:
    """(token ids of the prompt's end and an answer in its form, length of the answer)."""
    fields = {"input": one.input, "output": one.output_1, "output_1": one.output_1, "output_2": one.output_2}
    said = {f"{name}_{k}": one.output_1 for name in ("auxiliary_input", "explanation") for k in range(3)}
    messages = template.messages(**fields, **said)
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"][-CONTEXT:]
    answer_ids = tokenizer(_answer(template.name, draw), add_special_tokens=False)["input_ids"] + [
        tokenizer.eos_token_id
    ]
    return prompt_ids + answer_ids, len(answer_ids)


def _answer(prompt: str, draw: random.Random) -> str:
    letter = draw.choice("ab")
    if prompt.startswith("rating/"):
        return str(draw.randrange(10))
    if prompt == "auxiliary/Metrics.txt":
        return "Does the output follow the instruction?"
    if prompt == "auxiliary/Reference.txt":
        return "An answer."
    if prompt.endswith("CoT.txt"):
        return f"Therefore, Output ({letter}) is better."
    return f"Output ({letter})"
