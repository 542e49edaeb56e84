"""The masked-LM loss on predicted positions only, without ever holding all logits.

    loss = linear_cross_entropy(hidden, embedding, bias, targets)        # summed over positions, float32

Logits of 26,000 predicted positions over 50,265 ids are 5 GB in float32, and an ordinary cross-entropy holds three such
tables (logits, log-probabilities, their gradient). Here rows are taken in chunks, and since the loss is a sum, the
gradient of a chunk is finished before the next one begins: nothing but the gradients of `hidden`, `embedding` and
`bias` outlives a chunk, and nothing is computed twice.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# Logits of one chunk: 64 MB in float32. Large enough that matrix products run at full speed, small enough to vanish
# beside a model.
CHUNK_LOGITS = 2**24
NATS_PER_BIT = math.log(2)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, classes, rows):
        wanted = any(ctx.needs_input_grad[:3])
        dtype = _compute_dtype(hidden)
        cast_weight, cast_bias = weight.to(dtype), bias.to(dtype)
        exact = torch.promote_types(dtype, torch.float32)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        if wanted:
            d_hidden = torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device)
            d_weight = torch.zeros(weight.shape, dtype=exact, device=weight.device)
            d_bias = torch.zeros(bias.shape, dtype=exact, device=bias.device)
        for start in range(0, len(hidden), rows):
            chunk = slice(start, start + rows)
            part, target = hidden[chunk].to(dtype), targets[chunk, None]
            logits = torch.addmm(cast_bias, part, cast_weight.T).to(exact)
            if classes < len(weight):
                logits[:, classes:] = -math.inf
            log_p = F.log_softmax(logits, dim=-1)
            del logits
            total -= log_p.gather(1, target).sum()
            if wanted:
                error = log_p.exp_()
                error.scatter_add_(1, target, torch.full_like(target, -1, dtype=error.dtype))
                d_bias += error.sum(0)
                error = error.to(dtype)
                d_hidden[chunk] = error @ cast_weight
                if dtype == exact:
                    d_weight.addmm_(error.T, part)
                else:
                    d_weight += error.T @ part
        if wanted:
            ctx.save_for_backward(d_hidden, d_weight.to(weight.dtype), d_bias.to(bias.dtype))
        return total

    @staticmethod
    def backward(ctx, scale):
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        needs = ctx.needs_input_grad
        return (
            d_hidden * scale if needs[0] else None,
            d_weight * scale if needs[1] else None,
            d_bias * scale if needs[2] else None,
            None,
            None,
            None,
        )


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    *,
    classes: int | None = None,
    rows: int | None = None,
) -> Tensor:
    """-sum log softmax(hidden weight^T + bias)[targets], log-softmax in float32.

    Args:
        hidden: `(positions, width)`. weight: `(vocabulary, width)`. bias: `(vocabulary,)`.
        targets: `(positions,)` int64, each below `classes`.
        classes: ids that exist; rows of `weight` from there on are padding and get no probability and no gradient.
            Default: all.
        rows: positions per chunk; default: so many that a chunk's logits are 64 MB.
    Returns:
        a float32 scalar, the negative log-likelihood in nats, summed; 0 (with zero gradients) for no positions.
    """
    classes = len(weight) if classes is None else classes
    rows = max(1, CHUNK_LOGITS // len(weight)) if rows is None else rows
    return _LinearCrossEntropy.apply(hidden, weight, bias, targets, classes, rows)


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """What a Linear would compute in: autocast's type, else the hidden states' own."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def bits_and_perplexity(nats: float) -> tuple[float, float]:
    """A mean loss in nats -> (bits, perplexity = 2^bits); perplexity is infinite where a float cannot hold it."""
    return nats / NATS_PER_BIT, math.exp(nats) if nats < 700 else math.inf
