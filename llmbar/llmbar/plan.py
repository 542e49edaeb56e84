"""`python -m llmbar.plan gpu=H100`: what the experiments ask, download, hold in memory and take; what is missing here.

The questions are counted by running every strategy with stand-in answers (`generating.planned_requests`), so sharing
is in the count, and every first stage is taken to end in a conflict: upper bounds. The rest are estimates:

    tokens   bytes / 4 of the prompts (English under today's vocabularies), and every answer at its limit
    new      prompt tokens that prefix caching leaves to compute: each prompt, in sorted order, less what it shares with
             the one before it
    weights  2 bytes per parameter, 1 under an 8-bit quantization
    at once  sequences of mean length whose KV cache fits beside the weights, `batch` at most
    hours    reading: 2 x active parameters x new tokens / (GPUs x peak x utilisation); writing: the weights are read
             once per token of all sequences at once, at `bandwidth` of the memory's. Start-up is not counted.

With a model's tokenizer on this machine, `python -m llmbar.evaluate experiment=NAME dry_run=true` counts exactly.
"""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table

from llmbar.data import HOUSE, HOUSE_FOLDER, RELEASED, Sets, load_sets
from llmbar.generating import by_family, planned_requests
from llmbar.judges import PromptJudge
from llmbar.locations import data_folder, prompt_folder
from llmbar.prompts import read_templates
from llmbar.strategies import from_config
from shared import InputError, hub
from shared.generation import Price, Request
from shared.launch import entrypoint
from shared.plan import (
    GPU,
    availability,
    check_numbers,
    chosen_experiments,
    chosen_gpu,
    deliver,
    download_bytes,
    machine_lacks,
    print_lacks,
    runs_of,
)

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
BYTES_PER_TOKEN = 4
MEMORY_USED = 0.9


@dataclass(frozen=True)
class Model:
    """Parameters (all, and active per token) and KV cache dimensions, as in the published configuration."""

    parameters: float
    layers: int
    kv_heads: int
    head_size: int
    active: float | None = None

    def kv_bytes(self, tokens: float) -> float:
        """Keys and values of `tokens` positions in 16 bits."""
        return tokens * 2 * 2 * self.layers * self.kv_heads * self.head_size


MODELS = {
    "meta-llama/Llama-2-70b-chat-hf": Model(68.98e9, 80, 8, 128),
    "tiiuae/falcon-180B-chat": Model(179.52e9, 80, 8, 64),
    "meta-llama/Llama-3.1-8B-Instruct": Model(8.03e9, 32, 8, 128),
    "meta-llama/Llama-3.3-70B-Instruct": Model(70.55e9, 80, 8, 128),
    "Qwen/Qwen2.5-72B-Instruct": Model(72.71e9, 80, 8, 128),
    "Qwen/Qwen3-30B-A3B-Instruct-2507": Model(30.53e9, 48, 4, 128, active=3.35e9),
    "google/gemma-2-27b-it": Model(27.23e9, 46, 16, 128),
    "Skywork/Skywork-Reward-Llama-3.1-8B-v0.2": Model(7.5e9, 32, 8, 128),
    "alpacafarm": Model(6.74e9, 32, 32, 128),
}


class Asked(NamedTuple):
    """Counts of calls and tokens, in the order of `Plan`'s fields."""

    calls: int
    naive_calls: int
    prompt_tokens: float
    new_prompt_tokens: float
    answer_tokens: int


@dataclass
class Plan:
    """One experiment. `weights` in bytes over all its GPUs; `money` as (no answers, all at their limit)."""

    experiment: str
    model: str
    gpus: int
    calls: int
    naive_calls: int
    prompt_tokens: int
    new_prompt_tokens: int
    answer_tokens: int
    weights: float | None = None
    at_once: int | None = None
    hours: float | None = None
    money: tuple[float, float] | None = None
    lacks: list[str] = field(default_factory=list)


