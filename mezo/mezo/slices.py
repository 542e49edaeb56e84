"""A large matrix at theta + scale z, of which never more than a slice exists.

Evaluation makes a module's perturbed weights just before it runs (`on_the_fly`). For the word embeddings of a small
model that copy is a quarter of the model. But a lookup needs the rows of its tokens only, and a product can be taken a
block of rows at a time: so the module is given a stand-in that does just that when it reaches `F.embedding` or
`F.linear`, and is made whole for anything else.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

Slices = Callable[[], Iterator[tuple[int, int, Callable[[], Tensor]]]]


class InSlices(Tensor):
    """A stand-in for a matrix (rows, width); its own numbers are the unperturbed ones and are never computed with.

    slices: a function that yields (first row, last row + 1, a function that makes these rows) in order.
    """

    slices: Slices

    @classmethod
    def of(cls, original: Tensor, slices: Slices) -> "InSlices":
        made = original.detach().as_subclass(cls)
        made.slices = slices
        return made

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.embedding and len(args) > 1 and isinstance(args[1], cls) and _plain_lookup(args, kwargs):
            return _lookup(args[0], args[1])
        if func is F.linear and isinstance(args[1], cls):
            return _product(args[0], args[1], args[2] if len(args) > 2 else kwargs.get("bias"))
        with torch._C.DisableTorchFunctionSubclass():
            if getattr(func, "__name__", "") in ("__get__", "size", "dim", "numel", "is_floating_point"):
                return func(*args, **kwargs)
            return func(*map(_whole, args), **{name: _whole(value) for name, value in kwargs.items()})


def _plain_lookup(args: tuple, kwargs: dict) -> bool:
    return (args[3] if len(args) > 3 else kwargs.get("max_norm")) is None


def _whole(value):
    if not isinstance(value, InSlices):
        return value
    return torch.cat([rows() for _, _, rows in value.slices()])


def _lookup(ids: Tensor, weight: InSlices) -> Tensor:
    """(...) -> (..., width); slices without a token in them are not made, where their numbers can be skipped."""
    flat, out = ids.reshape(-1), None
    wanted = torch.unique(flat)
    for start, stop, rows in weight.slices():
        inside = bool(((wanted >= start) & (wanted < stop)).any())
        if not inside and not getattr(weight, "sequential", False):
            continue
        made = rows()
        if out is None:
            out = made.new_empty(len(flat), made.shape[1])
        here = ((flat >= start) & (flat < stop)).nonzero()[:, 0]
        out[here] = made[flat[here] - start]
    return out.view(*ids.shape, -1)


def _product(x: Tensor, weight: InSlices, bias: Tensor | None) -> Tensor:
    """(..., width) -> (..., rows)."""
    out = None
    for start, stop, rows in weight.slices():
        part = F.linear(x, rows(), None if bias is None else bias[start:stop])
        if out is None:
            out = part.new_empty(*part.shape[:-1], weight.size(0))
        out[..., start:stop] = part
    return out
