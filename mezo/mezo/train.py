"""`python -m mezo.train task=sst2 model=facebook/opt-13b mode=lora`: one run of the paper's tables.

    configuration -> task, splits, model with the mode attached -> MeZO, Adam, SGD or linear probing -> dev, test

A run's folder holds `config.json`; `trajectory.mzt` (MeZO's checkpoint: seeds and projected gradients), or
`checkpoints/` (Adam, SGD); `evaluations.jsonl`, `steps.jsonl`; `trained.safetensors`; and `results.json`, last: with it
a run is done. The same command goes on with a run that was killed. Grids are Hydra's: `-m lr=1e-6,1e-7 mode=full,lora`.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import DictConfig
from torch import nn

from mezo.fine_tuning import FineTuning
from mezo.loop import Base, Outcome, ZeroOrderTraining
from mezo.modes import save_trained
from mezo.probe import load_rows, probe, save_rows, write_rows
from mezo.problem import Problem, build_problem
from shared import InputError
from shared.launch import entrypoint
from shared.results import Run, is_main_process, write_atomic
from shared.run_folders import changed_settings, settings_of
from shared.training import run_folder, seed_everything

log = logging.getLogger(__name__)

TRAINERS = ("zo", "adam", "sgd", "lp", "none")
CONFIG, RESULTS, PROBE, TRAINED = "config.json", "results.json", "probe.safetensors", "trained"
PRODUCTS = (
    "trajectory.mzt", "checkpoints", "evaluations.jsonl", "steps.jsonl", "scales.jsonl", PROBE, TRAINED, RESULTS, CONFIG
)  # fmt: skip
# What may differ between a run and its continuation.
FREE = (
    "output_dir", "resume", "launch", "device", "log_every", "final", "save_trained", "experiment", "rates", "eps_of",
)  # fmt: skip
RANK_TIMEOUT = timedelta(hours=12)  # the others wait while rank 0 evaluates


def train(cfg: DictConfig) -> Path:
    """Run (or go on with) one training; returns the run's folder.

    Raises:
        InputError: anything a user can get wrong, before the first step wherever it can be known then.
    """
    check_options(cfg)
    folder = run_folder("mezo", cfg.scale, cfg.experiment, cfg.output_dir)
    if open_folder(cfg, folder):
        log.warning("%s is finished (resume=restart trains it again)", folder)
        return folder
    with process_group() as ranks:
        seed_everything(cfg.seed)
        problem, build = build_problem(cfg)
        run = Run("mezo", cfg.experiment, cfg.scale, output_dir=folder, config=cfg, seed=cfg.seed)
        outcome = fit(problem, build, cfg, folder, ranks)
        finish(problem, outcome, cfg, folder, run)
    return folder


def check_options(cfg: DictConfig) -> None:
    """Refuse what cannot work together, before anything is read."""
    if cfg.trainer not in TRAINERS:
        raise InputError(f"trainer={cfg.trainer}: give one of {', '.join(TRAINERS)}")
    for name, least in (("steps", 0), ("log_every", 1), ("micro_batch_size", 1)):
        value = cfg[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise InputError(f"{name}={value}: give a whole number, {least} or more")
    if unknown := set(cfg.final) - {"dev", "test"}:
        raise InputError(f"final holds {', '.join(sorted(unknown))}: give dev, test, or []")
    if cfg.trainer == "zo":
        if cfg.gradient_checkpointing:
            raise InputError("trainer=zo keeps no activations to checkpoint; set gradient_checkpointing=false")
        if cfg.dropout:
            raise InputError("trainer=zo evaluates without dropout; set dropout=false")
    if cfg.trainer in ("adam", "sgd") and cfg.dtype == "float16":
        raise InputError(f"trainer={cfg.trainer} in dtype=float16 overflows without a scaler; use float32 or bfloat16")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and cfg.trainer != "zo":
        raise InputError(f"trainer={cfg.trainer} runs on one process; only trainer=zo is spread over several here")


@contextmanager
def process_group():
    """(rank, processes); with several, torch.distributed is up inside."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        yield 0, 1
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=RANK_TIMEOUT)
    try:
        yield dist.get_rank(), processes
    finally:
        dist.destroy_process_group()


