"""`MeZO`: the optimiser for anyone's training loop.

    optimizer = MeZO(model.named_parameters(), lr=1e-6, eps=1e-3)
    for batch in batches:
        loss = optimizer.step(lambda: model(**batch).loss)

The closure computes a loss, nothing else: no backward, no gradients, the model in eval mode. It is called twice per
estimate. Everything about directions and updates is in `spsa`; this file holds what surrounds them in a run: seeds,
n-SPSA, momentum and Adam from the log of scalars, layers and masks, ranks, the trajectory, and what may go wrong.
"""

import logging
import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mezo.moments import RecomputedMoments, StoredMoments
from mezo.on_the_fly import OnTheFly
from mezo.ranks import Ranks
from mezo.rounding import add_rounded_stochastically
from mezo.spsa import RNGS, Mask, perturb, pieces, projected_gradient
from mezo.trajectory import Header, Step, Writer, apply_one, apply_steps, describe
from shared import InputError

log = logging.getLogger(__name__)
NO_DECAY = ("bias", "layer_norm", "layernorm")  # the release's large models; its medium ones decay everything
RESTORES = ("exact", "inplace")
Closure = Callable[[], float | Tensor | tuple[float | Tensor, int]]


class MeZO(torch.optim.Optimizer):
    """Zeroth-order SGD by SPSA with the memory of inference.

    Args:
        params: (name, tensor) pairs, as from `model.named_parameters()`; those without requires_grad are left alone.
        lr, eps: of the paper; lr may be changed between steps by any scheduler (`param_groups[0]["lr"]`).
        weight_decay: theta <- theta - lr (g z + wd theta), for names without "bias" or "layer_norm" (decay_all: for
        all). model: needed for restore="exact".
        restore: "exact" never writes the perturbed weights (needs model), "inplace" adds +eps, -2 eps, +eps as the
            release does and keeps the rounding errors. Default: exact where a model is given.
        rng: "torch" draws the release's numbers, "counter" the fast ones (`mezo.gaussian`).
        seed: of the stream of step seeds; 42 gives the release's. `seeds`: a function to draw them from instead.
        n: estimates per step, a number or a function of the step; their mean is applied (scale_lr_with_samples: sum).
        momentum, betas: heavy ball, or Adam if betas are given. moments="stored" keeps them (one or two more copies of
            the weights), "recomputed" draws them again from the log of scalars, to a relative tolerance of 1e-3.
        sign, clip: the sign of the projected gradient in its place; a limit on its size.
        layers: regular expressions, one group per step in turn (layer-wise perturbation). mask: elements that may move.
        scales: one d per parameter, or a function of the step that gives them: perturb by eps z / d and update by
            g d z ("variance") or g z ("expectation"), appendix B, Definitions 6 and 7.
        one_point: Definition 8, one evaluation per step; a run that goes on from a trajectory is given `loss_before`.
        rounding: "nearest" or "stochastic" for fp16 and bf16 weights; master: keep fp32 weights beside them.
        trajectory: file that records every step (`mezo.trajectory`); what it holds already is applied at once.
        base, about: name of the base model, and plain values about the run, for the trajectory's header.
        process_group: ranks that hold the same weights and different data exchange their losses, one float each per
            evaluation; "default" is torch.distributed's own group.
        check: evaluate twice before the first step and refuse a closure whose loss is not a function of the weights.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]],
        lr: float,
        eps: float = 1e-3,
        *,
        weight_decay: float = 0.0,
        decay_all: bool = False,
        model: nn.Module | None = None,
        restore: str | None = None,
        rng: str = "torch",
        seed: int = 42,
        seeds: Callable[[], int] | None = None,
        n: int | Callable[[int], int] = 1,
        scale_lr_with_samples: bool = False,
        momentum: float = 0.0,
        betas: tuple[float, float] | None = None,
        moments: str = "stored",
        sign: bool = False,
        clip: float | None = None,
        layers: Sequence[str] | None = None,
        mask: Mask | None = None,
        scales: Sequence[float] | Callable[[int], Sequence[float]] | None = None,
        scales_rule: str = "variance",
        one_point: bool = False,
        rounding: str = "nearest",
        master: bool = False,
        trajectory: Path | str | None = None,
        base: str = "unknown",
        about: dict[str, Any] | None = None,
        process_group: Any = None,
        check: bool = True,
    ) -> None:
        self.named = _trainable(params)
        restore = restore or ("exact" if model is not None else "inplace")
        _refuse_nonsense(lr, eps, rng, restore, model, n, scales_rule, rounding, moments, layers, scales)
        super().__init__([tensor for _, tensor in self.named], {"lr": lr})
        self.eps, self.rng, self.restore, self.mask = eps, rng, restore, mask
        self.weight_decay = weight_decay
        self.decayed = [decay_all or not any(part in name for part in NO_DECAY) for name, _ in self.named]
        self.seeds = seeds or _release_seeds(seed)
        self.n = n if callable(n) else (lambda step: n)
        self.scale_lr_with_samples, self.sign, self.clip = scale_lr_with_samples, sign, clip
        self.scales = scales if callable(scales) or not scales else list(scales)
        self.scales_rule, self.one_point = scales_rule, one_point
        if not callable(self.scales):
            self._scales()  # a wrong number of them is refused now
        self.rounding, self.check = rounding, check
        self.masters = [t.detach().float().clone() for _, t in self.named] if master else None
        self.groups = _layer_groups(self.named, layers)
        self.fly = OnTheFly(model, [t for _, t in self.named], rng) if restore == "exact" else None
        self.ranks = Ranks(process_group, self.named) if process_group is not None else None
        self.moments = _moments(self.named, momentum, betas, moments, rng)
        # What a replay needs to know beside the records.
        self.options = {
            "eps": eps, "restore": restore, "n": n if isinstance(n, int) else "a function", "momentum": momentum,
            "betas": betas and list(betas), "moments": moments, "layers": layers and list(layers),
            "scales": "a function" if callable(scales) else self.scales, "scales_rule": scales_rule,
            "one_point": one_point, "rounding": rounding, "master": master,
        }  # fmt: skip
        self.steps_done, self.estimates, self.evaluations = 0, 0, 0
        self.last: Step | None = None
        self.loss_before: float | None = None
        self._recent: deque[float] = deque(maxlen=100)
        self.writer: Writer | None = None
        if trajectory is not None:
            self._open(Path(trajectory), base, about)

    @torch.no_grad()
    def step(self, closure: Closure) -> float:  # type: ignore[override]
        """One step; returns the loss at theta + eps z (the mean over estimates), as the release logs it.

        Raises:
            InputError: before the first step, a closure that gives another loss when called again.
            FloatingPointError: a loss that is not finite; the weights are those from before the step.
        """
        if self.check and self.steps_done == 0:
            self._check_closure(closure)
        if self.one_point and self.steps_done and self.loss_before is None:
            raise InputError("one_point goes on with the loss of the step before, which no file holds: set loss_before")
        estimates = self._estimates()
        lr = float(self.param_groups[0]["lr"])
        found = [self._estimate(closure) for _ in range(estimates)]
        share = lr if self.scale_lr_with_samples else lr / estimates
        for seed, gradient, _ in found:
            self.last = Step(seed, gradient, share)
            self._apply(self.last)
            if self.writer:
                self.writer.append(self.last)
            self._recent.append(gradient)
        self.steps_done, self.estimates = self.steps_done + 1, self.estimates + estimates
        self._warn_of_flat_losses()
        return sum(loss for *_, loss in found) / estimates

    # ------------------------------------------------------------------------------------------------- the estimate

    def _estimate(self, closure: Closure) -> tuple[int, float, float]:
        """(seed, projected gradient rounded to fp32, loss at theta + eps z) of one direction."""
        seed = self.ranks.same_seed(self.seeds()) if self.ranks else self.seeds()
        up = self._scaled(self.eps)
        if self.one_point:
            plus = self._losses(closure, seed, [up])[0]
            before = plus if self.loss_before is None else self.loss_before
            gradient, self.loss_before = (plus - before) / self.eps, plus
        else:
            plus, minus = self._losses(closure, seed, [up, self._scaled(-self.eps)])
            gradient = projected_gradient(plus, minus, self.eps)
        gradient = float(np.float32(gradient))
        if not math.isfinite(gradient):
            raise FloatingPointError(
                f"step {self.steps_done}, seed {seed}: loss {plus} at theta + eps z, projected gradient {gradient}. "
                "The weights are those from before the step; lower lr or eps, or compute the loss in fp32"
            )
        if self.sign:
            gradient = float(np.sign(gradient))
        if self.clip is not None:
            gradient = max(-self.clip, min(self.clip, gradient))
        return seed, gradient, plus

    def _losses(self, closure: Closure, seed: int, scales: list[float | list[float]]) -> list[float]:
        """The loss at theta + scale z for each scale, over all ranks."""
        chosen, losses, at = self._chosen(), [], 0.0
        for scale in scales:
            if self.fly:
                with self.fly.at(seed, scale, self.mask):
                    losses.append(closure())
            else:
                perturb(chosen, seed, _difference(scale, at), rng=self.rng, mask=self.mask)
                at = scale
                try:
                    losses.append(closure())
                except BaseException:
                    perturb(chosen, seed, _difference(0.0, at), rng=self.rng, mask=self.mask)
                    raise
            self.evaluations += 1
        if not self.fly:
            perturb(chosen, seed, _difference(0.0, at), rng=self.rng, mask=self.mask)
        if self.ranks:
            return self.ranks.mean_losses(losses)
        return [float(loss[0] if isinstance(loss, tuple) else loss) for loss in losses]

    def _scales(self) -> list[float] | None:
        """One d per parameter in this step."""
        scales = list(self.scales(self.steps_done)) if callable(self.scales) else self.scales
        if scales and len(scales) != len(self.named):
            raise InputError(f"scales has {len(scales)} numbers for {len(self.named)} parameters")
        return scales or None

    def _scaled(self, eps: float) -> float | list[float]:
        scales = self._scales()
        return eps if scales is None else [eps / d for d in scales]

    def _chosen(self) -> list[tuple[str, Tensor]]:
        """This step's parameters: all, or the layer whose turn it is."""
        if self.groups is None:
            return self.named
        return [self.named[k] for k in self.groups[self.steps_done % len(self.groups)]]

    # --------------------------------------------------------------------------------------------------- the update

    def _apply(self, step: Step) -> None:
        """theta <- theta - lr (g z + wd theta), or what momentum or Adam make of g z."""
        if self.moments is not None:
            self.moments.apply(self.named, step, self.weight_decay, self.decayed)
            return
        chosen, tensors = self._chosen(), self.masters or [tensor for _, tensor in self.named]
        scale = self._scales() if self.scales_rule == "variance" else None
        if self.groups is not None:
            tensors = [tensors[k] for k in self.groups[self.steps_done % len(self.groups)]]
        decayed = dict(zip((name for name, _ in self.named), self.decayed, strict=True))
        for number, part, draw in pieces(tensors, step.seed, self.rng):
            decay = self.weight_decay if decayed[chosen[number][0]] else 0.0
            one = step if scale is None else Step(step.seed, step.projected_gradient * scale[number], step.lr)
            if self.rounding == "stochastic" and part.dtype in (torch.bfloat16, torch.float16):
                add_rounded_stochastically(part, draw, one, decay, self.mask)
            else:
                apply_one(part, draw, one, decay, self.mask)
        if self.masters:
            for (_, tensor), wide in zip(self.named, self.masters, strict=True):
                tensor.copy_(wide)

    # -------------------------------------------------------------------------------------------------- surroundings

    def _open(self, path: Path, base: str, about: dict[str, Any] | None) -> None:
        """Start or continue a trajectory: what the file holds is applied to the weights as they are now."""
        if self.mask is not None:
            raise InputError("trajectory: a mask cannot be replayed from the file; leave it out")
        header: Header = describe(
            self.named, base, self.rng, weight_decay=self.weight_decay, decayed=self.decayed, update=self.rule,
            extra=self.options | {"about": about or {}},
        )  # fmt: skip
        first = self.ranks is None or self.ranks.first
        self.writer = Writer(path, header) if first else None
        steps = self.writer.steps if first else []
        steps = self.ranks.from_first(steps) if self.ranks else steps
        whole = self.apply_recorded(steps)
        if first and whole < len(steps):  # killed between the estimates of one step
            self.writer.keep(whole)

    @property
    def rule(self) -> str:
        """How a record changes the weights: "sgd", or what is added to it."""
        parts = [] if self.moments is None else [str(self.moments)]
        parts += [f"layers {self.groups}"] if self.groups is not None else []
        parts += [f"scales {self.scales_rule} {self.options['scales']}"] if self.scales else []
        parts += [f"{self.rounding} rounding"] if self.rounding != "nearest" else []
        parts += ["in place"] if self.restore == "inplace" else []
        return ", ".join([*parts, *(["fp32 master"] if self.masters else [])]) or "sgd"

    @torch.no_grad()
    def apply_recorded(self, steps: Sequence[Step]) -> int:
        """Apply a trajectory's records to the weights as they are, and go on behind them.

        Returns the number of records used: all but those of a last step that lacks some of its n estimates.
        """
        begun, whole = self.steps_done, 0
        plain = self.rule == "sgd"
        while whole + (count := self._estimates()) <= len(steps) and whole < len(steps):
            some = () if plain else steps[whole : whole + count]
            self._scales()  # a function may measure something of the weights of this step
            signs = (1,) if self.one_point else (1, -1)
            for step in some if self.restore == "inplace" else ():  # its rounding errors are part of the weights
                self._losses(lambda: 0.0, step.seed, [self._scaled(sign * self.eps) for sign in signs])
            for step in some:
                self._apply(step)
            whole, self.steps_done = whole + count, self.steps_done + 1
        if plain:
            apply_steps(self.named, steps[:whole], self.rng, self.weight_decay, self.decayed)
        for _ in steps[:whole]:  # the stream of seeds goes on where it was
            self.seeds()
        self.estimates += whole
        log.debug("%d recorded steps applied", self.steps_done - begun)
        return whole

    def _estimates(self) -> int:
        return max(1, int(self.n(self.steps_done)))

    def _check_closure(self, closure: Closure) -> None:
        first, second = (closure() for _ in range(2))
        first, second = (float(loss[0] if isinstance(loss, tuple) else loss) for loss in (first, second))
        if first != second and not (math.isnan(first) and math.isnan(second)):
            raise InputError(
                f"the closure gave {first} and then {second} for the same weights: put the model in eval mode "
                "(dropout) and keep to one batch per step"
            )

    def _warn_of_flat_losses(self) -> None:
        recent = self._recent
        if len(recent) == recent.maxlen and self.steps_done % recent.maxlen == 0:
            flat = max(sum(g == 0 for g in recent), len(recent) - len(set(recent))) / len(recent)
            if flat > 0.05 and not self.sign:
                log.warning(
                    "%.0f %% of the last %d projected gradients are zero or equal: the loss is too coarse for eps=%g "
                    "(compute it in fp32), or the perturbed weights are not used",
                    100 * flat, len(recent), self.eps,
                )  # fmt: skip

    def close(self) -> None:
        """Flush the trajectory."""
        if self.writer:
            self.writer.close()


