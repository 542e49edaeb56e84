"""A reward model as a judge (LLMBar, section 4.5): both outputs are scored on their own, the higher score wins.

There are no orders and nothing to parse; equal scores count half (the paper does not say). The model is any
checkpoint with a sequence classification head, in any of three input formats. A checkpoint without such a head is
refused: transformers would add a random one and the scores would look like scores.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from llmbar.data import Instance
from shared import InputError

log = logging.getLogger(__name__)

# AlpacaFarm's reward models (paper, table 3) read their inputs so.
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{input}\n\n### Response:{output}"
)
FORMATS = ("auto", "chat", "alpaca", "pair")


class RewardModel:
    """Scores (instruction, output) with a sequence classification model.

    model: folder or id (safetensors). label: which of several labels is the reward, by name or index; not needed for
    one. text_format: chat (the tokenizer's chat template), alpaca, pair (two segments), or auto: chat where there is
    a template, else pair. Raises InputError for a checkpoint without a head, several labels without `label`, or an
    unknown format.
    """

    def __init__(
        self,
        model: str,
        *,
        label: str | int | None = None,
        text_format: str = "auto",
        batch_size: int = 8,
        dtype: str = "auto",
        device: str | None = None,
    ) -> None:
        if text_format not in FORMATS:
            raise InputError(f"judge.text_format={text_format!r} is unknown; use one of {', '.join(FORMATS)}")
        self.name, self.batch_size = model, batch_size
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        loaded, info = AutoModelForSequenceClassification.from_pretrained(model, dtype=dtype, output_loading_info=True)
        if missing := sorted(info["missing_keys"]):
            raise InputError(
                f"model={model}: the checkpoint has no sequence classification head ({missing[0]} is missing)"
            )
        self.model = loaded.to(self.device).eval()
        self._label = self._reward_label(label)
        has_template = self.tokenizer.chat_template is not None
        self.text_format = ("chat" if has_template else "pair") if text_format == "auto" else text_format
        if self.text_format == "chat" and not has_template:
            raise InputError(
                f"model={model}: judge.text_format=chat, but its tokenizer has no chat template; use alpaca"
            )
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.model.config.pad_token_id is None:
            self.model.config.pad_token_id = self.tokenizer.pad_token_id

    @torch.inference_mode()
    def values(self, instances: Sequence[Instance]) -> np.ndarray:
        """(n, 2) rewards. Raises InputError for an input longer than the model's positions and for NaN, by instance."""
        encoded, owners = [], []
        for one in instances:
            for name in ("output_1", "output_2"):
                encoded.append(self._encode(one, name))
                owners.append(f"{one.id} {name}")
        rewards = np.zeros(len(encoded))
        by_length = sorted(range(len(encoded)), key=lambda k: -len(encoded[k]["input_ids"]))
        for start in range(0, len(by_length), self.batch_size):
            rows = by_length[start : start + self.batch_size]
            batch = self.tokenizer.pad([encoded[k] for k in rows], return_tensors="pt").to(self.device)
            rewards[rows] = self.model(**batch).logits[:, self._label].float().cpu().numpy()
        bad = np.flatnonzero(~np.isfinite(rewards))
        if len(bad):
            raise InputError(
                f"model={self.name}: the reward of {owners[bad[0]]} is {rewards[bad[0]]} ({len(bad)} such)"
            )
        return rewards.reshape(-1, 2)

    def _encode(self, one: Instance, name: str) -> dict[str, list[int]]:
        output = getattr(one, name)
        if self.text_format == "chat":
            messages = [{"role": "user", "content": one.input}, {"role": "assistant", "content": output}]
            text = self.tokenizer.apply_chat_template(messages, tokenize=False)
            encoded = self.tokenizer(text, add_special_tokens=False)
        elif self.text_format == "alpaca":
            encoded = self.tokenizer(ALPACA.format(input=one.input, output=output))
        else:
            encoded = self.tokenizer(one.input, output)
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit is not None and len(encoded["input_ids"]) > limit:
            raise InputError(
                f"model={self.name}: {one.id} {name} has {len(encoded['input_ids'])} tokens, the model has {limit} "
                "positions; use a model with a longer context (nothing is cut silently)"
            )
        return dict(encoded)

    def _reward_label(self, label: str | int | None) -> int:
        names = {int(k): v for k, v in self.model.config.id2label.items()}
        if label is None:
            if len(names) > 1:
                raise InputError(
                    f"model={self.name}: its head has {len(names)} labels ({', '.join(names.values())}); "
                    "say with judge.label which one is the reward"
                )
            return 0
        for index, known in names.items():
            if label in (index, str(index), known):
                return index
        raise InputError(
            f"model={self.name}: judge.label={label!r} is none of its labels ({', '.join(names.values())})"
        )
