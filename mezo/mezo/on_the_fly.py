"""Evaluation at theta + scale z without writing theta: each module gets its perturbed weights just before it runs.

Perturbing in place and subtracting again does not give back the weights: after one step about 45 % of them differ in
the last bit, and in half precision a thousand steps move them by 12 % of their size with no gradient at all. Here a
module's own weights are copied, perturbed, used for its forward pass and dropped, so what is needed beside the model is
one module's weights, and the restore is exact because nothing was changed.

Weights that are used by another module than their owner (as nn.MultiheadAttention uses its out_proj) would be seen
unperturbed; such a module is refused.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mezo.slices import InSlices
from mezo.spsa import RNGS, Mask, counter_draw, torch_draw
from mezo.torch_stream import TorchStream
from shared import InputError

SLICE, SLICES = 1 << 20, 256


class OnTheFly:
    """Evaluates a model at theta + scale z. `params`: the trainable tensors in the order in which z is drawn."""

    def __init__(self, model: nn.Module, params: Sequence[Tensor], rng: str = "torch") -> None:
        if rng not in RNGS:
            raise InputError(f"rng={rng!r}: choose torch or counter")
        self.rng, self.params = rng, list(params)
        # Larger matrices are made in slices of this many numbers: a small part of the model, but no small products.
        self.slice = max(SLICE, sum(tensor.numel() for tensor in self.params) // SLICES)
        self.number = {id(tensor): k for k, tensor in enumerate(self.params)}
        self.owners: list[tuple[nn.Module, dict[str, int]]] = []
        for name, module in model.named_modules():
            own = {
                key: self.number[id(tensor)]
                for key, tensor in module._parameters.items()
                if tensor is not None and id(tensor) in self.number
            }
            if own:
                if isinstance(module, nn.MultiheadAttention) or (
                    name.endswith("out_proj") and _in_attention(model, name)
                ):
                    raise InputError(f"restore=exact: {name} is used without being called; use restore=inplace")
                self.owners.append((module, own))
        owned = {number for _, own in self.owners for number in own.values()}
        if len(owned) < len(self.params):
            raise InputError("restore=exact: a trainable tensor belongs to no module of the model; use restore=inplace")
        self._seed: int | None = None
        self._states: list[Tensor] = []

    @contextmanager
    def at(self, seed: int, scale: float | Sequence[float], mask: Mask | None = None) -> Iterator[None]:
        """Inside, the model computes with theta + scale z; theta itself is never written."""
        originals: dict[tuple[int, str], nn.Parameter] = {}
        handles = []

        def before(module: nn.Module, own: dict[str, int]) -> None:
            for key, number in own.items():
                original = module._parameters[key]
                originals[id(module), key] = original
                factor = scale[number] if isinstance(scale, Sequence) else scale
                module._parameters[key] = self._perturbed(original, seed, number, factor, mask)

        def after(module: nn.Module, own: dict[str, int]) -> None:
            for key in own:
                module._parameters[key] = originals.pop((id(module), key))

        try:
            for module, own in self.owners:
                handles.append(module.register_forward_pre_hook(lambda m, _, own=own: before(m, own)))
                handles.append(module.register_forward_hook(lambda m, *_, own=own: after(m, own), always_call=True))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for module, own in self.owners:
                for key in own:
                    if (id(module), key) in originals:
                        module._parameters[key] = originals.pop((id(module), key))

    def _perturbed(self, original: Tensor, seed: int, number: int, scale: float, mask: Mask | None) -> Tensor:
        # On CUDA only whole tensors draw the release's numbers.
        whole = original.dim() != 2 or original.numel() <= self.slice or (self.rng == "torch" and original.is_cuda)
        if not whole:
            made = InSlices.of(original, lambda: self._slices(original, seed, number, scale, mask))
            made.sequential = self.rng == "torch"
            return made
        copy = original.detach().clone(memory_format=torch.contiguous_format)
        self._draw(copy.view(-1), seed, number, scale, mask)
        return nn.Parameter(copy, requires_grad=False)

    def _draw(
        self, flat: Tensor, seed: int, number: int, scale: float, mask: Mask | None, begin: int = 0,
        stream: TorchStream | None = None,
    ) -> None:  # fmt: skip
        """flat += scale z of parameter `number` from element `begin` on; a stream stands there already."""
        if self.rng == "counter":
            counter_draw(seed, number, begin)(flat, scale, mask)
            return
        if stream is None:
            stream = TorchStream(seed, flat.device).set_state(self._state(seed, number))
        torch_draw(stream, number, begin)(flat, scale, mask)

    def _slices(
        self, original: Tensor, seed: int, number: int, scale: float, mask: Mask | None
    ) -> Iterator[tuple[int, int, Callable[[], Tensor]]]:
        """Rows of a matrix in order, each slice made when it is asked for. Cuts are at multiples of 16 numbers."""
        rows, width = original.shape
        step = max(16, self.slice // width // 16 * 16)
        cuts = [*range(0, rows, step), rows]
        if len(cuts) > 2 and (cuts[-1] - cuts[-2]) * width < 16:
            del cuts[-2]
        stream = None
        if self.rng == "torch":
            stream = TorchStream(seed, original.device).set_state(self._state(seed, number))
        for start, stop in itertools.pairwise(cuts):

            def make(start: int = start, stop: int = stop) -> Tensor:
                copy = original.detach()[start:stop].clone(memory_format=torch.contiguous_format)
                self._draw(copy.view(-1), seed, number, scale, mask, start * width, stream)
                return copy

            yield start, stop, make

    def _state(self, seed: int, number: int) -> Tensor:
        """The generator's state before parameter `number`: found by drawing once through all of them."""
        if self._seed != seed:
            self._seed, self._states = seed, []
            streams: dict[torch.device, TorchStream] = {}
            for tensor in self.params:
                stream = streams.setdefault(tensor.device, TorchStream(seed, tensor.device))
                self._states.append(stream.get_state())
                stream.skip(tensor.detach().reshape(-1))
        return self._states[number]


def _in_attention(model: nn.Module, name: str) -> bool:
    parent = name.rpartition(".")[0]
    return isinstance(model.get_submodule(parent), nn.MultiheadAttention)
