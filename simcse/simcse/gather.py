"""Negatives from every process: all-gather whose backward fits data-parallel averaging (SimCSE, section 3).

Each process encodes its own B examples, gathers those of all W processes in rank order, and computes the loss over
the joint batch of B*W. The loss is the same number everywhere, so a process need only send back the gradient of its
own slice:

    dL/dtheta = sum over ranks r of  dL/dz_r * dz_r/dtheta

DDP, FSDP and ZeRO *average* gradients over ranks, which makes it 1/W of that sum. The backward below therefore
multiplies the slice by W, and the averaged gradient is exactly that of one process on the joint batch, with no
communication in the backward.

The authors' release leaves the factor out: its gradient is 1/W of the true one. AdamW hides most of it, being nearly
invariant to scale, but clipping at norm 1 becomes clipping at W. `released_ddp_scale=True` brings that back, for
comparison.

torch.nn.DataParallel is not supported: its replicas see no process group, so nothing would be gathered and each
replica would silently use its own negatives only. Start one process per GPU.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes in the default group; 1 where torch.distributed is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(x: Tensor, *, released_ddp_scale: bool = False) -> Tensor:
    """Rows of all processes, in rank order: `(batch, ...)` on each -> `(batch * world_size, ...)` on each.

    The gradient is right (see above) under two conditions: every process computes the same function of the result,
    and the parameter gradients are averaged over processes. With one process it is the identity.

    Raises: ValueError where the processes hold different shapes; all of them raise, so none is left waiting.
    """
    if world_size() == 1:
        return x
    _check_equal_shapes(x)
    return _GatherRows.apply(x, 1.0 if released_ddp_scale else float(world_size()))


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, gradient_scale: float) -> Tensor:
        ctx.rows = x.shape[0]
        ctx.gradient_scale = gradient_scale
        out = x.new_empty((dist.get_world_size() * x.shape[0], *x.shape[1:]))
        dist.all_gather_into_tensor(out, x.detach().contiguous())
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        own = gradient.narrow(0, dist.get_rank() * ctx.rows, ctx.rows)
        return own * ctx.gradient_scale, None


def _check_equal_shapes(x: Tensor) -> None:
    # A collective over unequal shapes hangs or crashes without a word on the cause; one tiny collective before it
    # does not.
    shape = torch.tensor(x.shape, device=x.device)
    shapes = shape.new_empty(dist.get_world_size() * len(shape))
    dist.all_gather_into_tensor(shapes, shape)
    if (shapes.view(-1, len(shape)) != shape).any():
        per_rank = ", ".join(str(tuple(row)) for row in shapes.view(-1, len(shape)).tolist())
        raise ValueError(
            f"the processes hold batches of different shape ({per_rank}), but need the same number of examples: "
            "drop the last incomplete batch (dataloader_drop_last=true) or pad it"
        )
