"""A batch in pieces: chunks of rows padded to their own length, and gradient caching (GradCache, Gao et al. 2021).

The contrastive loss needs the vectors of the whole batch at once, but not the encoder's activations of the whole batch.
Two uses, one plan:

*Less padding.* Rows sorted by length and cut into chunks, each trimmed to its own longest row: the same vectors,
fewer tokens.

*Gradient caching.* Pass 1 encodes chunk by chunk and keeps only the vectors; the loss on them gives the gradient of
each vector; pass 2 encodes each chunk again, under the random state of its first pass so that the dropout masks are
the same, and pushes that gradient through. Activations of one chunk live at a time, for one more forward (about 4/3
of the time). This is what a non-reentrant activation checkpoint does when its unit is a chunk of rows, so that is how
it is written: the second pass happens inside an ordinary `loss.backward()`. Every parameter is accumulated once per
step, which is what DDP, FSDP and ZeRO's gradient hooks expect, and nothing in the Trainer has to know. The gradient
is exact, dropout included.
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def plan_chunks(
    lengths: Sequence[int], *, num_chunks: int | None = None, chunk_rows: int | None = None
) -> list[list[int]]:
    """Row indices, longest rows first, in `num_chunks` nearly equal chunks or in chunks of at most `chunk_rows` rows.

    Longest first, so that a batch that does not fit in memory fails at once. Ties keep their order: the plan is
    deterministic. With both given, the one that makes more chunks counts; with neither, one chunk in the rows' own
    order.

    Raises: ValueError on a number below 1.
    """
    for name, value in (("row_chunks", num_chunks), ("grad_cache_chunk", chunk_rows)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, but must be at least 1, or null to switch it off")
    rows = len(lengths)
    count = max(num_chunks or 1, -(-rows // chunk_rows) if chunk_rows else 1)
    if count == 1:
        return [list(range(rows))]
    count = min(count, rows)
    order = sorted(range(rows), key=lambda row: -lengths[row])
    bounds = [round(i * rows / count) for i in range(count + 1)]
    return [order[start:stop] for start, stop in itertools.pairwise(bounds)]


def token_spans(attention_mask: Tensor) -> list[tuple[int, int]]:
    """First real position, and one past the last, of each unit's rows; attention_mask: `(units, ..., seq)`."""
    seen = attention_mask.bool()
    if seen.dim() > 2:
        seen = seen.flatten(1, -2).any(1)
    seen = seen.int()
    starts, ends = seen.argmax(1), seen.shape[1] - seen.flip(1).argmax(1)
    return [(start, end) for start, end in torch.stack([starts, ends], dim=1).tolist()]


def run_in_chunks(
    encode: Callable[..., Tensor],
    tensors: Sequence[Tensor | None],
    attention_mask: Tensor,
    *,
    num_chunks: int | None = None,
    chunk_rows: int | None = None,
    cache_gradients: bool = False,
) -> list[tuple[list[int], Tensor]]:
    """Call `encode(*tensors of the chunk, attention_mask of the chunk)` for every chunk of the plan.

    Args:
        tensors: each `(units, ..., seq)` or None; cut along the first and the last dimension. A unit is what must stay
            together: a row, or an example where its views share a dropout mask.
        attention_mask: `(units, ..., seq)`; padding may be on either side.
        cache_gradients: keep no activations, run `encode` again in the backward.

    Returns: `(unit indices, result)` per chunk; see `in_original_order`.
    """
    if num_chunks is None and chunk_rows is None:
        return [(list(range(len(attention_mask))), encode(*tensors, attention_mask))]
    spans = token_spans(attention_mask)  # brings the lengths to the CPU: once per batch, not once per chunk
    plan = plan_chunks([end - start for start, end in spans], num_chunks=num_chunks, chunk_rows=chunk_rows)
    results = []
    for units in plan:
        start, end = min(spans[unit][0] for unit in units), max(spans[unit][1] for unit in units)
        index = None if len(plan) == 1 else torch.tensor(units, device=attention_mask.device)
        chunk = [_cut(tensor, index, start, end) for tensor in (*tensors, attention_mask)]
        if cache_gradients and torch.is_grad_enabled():
            results.append((units, checkpoint(encode, *chunk, use_reentrant=False, preserve_rng_state=True)))
        else:
            results.append((units, encode(*chunk)))
    return results


def in_original_order(chunks: Sequence[tuple[list[int], Tensor]]) -> Tensor:
    """The chunks' results `(units of the chunk, ...)` as one tensor in the batch's order."""
    if len(chunks) == 1:
        return chunks[0][1]
    order = [unit for units, _ in chunks for unit in units]
    stacked = torch.cat([result for _, result in chunks])
    return stacked[torch.argsort(torch.tensor(order, device=stacked.device))]


def _cut(tensor: Tensor | None, index: Tensor | None, start: int, end: int) -> Tensor | None:
    if tensor is None:
        return None
    rows = tensor if index is None else tensor.index_select(0, index)
    return rows[..., start:end]
