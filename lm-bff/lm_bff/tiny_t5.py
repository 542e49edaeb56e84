"""`t5=tiny`: a T5 of 60,000 parameters that has learned to fill two blanks, for trying the template search without T5.

A random T5 writes no sentinels, so no hypothesis would ever be finished. This one is trained for some seconds to answer
`... <extra_id_0> label <extra_id_1> ...` with a few words between the sentinels, drawn from short phrases. It knows
nothing about the sentences it is shown: its templates show that the search works, not that templates can be found.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from shared import hub

SENTINELS = [f"<extra_id_{number}>" for number in range(8)]
BEFORE = ("It was", "This is", "A", "All in all", "I think it is", "They say", "In one word", "It's")
AFTER = (".", "!", " one.", " for me.", " indeed.", " again,", ", I think.")
STEPS, BATCH, LR = 160, 16, 5e-3


def tiny_tokenizer(texts: Sequence[str], vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """A SentencePiece-like BPE with T5's special tokens and sentinels; "▁" begins a word, as in T5's own."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    letters = sorted({letter for text in texts for letter in text if letter.isprintable()} | set("▁.,!?'"))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "</s>", "<unk>"],
        initial_alphabet=[letter for letter in letters if letter != " "],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in SENTINELS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def tiny_t5(cache_dir: str | Path | None = None, steps: int = STEPS, seed: int = 0) -> Path:
    """The folder of the tiny T5, trained now if it is not there."""
    root = Path(cache_dir) if cache_dir is not None else hub.cache_folder("lm-bff") / "tiny_t5"
    folder = root / f"{steps}-{seed}"
    if (folder / "config.json").is_file():
        return folder
    draw = random.Random(seed)
    tokenizer = tiny_tokenizer([*BEFORE, *AFTER, "the film was great and terrible ."] * 20)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        num_heads=4,
        d_ff=64,
        num_layers=2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        dropout_rate=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, fused=True)
    model.train()
    for _ in range(steps):
        pairs = [_example(draw) for _ in range(BATCH)]
        source = tokenizer([one for one, _ in pairs], padding=True, return_tensors="pt")
        target = tokenizer([two for _, two in pairs], padding=True, return_tensors="pt", add_special_tokens=False)
        labels = target["input_ids"].masked_fill(target["attention_mask"] == 0, -100)
        loss = model(input_ids=source["input_ids"], attention_mask=source["attention_mask"], labels=labels).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    partial = root / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.eval().save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(folder)
    return folder


def _example(draw: random.Random) -> tuple[str, str]:
    words = " ".join(draw.choices(["the", "film", "was", "great", "and", "terrible"], k=draw.randint(2, 8)))
    source = f"{words} .<extra_id_0> great<extra_id_1>"
    return source, f"<extra_id_0> {draw.choice(BEFORE)}<extra_id_1>{draw.choice(AFTER)}<extra_id_2>"
