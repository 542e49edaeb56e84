"""`python -m mezo.plan gpu=H200`: what the paper's tables take: runs, FLOPs, memory of one run, hours, trajectories.

The formulas are in `mezo.costs`; settings are read from configs/experiment, so the plan is of what would run. What is
assumed beside them:

    tokens      per example and task, LENGTHS: SST-2's 30 and MultiRC's 400 are the paper's setting, the others are
                averages as the data sets' texts have them, rounded; a masked model's prompt is PROMPT per sentence
    evaluation  dev five times (masked: ten) and dev and test at the end, one forward pass per example; generated
                answers cost one pass per token more, 50 at most
    Adam        counts backward passes and its states; candidates are rows of their own there, as in training
    zo.scale_by with scale_when=epoch: at the first step of every epoch two forward passes per block (zo_norm), or a
                forward and a backward pass (gradient_norm)
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import ceil
from pathlib import Path

from omegaconf import DictConfig
from rich import box
from rich.console import Console
from rich.table import Table

from mezo.costs import RECORD_BYTES, dimensions, step_flops, step_memory, step_seconds
from mezo.tasks import TASKS as CAUSAL_TASKS
from shared import InputError
from shared.launch import entrypoint
from shared.plan import (
    GPU,
    availability,
    check_numbers,
    chosen_experiments,
    chosen_gpu,
    counted_runs_of,
    deliver,
    download_bytes,
    machine_lacks,
    print_lacks,
)

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
LENGTHS = {
    "sst2": 30, "rte": 95, "cb": 110, "boolq": 150, "wsc": 60, "wic": 50, "multirc": 400, "copa": 25, "record": 290,
    "squad": 220, "drop": 320,
}  # fmt: skip
CLASSES = {"sst-2": 2, "sst-5": 5, "snli": 3, "mnli": 3, "rte": 2, "trec": 6}
PAIRS = {"snli", "mnli", "rte"}
PROMPT = 40
DEMONSTRATION_LIMIT = 2048
ALIKE = frozenset({"lr", "eps", "weight_decay", "data.seed"})  # what costs the same
OTHER_BLOCKS = 3  # beside the layers: embeddings, head, the rest
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass
class Plan:
    """One experiment file: its runs summed; memory (bytes) is that of its largest run."""

    experiment: str
    model: str
    runs: int = 0
    steps: int = 0
    flops: float = 0.0
    memory: float = 0.0
    hours: float = 0.0
    trajectories: float = 0.0
    needs: set[str] = field(default_factory=set)
    lacks: list[str] = field(default_factory=list)


def estimates_of(cfg: DictConfig) -> float:
    """Directions per step, averaged over the run's schedule."""
    n = int(cfg.zo.n)
    if cfg.trainer != "zo":
        return 0
    if cfg.zo.n_schedule == "linear":
        return sum(max(1, int(step / cfg.steps * n)) for step in range(cfg.steps)) / cfg.steps
    return n


def measuring(cfg: DictConfig, examples: int, layers: int) -> float:
    """Forward passes per step that go into measuring step lengths again in every epoch (a backward pass counts two)."""
    zo = cfg.zo
    if cfg.trainer != "zo" or zo.scale_by is None or zo.scale_when != "epoch":
        return 0.0
    once = {"zo_norm": 2 * (layers + OTHER_BLOCKS), "gradient_norm": 3, "parameter_norm": 0}[zo.scale_by]
    return once / ceil(examples / int(cfg.batch_size))


def tokens_of(cfg: DictConfig) -> tuple[int, int, int, int]:
    """(tokens of an example, training, dev, test examples) of a run. Raises InputError for an unknown task."""
    if cfg.family == "masked":
        if cfg.task not in CLASSES:
            raise InputError(f"task={cfg.task}: its length is not listed; known: {', '.join(CLASSES)}")
        few = int(cfg.data.k) * CLASSES[cfg.task]
        return PROMPT * (2 if cfg.task in PAIRS else 1), few, few, 1000
    if cfg.task not in LENGTHS:
        raise InputError(f"task={cfg.task}: its length is not listed; known: {', '.join(LENGTHS)}")
    task = CAUSAL_TASKS[cfg.task]
    demonstrations = min(int(cfg.get("evaluation", {}).get("num_demos", 0)) * LENGTHS[cfg.task], DEMONSTRATION_LIMIT)
    dev = task.num_dev if cfg.data.num_dev is None else int(cfg.data.num_dev)
    return LENGTHS[cfg.task] + demonstrations, int(cfg.data.num_train), dev, int(cfg.data.num_test)


