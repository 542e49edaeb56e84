"""The numbers of a seeded `torch.Generator`, added to weights: the stream behind `rng="torch"`.

On a CPU, fp32 numbers come from compiled loops where those give torch's bits (`mersenne_cpu`; compared once per
process), everything else from torch itself: tensors of fewer than 16 elements, other types, CUDA, a torch or a machine
whose bits are others. Both sides work on one state, handed over when the other needs it.
"""

import importlib.util
import itertools
from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor

# Elements torch draws at once: a buffer of 1 MiB stays in the second-level cache between drawing and adding.
PIECE = 1 << 18
# torch's state as bytes: the seed, words left + 1, "seeded", the next word's place, 624 words, then normal numbers kept
# for later (which float tensors of 16 and more elements neither use nor change).
LEFT, NEXT, STATE = slice(8, 12), slice(16, 24), slice(24, 24 + 8 * 624)


class TorchStream:
    """What `torch.Generator(device).manual_seed(seed)` gives to one `normal_` after the other."""

    def __init__(self, seed: int, device: torch.device | str) -> None:
        self.generator = torch.Generator(device).manual_seed(seed)
        self.words: np.ndarray | None = None  # the twister's state while the compiled side has it
        self.place = np.zeros(1, np.int64)

    def get_state(self) -> Tensor:
        """As `torch.Generator.get_state`."""
        self._to_torch()
        return self.generator.get_state()

    def set_state(self, state: Tensor) -> "TorchStream":
        self.words = None
        self.generator.set_state(state)
        return self

    def skip(self, like: Tensor) -> None:
        """Draw numbers for a flat tensor and drop them."""
        if self._compiled(like):
            from mezo.mersenne_cpu import skip

            skip(self._to_compiled(), self.place, like.numel())
            return
        self._to_torch()
        for start, stop in cuts(like):
            torch.empty(stop - start, dtype=like.dtype, device=like.device).normal_(generator=self.generator)

    def normal_(self, flat: Tensor) -> Tensor:
        """Fill a contiguous flat tensor."""
        if self._compiled(flat):
            self._draw(flat, 1.0, False)
        else:
            self._to_torch()
            for start, stop in cuts(flat):
                flat[start:stop].normal_(generator=self.generator)
        return flat

    def add_normal_(self, flat: Tensor, scale: float) -> None:
        """flat += scale * z for a contiguous flat tensor. Half precision weights get half precision numbers, as in the
        release, and a sum that is rounded once."""
        if self._compiled(flat):
            self._draw(flat, scale, True)
            return
        self._to_torch()
        for start, stop in cuts(flat):
            part = flat[start:stop]
            z = torch.empty_like(part).normal_(generator=self.generator)
            # Product and sum apart: a fused multiply-add would be used for most elements and not for those at the ends
            # of pieces and threads, and a replay in other pieces would differ in last bits.
            if part.element_size() >= 4:
                part.add_(z.mul_(scale))
            else:
                part.copy_(part.float().add_(z.float().mul_(scale)))

    def _draw(self, flat: Tensor, scale: float, add: bool) -> None:
        from mezo.mersenne_cpu import draw

        draw(self._to_compiled(), self.place, flat.numpy(), scale, add, torch.get_num_threads())

    @staticmethod
    def _compiled(flat: Tensor) -> bool:
        return flat.device.type == "cpu" and flat.dtype == torch.float32 and flat.numel() >= 16 and gives_torch_bits()

    def _to_compiled(self) -> np.ndarray:
        if self.words is None:
            state = self.generator.get_state().numpy()
            self.words = state[STATE].view(np.uint64).astype(np.uint32)
            self.place[0] = 625 - state[LEFT].view(np.int32)[0]
        return self.words

    def _to_torch(self) -> None:
        if self.words is None:
            return
        state = self.generator.get_state()
        view = state.numpy()
        view[STATE].view(np.uint64)[:] = self.words
        view[LEFT].view(np.int32)[0] = 625 - self.place[0]
        view[NEXT].view(np.uint64)[0] = self.place[0]
        self.generator.set_state(state)
        self.words = None


def cuts(flat: Tensor, piece: int | None = None) -> Iterator[tuple[int, int]]:
    """Cuts under which torch's CPU generator gives the same numbers as in one call: multiples of 16, a last one >= 16.

    On CUDA the numbers depend on the launch, so only whole tensors give the release's.
    """
    count, piece = flat.numel(), piece or PIECE
    if flat.is_cuda or count <= piece:
        if count:
            yield 0, count
        return
    piece -= piece % 16
    places = [*range(0, count, piece), count]
    if places[-1] - places[-2] < 16:
        del places[-2]
    yield from itertools.pairwise(places)


@cache
def gives_torch_bits() -> bool:
    """Whether numba is there and the compiled loops make the same 4,000 odd numbers as this torch on this machine."""
    if importlib.util.find_spec("numba") is None:
        return False
    from mezo.mersenne_cpu import draw

    for seed, count in ((0, 4096), (1, 39), (2**31 + 7, 613)):
        theirs = torch.empty(count).normal_(generator=torch.Generator().manual_seed(seed))
        stream, ours = TorchStream(seed, "cpu"), np.empty(count, np.float32)
        draw(stream._to_compiled(), stream.place, ours, 1.0, False, 1)
        if not np.array_equal(ours.view(np.int32), theirs.numpy().view(np.int32)):
            return False
    return True
