"""The baseline: the same problem, modes and evaluation, trained by backpropagation with Adam or SGD.

A checkpoint (trained weights and the optimiser's state, safetensors) is written at every dev evaluation; batches, and
dropout where it is asked for, are functions of the step, so a killed run ends as one that was not.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from mezo.loop import EVALUATIONS, STEPS, Outcome, rate, select_of
from mezo.modes import load_trained, save_trained, trainable
from mezo.problem import Problem
from mezo.progress import BatchOrder, JsonLines, Pace, best_step, evaluation_steps
from shared import InputError
from shared.provenance import peak_memory
from shared.results import write_atomic

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
STATE = "optimizer.safetensors"
DONE = "state.json"  # written last: with it a checkpoint is whole


class FineTuning:
    """One training by trainer=adam or sgd in a folder, on one process."""

    def __init__(self, problem: Problem, cfg: DictConfig, folder: Path) -> None:
        if not problem.differentiable:
            raise InputError(f"trainer={cfg.trainer}: objective={cfg.objective} has no gradient; use trainer=zo")
        self.problem, self.cfg, self.folder, self.model = problem, cfg, folder, problem.model
        self.named = trainable(self.model)
        self.optimizer = make_optimizer(cfg, [tensor for _, tensor in self.named])
        self.order = BatchOrder(problem.count, cfg.batch_size, cfg.seed)
        self.schedule = evaluation_steps(cfg.steps, cfg.eval_every, problem.family)
        self.evaluations, self.lines = (JsonLines(folder / name, True) for name in (EVALUATIONS, STEPS))
        self.pace = Pace()

    def run(self) -> Outcome:
        """Train to the end; the best weights are in the model afterwards."""
        cfg, folder = self.cfg, self.folder
        if cfg.gradient_checkpointing:
            getattr(self.model, "backbone", self.model).gradient_checkpointing_enable({"use_reentrant": False})
        step = resumed = self.resume()
        self.lines.keep_until(step)
        self.evaluations.keep_until(step)
        select = select_of(cfg, self.problem)
        bar = tqdm(initial=step, total=cfg.steps, unit="step", leave=False)
        begun = time.monotonic()
        while step < cfg.steps:
            with self.pace:
                loss = self.update(step)
            step += 1
            bar.update()
            if step % cfg.log_every == 0 or step == cfg.steps:
                self.lines.append({"step": step, "loss": loss, "seconds": round(time.monotonic() - begun, 3)})
            if step in self.schedule:
                self.evaluate(step, select)
        bar.close()
        self.model.eval()
        host, gpu = peak_memory()
        best = best_step(self.evaluations.lines, select, self.problem.metric, cfg.steps)
        if best != cfg.steps:
            load_trained(self.model, folder / CHECKPOINTS / "best")
        metrics: dict[str, Any] = {
            "steps": cfg.steps,
            "resumed_at_step": resumed,
            "seconds_per_step": self.pace.per_step,
            "peak_memory_bytes": host,
            "peak_gpu_memory_bytes": gpu,
            "trained_weights": sum(tensor.numel() for _, tensor in self.named),
        }
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        return Outcome(best, metrics)

    def update(self, step: int) -> float:
        """One step; returns its loss."""
        cfg = self.cfg
        self.model.train(bool(cfg.dropout) or bool(cfg.gradient_checkpointing))
        rows = self.order.rows(step)
        size = cfg.micro_batch_size or len(rows)
        for group in self.optimizer.param_groups:
            group["lr"] = rate(cfg, step, "linear")
        self.optimizer.zero_grad(set_to_none=True)
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        total = 0.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cfg.seed * 1_000_003 + step)  # dropout, the same after a resumption
            for part in parts:
                loss, _ = self.problem.loss(self.problem.prepare(part))
                share = loss * (len(part) / len(rows))
                share.backward()
                total += float(share.detach())
        if not math.isfinite(total):
            raise InputError(f"trainer={cfg.trainer}: the loss is {total} in step {step}; lower lr={float(cfg.lr):g}")
        nn.utils.clip_grad_norm_([tensor for _, tensor in self.named], cfg.max_grad_norm)
        self.optimizer.step()
        return total

    def evaluate(self, step: int, select: str) -> None:
        """Dev, the best weights so far, and a checkpoint to go on from."""
        self.model.eval()
        if self.problem.splits.dev:
            self.evaluations.append({"step": step, **self.problem.dev()})
            if best_step(self.evaluations.lines, select, self.problem.metric, self.cfg.steps) == step:
                save_trained(self.model, self.folder / CHECKPOINTS / "best")
        target = self.folder / CHECKPOINTS / f"step-{step}"
        save_trained(self.model, target)
        save_file(state_tensors(self.optimizer), target / STATE)
        write_atomic(target / DONE, json.dumps({"step": step}) + "\n")
        for old in (self.folder / CHECKPOINTS).glob("step-*"):
            if old != target:
                shutil.rmtree(old)

    def resume(self) -> int:
        """Load the newest whole checkpoint; returns its step, 0 without one."""
        states = [json.loads(p.read_text("utf-8"))["step"] for p in self.folder.glob(f"{CHECKPOINTS}/step-*/{DONE}")]
        if not states:
            return 0
        step = max(states)
        source = self.folder / CHECKPOINTS / f"step-{step}"
        load_trained(self.model, source)
        load_state(self.optimizer, load_file(source / STATE))
        log.warning("%s: going on from step %d", self.folder, step)
        return step


def make_optimizer(cfg: DictConfig, tensors: list[Tensor]) -> torch.optim.Optimizer:
    """AdamW (betas 0.9, 0.999, eps 1e-8) or plain SGD."""
    if cfg.trainer == "adam":
        return torch.optim.AdamW(tensors, lr=float(cfg.lr), weight_decay=float(cfg.weight_decay))
    return torch.optim.SGD(tensors, lr=float(cfg.lr), weight_decay=float(cfg.weight_decay))


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as flat names: "<parameter number>.<name>"."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": torch.as_tensor(value).contiguous()
        for number, values in state.items()
        for name, value in values.items()
        if value is not None
    } or {"none": torch.zeros(1)}


def load_state(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """What `state_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        if name:
            state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
