"""`python -m lm_bff.plan gpu=H100`: how many trials the paper's tables take, and what they cost.

    trials   columns x five splits x the grid of nine points, for methods that train; one per split else
    tokens   training: 1,000 updates x the grid's mean batch x prompt; evaluation: dev ten times and test once, times
             the draws of demonstrations. Prompts are PROMPT tokens per sentence, times 1 + classes with demonstrations
    FLOPs    6 x block parameters x training tokens + 2 x block parameters x evaluated tokens (the head is gathered at
             one position: nothing)
    memory   16 bytes per parameter (fp32 weights, gradients, Adam) + 4 for the best weights kept + activations of a
    batch hours    FLOPs / (peak x utilisation x GPUs) + 20 s of start-up per model and process are not counted

Which trials make a row is read from configs/paper_tables.yaml, so the plan is of what would be gathered. Searches for
templates (T5-3B, about 15 GB, minutes per task and split) and label words (seconds) come on top.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from omegaconf import DictConfig
from rich import box
from rich.console import Console
from rich.table import Table

from lm_bff.settings import TRAINED
from lm_bff.tables import read_specification
from lm_bff.tasks import get_task
from shared import InputError
from shared.launch import entrypoint
from shared.plan import (
    GPU,
    availability,
    check_numbers,
    chosen_gpu,
    deliver,
    download_bytes,
    machine_lacks,
    print_lacks,
)

SEEDS, GRID, STEPS, MEAN_BATCH, EVALUATIONS = 5, 9, 1000, (2 + 4 + 8) / 3, 10
PROMPT = 40  # tokens of one sentence with its share of the template; the tasks' first prompts have 11 to 125
BLOCKS = {"roberta-large": 302.3e6, "bert-large-uncased": 302.3e6}
PARAMETERS = {"roberta-large": 355.4e6 + 51.5e6, "bert-large-uncased": 335.2e6 + 31.3e6}  # with the untied decoder
# Test examples per task as the paper evaluates them (the dev sets of GLUE and SNLI).
TEST = {
    "sst-2": 872, "sst-5": 2210, "mr": 2000, "cr": 2000, "mpqa": 2000, "subj": 2000, "trec": 500, "cola": 1042,
    "mnli": 9815 + 9832, "snli": 9842, "qnli": 5463, "rte": 277, "mrpc": 408, "qqp": 40431, "sts-b": 1500,
}  # fmt: skip
ENSEMBLE = {"pet": 4, "ensemble-same": 4, "ensemble-same-demo": 4, "ensemble-20": 20, "ensemble-20-demo": 20}


@dataclass
class Plan:
    """One row of a table: trials over its columns, FLOPs summed, memory of one trial in bytes."""

    table: str
    row: str
    model: str
    trials: int = 0
    flops: float = 0.0
    memory: float = 0.0
    hours: float = 0.0
    needs: set[str] = field(default_factory=set)


def plan_row(
    table: str, row: str, columns: list[dict[str, Any]], where: dict[str, Any], gpu: GPU, cfg: DictConfig
) -> Plan:
    """The cost of one row, summed over its columns."""
    model = where.get("model", "roberta-large")
    method, members = where.get("method", "prompt"), ENSEMBLE.get(where.get("experiment"), 1)
    demonstrated = method == "prompt-demo" or str(where.get("experiment", "")).endswith("-demo")
    plan = Plan(table, row, model, needs={model, "k-shot"})
    if isinstance(where.get("settings.filter"), str) and where["settings.filter"] != model:
        plan.needs.add(where["settings.filter"])
    k = int(where.get("k", 16))
    block = BLOCKS[model]
    for column in columns:
        if column.get("test"):  # another test set of trials that are counted already
            continue
        task = get_task(column["task"])
        classes = len(task.labels)
        trained = method in TRAINED or method == "ensemble"
        length = PROMPT * task.num_sentences * (1 + (classes if demonstrated else 0))
        if method == "icl":
            length = 512
        draws = task.num_sample if demonstrated else 1
        trials = SEEDS * (GRID if trained else 1) * members
        if method == "majority":
            trials, length = SEEDS, 0
        training = STEPS * MEAN_BATCH * length if trained else 0
        evaluated = (EVALUATIONS * k * classes if trained else k * classes) + TEST[task.name]
        plan.trials += trials
        plan.flops += trials * block * (6 * training + 2 * evaluated * draws * length)
        plan.memory = max(plan.memory, 20 * PARAMETERS[model] + 34 * 1024 * 24 * 8 * length)
    plan.hours = plan.flops / (gpu.tflops * 1e12 * cfg.utilisation * cfg.gpus) / 3600
    return plan


def make_plan(cfg: DictConfig) -> tuple[list[Plan], dict[str, str | None], list[str]]:
    """All rows, what is missing of their sources, and what the machine lacks.

    Raises:
        InputError: an unknown GPU or table, or a number outside its range.
    """
    gpu = chosen_gpu(cfg.gpu)
    check_numbers(cfg, fractions=("utilisation",), counts=("gpus",))
    specification = read_specification()
    names = list(specification if cfg.tables is None else cfg.tables)
    if unknown := [name for name in names if name not in specification]:
        raise InputError(f"tables={unknown[0]} is unknown; there are {', '.join(specification)}")
    plans = []
    for name in names:
        table = specification[name]
        for row, content in table["rows"].items():
            if "where" in content:
                where = {**table.get("where", {}), **content["where"]}
                plans.append(plan_row(name, row, table["columns"], where, gpu, cfg))
    missing = availability(cfg.paper, set().union(*(plan.needs for plan in plans)))
    return plans, missing, machine_lacks(cfg.gpu, cfg.gpus, download_bytes(cfg.paper, missing))


def print_plan(plans: list[Plan], missing: dict[str, str | None], general: list[str], cfg: DictConfig) -> None:
    """One line per row and a sum per table, then what is missing."""
    console = Console()
    console.print(f"scale paper on {cfg.gpus} x {cfg.gpu}, estimated at {cfg.utilisation:.0%} of peak", highlight=False)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("table", "row"):
        table.add_column(name, no_wrap=True)
    for name in ("trials", "FLOP", "memory", "hours"):
        table.add_column(name, justify="right", no_wrap=True)
    for plan in plans:
        table.add_row(plan.table, plan.row, f"{plan.trials:,}", f"{plan.flops:.1e}", f"{plan.memory / 1e9:.0f} GB",
                      f"{plan.hours:.2f}")  # fmt: skip
    table.add_section()
    table.add_row("all", "", f"{sum(p.trials for p in plans):,}", f"{sum(p.flops for p in plans):.1e}", "",
                  f"{sum(p.hours for p in plans):.1f}")  # fmt: skip
    console.print(table)
    print_lacks(console, general, missing)
    console.print(
        "Rows of several tables share trials, which are run once: the sum is an upper bound. See lm_bff/plan.py.",
        style="dim",
        soft_wrap=True,
    )


@entrypoint(config_name="plan")
def main(cfg: DictConfig) -> None:
    plans, missing, general = make_plan(cfg)
    rows = [{**asdict(plan), "needs": sorted(plan.needs)} for plan in plans]
    assumptions = {"gpus": cfg.gpus, "utilisation": cfg.utilisation}
    deliver(cfg, rows, missing, general, assumptions, lambda: print_plan(plans, missing, general, cfg))


if __name__ == "__main__":
    main()
