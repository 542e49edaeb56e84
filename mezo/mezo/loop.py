"""Training by MeZO: the trajectory is the checkpoint.

Base weights and the file of (seed, projected gradient) give the weights of any step, so nothing else is stored: a run
that was killed replays its file and goes on, dev scores it had not written down are measured again on the way, and the
best weights are not kept aside but replayed at the end. Training needs the memory of inference throughout.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from tqdm.auto import tqdm

from mezo.medium import release_seeds
from mezo.modes import trainable
from mezo.optimizer import MeZO
from mezo.preflight import check_model, check_response
from mezo.problem import Problem
from mezo.progress import BatchOrder, JsonLines, Pace, best_step, evaluation_steps
from mezo.scales import EpochScales, block_lengths, block_scales
from mezo.step_statistics import SwallowedUpdates, length_of_move, length_of_weights, summary
from mezo.trajectory import Step, recorded_steps
from shared import InputError
from shared.provenance import peak_memory

log = logging.getLogger(__name__)

TRAJECTORY, EVALUATIONS, STEPS, SCALES = "trajectory.mzt", "evaluations.jsonl", "steps.jsonl", "scales.jsonl"
# Up to this many trained weights a copy of the base is kept; beyond it the base is read again when it is needed.
KEPT_WEIGHTS = 4_000_000


@dataclass
class Outcome:
    """What a training measured. best_step: of the weights that are in the model now."""

    best_step: int
    metrics: dict[str, Any] = field(default_factory=dict)


class Base:
    """The trained tensors as they were before training, to start over from."""

    def __init__(self, model: nn.Module, build: Callable[[], nn.Module], prepare: Callable[[nn.Module], None]) -> None:
        self.model, self.build, self.prepare = model, build, prepare
        named = trainable(model)
        small = sum(tensor.numel() for _, tensor in named) <= KEPT_WEIGHTS
        self.kept = [tensor.detach().clone() for _, tensor in named] if small else None

    @torch.no_grad()
    def restore(self) -> None:
        """Put them back."""
        kept = self.kept
        if kept is None:
            fresh = self.build()
            self.prepare(fresh)
            kept = [tensor for _, tensor in trainable(fresh)]
        for (_, tensor), before in zip(trainable(self.model), kept, strict=True):
            tensor.copy_(before)


@dataclass(frozen=True)
class LinearSamples:
    """n_schedule=linear: max(1, int(step / steps * n)) estimates in step `step`."""

    n: int
    steps: int

    def __call__(self, step: int) -> int:
        return max(1, int(step / self.steps * self.n))


class ZeroOrderTraining:
    """One training by MeZO in a folder. `ranks`: (rank, processes)."""

    def __init__(
        self, problem: Problem, base: Base, cfg: DictConfig, folder: Path, ranks: tuple[int, int], about: dict[str, Any]
    ) -> None:
        self.problem, self.base, self.cfg, self.folder, self.about = problem, base, cfg, folder, about
        self.rank, self.processes = ranks
        self.named = trainable(problem.model)
        self.order = BatchOrder(problem.count, cfg.batch_size, cfg.seed)
        self.schedule = evaluation_steps(cfg.steps, cfg.eval_every, problem.family)
        self.evaluations = JsonLines(folder / EVALUATIONS, self.rank == 0)
        self.lines = JsonLines(folder / STEPS, self.rank == 0)
        self.pace = Pace()
        self.scales: list[float] | EpochScales | None = None

    # ---------------------------------------------------------------------------------------------------- one process

    def run(self) -> Outcome:
        """Train from where the folder's trajectory ends; the best weights are in the model afterwards."""
        cfg, path = self.cfg, self.folder / TRAJECTORY
        self.problem.model.eval()
        check_model(self.problem.model)
        if cfg.zo.scale_by is not None:
            self.scales = self.step_lengths(path)
        self.measure_what_is_missing(path)
        before = self.last_loss(path) if cfg.zo.one_point else None
        optimizer = self.optimizer(path)
        optimizer.loss_before = before
        resumed = optimizer.steps_done
        self.lines.keep_until(resumed)
        self.evaluations.keep_until(resumed)
        if resumed:
            log.warning("%s: going on from step %d of its trajectory", self.folder, resumed)
        move = self.first_look(optimizer) if resumed < cfg.steps else {}
        swallowed = SwallowedUpdates(self.named)
        self.steps(optimizer, swallowed)
        optimizer.close()
        host, gpu = peak_memory()
        swallowed.warn(self.named[0][1].dtype, float(cfg.lr))
        recorded = recorded_steps(path)
        best = best_step(self.evaluations.lines, select_of(cfg, self.problem), self.problem.metric, cfg.steps)
        metrics = {
            "steps": cfg.steps,
            "resumed_at_step": resumed,
            "seconds_per_step": self.pace.per_step,
            "peak_memory_bytes": host,
            "peak_gpu_memory_bytes": gpu,
            "evaluations_of_the_loss": optimizer.evaluations,
            "trajectory_bytes": path.stat().st_size if path.exists() else None,
            "trained_weights": sum(tensor.numel() for _, tensor in self.named),
            "projected_gradient": summary(recorded),
            "weights_moved_by_an_update": swallowed.moved,
            **({"step_lengths_measured": len(self.scales.known)} if isinstance(self.scales, EpochScales) else {}),
            **move,
        }
        self.go_to(best, path, optimizer.steps_done)
        return Outcome(best, metrics)

    def optimizer(self, trajectory: Path | None) -> MeZO:
        """MeZO as configured; with a trajectory it continues the file."""
        cfg, zo = self.cfg, OmegaConf.to_container(self.cfg.zo, resolve=True)
        schedule = zo.pop("n_schedule")
        if schedule not in ("constant", "linear"):
            raise InputError(f"zo.n_schedule={schedule}: give constant or linear")
        if schedule == "linear" and isinstance(zo["n"], int) and zo["n"] > 0:
            zo["n"] = LinearSamples(zo["n"], cfg.steps)
        betas, scale_rule, seeds = zo.pop("betas"), zo.pop("scale_rule"), zo.pop("seeds")
        del zo["scale_by"], zo["scale_when"]
        if seeds not in ("large", "medium"):
            raise InputError(f"zo.seeds={seeds}: give large or medium")
        medium = release_seeds(self.problem.count, self.order.size, cfg.seed) if seeds == "medium" else None
        exact = zo.get("restore") != "inplace"
        return MeZO(
            self.problem.model.named_parameters(), float(cfg.lr), float(cfg.eps), weight_decay=float(cfg.weight_decay),
            model=self.problem.model if exact else None, seed=cfg.seed, seeds=medium,
            betas=tuple(betas) if betas else None, **zo, scales=self.scales, scales_rule=scale_rule,
            trajectory=trajectory, base=str(cfg.model), about=self.about,
            process_group="default" if self.processes > 1 else None,
        )  # fmt: skip

    def step_lengths(self, trajectory: Path) -> list[float] | EpochScales:
        """zo.scale_by: from the base weights, or again in every epoch; a resumed run finds the same."""
        zo, eps = self.cfg.zo, float(self.cfg.eps)
        if zo.scale_when not in ("once", "epoch"):
            raise InputError(f"zo.scale_when={zo.scale_when}: give once or epoch")

        def loss_of(step: int) -> Callable[[], Tensor]:
            batch = self.problem.prepare(self.order.rows(step))
            return lambda: self.problem.loss(batch)[0]

        if zo.scale_when == "once":
            return block_scales(zo.scale_by, self.named, loss_of(0), eps, zo.rng)
        scales = EpochScales(
            self.folder / SCALES, [name for name, _ in self.named], self.order.per_epoch,
            lambda step: block_lengths(zo.scale_by, self.named, loss_of(step), eps, zo.rng, seed=step),
            first=self.rank == 0, from_first=self.from_first,
        )  # fmt: skip
        scales.keep_until(whole_steps(trajectory, self.replayer().n) if trajectory.exists() else 0)
        return scales

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        box = [value]
        if self.processes > 1:
            torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def closure(self, step: int) -> Callable[[], tuple[Tensor, float]]:
        """The loss of step `step`'s batch (of this rank's share of it), as MeZO wants it."""
        rows = self.order.rows(step)[self.rank :: self.processes]
        size = self.cfg.micro_batch_size or len(rows) or 1
        batches = [self.problem.prepare(rows[start : start + size]) for start in range(0, len(rows), size)]

        def loss() -> tuple[Tensor | float, float]:
            parts = [self.problem.loss(batch) for batch in batches]
            if len(parts) == 1:
                return parts[0]
            weight = sum(w for _, w in parts)
            return (sum(float(part) * w for part, w in parts) / weight, weight) if weight else (0.0, 0.0)

        return loss

    def steps(self, optimizer: MeZO, swallowed: SwallowedUpdates) -> None:
        cfg = self.cfg
        bar = tqdm(initial=optimizer.steps_done, total=cfg.steps, unit="step", disable=self.rank > 0, leave=False)
        begun = time.monotonic()
        while (step := optimizer.steps_done) < cfg.steps:
            optimizer.param_groups[0]["lr"] = rate(cfg, step, "constant")
            watched = swallowed.parts and step % cfg.log_every == 0
            swallowed.note() if watched else None
            with self.pace:
                closure = self.closure(step)
                try:
                    loss = optimizer.step(closure)
                except FloatingPointError as error:
                    optimizer.close()
                    raise InputError(f"{error}. The {step} steps before it are in {self.folder / TRAJECTORY}") from None
            swallowed.count() if watched else None
            done = step + 1
            if done % cfg.log_every == 0 or done == cfg.steps:
                last = optimizer.last
                seconds = round(time.monotonic() - begun, 3)
                line = {"step": done, "loss": loss, "projected_gradient": last.projected_gradient, "lr": last.lr}
                self.lines.append({**line, "seconds": seconds})
                bar.set_postfix(loss=f"{loss:.4f}", pg=f"{last.projected_gradient:.3g}")
            bar.update()
            if done in self.schedule:
                self.evaluate(done)
        bar.close()

    def evaluate(self, step: int) -> None:
        """Measure dev on rank 0 and tell the others."""
        found = self.from_first({"step": step, **self.problem.dev()} if self.rank == 0 and self.has_dev else None)
        if found is not None:
            self.evaluations.append(found)
            log.info("step %d: dev %s", step, {k: round(v, 4) for k, v in found.items() if k != "step"})

    @property
    def has_dev(self) -> bool:
        return bool(self.problem.splits.dev)

    def first_look(self, optimizer: MeZO) -> dict[str, float]:
        """Before the first step: the loss must answer to the weights; how far eps z goes."""
        if self.problem.differentiable and optimizer.steps_done == 0:
            model = self.problem.model if optimizer.fly else None
            closure = self.closure(0)
            if self.processes == 1 or self.order.rows(0)[self.rank :: self.processes]:
                check_response(closure, self.named, optimizer.eps, optimizer.rng, model=model)
        move = length_of_move(self.named, 0, optimizer.eps, optimizer.rng)
        whole = length_of_weights(self.named)
        log.info("eps ||z|| is %.4g, the trained weights have the length %.4g", move, whole)
        return {"eps_times_norm_of_z": move, "norm_of_weights": whole}

    # ----------------------------------------------------------------------------------------------------- replaying

    def go_to(self, step: int, path: Path, now: int) -> None:
        """Have the weights of `step` in the model, which has those of step `now`."""
        if step != now:
            self.base.restore()
            self.replayer().apply_recorded(self.records(path, step))

    def replayer(self) -> MeZO:
        """An optimiser that only applies records: no file, no other ranks."""
        processes, self.processes = self.processes, 1
        try:
            return self.optimizer(None)
        finally:
            self.processes = processes

    def records(self, path: Path, step: int) -> list[Step]:
        """The trajectory's records of the first `step` steps, which may have several each."""
        samples = self.replayer().n
        return recorded_steps(path)[: sum(max(1, int(samples(k))) for k in range(step))]

    @torch.no_grad()
    def last_loss(self, path: Path) -> float | None:
        """one_point: the loss of the last recorded step, evaluated again; None before the first."""
        recorded = recorded_steps(path) if path.exists() else []
        if not recorded:
            return None
        player = self.replayer()
        player.apply_recorded(recorded[:-1])
        try:
            return player._losses(self.closure(len(recorded) - 1), recorded[-1].seed, [player._scaled(player.eps)])[0]
        finally:
            self.base.restore()

    def measure_what_is_missing(self, path: Path) -> None:
        """Dev scores of recorded steps that evaluations.jsonl lacks (it was lost, or the kill came before its line)."""
        if not path.exists() or not self.has_dev or self.cfg.zo.n_schedule not in ("constant", "linear"):
            return
        have = {line["step"] for line in self.evaluations.lines}
        recorded = whole_steps(path, self.replayer().n)
        missing = [step for step in self.schedule if step <= recorded and step not in have]
        if not missing:
            return
        lines, player, done = list(self.evaluations.lines), self.replayer(), 0
        for step in missing:
            player.apply_recorded(self.records(path, step)[done:])
            done = len(self.records(path, step))
            self.evaluate(step)
        self.evaluations.lines = sorted([*lines, *self.evaluations.lines[len(lines) :]], key=lambda line: line["step"])
        self.base.restore()


def whole_steps(path: Path, samples: Callable[[int], int]) -> int:
    """The number of whole steps in a trajectory that a kill may have left torn."""
    left, steps = len(recorded_steps(path)), 0
    while left >= (count := max(1, int(samples(steps)))):
        left, steps = left - count, steps + 1
    return steps


def select_of(cfg: DictConfig, problem: Problem) -> str:
    """What the tested weights are chosen by; without a dev set the last ones are tested."""
    if not problem.splits.dev:
        return "last"
    if cfg.select == "auto":
        return "metric" if problem.family == "masked" else "loss"
    return cfg.select


def rate(cfg: DictConfig, step: int, default: str) -> float:
    """The learning rate of step `step` (from 0)."""
    schedule = default if cfg.schedule == "auto" else cfg.schedule
    if schedule not in ("constant", "linear"):
        raise InputError(f"schedule={schedule}: give auto, constant or linear")
    return float(cfg.lr) * (1.0 if schedule == "constant" else max(0.0, 1 - step / cfg.steps))
