"""model=tiny: a Llama of 100,000 parameters that has learned the form of a ranking and nothing about papers.

A random model never writes "[3] > [1]", so nothing after its reply would be seen to work. This one is trained for some
seconds to close the prompt with numbers in brackets, drawn by chance. That makes it a test of the whole path (chat
template, windows, batching, parsing, resuming) on the real engines, and of nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from litsearch.data import Paper
from litsearch.keys import title_abstract
from litsearch.rerank.prompt import document_text, messages
from shared.generation.tiny_model import write_tiny_llama

STEPS, BATCH, LR = 120, 16, 3e-3
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _train(unfinished, texts, steps, draw)
    unfinished.rename(folder)
    return folder


def _replies(draw: random.Random, count: int = 50) -> list[str]:
    return [_reply(draw.randint(2, MOST_SHOWN), draw) for _ in range(count)]


def _reply(n: int, draw: random.Random) -> str:
    return " > ".join(f"[{k}]" for k in draw.sample(range(1, n + 1), n))


def _train(folder: Path, texts: Sequence[str], steps: int, draw: random.Random) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    for _ in range(steps):
        rows = [_example(tokenizer, texts, draw) for _ in range(BATCH)]
        longest = max(len(ids) for ids, _ in rows)
        input_ids = torch.full((BATCH, longest), tokenizer.pad_token_id)
        labels = torch.full((BATCH, longest), -100)
        for row, (ids, reply) in enumerate(rows):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            labels[row, len(ids) - reply : len(ids)] = torch.tensor(ids[-reply:])
        loss = model(input_ids=input_ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.save_pretrained(folder)


def _example(tokenizer, texts: Sequence[str], draw: random.Random) -> tuple[list[int], int]:
    """(token ids of a prompt's end and a reply, length of the reply)."""
    n = draw.randint(2, MOST_SHOWN)
    # All but the last papers are cut off by CONTEXT anyway.
    shown = [" ".join(draw.choice(texts).split()[:10]) for _ in range(n)]
    prompt = tokenizer.apply_chat_template(messages("?", shown), tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"][-CONTEXT:]
    reply_ids = tokenizer(_reply(n, draw), add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    return prompt_ids + reply_ids, len(reply_ids)
