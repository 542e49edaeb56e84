"""`python -m mlm_masking.plan gpu=H200`: what the paper-scale experiments download, compute, hold in memory and take,
and what this machine lacks for them. Estimates, from these formulas:

    parameters  embedding, positions, layers, tied head (exact)
    FLOPs       pre-training, per token of a row: 6 x (layers' matrices + m_pred / copies x (d^2 + d V)) + attention's
                12 L d a layer; times tokens, times the copies that m_pred > m_corr needs
                fine-tuning: 6 x layers' matrices x tokens of an example x examples x epochs, for every cell of the grid
                minimal pairs: 2 x (layers' matrices x tokens + d V) for each masked copy
    memory      16 bytes per parameter (fp32 weights, gradients, Adam's two moments) + 2 (the bf16 copy autocast makes)
                + 34 bytes x d per token and layer of one forward pass (Korthikanti et al., 2022, fused attention); the
                loss holds no logits but one chunk
    hours       FLOPs / (GPUs x dense bf16 peak x utilisation); start-up, evaluation and data preparation not counted

The experiments and their settings are read from configs/experiment (pre-training) and configs/evaluation (what is done
with the models), so the plan is of what would run.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table

from mlm_masking.encoders import PAPER
from mlm_masking.grid import grid_points
from mlm_masking.masker import read_rates
from mlm_masking.rates import copies_needed
from shared import InputError
from shared.launch import entrypoint
from shared.plan import (
    GPU,
    availability,
    check_numbers,
    chosen_gpu,
    composing,
    deliver,
    download_bytes,
    experiment_files,
    machine_lacks,
    print_lacks,
    runs_of,
)
from shared.sources import sources
from shared.training import runs_root

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
VOCABULARY = 50_265
SQUAD_QUESTIONS = 87_599
BLIMP = {"sentences": 67 * 2 * 1000, "tokens": 10}  # 67 paradigms of 1,000 pairs; tokens of a sentence, rounded
FINETUNE_TOKENS = 32 * 128  # of one forward pass, at most on average


@dataclass(frozen=True)
class Shape:
    """A RoBERTa's dimensions."""

    layers: int
    hidden: int
    ffn: int
    positions: int = 514
    vocabulary: int = VOCABULARY

    @property
    def matrices(self) -> int:
        """Weights of the layers' matrices: what six FLOPs per token are done with."""
        return self.layers * (4 * self.hidden**2 + 2 * self.hidden * self.ffn)

    @property
    def parameters(self) -> int:
        """All parameters of the masked-LM model, head tied, no token types (as in the release)."""
        d, f = self.hidden, self.ffn
        embeddings = (self.vocabulary + self.positions) * d + 2 * d
        layer = 4 * (d * d + d) + (d * f + f) + (f * d + d) + 4 * d
        head = d * d + d + 2 * d + self.vocabulary
        return embeddings + self.layers * layer + 2 * d + head


SHAPES = {"medium": Shape(8, 512, 2048), "base": Shape(12, 768, 3072), "large": Shape(24, 1024, 4096)}


@dataclass
class Plan:
    """One configuration file: `runs` runs, summed; memory is that of its largest, in bytes. `needs`: sources;
    `after`: models that other experiments make first, and that are not here."""

    experiment: str
    kind: str
    runs: int = 0
    tokens: float = 0.0
    flops: float = 0.0
    memory: float = 0.0
    hours: float = 0.0
    needs: set[str] = field(default_factory=set)
    after: set[str] = field(default_factory=set)
    lacks: list[str] = field(default_factory=list)


# -------------------------------------------------------------------------------------------------------- pre-training


def flops_per_token(shape: Shape, length: int, predicted: float) -> float:
    """Forward and backward pass per token of a row of `length`, the head on the `predicted` share of its positions."""
    d = shape.hidden
    head = predicted * (d * d + d * shape.vocabulary)
    return 6 * (shape.matrices + head) + 12 * length * d * shape.layers