def _difference(to: float | list[float], at: float | list[float]) -> float | list[float]:
    if isinstance(to, list) or isinstance(at, list):
        count = len(to if isinstance(to, list) else at)
        to, at = (x if isinstance(x, list) else [x] * count for x in (to, at))
        return [a - b for a, b in zip(to, at, strict=True)]
    return to - at


def _release_seeds(seed: int) -> Callable[[], int]:
    draw = np.random.RandomState(seed)
    return lambda: int(draw.randint(1_000_000_000))


def _trainable(params: Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    named, seen = [], set()
    for item in params:
        if not isinstance(item, tuple):
            raise InputError("MeZO needs (name, tensor) pairs: give model.named_parameters()")
        name, tensor = item
        if not tensor.requires_grad or id(tensor) in seen:
            continue
        if not tensor.is_floating_point():
            raise InputError(f"{name} is {tensor.dtype}: quantised or integer weights cannot be perturbed; freeze them")
        seen.add(id(tensor))
        named.append((name, tensor))
    if not named:
        raise InputError("MeZO: no trainable parameter (all have requires_grad=False)")
    return named


def _refuse_nonsense(lr, eps, rng, restore, model, n, scales_rule, rounding, moments, layers, scales) -> None:
    if not (isinstance(eps, int | float) and 0 < eps < math.inf):
        raise InputError(f"eps={eps!r} must be a positive number")
    if not (isinstance(lr, int | float) and 0 <= lr < math.inf):
        raise InputError(f"lr={lr!r} must be a number, 0 or more")
    for name, value, known in (
        ("rng", rng, RNGS), ("restore", restore, RESTORES), ("rounding", rounding, ("nearest", "stochastic")),
        ("scales_rule", scales_rule, ("variance", "expectation")), ("moments", moments, ("stored", "recomputed")),
    ):  # fmt: skip
        if value not in known:
            raise InputError(f"{name}={value!r} is unknown: choose {' or '.join(known)}")
    if restore == "exact" and model is None:
        raise InputError("restore=exact needs model=...: its modules are given perturbed weights while they run")
    if layers is not None and (restore == "exact" or scales is not None):
        raise InputError("layers goes with restore=inplace and without scales")
    if not callable(n) and (not isinstance(n, int) or n < 1):
        raise InputError(f"n={n!r} must be a whole number, 1 or more (or a function of the step)")


def _layer_groups(named: Sequence[tuple[str, Tensor]], layers: Sequence[str] | None) -> list[list[int]] | None:
    if layers is None:
        return None
    groups = [[k for k, (name, _) in enumerate(named) if re.search(pattern, name)] for pattern in layers]
    for pattern, group in zip(layers, groups, strict=True):
        if not group:
            raise InputError(f"layers: no parameter's name matches {pattern!r}")
    return groups


def _moments(named, momentum, betas, kind, rng):
    if betas is None and not momentum:
        return None
    chosen = StoredMoments if kind == "stored" else RecomputedMoments
    return chosen([tensor for _, tensor in named], momentum=momentum, betas=betas, rng=rng)