def add_runs(plan: Plan, cfg: DictConfig, count: int, gpu: GPU, gpus: int, utilisation: float) -> None:
    """Add the cost of `count` runs of this kind to their experiment's."""
    model, width = dimensions(cfg.model), BYTES[cfg.dtype]
    length, train, dev, test = tokens_of(cfg)
    directions = estimates_of(cfg)
    trains = cfg.trainer in ("zo", "adam", "sgd")
    steps, batch = (int(cfg.steps), int(cfg.batch_size)) if trains else (0, 16)
    mode, trainer = cfg.mode.kind, cfg.trainer
    one = {"gpu": gpu, "utilisation": utilisation, "weight_bytes": width, "gpus": gpus}
    seconds = steps * step_seconds(model, mode, trainer, batch * length, estimates=max(1, ceil(directions)), **one)
    if trainer == "zo" and directions != ceil(directions):
        seconds *= directions / ceil(directions)
    flops = steps * step_flops(model, trainer, batch * length) * (directions if trainer == "zo" else 1)
    measured = steps * measuring(cfg, train, model.layers)
    seconds += measured * step_seconds(model, mode, "none", batch * length, **one)
    flops += measured * step_flops(model, "none", batch * length)
    generated = 50 if cfg.family != "masked" and CAUSAL_TASKS[cfg.task].kind == "generation" else 0
    rounds = (10 if cfg.family == "masked" else 5) if trains else 0
    examples = rounds * dev + (dev if "dev" in cfg.final else 0) + test
    flops += examples * step_flops(model, "none", length + generated)
    batches = examples / batch
    seconds += batches * step_seconds(model, mode, "none", batch * length, **one)
    if generated:  # every token reads the weights once per batch
        seconds += batches * generated * step_seconds(model, mode, "none", batch, **one)
    plan.runs += count
    plan.steps += count * steps
    plan.flops += count * flops
    plan.hours += count * seconds / 3600
    plan.memory = max(plan.memory, step_memory(model, mode, trainer, batch * length, width))
    if trainer == "zo" and cfg.zo.scale_by == "gradient_norm":  # one backward pass is as large as SGD's
        plan.memory = max(plan.memory, step_memory(model, mode, "sgd", batch * length, width))
    if trainer == "zo":
        plan.trajectories += count * RECORD_BYTES * steps * max(1, directions)
    masked = cfg.family == "masked"
    plan.needs |= {str(cfg.model).rsplit("/", 1)[-1], *(() if masked else (CAUSAL_TASKS[cfg.task].source,))}


def plan_experiment(name: str, gpu: GPU, cfg: DictConfig) -> Plan:
    """One experiment file at scale paper, every point of its grid."""
    runs = counted_runs_of(CONFIGS, name, ("scale=paper",), alike=ALIKE)
    plan = Plan(name, str(runs[0][0].model))
    for run, count in runs:
        add_runs(plan, run, count, gpu, cfg.gpus, cfg.utilisation)
    held = gpu.memory_gb * 1e9 * cfg.gpus
    if plan.memory > held:
        cards = ceil(plan.memory / (gpu.memory_gb * 1e9))
        plan.lacks.append(f"{plan.memory / 1e9:.0f} GB do not fit {cfg.gpus} x {cfg.gpu}: gpus={cards}")
    return plan


def make_plan(cfg: DictConfig) -> tuple[list[Plan], dict[str, str | None], list[str]]:
    """All experiments, what is missing of their sources, and what the machine lacks.

    Raises:
        InputError: an unknown GPU or experiment, or a number outside its range.
    """
    gpu = chosen_gpu(cfg.gpu)
    check_numbers(cfg, fractions=("utilisation",), counts=("gpus",))
    plans = [plan_experiment(name, gpu, cfg) for name in chosen_experiments(CONFIGS, cfg.experiments)]
    missing = availability(cfg.paper, set().union(*(plan.needs for plan in plans)))
    return plans, missing, machine_lacks(cfg.gpu, cfg.gpus, download_bytes(cfg.paper, missing))


def print_plan(plans: list[Plan], missing: dict[str, str | None], general: list[str], cfg: DictConfig) -> None:
    """One line per experiment, the sum, then what is missing."""
    console = Console()
    console.print(f"scale paper on {cfg.gpus} x {cfg.gpu}, estimated at {cfg.utilisation:.0%} of peak", highlight=False)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("experiment", "model"):
        table.add_column(name, no_wrap=True)
    for name in ("runs", "FLOP", "memory", "hours", "trajectory"):
        table.add_column(name, justify="right", no_wrap=True)
    for plan in plans:
        each = f"{plan.trajectories / plan.runs / 1e3:.0f} kB" if plan.trajectories else ""
        table.add_row(plan.experiment, plan.model.rsplit("/", 1)[-1], f"{plan.runs:,}", f"{plan.flops:.1e}",
                      f"{plan.memory / 1e9:.0f} GB", f"{plan.hours:.1f}", each)  # fmt: skip
    table.add_section()
    table.add_row("all", "", f"{sum(p.runs for p in plans):,}", f"{sum(p.flops for p in plans):.1e}", "",
                  f"{sum(p.hours for p in plans):,.0f}", "")  # fmt: skip
    console.print(table)
    for plan in plans:
        for line in plan.lacks:
            console.print(f"  {plan.experiment}: {line}", style="yellow", highlight=False)
    print_lacks(console, general, missing)
    console.print("Estimates from the formulas in mezo/costs.py and mezo/plan.py.", style="dim", soft_wrap=True)


@entrypoint(config_name="plan")
def main(cfg: DictConfig) -> None:
    plans, missing, general = make_plan(cfg)
    rows = [{**asdict(plan), "needs": sorted(plan.needs)} for plan in plans]
    assumptions = {"gpus": cfg.gpus, "utilisation": cfg.utilisation}
    deliver(cfg, rows, missing, general, assumptions, lambda: print_plan(plans, missing, general, cfg))


if __name__ == "__main__":
    main()