def pretraining(cfg: DictConfig, gpus: int) -> dict[str, float]:
    """Tokens, FLOPs and one process's memory of one pre-training."""
    model = cfg.model
    shape = Shape(model.num_hidden_layers, model.hidden_size, model.intermediate_size, model.max_position_embeddings)
    rates = read_rates(OmegaConf.to_container(cfg.masking), OmegaConf.to_container(cfg.rates))
    length = cfg.data.block_length
    tokens = cfg.optim.max_steps * cfg.batch_size * length
    points = [rates.at(step / 100) for step in range(101)]
    flops = sum(
        copies_needed(corrupted, predicted)
        * flops_per_token(shape, length, predicted / copies_needed(corrupted, predicted))
        for corrupted, predicted in points
    )
    rows = min(cfg.batch_size / gpus, cfg.forward_batch_size or math.inf)
    return {
        "tokens": float(tokens),
        "flops": tokens * flops / len(points),
        "memory": 18.0 * shape.parameters + 34.0 * shape.hidden * shape.layers * rows * length,
    }


def pretraining_sources(cfg: DictConfig) -> set[str]:
    """The sources a pre-training reads: text and tokenizer."""
    source = cfg.data.source
    named = [source] if isinstance(source, str) else list(source or [])
    known = sources(PAPER)
    return {name for name in [*named, cfg.data.tokenizer] if name in known}


def plan_pretraining(name: str, runs: list[DictConfig], gpus: int) -> Plan:
    """The plan of one file of configs/experiment, from the configurations of its runs."""
    plan = Plan(name, "pre-training")
    for cfg in runs:
        one = pretraining(cfg, gpus)
        plan.runs += 1
        plan.tokens += one["tokens"]
        plan.flops += one["flops"]
        plan.memory = max(plan.memory, one["memory"])
        plan.needs |= pretraining_sources(cfg)
        if cfg.masking.strategy == "pmi" and not cfg.masking.ngrams:
            plan.after.add("n-gram list (mlm_masking.pmi)")
    return plan


# ---------------------------------------------------------------------------------------- what is done with the models


def evaluation_runs(name: str) -> tuple[str, list[DictConfig], list[str]]:
    """(entrypoint, its configuration for every task, the models) of a file of configs/evaluation.

    Raises:
        InputError: the file does not say which entrypoint it is for.
    """
    text = (CONFIGS / "evaluation" / f"{name}.yaml").read_text(encoding="utf-8")
    verb = next((verb for verb in ("finetune", "squad", "probe") if f"mlm_masking.{verb} " in text), None)
    if verb is None:
        raise InputError(f"configs/evaluation/{name}.yaml: its comment does not show the command it is for")
    with composing(CONFIGS):
        whole = hydra.compose(verb, [f"evaluation={name}"], return_hydra_config=True)
        params = OmegaConf.to_container(whole.hydra.sweeper)["params"]
        values = {key: [value.strip() for value in str(choices).split(",")] for key, choices in params.items()}
        tasks = [[f"task={task}"] for task in values.get("task", [])] or [[]]
        model = values["ckpt"][0]
        runs = [hydra.compose(verb, [f"evaluation={name}", f"ckpt={model}", *task]) for task in tasks]
    return verb, runs, values["ckpt"]


def model_shape(model: str) -> Shape:
    """The dimensions of a model by its name. Raises InputError for a name without a size."""
    if model.startswith("efficient_mlm"):
        return SHAPES["large"]
    for size, shape in SHAPES.items():
        if size in model.replace("_", "-").split("/")[0].split("-"):
            return shape
    raise InputError(f"ckpt={model}: its name does not tell its size; known are {', '.join(SHAPES)}")


