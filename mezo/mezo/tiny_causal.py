"""A causal language model trained on the spot: OPT, Llama or Qwen2 with 0.6 million parameters, about a minute.

It reads opinions put into words ("... It was great"), made-up passages with a question and its answer, and remarks
that agree with their beginning; what the house's tasks are made of, without the tasks' own sentences. In the last part
of its training one answer in four is wrong on purpose: so it has learnt what an answer is about, and has something to
gain from 1,000 forward passes.

Same text, same seed: same bytes on one machine and number of threads; the folder is cached under a digest of both.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    OPTConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from lm_bff.offline_tasks import opinions, sentiment_rows
from lm_bff.tiny_text import without
from mezo.offline_tasks import agreement, held_out, passage
from mezo.tasks import get_task
from shared import InputError, hub

log = logging.getLogger(__name__)

FAMILIES = ("opt", "llama", "qwen2")
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]  # OPT's, at OPT's ids
FORMAT = 2


@dataclass(frozen=True)
class TinyCausal:
    """Sizes and training.

    wrong: the part of answers that is wrong, after the first part `clean` of the steps: with them from the start so
    few steps may not find out what answers are about. answer_weight: of an answer's tokens in the loss.
    """

    family: str = "opt"
    vocab_size: int = 1000
    num_hidden_layers: int = 2
    hidden_size: int = 96
    num_attention_heads: int = 4
    max_positions: int = 512
    steps: int = 500
    batch_size: int = 32
    length: int = 64
    lr: float = 3e-3
    wrong: float = 0.25
    clean: float = 0.6
    answer_weight: float = 10.0
    opinions: int = 6000
    other_texts: int = 6000
    seed: int = 42


def tiny_causal(
    cache_dir: str | Path | None = None, settings: TinyCausal | None = None, *, progress: bool = True
) -> Path:
    """The folder of the model (safetensors, tokenizer), trained now if it is not cached."""
    settings = settings or TinyCausal()
    if settings.family not in FAMILIES:
        raise InputError(f"tiny.family={settings.family!r}: choose {', '.join(FAMILIES)}")
    root = Path(cache_dir) if cache_dir is not None else hub.cache_folder("mezo") / "tiny"
    texts = [training_texts(settings, wrong) for wrong in (0.0, settings.wrong)]
    key = hashlib.sha256(json.dumps([FORMAT, texts, asdict(settings)], sort_keys=True).encode()).hexdigest()
    folder = root / key[:20]
    if (folder / "config.json").is_file():
        return folder
    tokenizer = train_tokenizer([prompt + answer for prompt, answer in texts[0]], settings)
    model = build(settings, len(tokenizer))
    report = train(model, tokenizer, texts, settings, progress)
    partial = root / f".{folder.name}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    (partial / "training.json").write_text(json.dumps({"settings": asdict(settings), **report}) + "\n", "utf-8")
    try:
        partial.rename(folder)
    except OSError:  # another process was faster; what it wrote is the same
        shutil.rmtree(partial, ignore_errors=True)
    return folder


# ------------------------------------------------------------------------------------------------------------- text


def training_texts(settings: TinyCausal, wrong: float = 0.0) -> list[tuple[str, str]]:
    """(prompt, answer) pairs in the tasks' own templates; the part `wrong` of the answers is the opposite one."""
    draw = random.Random(settings.seed)
    own = [text for pair in sentiment_rows() for text in pair]
    labelled = opinions(settings.opinions)
    labelled = [labelled[number] for number in without([text for text, _ in labelled], own)]
    found: list[tuple[str, str]] = []
    sentiment, answer = get_task("house-sentiment"), get_task("house-answer")
    for text, label in labelled:
        if any(held_out(text)):
            continue
        sample = sentiment.sample({"sentence": text, "label": label}, "opinion")
        found.append((sentiment.encode(sample), sample.candidates[_wrong(draw, label, wrong)]))
    for _ in range(settings.other_texts):
        beginning, right, other = agreement(draw)
        if not any(held_out(beginning)):
            found.append((f"{beginning} ".rstrip(" "), " " + (right, other)[_wrong(draw, 0, wrong)]))
    for _ in range(settings.other_texts):
        text, question, right = passage(draw)
        if not any(held_out(text)):
            said = ("terrible", "great")[_wrong(draw, int(right == "great"), wrong)]
            sample = answer.sample({"passage": text, "question": question, "answers": [said]}, "passage")
            found.append((answer.encode(sample), answer.verbalise(sample, said).removeprefix(answer.encode(sample))))
    draw.shuffle(found)
    return found


