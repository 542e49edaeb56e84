"""MeZO's arithmetic: a direction that is never stored (Malladi et al., 2023, Definition 1 and Algorithm 1).

    g = (L(theta + eps z; B) - L(theta - eps z; B)) / (2 eps),   z ~ N(0, I)           the projected gradient, one
    number theta <- theta - lr g z                                                                              ZO-SGD

z is as large as the model, but it is a function of a seed: whoever needs it draws it again and adds it piece by piece,
so a step needs the memory of inference. Two kinds of random numbers give the same algorithm:

    torch     `mezo.torch_stream`: the numbers of a private torch.Generator with that seed, whole tensors in the order
              of the parameters: those of the authors' release, and the same trajectories. One stream, drawn in order
    counter   `mezo.gaussian`: element e of parameter k is a function of (seed, k, e): any order, any piece, any device

Nothing here touches torch's global generator, and nothing here knows of models, data or logs.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from mezo.gaussian import add_normal_, normal
from mezo.torch_stream import PIECE, TorchStream, cuts

RNGS = ("torch", "counter")
Parameters = Iterable[Tensor] | Iterable[tuple[str, Tensor]]


def perturb(
    params: Parameters,
    seed: int,
    scale: float | Sequence[float],
    *,
    rng: str = "torch",
    mask: "Mask | None" = None,
) -> None:
    """theta += scale * z in place, z drawn in parameter order under `seed` (Algorithm 1, PerturbParameters).

    Args:
        params: tensors, or (name, tensor) pairs as from `named_parameters()`; tied tensors once.
        seed: of this step's direction, 0 <= seed < 2^63.
        scale: +eps, -2 eps, +eps for the two evaluations and the restore; -lr g for the update. A sequence has one
            number per parameter (the modified estimators of appendix B).
        rng: "torch" (the release's numbers) or "counter".
        mask: which elements move (see `Mask`); z of the others is drawn and dropped, so that the rest keep theirs.
    """
    for number, part, draw in pieces(params, seed, rng):
        draw(part, scale[number] if isinstance(scale, Sequence) else scale, mask)


def projected_gradient(loss_plus: float | Tensor, loss_minus: float | Tensor, eps: float) -> float:
    """(loss_plus - loss_minus) / (2 eps), in double precision from what the losses are."""
    return (float(loss_plus) - float(loss_minus)) / (2 * eps)


class Mask:
    """Elements that may move, as a function: (parameter number, first element, number of elements, device) -> bool."""

    def __init__(self, chosen: Callable[[int, int, int, torch.device], Tensor]) -> None:
        self.chosen = chosen

    def apply(self, z: Tensor, parameter: int, start: int) -> Tensor:
        return z * self.chosen(parameter, start, z.numel(), z.device).to(z.dtype)

    @classmethod
    def fixed(cls, masks: Sequence[Tensor | None]) -> "Mask":
        """From one boolean tensor (or None: all) per parameter."""

        def chosen(parameter: int, start: int, count: int, device: torch.device) -> Tensor:
            mask = masks[parameter]
            if mask is None:
                return torch.ones(count, dtype=torch.bool, device=device)
            return mask.reshape(-1)[start : start + count].to(device)

        return cls(chosen)


Draw = Callable[[Tensor, float, "Mask | None"], None]


def pieces(params: Parameters, seed: int, rng: str, piece: int | None = None) -> Iterator[tuple[int, Tensor, Draw]]:
    """(parameter number, flat view of a piece, draw) in order; `draw(part, scale, mask)` adds scale * z to it in place.

    The torch stream must be drawn for every piece, in order; a caller that skips one calls `draw(part, 0.0, None)`.
    piece: elements of a piece, a multiple of 4096. Default: whole tensors.
    """
    if rng not in RNGS:
        raise ValueError(f"rng={rng!r}: choose torch or counter")
    streams: dict[torch.device, TorchStream] = {}
    for number, item in enumerate(params):
        tensor = (item[1] if isinstance(item, tuple) else item).detach()
        flat, write_back = _flat(tensor)
        size = piece or max(1, flat.numel())
        if rng == "counter":
            for start in range(0, flat.numel(), size):
                yield number, flat[start : start + size], counter_draw(seed, number, start)
        else:
            if tensor.device not in streams:
                streams[tensor.device] = TorchStream(seed, tensor.device)
            for start, stop in cuts(flat, size):
                yield number, flat[start:stop], torch_draw(streams[tensor.device], number, start)
        if write_back:
            tensor.copy_(flat.view(tensor.shape))


def _flat(tensor: Tensor) -> tuple[Tensor, bool]:
    """A flat view, or (for weights that are not contiguous) a flat copy that must be written back."""
    if tensor.is_contiguous():
        return tensor.view(-1), False
    return tensor.contiguous().view(-1), True


def torch_draw(stream: TorchStream, number: int, start: int) -> Draw:
    """For a piece that begins at element `start` of parameter `number`, where the stream stands."""

    def draw(part: Tensor, scale: float, mask: Mask | None) -> None:
        if not scale:
            stream.skip(part)
        elif mask is None:
            stream.add_normal_(part, scale)
        else:
            for begin, end in cuts(part):
                some = part[begin:end]
                z = mask.apply(stream.normal_(torch.empty_like(some)), number, start + begin)
                if some.element_size() >= 4:
                    some.add_(z.mul_(scale))
                else:
                    some.copy_(some.float().add_(z.float().mul_(scale)))

    return draw


def counter_draw(seed: int, number: int, start: int) -> Draw:
    """For a piece that begins at element `start` of parameter `number`."""

    def draw(part: Tensor, scale: float, mask: Mask | None) -> None:
        if not scale:
            return
        if mask is None:
            add_normal_(part, seed, number, start, scale)
            return
        for begin in range(0, part.numel(), PIECE):
            some = part[begin : begin + PIECE]
            z = torch.zeros(some.numel(), device=some.device)
            add_normal_(z, seed, number, start + begin, 1.0)
            some.add_((mask.apply(z, number, start + begin) * scale).to(some.dtype))

    return draw


def directions(params: Parameters, seed: int, rng: str = "torch") -> Iterator[Tensor]:
    """z of each parameter, whole, in its shape: for tests and for optimisers that keep moments."""
    for number, item in enumerate(params):
        tensor = item[1] if isinstance(item, tuple) else item
        if rng == "counter":
            yield normal_like(tensor, seed, number)
    if rng == "torch":
        streams: dict[torch.device, TorchStream] = {}
        for item in params:
            tensor = item[1] if isinstance(item, tuple) else item
            stream = streams.setdefault(tensor.device, TorchStream(seed, tensor.device))
            z = torch.empty_like(tensor, memory_format=torch.contiguous_format)
            stream.normal_(z.view(-1))
            yield z


def normal_like(tensor: Tensor, seed: int, number: int) -> Tensor:
    """Counter-based z of one parameter, fp32."""
    if tensor.device.type == "meta":
        return normal(seed, number, 0, 0)
    z = torch.zeros(tensor.numel(), dtype=torch.float32, device=tensor.device)
    add_normal_(z, seed, number, 0, 1.0)
    return z.view(tensor.shape)
