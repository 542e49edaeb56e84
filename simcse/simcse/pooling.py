"""From token vectors to one vector per sentence (SimCSE, section 6.3 and Table 6).

`hidden_states` is the tuple that transformers returns with `output_hidden_states=True`: entry 0 is the embedding
layer, entry 1 the first transformer block, entry -1 the last. The averages take every position of the attention mask,
[CLS] and [SEP] included.

Mind the index of `avg_first_last`. The paper's row "BERT-base (first-last avg.)", 56.70, was made with entry 0, the
static embeddings; with entry 1, the first block, the same model gives 60.73. Both are here: `avg_first_last` is entry
1, `avg_static_last` is entry 0.

No pooler sees padding: a row gives the same vector however long its batch is padded, and on whichever side.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

POOLERS = ("cls", "cls_before_pooler", "avg", "avg_top2", "avg_first_last", "avg_static_last", "last")
LAYERS_AVERAGED = {"avg": (-1,), "avg_top2": (-1, -2), "avg_first_last": (1, -1), "avg_static_last": (0, -1)}


def check_pooler(pooler: str) -> None:
    """Raise ValueError for a name that is not one of POOLERS."""
    if pooler not in POOLERS:
        raise ValueError(f"pooler is {pooler!r}, but must be one of {', '.join(POOLERS)}")


def needs_all_layers(pooler: str) -> bool:
    """Whether `pool` must be given the whole tuple of hidden states, and not just the last layer."""
    check_pooler(pooler)
    return pooler in ("avg_top2", "avg_first_last", "avg_static_last")


def pool(hidden_states: Sequence[Tensor] | Tensor, attention_mask: Tensor, pooler: str) -> Tensor:
    """One vector per row (SimCSE, section 6.3).

    Args:
        hidden_states: tuple of `(rows, seq, hidden)`, the embedding layer first; a single last-layer tensor is enough
            for `cls`, `cls_before_pooler`, `avg` and `last`.
        attention_mask: `(rows, seq)`, 1 for real tokens; at least one per row.
        pooler: one of POOLERS. `cls` and `cls_before_pooler` are the same first-token vector here: the tanh head that
            `cls` adds has weights, so it belongs to the model. `last` is the last real token, for decoder backbones.

    Returns: `(rows, hidden)`.

    Raises: ValueError on an unknown pooler, or a single tensor where the pooler needs other layers.
    """
    if needs_all_layers(pooler) and isinstance(hidden_states, Tensor):
        raise ValueError(f"pooler {pooler!r} averages two layers: give the tuple of all hidden states, not one tensor")
    last_layer = hidden_states if isinstance(hidden_states, Tensor) else hidden_states[-1]
    if pooler in LAYERS_AVERAGED:
        layers = LAYERS_AVERAGED[pooler]
        if len(layers) == 1:
            return _mask_mean(last_layer, attention_mask)
        first, second = (hidden_states[index] for index in layers)
        return _mask_mean((first + second) / 2, attention_mask)
    positions = _last_real(attention_mask) if pooler == "last" else _first_real(attention_mask)
    return last_layer[torch.arange(last_layer.shape[0], device=last_layer.device), positions]


def _mask_mean(hidden_state: Tensor, attention_mask: Tensor) -> Tensor:
    mask = attention_mask.unsqueeze(-1).to(hidden_state.dtype)
    # The count stays an integer until the division: bfloat16 cannot count past 256.
    return (hidden_state * mask).sum(1) / attention_mask.sum(1, keepdim=True).clamp(min=1)


def _first_real(attention_mask: Tensor) -> Tensor:
    return attention_mask.bool().int().argmax(1)


def _last_real(attention_mask: Tensor) -> Tensor:
    return attention_mask.shape[1] - 1 - attention_mask.bool().int().flip(1).argmax(1)