def _wrong(draw: random.Random, label: int, part: float) -> int:
    return 1 - label if draw.random() < part else label


# ------------------------------------------------------------------------------------------------ tokenizer and model


def train_tokenizer(texts: list[str], settings: TinyCausal) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that puts `<s>` in front, as OPT's numbers its special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def build(settings: TinyCausal, vocab_size: int) -> PreTrainedModel:
    """The untrained model."""
    width = settings.hidden_size
    shared = {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "num_hidden_layers": settings.num_hidden_layers,
        "num_attention_heads": settings.num_attention_heads,
        "max_position_embeddings": settings.max_positions,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
    }
    if settings.family == "opt":
        config = OPTConfig(**shared, ffn_dim=2 * width, word_embed_proj_dim=width, dropout=0.0, init_std=0.04)
    else:
        kind = LlamaConfig if settings.family == "llama" else Qwen2Config
        config = kind(**shared, intermediate_size=2 * width, initializer_range=0.04,
                      num_key_value_heads=settings.num_attention_heads)  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def sequences(
    tokenizer: PreTrainedTokenizerFast, texts: list[tuple[str, str]], settings: TinyCausal
) -> tuple[Tensor, Tensor]:
    """(ids, weights), each (sequences, length + 1): texts joined by blank lines, as with demonstrations."""
    prompts = tokenizer([prompt for prompt, _ in texts], add_special_tokens=False)["input_ids"]
    wholes = tokenizer([prompt + answer for prompt, answer in texts], add_special_tokens=False)["input_ids"]
    gap = tokenizer("\n\n", add_special_tokens=False)["input_ids"]
    rows, weights, ids, weight = [], [], [0], [0.0]
    for prompt, whole in zip(prompts, wholes, strict=True):
        if len(ids) + len(whole) + len(gap) > settings.length + 1:
            missing = settings.length + 1 - len(ids)
            rows.append(ids + [1] * missing)
            weights.append(weight + [0.0] * missing)
            ids, weight = [0], [0.0]
        asked = min(len(prompt), len(whole) - 1)
        ids += [*whole, *gap]
        weight += [1.0] * asked + [settings.answer_weight] * (len(whole) - asked) + [1.0] * len(gap)
        ids, weight = ids[: settings.length + 1], weight[: settings.length + 1]
    return torch.tensor(rows), torch.tensor(weights)


def train(model, tokenizer, texts, settings: TinyCausal, progress: bool) -> dict[str, float]:
    """Train in place with AdamW, the rate warming up and falling to 0; returns the last tenth's mean loss."""
    stages = [sequences(tokenizer, part, settings) for part in texts]
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.05, betas=(0.9, 0.98))
    warmup, losses, order = max(1, settings.steps // 15), [], torch.empty(0, dtype=torch.long)
    model.train()
    for step in tqdm(range(settings.steps), desc="training the tiny model", unit="step", disable=not progress):
        rate = min((step + 1) / warmup, (settings.steps - step) / max(1, settings.steps - warmup))
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * rate
        ids, weights = stages[step >= settings.clean * settings.steps]
        if len(order) < settings.batch_size or step == round(settings.clean * settings.steps):
            order = torch.randperm(len(ids), generator=generator)
        rows, order = order[: settings.batch_size], order[settings.batch_size :]
        batch, weight = ids[rows], weights[rows][:, 1:]
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        each = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
        loss = (each * weight.flatten()).sum() / weight.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    model.eval()
    last = float(torch.stack(losses[-max(1, settings.steps // 10) :]).mean())
    log.info("tiny %s: %d sequences, %d steps, loss %.3f", settings.family, len(ids), settings.steps, last)
    return {"loss": last, "sequences": len(ids)}
