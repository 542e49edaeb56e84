"""A batch without padding through transformers' own model: every position of every matrix product is a real token.

A random batch of sentences padded to its longest one is half padding (SST-2: 24 of 48 positions). Here the rows of a
batch are laid one after another, (1, tokens), with their own position ids; embeddings, LayerNorms and feed-forward
layers do not care. Attention must stay within a row: it is done by a function registered with transformers'
AttentionInterface, on a few groups of rows of like length, each padded to its longest row. The result is that of the
padded batch (dropout apart, which draws other random numbers), so an update is the same update, only cheaper.

    batch = PaddingFree(rows, model)         # or Padded(rows, model): the usual way, for comparison
    hidden = batch.hidden(model)             # (tokens, hidden), rows one after another in `batch`'s order
    first = hidden[batch.starts]             # (rows, hidden): `<s>` of each row, in the order of `rows`
"""

from collections.abc import Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

IMPLEMENTATION = "padding_free"
# Attention in groups: fewer padded scores against more kernel launches. Measured on CPU at 32 rows of 5 to 50 tokens,
# four groups were best or within 2% of it; a GPU is better off with one launch.
GROUPS = {"cpu": 4}


class _Pad(torch.autograd.Function):
    """(tokens, d) -> (padded, d) by index. Real tokens appear once, so the gradient is a lookup and not a sum."""

    @staticmethod
    def forward(ctx, tokens: Tensor, source: Tensor, real: Tensor) -> Tensor:
        ctx.save_for_backward(real)
        return tokens.index_select(0, source)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        # Padded keys are masked and padded queries are dropped, so what arrives there is zero.
        return gradient.index_select(0, ctx.saved_tensors[0]), None, None


class _Unpad(torch.autograd.Function):
    """(padded, d) -> (tokens, d)."""

    @staticmethod
    def forward(ctx, padded: Tensor, real: Tensor) -> Tensor:
        ctx.save_for_backward(real)
        ctx.padded = len(padded)
        return padded.index_select(0, real)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (real,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.padded, gradient.shape[1]).index_copy_(0, real, gradient), None


class Layout:
    """Where the tokens of rows laid one after another stand in groups of padded rows.

    Args:
        lengths: tokens per row, in the order in which rows are laid.
        groups: how many groups; rows are taken as they come, so they should be sorted by length.

    Attributes:
        source: (padded,) the token at each padded position (some token where there is padding).
        real: (tokens,) the padded position of each token.
        shapes: (rows, longest, mask (rows, 1, 1, longest) or None) of each group.
    """

    def __init__(self, lengths: np.ndarray, groups: int, device: torch.device):
        starts = np.cumsum(lengths) - lengths
        source, real, self.shapes, at, last = [], [], [], 0, int(lengths.sum()) - 1
        for rows in np.array_split(np.arange(len(lengths)), min(groups, len(lengths))):
            longest = int(lengths[rows].max())
            inside = np.arange(longest) < lengths[rows][:, None]
            source.append(np.minimum(starts[rows][:, None] + np.arange(longest), last).reshape(-1))
            real.append(at + np.flatnonzero(inside))
            at += inside.size
            mask = None if inside.all() else torch.from_numpy(inside)[:, None, None, :].to(device)
            self.shapes.append((len(rows), longest, mask))
        self.source = torch.from_numpy(np.concatenate(source)).to(device)
        self.real = torch.from_numpy(np.concatenate(real)).to(device)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    layout: Layout | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Attention within rows. query, key, value: (1, heads, tokens, head size) -> (1, tokens, heads, head size)."""
    _, heads, tokens, size = query.shape
    padded = [
        _Pad.apply(each[0].transpose(0, 1).reshape(tokens, heads * size), layout.source, layout.real)
        for each in (query, key, value)
    ]
    outputs, at = [], 0
    for rows, longest, mask in layout.shapes:
        positions = rows * longest
        group = [each[at : at + positions].view(rows, longest, heads, size).transpose(1, 2) for each in padded]
        mixed = F.scaled_dot_product_attention(*group, attn_mask=mask, dropout_p=dropout, scale=scaling)
        outputs.append(mixed.transpose(1, 2).reshape(positions, heads * size))
        at += positions
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return _Unpad.apply(joined, layout.real).view(1, tokens, heads, size), None


AttentionInterface.register(IMPLEMENTATION, attention)


@contextmanager
def attention_of(model: PreTrainedModel, implementation: str):
    """The model with another attention implementation, and its own again afterwards."""
    before = model.config._attn_implementation
    if before == implementation:
        yield
        return
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


class PaddingFree:
    """Rows of token ids as one (1, tokens) batch, sorted by length.

    Args:
        rows: token ids of each row, special tokens included.
        model: tells the device and the padding id, after which position numbers begin.

    Attributes:
        starts: (rows,) where each row begins in the hidden states, in the order of `rows`.
        lengths: (rows,) likewise.
    """

    implementation = IMPLEMENTATION

    def __init__(self, rows: Sequence[np.ndarray], model: PreTrainedModel):
        device = model.device
        lengths = np.array([len(row) for row in rows])
        order = np.argsort(lengths, kind="stable")
        ordered = lengths[order]
        begins = np.cumsum(ordered) - ordered
        starts = np.empty_like(begins)
        starts[order] = begins
        first = model.config.pad_token_id + 1
        positions = np.arange(int(ordered.sum())) - np.repeat(begins, ordered) + first
        ids = np.concatenate([rows[row] for row in order])
        self.input_ids = torch.from_numpy(ids.astype(np.int64))[None].to(device)
        self.position_ids = torch.from_numpy(positions)[None].to(device)
        self.starts, self.lengths = torch.from_numpy(starts).to(device), lengths
        self.layout = Layout(ordered, GROUPS.get(device.type, 1), device)

    def hidden(self, model: PreTrainedModel) -> Tensor:
        """(tokens, hidden) of the last layer, every LayerNorm applied."""
        with attention_of(model, self.implementation):
            output = model.base_model(input_ids=self.input_ids, position_ids=self.position_ids, layout=self.layout)
        return output.last_hidden_state[0]


class Padded:
    """The same rows padded to the longest one: what a padding collator gives. Same attributes as `PaddingFree`."""

    implementation = "sdpa"

    def __init__(self, rows: Sequence[np.ndarray], model: PreTrainedModel):
        device = model.device
        lengths = np.array([len(row) for row in rows])
        ids = np.full((len(rows), int(lengths.max())), model.config.pad_token_id, dtype=np.int64)
        inside = np.arange(ids.shape[1]) < lengths[:, None]
        ids[inside] = np.concatenate(rows)
        self.input_ids = torch.from_numpy(ids).to(device)
        self.mask = torch.from_numpy(inside).to(device)
        self.starts, self.lengths = torch.from_numpy(np.cumsum(lengths) - lengths).to(device), lengths

    def hidden(self, model: PreTrainedModel) -> Tensor:
        """(tokens, hidden) of the last layer, padding left out."""
        with attention_of(model, self.implementation):
            output = model.base_model(input_ids=self.input_ids, attention_mask=self.mask.long())
        return output.last_hidden_state[self.mask]
