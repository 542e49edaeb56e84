"""Prompts -> padded tensors: batches of similar lengths, and every distinct prompt computed once.

The release pads everything to 128 or 256 tokens, although most prompts have 15 to 80. Here a batch is as wide as its
longest row, rows of similar length stand together, and equal prompts (draws of demonstrations repeat) share a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from lm_bff.template import Rendered


def default_batch_tokens(device: torch.device) -> int:
    """Tokens of an evaluation batch, padding included: what keeps a GPU busy, or fits a CPU's caches."""
    return 32_768 if device.type == "cuda" else 2_048


def collate(prompts: Sequence[Rendered], pad_token_id: int, device: torch.device) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask`, `token_type_ids` (batch, longest), padded at the end, and `mask_position`."""
    longest = max(len(prompt.input_ids) for prompt in prompts)
    ids = np.full((len(prompts), longest), pad_token_id, dtype=np.int64)
    attention = np.zeros((len(prompts), longest), dtype=np.int64)
    segments = np.zeros((len(prompts), longest), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        length = len(prompt.input_ids)
        ids[row, :length], attention[row, :length] = prompt.input_ids, 1
        segments[row, :length] = prompt.token_type_ids
    position = np.array([prompt.mask_position or 0 for prompt in prompts], dtype=np.int64)
    arrays = {"input_ids": ids, "attention_mask": attention, "mask_position": position, "token_type_ids": segments}
    return {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in arrays.items()}


def length_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Row numbers in batches of at most `batch_tokens` tokens (one row at least), longest rows first."""
    order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
    start = 0
    while start < len(order):
        rows = max(1, batch_tokens // lengths[order[start]])
        yield order[start : start + rows]
        start += rows


def autocast(device: torch.device, bf16: bool):
    """bfloat16 products where they are asked for; the weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


@torch.no_grad()
def outputs_of(
    model: nn.Module,
    prompts: Sequence[Rendered],
    pad_token_id: int,
    *,
    batch_tokens: int | None = None,
    bf16: bool = False,
) -> np.ndarray:
    """(n, classes) float32 logits of n prompts, in evaluation mode."""
    was_training = model.training
    model.eval()
    device = model.device
    places: dict[tuple, int] = {}
    of = [
        places.setdefault((tuple(p.input_ids), p.mask_position, tuple(p.token_type_ids)), len(places)) for p in prompts
    ]
    first = {place: number for number, place in reversed(list(enumerate(of)))}
    distinct = [prompts[first[place]] for place in range(len(places))]
    found: np.ndarray | None = None
    lengths = [len(prompt.input_ids) for prompt in distinct]
    pending: list[tuple[list[int], Tensor]] = []
    for rows in length_batches(lengths, batch_tokens or default_batch_tokens(device)):
        with autocast(device, bf16):
            pending.append((rows, model(**collate([distinct[row] for row in rows], pad_token_id, device))))
    for rows, logits in pending:
        if found is None:
            found = np.empty((len(distinct), logits.shape[1]), dtype=np.float32)
        found[rows] = logits.float().cpu().numpy()
    model.train(was_training)
    return found[of]
