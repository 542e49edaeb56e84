"""A tiny random Llama with its own tokenizer and chat template: the whole path of a real model, in a second on a CPU.

Its answers mean nothing; but loading, templates, batching, stopping, journals and back ends' agreement are as with
70 B parameters. 2 layers x 64, 1,000 byte-level tokens, 1 MB on disk. Weights are drawn with standard deviation 0.2
instead of the usual 0.02: logits are then far apart, so greedy texts do not hang on the last bit of an addition.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def write_tiny_llama(
    folder: Path, texts: Iterable[str], *, vocabulary: int = 1000, max_position_embeddings: int = 4096, seed: int = 0
) -> Path:
    """Write an fp32 Llama to `folder` (config, safetensors, tokenizer trained on `texts`); every back end loads it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=max_position_embeddings,
        initializer_range=0.2,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    return Path(folder)


def teach_replies(
    folder: Path,
    example: Callable[[PreTrainedTokenizerBase], tuple[list[int], int]],
    *,
    steps: int,
    batch: int = 16,
    lr: float = 3e-3,
) -> None:
    """Train the model in `folder` to close prompts in a given form, and write it back.

    Args:
        example: tokenizer -> (token ids of a prompt and its reply, length of the reply); the loss is on the reply.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    for _ in range(steps):
        rows = [example(tokenizer) for _ in range(batch)]
        longest = max(len(ids) for ids, _ in rows)
        input_ids = torch.full((batch, longest), tokenizer.pad_token_id)
        labels = torch.full((batch, longest), -100)
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