def cells(cfg: DictConfig, own_grid: Any) -> list[tuple[int, int]]:
    """(epochs, runs) for every point of a grid: each point with its search seeds, the best with the rest."""
    points = grid_points(OmegaConf.to_container(own_grid) if OmegaConf.is_config(own_grid) else own_grid)
    seeds = list(cfg.seeds) if cfg.seeds is not None else [cfg.seed]
    trial = seeds if cfg.search_seeds is None else list(cfg.search_seeds)
    rest = len(set(seeds) - set(trial))
    longest = max(point.epochs for point in points)
    return [(point.epochs, len(trial)) for point in points] + ([(longest, rest)] if rest else [])


def evaluations(verb: str, cfg: DictConfig, model: str, mean_tokens: DictConfig) -> Iterator[tuple[int, float, float]]:
    """(runs, tokens, FLOPs) of one model under one configuration."""
    shape = model_shape(model)
    if verb == "probe":
        tokens = BLIMP["sentences"] * BLIMP["tokens"] * (BLIMP["tokens"] + 2)
        copies = BLIMP["sentences"] * BLIMP["tokens"]
        if cfg.task.kind == "linear_probe":
            tokens, copies = sum(8_000 * mean_tokens[task] for task in cfg.task.of), 0
        yield 1, tokens, 2.0 * shape.matrices * tokens + 2.0 * copies * shape.hidden * shape.vocabulary
        return
    name, examples = (cfg.task.name, cfg.task.train_examples) if verb == "finetune" else ("squad", SQUAD_QUESTIONS)
    own_grid = cfg.task.grid if verb == "finetune" else cfg.task_grid
    for epochs, runs in cells(cfg, own_grid):
        tokens = float(runs * epochs * examples * mean_tokens[name])
        yield runs, tokens, 6.0 * shape.matrices * tokens


def plan_evaluation(name: str, mean_tokens: DictConfig) -> Plan:
    """The plan of one file of configs/evaluation."""
    verb, configs, models = evaluation_runs(name)
    plan, known = Plan(name, {"finetune": "GLUE", "squad": "SQuAD", "probe": "probe"}[verb]), sources(PAPER)
    for cfg, model in itertools.product(configs, models):
        for runs, tokens, flops in evaluations(verb, cfg, model, mean_tokens):
            plan.runs += runs
            plan.tokens += tokens
            plan.flops += flops
        shape = model_shape(model)
        activations = 34.0 * shape.hidden * shape.layers * FINETUNE_TOKENS
        plan.memory = max(plan.memory, (18.0 if verb != "probe" else 4.0) * shape.parameters + activations)
        if model in known:
            plan.needs.add(model)
        elif not (runs_root() / PAPER / "paper" / model).exists():
            plan.after.add(model.split("/")[0])
        plan.needs |= data_sources(verb, cfg)
    return plan


def data_sources(verb: str, cfg: DictConfig) -> set[str]:
    """The data an evaluation reads: of several places the first, the paper's."""
    if verb == "squad":
        return {"squad"}
    if verb == "finetune":
        return {cfg.task.data[0].source}
    return {"blimp"} if cfg.task.kind == "minimal_pairs" else {f"glue_{task}" for task in cfg.task.of}


# -------------------------------------------------------------------------------------------------------------- output


def make_plan(cfg: DictConfig) -> tuple[list[Plan], dict[str, str | None], list[str]]:
    """All plans, what is missing of their sources, and what the machine lacks.

    Raises:
        InputError: an unknown GPU or experiment, or a number outside its range.
    """
    gpu = chosen_gpu(cfg.gpu)
    check_numbers(cfg, fractions=("utilisation", "small_utilisation"), counts=("gpus",))
    trained = experiment_files(CONFIGS)
    evaluated = sorted(path.stem for path in (CONFIGS / "evaluation").glob("*.yaml") if path.stem != "paper")
    wanted = [*trained, *evaluated] if cfg.experiments is None else list(cfg.experiments)
    if unknown := sorted(set(wanted) - set(trained) - set(evaluated)):
        raise InputError(
            f"experiments: there is no {', '.join(unknown)}; there are {', '.join([*trained, *evaluated])}"
        )
    plans = []
    for name in wanted:
        if name in trained:
            runs = runs_of(CONFIGS, name)
            if runs[0].scale != "paper":
                continue
            plans.append(plan_pretraining(name, runs, cfg.gpus))
        else:
            plans.append(plan_evaluation(name, cfg.mean_tokens))
    missing = availability(cfg.paper, set().union(*(plan.needs for plan in plans)))
    for plan in plans:
        finish(plan, gpu, cfg, missing)
    return plans, missing, machine_lacks(cfg.gpu, cfg.gpus, download_bytes(cfg.paper, missing))