def plan_experiment(name: str, cfg: DictConfig, gpu: GPU, assume: DictConfig) -> Plan:
    """What one experiment asks and needs. Raises InputError for a model whose size is not listed here."""
    names = tuple(cfg.data.sets)
    sets, scale = instances_of(names)
    model = cfg.model or ("alpacafarm" if cfg.judge.kind == "reward_model" else None)
    if cfg.judge.kind == "reward_model":
        pairs = [
            (one.input, output) for some in sets.values() for one in some for output in (one.output_1, one.output_2)
        ]
        asked = count(["\n".join(pair) for pair in pairs], 0, len(pairs))
    else:
        strategy = json.dumps(OmegaConf.to_container(cfg.strategy))
        only = json.dumps(OmegaConf.to_container(cfg.data).get("strategies"))
        asked = questions(strategy, only, names, cfg.judge.chat_format, cfg.prompts)
    plan = Plan(name, str(model), 1, *(round(scale * value) for value in asked))
    if cfg.judge.kind == "generation" and cfg.judge.generator.backend == "openai":
        plan.gpus = 0
        if assume.price:
            price = Price(**OmegaConf.to_container(assume.price))
            least = plan.prompt_tokens * price.prompt / 1e6
            plan.money = (least, least + plan.answer_tokens * price.completion / 1e6)
        if not os.environ.get(str(cfg.judge.generator.api_key_env)):
            plan.lacks.append(f"${cfg.judge.generator.api_key_env}")
        return plan
    if model not in MODELS:
        raise InputError(f"model={model}: its size is not listed; known: {', '.join(MODELS)}")
    options = cfg.judge.get("generator") or {}
    plan.gpus = (
        options.get("tensor_parallel_size", 1)
        * options.get("pipeline_parallel_size", 1)
        * options.get("data_parallel_size", 1)
    )
    estimate(plan, MODELS[model], gpu, assume, 1 if options.get("quantization") else 2)
    return plan


def estimate(plan: Plan, model: Model, gpu: GPU, assume: DictConfig, bytes_per_parameter: int) -> None:
    """Fill in weights, sequences at once, and hours; formulas at the top of this file."""
    plan.weights = model.parameters * bytes_per_parameter
    room = MEMORY_USED * plan.gpus * gpu.memory_gb * 1e9 - plan.weights
    sequence = model.kv_bytes((plan.prompt_tokens + plan.answer_tokens) / plan.calls)
    plan.at_once = max(0, min(assume.batch, int(room / sequence)))
    if plan.at_once == 0:
        plan.lacks.append("memory")
        return
    reading = 2 * (model.active or model.parameters) * plan.new_prompt_tokens
    reading /= plan.gpus * gpu.tflops * 1e12 * assume.utilisation
    steps = plan.answer_tokens / plan.at_once
    writing = steps * plan.weights / (plan.gpus * gpu.bandwidth_gbs * 1e9 * assume.bandwidth)
    plan.hours = (reading + writing) / 3600


@cache
def instances_of(names: tuple[str, ...]) -> tuple[Sets, float]:
    """The sets, and by how much counts are scaled: 1, or where the release is not at hand our instances stand in."""
    try:
        return load_sets(data_folder(list(names)), list(names)), 1.0
    except hub.NotAvailable:
        house = [one for some in load_sets(HOUSE_FOLDER, list(HOUSE)).values() for one in some]
        # Under the released sets' names, so that a family's own strategies apply to them.
        sets = {name: [replace(one, set=name, i=i) for i, one in enumerate(house)] for name in names}
        return sets, sum(RELEASED[name] for name in names) / (len(names) * len(house))


@cache
def questions(strategy: str, only: str, names: tuple[str, ...], chat_format: str | None, prompts: str) -> Asked:
    """What an experiment could ask; the arguments are those parts of its configuration that decide it, as JSON."""
    strategies = from_config(json.loads(strategy))
    templates = read_templates(prompt_folder(prompts)[1], strategies)
    sets, _ = instances_of(names)

    def judge(ask, chosen):
        return PromptJudge(ask, chosen, templates, chat_format=chat_format)

    parts = by_family(strategies, sets, json.loads(only))
    asked = planned_requests(judge, parts)
    alone = [({name: one}, instances) for chosen, instances in parts for name, one in chosen.items()]
    naive = sum(len(planned_requests(judge, [part])) for part in alone)
    return count([request_text(request) for request in asked], sum(request.max_tokens for request in asked), naive)


def count(texts: list[str], answer_tokens: int, naive: int) -> Asked:
    prompt = sum(len(text.encode()) for text in texts) / BYTES_PER_TOKEN
    return Asked(len(texts), naive, prompt, unshared_bytes(texts) / BYTES_PER_TOKEN, answer_tokens)


