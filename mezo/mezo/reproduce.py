"""`make reproduce-mezo`: what of the paper shows on two CPU cores, without a download, in under six minutes.

Two models of 0.6 million parameters are trained on the spot (cached) and take RoBERTa-large's and OPT's places:

    masked    K=16 examples per class, three splits: zero-shot, MeZO and Adam with a prompt and without one, accuracy as
              the objective, LoRA, prefix, four directions a step at equal forward passes (Tables 3, 5, 6, 18). With the
              mirror the split is the paper's (MR), without it a sentiment task of this project
    causal    three tasks of this project, one of each kind: zero-shot, in context, MeZO (Table 1's rows)
    memory    resident sets of inference, MeZO and Adam in fresh processes, up to 51 million parameters (Figure 3)
    precision projected gradients of half precision weights against fp32's
    replay    the log of scalars gives the trained weights, bit for bit

Every run is a folder with its results: a killed reproduction goes on where it was, and finished runs are not repeated.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from mezo import plots
from mezo.costs import MODELS, RECORD_BYTES, Dimensions, step_memory
from mezo.loop import TRAJECTORY, Base, ZeroOrderTraining
from mezo.memory import Sizes, peak
from mezo.models import folder_of
from mezo.modes import trainable
from mezo.precision import KINDS, compare, projected_gradients
from mezo.problem import build_problem
from mezo.train import RESULTS, train
from mezo.trajectory import replay
from shared import hub
from shared.launch import entrypoint
from shared.results import Run, over_seeds, write_atomic
from shared.training import read_metrics
from shared.workers import quiet, spread

log = logging.getLogger(__name__)
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
MASKED = {
    "zero_shot": ("zero-shot", ["trainer=none", "final=[test]"]),
    "mezo": ("MeZO", ["trainer=zo"]),
    "mezo_no_prompt": ("MeZO without a prompt", ["trainer=zo", "prompt=false"]),
    "mezo_accuracy": ("MeZO on accuracy", ["trainer=zo", "objective=accuracy"]),
    "mezo_lora": ("MeZO (LoRA)", ["trainer=zo", "mode=lora"]),
    "mezo_prefix": ("MeZO (prefix)", ["trainer=zo", "mode=prefix"]),
    "mezo_n4": ("MeZO, 4 directions", ["trainer=zo", "zo=n_spsa", "zo.scale_lr_with_samples=true"]),
    "adam": ("Adam", ["trainer=adam"]),
    "adam_no_prompt": ("Adam without a prompt", ["trainer=adam", "prompt=false"]),
}
CAUSAL = {
    "zero_shot": ("zero-shot", ["trainer=none", "final=[test]"]),
    "icl": ("in context", ["trainer=none", "final=[test]"]),
    "mezo": ("MeZO", ["trainer=zo"]),
}
FAMILIES = {"inference": "inference", "mezo-full": "MeZO", "adam-full": "Adam"}


@dataclass(frozen=True)
class Cell:
    """One run: where it goes and the overrides of `mezo.train` that make it."""

    name: str
    seed: int
    folder: Path
    overrides: tuple[str, ...]

    @property
    def results(self) -> dict[str, Any]:
        return json.loads((self.folder / RESULTS).read_text("utf-8"))["metrics"]


# --------------------------------------------------------------------------------------------------------- the runs


def masked_task(cfg: DictConfig) -> tuple[str, str]:
    """(task, "the paper's splits" or "house")."""
    try:
        hub.locate("lm-bff", "k-shot")
    except hub.NotAvailable:
        return cfg.masked.house, "house"
    return cfg.masked.real, "the paper's splits"


def masked_cells(cfg: DictConfig, folder: Path) -> list[Cell]:
    task, _ = masked_task(cfg)
    cells = []
    for seed in cfg.masked.seeds:
        for name, (_, overrides) in MASKED.items():
            steps = cfg.masked.fine_tuning_steps if name.startswith("adam") else cfg.masked.steps
            steps = steps // 4 if name == "mezo_n4" else steps
            batch = 8 if name.startswith("adam") else 32
            common = [f"task={task}", f"model={cfg.masked.model}", f"data.seed={seed}", f"seed={seed}"]
            common += [f"steps={steps}", f"batch_size={batch}"]
            place = folder / "masked" / name / f"seed-{seed}"
            chosen = cfg.masked.chosen.get(name, [])
            cells.append(Cell(f"masked {name}", seed, place, (*common, *overrides, *chosen)))
    return cells


def causal_cells(cfg: DictConfig, folder: Path) -> list[Cell]:
    cells = []
    for task in cfg.causal.tasks:
        for seed in cfg.causal.seeds:
            for name, (_, overrides) in CAUSAL.items():
                common = [f"task={task}", f"model={cfg.causal.model}", f"data.seed={seed}", f"seed={seed}",
                          f"steps={cfg.causal.steps}", f"data.num_train={cfg.causal.num_train}", "data.num_dev=50",
                          f"data.num_test={cfg.causal.num_test}"]  # fmt: skip
                if name == "icl":
                    common.append(f"evaluation.num_demos={cfg.causal.demonstrations}")
                if name == "mezo":
                    common += cfg.causal.chosen.get(task, [])
                place = folder / "causal" / task / name / f"seed-{seed}"
                cells.append(Cell(f"{task} {name}", seed, place, (*common, *overrides)))
    return cells


def run_cell(cell: Cell) -> None:
    """Train one of them in this process; its own table is not printed."""
    cfg = composed(cell)
    with quiet("mezo"), contextlib.redirect_stderr(io.StringIO()):
        train(cfg)


def composed(cell: Cell) -> DictConfig:
    GlobalHydra.instance().clear()  # in one process this is the reproduction's own, whose configuration is read
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose("config", [*cell.overrides, f"output_dir={cell.folder}", "log_every=5"])


def run_all(cells: Sequence[Cell], processes: int) -> None:
    """Run those that are not finished, `processes` at a time."""
    todo = [cell for cell in cells if not (cell.folder / RESULTS).is_file()]
    with tqdm(total=len(cells), initial=len(cells) - len(todo), desc="runs", unit="run") as bar:
        for number, _ in spread(run_cell, todo, processes):
            bar.set_postfix_str(f"{todo[number].name}, seed {todo[number].seed}")
            bar.update()


# ------------------------------------------------------------------------------------------------------ what they say


def scores(cells: Sequence[Cell]) -> list[float]:
    return [cell.results["test"][cell.results["metric"]] for cell in cells]


def report_masked(cfg: DictConfig, run: Run, cells: Sequence[Cell], console: Console) -> None:
    """masked.<method>: test accuracy over the splits; passes.<method>: evaluations of the loss."""
    found = {name: [cell for cell in cells if cell.name == f"masked {name}"] for name in MASKED}
    values = {name: scores(some) for name, some in found.items()}
    task, origin = masked_task(cfg)
    run.metrics["masked"] = {name: over_seeds(some) for name, some in values.items()}
    run.metrics["masked_task"] = {"name": task, "from": origin}
    table = Table("method", "accuracy x 100", title=f"{task}, K=16, mean (std) of {len(cfg.masked.seeds)} splits",
                  title_justify="left")  # fmt: skip
    for name, some in values.items():
        table.add_row(MASKED[name][0], f"{100 * np.mean(some):.1f} ({100 * np.std(some):.1f})")
    console.print(table)
    lines = {MASKED[name][0]: read_metrics(found[name][0].folder / "steps.jsonl") for name in ("mezo", "mezo_n4")}
    run.save_plot(
        "steps",
        plots.loss_and_gradient(lines["MeZO"]),
        caption=f"MeZO on {task}: the loss at theta + eps z, and the projected gradient, along the first split's run.",
    )
    curves, metric = {}, found["mezo"][0].results["metric"]
    for name in ("mezo", "mezo_lora", "mezo_prefix", "mezo_n4", "mezo_no_prompt"):
        passes = 2 * (4 if name == "mezo_n4" else 1)
        runs = [read_metrics(cell.folder / "evaluations.jsonl") for cell in found[name]]
        curves[MASKED[name][0]] = [
            (passes * lines[0]["step"], float(np.mean([line[metric] for line in lines])))
            for lines in zip(*runs, strict=True)
        ]
    run.save_plot(
        "forward_passes",
        plots.forward_pass_efficiency(curves),
        caption=f"Dev accuracy on {task} against forward passes of the batch, mean of the splits (Table 6, Figure 5).",
    )


def report_causal(cfg: DictConfig, run: Run, cells: Sequence[Cell], console: Console) -> None:
    """causal.<task>.<method>: accuracy, or F1 of house-answer, over the seeds; causal.average.<method>."""
    table = Table("", *cfg.causal.tasks, title="a causal model made on the spot, x 100", title_justify="left")
    found: dict[str, dict[str, list[float]]] = {}
    for name, (title, _) in CAUSAL.items():
        for task in cfg.causal.tasks:
            some = [cell for cell in cells if cell.name == f"{task} {name}"]
            found.setdefault(task, {})[name] = scores(some)
        row = [found[task][name] for task in cfg.causal.tasks]
        table.add_row(title, *(f"{100 * np.mean(v):.1f} ({100 * np.std(v):.1f})" for v in row))
    console.print(table)
    average = {name: list(np.mean([found[task][name] for task in found], axis=0)) for name in CAUSAL}
    run.metrics["causal"] = {
        task.replace("-", "_"): {name: over_seeds(v) for name, v in of_task.items()} for task, of_task in found.items()
    } | {"average": {name: over_seeds(values) for name, values in average.items()}}


def report_memory(cfg: DictConfig, run: Run, folder: Path, console: Console) -> None:
    """memory.<way>: bytes by size, measured once and kept; memory.ratio.<way>: over inference at the largest size."""
    measured: dict[str, list[dict[str, int]]] = {}
    for way in FAMILIES:
        for layers in cfg.memory.layers:
            sizes = Sizes(layers=layers, rows=cfg.memory.rows, tokens=cfg.memory.tokens)
            path = folder / "memory" / f"{way}-{layers}.json"
            if not path.is_file():
                write_atomic(path, json.dumps(peak(way, sizes)) + "\n")
            measured.setdefault(way, []).append(json.loads(path.read_text("utf-8")))
    largest = {way: some[-1]["peak"] for way, some in measured.items()}
    ratio = {way: value / largest["inference"] for way, value in largest.items()}
    formula = {way: [formula_bytes(way, cfg, layers) for layers in cfg.memory.layers] for way in FAMILIES}
    run.metrics["memory"] = {
        "bytes": measured,
        "formula": formula,
        "ratio": {way.replace("-", "_"): value for way, value in ratio.items()},
        "parameters": measured["inference"][-1]["parameters"],
    }
    count = measured["inference"][-1]["parameters"]
    title = f"{count / 1e6:.0f}M fp32 parameters, {cfg.memory.rows} x {cfg.memory.tokens} tokens"
    table = Table("", "peak, MB", "over inference", "formula, MB", title=title, title_justify="left")
    for way, title in FAMILIES.items():
        table.add_row(title, f"{largest[way] / 1e6:.0f}", f"{ratio[way]:.2f}", f"{formula[way][-1] / 1e6:.0f}")
    console.print(table)
    run.save_plot(
        "memory",
        plots.memory_against_size(
            {FAMILIES[way]: [(one["parameters"], one["peak"]) for one in some] for way, some in measured.items()},
            {FAMILIES[way]: values for way, values in formula.items()},
        ),
        caption="Peak memory against the size of the model, measured (dots) and by formula (lines): Figure 3 on a CPU.",
    )


def formula_bytes(way: str, cfg: DictConfig, layers: int) -> float:
    """`mezo.costs.step_memory` for the model of `mezo.memory`, weights in fp32."""
    sizes = Sizes(layers=layers)
    model = Dimensions(sizes.vocabulary, 514, sizes.hidden, layers)
    trainer = {"inference": "none", "mezo-full": "zo", "adam-full": "adam"}[way]
    return step_memory(model, "full", trainer, cfg.memory.rows * cfg.memory.tokens, weight_bytes=4)


def report_precision(cfg: DictConfig, run: Run, folder: Path, console: Console) -> None:
    """precision.<weights>_<loss>: what `mezo.precision.compare` says."""
    path = folder / "precision.json"
    if not path.is_file():
        found = {}
        for weights, loss_dtype in KINDS:
            overrides = [f"task={cfg.causal.tasks[0]}", f"model={cfg.causal.model}", f"dtype={weights}"]
            overrides += [f"loss_dtype={loss_dtype}", "data.num_train=16", "data.num_dev=1", "data.num_test=1"]
            problem, _ = build_problem(composed(Cell("precision", 0, folder, tuple(overrides))))
            batch = problem.prepare(range(problem.count))
            seeds = range(cfg.precision.directions)
            found[weights, loss_dtype] = projected_gradients(
                problem.model, partial(loss_alone, problem, batch), seeds, eps=1e-3
            )
        write_atomic(path, json.dumps(compare(found)) + "\n")
    lines = json.loads(path.read_text("utf-8"))
    run.metrics["precision"] = {f"{line['weights']}_{line['loss']}": line for line in lines}
    table = Table("weights", "loss in", f"distinct of {cfg.precision.directions}", "zero", "correlation with fp32",
                  title="projected gradients, eps 1e-3", title_justify="left")  # fmt: skip
    for line in lines:
        table.add_row(line["weights"], line["loss"], str(line["distinct"]), str(line["zero"]),
                      f"{line['correlation']:.4f}")  # fmt: skip
    console.print(table)


def loss_alone(problem: Any, batch: Any) -> torch.Tensor:
    return problem.loss(batch)[0]


def report_replay(run: Run, cells: Sequence[Cell], console: Console) -> None:
    """replay.identical: half of a MeZO run, trained once more and replayed from the run's file, has the same bits."""
    cell = next(cell for cell in cells if cell.name == "masked mezo")
    path = cell.folder / TRAJECTORY
    whole, part = (build_problem(composed(cell))[0].model for _ in range(2))
    count = replay(whole, path)
    replay(part, path, steps=count // 2)
    identical = same(part, trained_weights(cell, count // 2)) and not same(part, dict(trainable(whole)))
    parameters = sum(tensor.numel() for _, tensor in trainable(whole))
    size = path.stat().st_size
    run.metrics["replay"] = {
        "identical": float(identical), "steps": count, "bytes": size, "parameters": parameters,
    }  # fmt: skip
    console.print(
        f"replay: the file of {count} steps ({size:,} bytes) gives the {4 * parameters:,} bytes of trained weights "
        + ("bit for bit" if identical else "but NOT to the bit"),
        highlight=False,
    )
    runs = {
        "this run": (count, 4.0 * parameters),
        "OPT-13B, 20,000 steps": (20_000, 2.0 * MODELS["opt-13b"].parameters),
    }
    run.save_plot(
        "trajectory_size",
        plots.trajectory_size(RECORD_BYTES, runs),
        caption="A fine-tuned model as a file of scalars: bytes of the trajectory and of the weights it stands for.",
    )


def trained_weights(cell: Cell, steps: int) -> dict[str, torch.Tensor]:
    """The weights after `steps` steps as training leaves them: the run's own loop, without its file."""
    cfg = composed(cell)
    problem, build = build_problem(cfg)
    loop = ZeroOrderTraining(problem, Base(problem.model, build, lambda _: None), cfg, cell.folder, (0, 1), {})
    optimizer = loop.optimizer(None)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = float(cfg.lr)
        optimizer.step(loop.closure(step))
    return dict(trainable(problem.model))


def same(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, weights[name]) for name, tensor in trainable(model))


@entrypoint(config_name="reproduce")
def main(cfg: DictConfig) -> None:
    seeds = sorted({*cfg.masked.seeds, *cfg.causal.seeds})
    run = Run(cfg.paper, cfg.experiment, cfg.scale, cfg.output_dir, cfg, seeds)
    console = Console()
    if masked_task(cfg)[1] == "house":
        console.print("The paper's few-shot splits are not on this machine: a task of this project takes their place.")
    processes = cfg.processes or len(os.sched_getaffinity(0))
    # Both models are trained now, side by side, if they are not cached; runs are given their folders, since finding out
    # whether a cached model is the right one means to put its training text together.
    folders = dict(spread(folder_of, [cfg.masked.model, cfg.causal.model], processes))
    cfg.masked.model, cfg.causal.model = str(folders[0]), str(folders[1])
    masked, causal = masked_cells(cfg, run.output_dir), causal_cells(cfg, run.output_dir)
    run_all([*masked, *causal], processes)
    report_masked(cfg, run, masked, console)
    report_causal(cfg, run, causal, console)
    report_precision(cfg, run, run.output_dir, console)
    report_replay(run, masked, console)
    report_memory(cfg, run, run.output_dir, console)
    run.finish(console)
    console.print(f"everything: {run.output_dir}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
