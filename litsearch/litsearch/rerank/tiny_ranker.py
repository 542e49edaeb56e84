"""model=tiny: a Llama of 100,000 parameters that has learned the form of a ranking and nothing about papers.

A random model never writes "[3] > [1]", so nothing after its reply would be seen to work. This one is trained for some
seconds to close the prompt with numbers in brackets, drawn by chance. That makes it a test of the whole path (chat
template, windows, batching, parsing, resuming) on the real engines, and of nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from litsearch.data import Paper
from litsearch.keys import title_abstract
from litsearch.rerank.prompt import document_text, messages
from shared.generation.tiny_model import teach_replies, write_tiny_llama

STEPS = 120
# Trained on the ends of prompts only: what is to be written is said there, and a step costs a tenth of a whole one's.
CONTEXT = 160
POSITIONS = 16384
MOST_SHOWN = 12
VOCABULARY_PAPERS = 500


def tiny_ranker(folder: Path, papers: Sequence[Paper], steps: int = STEPS, seed: int = 0) -> Path:
    """Write the model to `folder`, unless it is there; vLLM and transformers can load it."""
    if (folder / "config.json").is_file():
        return folder
    draw = random.Random(seed)
    some = [papers[i] for i in draw.sample(range(len(papers)), min(len(papers), VOCABULARY_PAPERS))]
    texts = [document_text(paper, "title_abstract") for paper in some]
    prompt = messages("Which papers?", texts[:MOST_SHOWN])
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    words = [*map(title_abstract, some), *(turn["content"] for turn in prompt), *_replies(draw)]
    write_tiny_llama(unfinished, words, max_position_embeddings=POSITIONS, seed=seed)
    teach_replies(unfinished, lambda tokenizer: _example(tokenizer, texts, draw), steps=steps)
    unfinished.rename(folder)
    return folder


def _replies(draw: random.Random, count: int = 50) -> list[str]:
    return [_reply(draw.randint(2, MOST_SHOWN), draw) for _ in range(count)]


def _reply(n: int, draw: random.Random) -> str:
    return " > ".join(f"[{k}]" for k in draw.sample(range(1, n + 1), n))


def _example(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], draw: random.Random) -> tuple[list[int], int]:
    """(token ids of a prompt's end and a reply, length of the reply)."""
    n = draw.randint(2, MOST_SHOWN)
    # All but the last papers are cut off by CONTEXT anyway.
    shown = [" ".join(draw.choice(texts).split()[:10]) for _ in range(n)]
    prompt = tokenizer.apply_chat_template(messages("?", shown), tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"][-CONTEXT:]
    reply_ids = tokenizer(_reply(n, draw), add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    return prompt_ids + reply_ids, len(reply_ids)