def request_text(request: Request) -> str:
    """The prompt as one string: what is computed, up to the chat template's marks."""
    return request.prompt or "\n".join(f"{m['role']}\n{m['content']}" for m in request.messages)


def unshared_bytes(texts: list[str]) -> int:
    """Bytes that are left when each text, in sorted order, shares its beginning with the one before it."""
    encoded = sorted(text.encode() for text in texts)
    total = len(encoded[0]) if encoded else 0
    for before, text in itertools.pairwise(encoded):
        total += len(text) - shared_length(before, text)
    return total


def shared_length(before: bytes, text: bytes) -> int:
    """Bytes that both begin with, found by halving."""
    low, high = 0, min(len(before), len(text))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if before[:middle] == text[:middle] else (low, middle - 1)
    return low


# -------------------------------------------------------------------------------------------------------------- output


def make_plan(cfg: DictConfig) -> tuple[list[Plan], dict[str, str | None], list[str]]:
    """All plans, what is missing of data and models, and what the machine lacks.

    Raises:
        InputError: an unknown GPU or experiment, or a number outside its range.
    """
    gpu = chosen_gpu(cfg.gpu)
    check_numbers(cfg, fractions=("utilisation", "bandwidth"), counts=("batch",))
    names = chosen_experiments(CONFIGS, cfg.experiments)
    composed = {name: runs_of(CONFIGS, name, config_name="evaluate")[0] for name in names}
    plans = [plan_experiment(name, one, gpu, cfg) for name, one in composed.items()]
    needs = {plan.experiment: {"dataset", "prompts"} for plan in plans}
    for plan in plans:
        if plan.gpus:
            needs[plan.experiment].add(plan.experiment)
    missing = availability(cfg.paper, set().union(*needs.values()))
    for plan in plans:
        plan.lacks += [
            "weights" if name == plan.experiment else name for name in sorted(needs[plan.experiment]) if missing[name]
        ]
    most = max((plan.gpus for plan in plans), default=0)
    return plans, missing, machine_lacks(cfg.gpu, most, download_bytes(cfg.paper, missing))


def print_plan(plans: list[Plan], missing: dict[str, str | None], general: list[str], cfg: DictConfig) -> None:
    """The table, what is missing, and the assumptions."""
    console = Console()
    console.print(f"scale paper on {cfg.gpu}: calls, million tokens in prompts, of them to read, in answers; weights")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("experiment", no_wrap=True)
    for name in ("calls", "in", "read", "out", "GPUs", "GB", "hours"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("here", no_wrap=True)
    for plan in plans:
        weights = f"{plan.weights / 1e9:.0f}" if plan.weights else ""
        hours = f"{plan.hours:.2f}" if plan.hours is not None else ""
        if plan.money:
            hours = f"{plan.money[0]:.0f}-{plan.money[1]:.0f} {cfg.price.get('currency', 'USD')}"
        tokens = (f"{n / 1e6:.1f}" for n in (plan.prompt_tokens, plan.new_prompt_tokens, plan.answer_tokens))
        here = "no" if plan.lacks else "yes"
        table.add_row(plan.experiment, f"{plan.calls:,}", *tokens, str(plan.gpus or "API"), weights, hours, here)
    console.print(table)
    for plan in plans:
        if "memory" in plan.lacks:
            fix = "raise judge.generator.tensor_parallel_size"
            general = [*general, f"memory: {plan.experiment} does not fit {plan.gpus} x {cfg.gpu}: {fix}"]
    print_lacks(console, general, missing)
    console.print(
        "Upper bounds: every first stage in conflict, every answer at its limit; tokens are bytes / 4. Formulas in "
        "llmbar/plan.py; evaluate ... dry_run=true counts with the model's own tokenizer.",
        style="dim",
        soft_wrap=True,
    )


@entrypoint(config_path="../configs", config_name="plan")
def main(cfg: DictConfig) -> None:
    plans, missing, general = make_plan(cfg)
    assumptions = OmegaConf.to_container(cfg, resolve=True)
    rows = [asdict(plan) for plan in plans]
    deliver(cfg, rows, missing, general, assumptions, lambda: print_plan(plans, missing, general, cfg))


if __name__ == "__main__":
    main()