def finish(plan: Plan, gpu: GPU, cfg: DictConfig, missing: dict[str, str | None]) -> None:
    """Fill in hours, and what is lacking."""
    utilisation = cfg.utilisation if plan.kind == "pre-training" else cfg.small_utilisation
    plan.hours = plan.flops / (gpu.tflops * 1e12 * utilisation * cfg.gpus) / 3600
    plan.lacks = [name for name in sorted(plan.needs) if missing[name]]
    if plan.memory > gpu.memory_gb * 1e9:
        plan.lacks.append(f"memory of {cfg.gpu} (lower forward_batch_size)")


def print_plan(plans: list[Plan], missing: dict[str, str | None], general: list[str], cfg: DictConfig) -> None:
    """The table, what is missing, and the assumptions."""
    console = Console()
    console.print(
        f"scale paper on {cfg.gpus} x {cfg.gpu}, at {cfg.utilisation:.0%} of peak (after pre-training "
        f"{cfg.small_utilisation:.0%}): billion tokens, GB of one GPU, hours",
        soft_wrap=True,
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("experiment", "kind"):
        table.add_column(name, no_wrap=True)
    for name in ("runs", "tokens", "FLOP", "GB", "hours", "here"):
        table.add_column(name, justify="right", no_wrap=True)
    for plan in plans:
        row = (str(plan.runs), f"{plan.tokens / 1e9:,.1f}", f"{plan.flops:.1e}", f"{plan.memory / 1e9:.0f}")
        here = "no" if plan.lacks or plan.after else "yes"
        table.add_row(plan.experiment, plan.kind, *row, f"{plan.hours:,.1f}", here)
    table.add_section()
    runs, flops, hours = (sum(getattr(plan, name) for plan in plans) for name in ("runs", "flops", "hours"))
    table.add_row("all", "", str(runs), "", f"{flops:.1e}", "", f"{hours:,.1f}", "")
    console.print(table)
    warn = {"style": "yellow", "highlight": False, "soft_wrap": True}
    for plan in plans:
        for name in plan.lacks:
            if name not in missing:
                console.print(f"  lacking: {plan.experiment}: {name}", **warn)
        if plan.after:
            first = ", ".join(sorted(plan.after)[:2]) + (", ..." if len(plan.after) > 2 else "")
            console.print(f"  first: {plan.experiment} waits for {first}", **warn)
    print_lacks(console, general, missing)
    console.print(
        "Estimates; formulas at the top of mlm_masking/plan.py. Runs that several experiments share are made once "
        "(a finished one is not run again) and counted in each.",
        style="dim",
        soft_wrap=True,
    )


@entrypoint(config_name="plan")
def main(cfg: DictConfig) -> None:
    plans, missing, general = make_plan(cfg)
    rows = [{**asdict(plan), "needs": sorted(plan.needs), "after": sorted(plan.after)} for plan in plans]
    assumptions = {name: cfg[name] for name in ("gpus", "utilisation", "small_utilisation")}
    assumptions["mean_tokens"] = OmegaConf.to_container(cfg.mean_tokens)
    deliver(cfg, rows, missing, general, assumptions, lambda: print_plan(plans, missing, general, cfg))


if __name__ == "__main__":
    main()
