"""Only the mask's row of a prompt is ever read: so only that row goes through what follows the last keys and values.

Behind the last attention no position looks at another. One query per prompt, one row of the output projection and one
of the feed-forward network are all that the label words' logits depend on; the result is the same as that of the whole
model. With two layers, as the tiny model has, more than a third of the work is saved; with 24 it is the fortieth part.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

ATTENTION = "lm_bff_mask_row"


class MaskPicker:
    """Hooks on an encoder that let only the rows at `position` (batch,) go on.

    In layers built like BERT's or ModernBERT's the last one is narrowed, its attention too where it runs on sdpa; other
    layers run as they are, and only the head is given one row.
    """

    def __init__(self, base: PreTrainedModel):
        self.position: Tensor | None = None
        base.register_forward_hook(self.head_input)
        stack = layers_of(base)
        last = stack[-1] if len(stack) else None
        attention = getattr(last, "attention", None)
        if isinstance(getattr(attention, "output", None), nn.Module):  # BERT and its kin
            attention.output.register_forward_pre_hook(self.rows)
            self.one_query(getattr(attention, "self", None))
        elif all(isinstance(getattr(last, name, None), nn.Module) for name in ("attn", "mlp_norm")) and hasattr(
            last.attn, "Wo"
        ):  # ModernBERT: the sums with the residual broadcast one row over all, right at the mask's position
            last.attn.Wo.register_forward_pre_hook(self.rows)
            last.mlp_norm.register_forward_pre_hook(self.rows)
            self.one_query(last.attn)

    def one_query(self, attention: nn.Module | None) -> None:
        """Make an attention of transformers' interface ask for the mask's row only."""
        config = getattr(attention, "config", None)
        if config is None or config._attn_implementation != "sdpa":
            return
        # The model's own config stays as it is: it decides which masks are made.
        attention.config = copy.copy(config)
        attention.config._attn_implementation_internal = ATTENTION
        attention.mask_picker = self

    def pick(self, hidden: Tensor) -> Tensor:
        """`(batch, seq, width)` -> `(batch, 1, width)`; what is narrow already stays."""
        if hidden.shape[1] == 1:
            return hidden
        return hidden[torch.arange(len(hidden), device=hidden.device), self.position][:, None]

    def rows(self, module: nn.Module, arguments: tuple) -> tuple:
        return tuple(self.pick(value) if torch.is_tensor(value) and value.dim() == 3 else value for value in arguments)

    def head_input(self, module: nn.Module, arguments: tuple, output):
        output["last_hidden_state"] = self.pick(output["last_hidden_state"])
        return output


def mask_row_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """`(batch, heads, seq, d)` each -> `(batch, seq, heads, d)`: every row is the attention of the mask's."""
    position = module.mask_picker.position
    batch, length = torch.arange(len(query), device=query.device), query.shape[2]
    if attention_mask is not None and attention_mask.shape[2] == length:
        attention_mask = attention_mask.expand(len(query), -1, -1, -1)[batch, :, position][:, :, None]
    found = F.scaled_dot_product_attention(
        query[batch, :, position][:, :, None], key, value, attention_mask, dropout, scale=scaling
    )
    return found.transpose(1, 2).expand(-1, length, -1, -1), None


AttentionInterface.register(ATTENTION, mask_row_attention)


def layers_of(base: nn.Module) -> nn.ModuleList | list:
    """The encoder's layers: its longest list of modules."""
    return max((module for module in base.modules() if isinstance(module, nn.ModuleList)), key=len, default=[])
