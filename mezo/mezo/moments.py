"""Momentum and Adam on the estimate g z: with moments kept, or drawn again from the scalars (MeZO, appendix B.2).

A moment is a weighted sum over past steps, m_t = sum_i (1 - beta) beta^(t-i) g_i z_i, and every z_i follows from its
seed: so a moment needs no memory but the list of (seed, g), at the price of drawing as many directions as the sum has
terms. It is cut where beta^k falls below a tolerance: 66 terms for 0.9 and 1e-3, 6,900 for 0.999, which is why Adam's
second moment is usually kept or taken with a smaller beta.
"""

import math
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from mezo.spsa import pieces
from mezo.torch_stream import PIECE
from mezo.trajectory import Step
from shared import InputError

ADAM_EPS = 1e-8


class _Moments:
    def __init__(self, params: Sequence[Tensor], momentum: float, betas: tuple[float, float] | None, rng: str) -> None:
        if betas is None and not 0 < momentum < 1:
            raise InputError(f"momentum={momentum}: give a number in (0, 1)")
        if betas is not None and not all(0 <= beta < 1 for beta in betas):
            raise InputError(f"betas={betas}: give two numbers in [0, 1)")
        self.params, self.momentum, self.betas, self.rng, self.count = list(params), momentum, betas, rng, 0

    def __str__(self) -> str:
        what = f"momentum {self.momentum:g}" if self.betas is None else f"adam {tuple(self.betas)}"
        return f"{what} {type(self).__name__}"

    def _add(self, part: Tensor, first: Tensor, second: Tensor | None, lr: float, decay: float) -> None:
        """theta <- theta (1 - lr wd) - lr m, or Adam's m / (sqrt(v) + eps) with bias correction."""
        if decay:
            part.mul_(1 - lr * decay)
        if second is None:
            part.add_(first.to(part.dtype), alpha=-lr)
            return
        beta1, beta2 = self.betas
        mean = first / (1 - beta1**self.count)
        root = (second / (1 - beta2**self.count)).sqrt_().add_(ADAM_EPS)
        part.add_((mean / root).to(part.dtype), alpha=-lr)


class StoredMoments(_Moments):
    """One (momentum) or two (Adam) fp32 tensors per parameter."""

    def __init__(
        self, params: Sequence[Tensor], *, momentum: float, betas: tuple[float, float] | None, rng: str
    ) -> None:
        super().__init__(params, momentum, betas, rng)
        self.first = [torch.zeros(p.numel(), dtype=torch.float32, device=p.device) for p in self.params]
        self.second = [torch.zeros_like(m) for m in self.first] if betas else None

    def apply(self, named, step: Step, weight_decay: float, decayed: Sequence[bool]) -> None:
        self.count += 1
        offsets = [0] * len(self.params)
        for number, part, draw in pieces(self.params, step.seed, self.rng, PIECE):
            here = slice(offsets[number], offsets[number] + part.numel())
            offsets[number] = here.stop
            z = torch.zeros_like(part)
            draw(z, 1.0, None)
            g = z.float() * step.projected_gradient
            first, second = self.first[number][here], self.second[number][here] if self.second else None
            if self.betas:
                first.mul_(self.betas[0]).add_(g, alpha=1 - self.betas[0])
                second.mul_(self.betas[1]).addcmul_(g, g, value=1 - self.betas[1])
            else:
                first.mul_(self.momentum).add_(g)
            self._add(part, first, second, step.lr, weight_decay if decayed[number] else 0.0)


class RecomputedMoments(_Moments):
    """No tensors but a buffer per piece: the window of past (seed, g) is drawn again at every step."""

    def __init__(
        self, params: Sequence[Tensor], *, momentum: float, betas: tuple[float, float] | None, rng: str,
        tolerance: float = 1e-3,
    ) -> None:  # fmt: skip
        super().__init__(params, momentum, betas, rng)
        beta = max(betas) if betas else momentum
        terms = 1 if beta == 0 else max(1, math.ceil(math.log(tolerance) / math.log(beta)))
        self.window: deque[Step] = deque(maxlen=terms)

    def apply(self, named, step: Step, weight_decay: float, decayed: Sequence[bool]) -> None:
        self.count += 1
        self.window.append(step)
        past = list(self.window)
        streams = [pieces(self.params, one.seed, self.rng, PIECE) for one in past]
        for together in zip(*streams, strict=True):
            number, part, _ = together[0]
            first = torch.zeros(part.numel(), dtype=torch.float32, device=part.device)
            second = torch.zeros_like(first) if self.betas else None
            for age, (one, (_, _, draw)) in enumerate(zip(reversed(past), reversed(together), strict=True)):
                z = torch.zeros_like(part)
                draw(z, 1.0, None)
                g = z.float() * one.projected_gradient
                if self.betas:
                    first.add_(g, alpha=(1 - self.betas[0]) * self.betas[0] ** age)
                    second.addcmul_(g, g, value=(1 - self.betas[1]) * self.betas[1] ** age)
                else:
                    first.add_(g, alpha=self.momentum**age)
            self._add(part, first, second, step.lr, weight_decay if decayed[number] else 0.0)