def open_folder(cfg: DictConfig, folder: Path) -> bool:
    """Make the folder this run's own; True if it holds the finished run already.

    Raises InputError where an unfinished run of another configuration is in the way.
    """
    if cfg.resume not in ("auto", "never", "restart"):
        raise InputError(f"resume={cfg.resume}: give auto, never or restart")
    if not is_main_process():
        return (folder / RESULTS).exists() and cfg.resume == "auto" and not changes(cfg, folder)
    finished = (folder / RESULTS).exists()
    begun = finished or any((folder / name).exists() for name in PRODUCTS[:2])
    if begun and cfg.resume == "never":
        raise InputError(f"{folder} holds a run already. Use another output_dir, resume=auto or resume=restart")
    changed = changes(cfg, folder)
    if begun and cfg.resume == "auto":
        if finished and not changed:
            return True
        if changed and not finished:
            raise InputError(
                f"{folder} holds an unfinished run of another configuration ({'; '.join(changed)}). Use the same "
                "options to go on with it, another output_dir, or resume=restart"
            )
    if cfg.resume == "restart" or (finished and changed):
        for name in PRODUCTS:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    write_atomic(folder / CONFIG, json.dumps(settings(cfg), indent=1, sort_keys=True) + "\n")
    return False


def settings(cfg: DictConfig) -> dict[str, Any]:
    """Every option that decides the run, as {dotted name: value}."""
    return settings_of(cfg, FREE)


def changes(cfg: DictConfig, folder: Path) -> list[str]:
    """What differs from the run in the folder; nothing where config.json is lost (the trajectory's header speaks)."""
    return changed_settings(settings(cfg), folder / CONFIG) or []


def fit(
    problem: Problem, build: Callable[[], nn.Module], cfg: DictConfig, folder: Path, ranks: tuple[int, int]
) -> Outcome:
    """Train as `trainer` says; the weights to be tested are in the model afterwards."""
    rows = None
    if cfg.trainer == "lp" or cfg.probe_first:
        path = folder / PROBE
        rows = load_rows(path) if path.exists() else probe(problem, cfg)
        if ranks[1] > 1:
            box = [rows]
            dist.broadcast_object_list(box, src=0)
            rows = box[0]
        write_rows(problem.model, rows)
        if ranks[0] == 0:
            save_rows(rows, path)
    if cfg.trainer == "zo":
        base = Base(problem.model, build, lambda model: write_rows(model, rows) if rows else None)
        return ZeroOrderTraining(problem, base, cfg, folder, ranks, settings(cfg)).run()
    if cfg.trainer in ("adam", "sgd"):
        return FineTuning(problem, cfg, folder).run()
    return Outcome(0)


def finish(problem: Problem, outcome: Outcome, cfg: DictConfig, folder: Path, run: Run) -> None:
    """Final scores, the trained tensors, and results.json last; on the first process."""
    if not is_main_process():
        return
    problem.model.eval()
    for name in cfg.final:
        if name == "test" or problem.splits.dev:
            run.metrics[name] = problem.dev() if name == "dev" else problem.test()
    run.metrics |= {"task": problem.task.name, "metric": problem.metric, "best_step": outcome.best_step}
    names = ("trainer", "lr", "eps", "batch_size", "steps", "weight_decay", "seed")
    run.metrics["settings"] = {name: cfg[name] for name in names} | {"mode": cfg.mode.kind, "model": str(cfg.model)}
    if outcome.metrics:
        run.metrics["training"] = outcome.metrics
    if cfg.save_trained and cfg.trainer not in ("none", "lp"):
        save_trained(problem.model, folder / TRAINED, {"base": str(cfg.model), "step": outcome.best_step})
    run.finish()


@entrypoint()
def main(cfg: DictConfig) -> None:
    train(cfg)


if __name__ == "__main__":
    main()
