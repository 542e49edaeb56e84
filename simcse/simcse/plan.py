"""`python -m simcse.plan gpu=H100`: what the paper-scale experiments download, compute, hold in memory and take, and
what this machine lacks for them. Everything but the parameter counts is an estimate, from these formulas:

    tokens   examples x sentences per example x max_length x epochs: an upper bound (the released sentences average
             about 25 tokens of the 32; padding to the longest row of a batch is nearer to the bound than to that)
    FLOPs    6 x N x tokens, N = parameters of the transformer blocks (embedding look-ups cost nothing; attention scores
             add < 1% at 32 tokens); the auxiliary MLM runs the encoder and a vocabulary-sized head once more; gradient
             caching adds a forward pass (8 instead of 6); every dev evaluation is 2 x N x tokens
    memory   16 bytes per parameter (fp32 weights, gradients, Adam's two moments) + 2 per block parameter (the bf16 copy
             autocast makes) + activations of one forward pass, 34 bytes x hidden per token and layer (Korthikanti et
             al., 2022, with fused attention) + the logits; the MLM head adds 6 bytes x vocabulary per masked token
    hours    FLOPs / (the GPU's dense bf16 peak x utilisation). 0.25 is assumed: batches of 64 short sentences leave a
             large GPU waiting for kernel launches; large batches do better. Start-up and final tests are not counted.

Experiments and their settings are read from configs/experiment, so the plan is of what would run.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from shared import InputError
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
DEV_SENTENCES = 3_833  # distinct sentences of STS-B dev and SICK-R trial
MLM_TARGETS = 0.15


@dataclass(frozen=True)
class Encoder:
    """Dimensions of a pre-trained encoder, as in its published configuration."""

    vocab_size: int
    max_positions: int
    token_types: int
    hidden: int
    layers: int

    @property
    def block_parameters(self) -> int:
        """All transformer blocks: attention, a feed-forward of 4 x hidden, two LayerNorms each."""
        h = self.hidden
        return self.layers * (4 * (h * h + h) + (4 * h * h + 4 * h) + (4 * h * h + h) + 4 * h)

    @property
    def parameters(self) -> int:
        """The encoder without a pooling head."""
        embeddings = (self.vocab_size + self.max_positions + self.token_types) * self.hidden + 2 * self.hidden
        return embeddings + self.block_parameters


ENCODERS = {
    "bert-base-uncased": Encoder(30_522, 512, 2, 768, 12),
    "bert-large-uncased": Encoder(30_522, 512, 2, 1024, 24),
    "roberta-base": Encoder(50_265, 514, 1, 768, 12),
    "roberta-large": Encoder(50_265, 514, 1, 1024, 24),
}

# Training examples per data source, in sentences each; counts as the paper or the release gives them.
DATA = {
    "wiki1m": (1_000_000, 2),
    "nli": (275_601, 3),
    "nli_entailment": (314_000, 2),
    "nli_neutral": (314_000, 2),
    "nli_contradiction": (314_000, 2),
    "nli_all": (942_000, 2),
    "nli_anli": (327_601, 3),
    "nli_neutral_negatives": (275_601, 4),
    "qqp": (134_000, 2),
    "flickr30k": (318_000, 2),
    "paranmt": (5_000_000, 2),
}


@dataclass
class Plan:
    """One experiment file: `runs` runs (a sweep has several), summed; memory is that of its largest run, in bytes."""

    experiment: str
    model: str
    runs: int = 0
    tokens: float = 0.0
    flops: float = 0.0
    memory: float = 0.0
    hours: float = 0.0
    needs: set[str] = field(default_factory=set)
    names: list[str] = field(default_factory=list)
    lacks: list[str] = field(default_factory=list)


# --------------------------------------------------------------------------------------------------------- estimating


def estimate(cfg: DictConfig, processes: int = 1) -> dict[str, float]:
    """Tokens, FLOPs and the memory of one process for one run; formulas at the top of this file.

    Raises:
        InputError: a model or data source whose size is not known here.
    """
    if cfg.model not in ENCODERS:
        raise InputError(f"model={cfg.model}: its dimensions are not listed; known: {', '.join(ENCODERS)}")
    if cfg.data.source not in DATA:
        raise InputError(f"data={cfg.data.source}: its size is not listed; known: {', '.join(DATA)}")
    encoder = ENCODERS[cfg.model]
    examples, sentences = DATA[cfg.data.source]
    examples = min(examples, *(int(n) for n in (cfg.data.sample, cfg.data.max_examples) if n), examples)
    if cfg.data.columns:
        sentences = 2 if cfg.data.columns == 1 else min(sentences, int(cfg.data.columns))
    tokens = examples * sentences * cfg.data.max_length * cfg.optim.num_train_epochs
    block, hidden = encoder.block_parameters, encoder.hidden
    vocabulary = encoder.vocab_size * hidden
    flops = (8 if cfg.compute.grad_cache_chunk else 6) * block * tokens
    if cfg.loss.mlm:
        flops += 6 * tokens * (block + MLM_TARGETS * vocabulary)
    if cfg.eval.steps:
        steps = examples * cfg.optim.num_train_epochs / cfg.batch_size
        flops += steps // cfg.eval.steps * 2 * block * DEV_SENTENCES * cfg.data.max_length

    examples_here = cfg.batch_size / processes
    examples_here = min(examples_here, cfg.forward_batch_size or examples_here)
    rows = examples_here * sentences
    held = min(rows, cfg.compute.grad_cache_chunk or rows) * cfg.data.max_length
    parameters = encoder.parameters * cfg.encoders + hidden * hidden + hidden
    activations = 34 * hidden * encoder.layers * held
    if cfg.loss.mlm:
        parameters += vocabulary + encoder.vocab_size + hidden * hidden + 4 * hidden
        activations += 34 * hidden * encoder.layers * held + 6 * encoder.vocab_size * MLM_TARGETS * held
    logits = 3 * 4 * cfg.batch_size * cfg.batch_size * (sentences - 1)
    return {
        "tokens": float(tokens),
        "flops": float(flops),
        "memory": 16.0 * parameters + 2.0 * block * cfg.encoders + activations + logits,
    }


def needed_sources(cfg: DictConfig) -> set[str]:
    """Names of what a run reads: its model, its training data, the evaluation sets."""
    needs = {cfg.model, cfg.data.source, "senteval"}
    if cfg.augment.kind == "mlm":
        needs.add(cfg.augment.mlm_model)
    return needs


def plan_experiment(experiment: str, configs: list[DictConfig], gpu: GPU, utilisation: float, processes: int) -> Plan:
    """The plan of one experiment file, from the configurations of its runs."""
    plan = Plan(experiment, configs[0].model)
    for cfg in configs:
        one = estimate(cfg, processes)
        plan.runs += 1
        plan.names.append(cfg.experiment)
        plan.tokens += one["tokens"]
        plan.flops += one["flops"]
        plan.memory = max(plan.memory, one["memory"])
        plan.needs |= needed_sources(cfg)
    plan.hours = plan.flops / (gpu.tflops * 1e12 * utilisation * processes) / 3600
    return plan


# -------------------------------------------------------------------------------------------------------------- output


def print_plan(plans: list[Plan], missing: dict[str, str | None], general: list[str], cfg: DictConfig) -> None:
    """The table, what is missing, and the assumptions."""
    console = Console()
    title = f"scale paper on {cfg.gpus} x {cfg.gpu}, estimated at {cfg.utilisation:.0%} of peak"
    table = Table(title=title, title_justify="left")
    table.add_column("experiment", overflow="fold")
    for name in ("runs", "tokens <=", "FLOP", "GPU memory", "hours"):
        table.add_column(name, justify="right")
    table.add_column("missing here", overflow="fold")
    for plan in plans:
        table.add_row(
            plan.experiment,
            str(plan.runs),
            f"{plan.tokens / 1e6:,.0f} M",
            f"{plan.flops:.1e}",
            f"{plan.memory / 1e9:.1f} GB",
            f"{plan.hours:.2f}",
            ", ".join(plan.lacks) or "nothing",
        )
    hours, flops = sum(plan.hours for plan in plans), sum(plan.flops for plan in plans)
    table.add_section()
    runs = sum(plan.runs for plan in plans)
    table.add_row("all", str(runs), "", f"{flops:.1e}", "", f"{hours:.1f}", "")
    console.print(table)
    print_lacks(console, general, missing)
    console.print(
        "Estimates: tokens are an upper bound, FLOP = 6 x block parameters x tokens (+ evaluation, MLM), memory = 16 "
        "bytes per parameter + activations, hours = FLOP / (peak x utilisation). One seed each; see simcse/plan.py.",
        style="dim",
        soft_wrap=True,
    )


def make_plan(cfg: DictConfig) -> tuple[list[Plan], dict[str, str | None], list[str]]:
    """All plans, what is missing of their sources, and what the machine lacks.

    Raises:
        InputError: an unknown GPU or experiment, or a number outside its range.
    """
    gpu = chosen_gpu(cfg.gpu)
    check_numbers(cfg, fractions=("utilisation",), counts=("gpus",))
    names = chosen_experiments(CONFIGS, cfg.experiments)
    configs = {name: runs_of(CONFIGS, name) for name in names}
    paper_scale = {name: runs for name, runs in configs.items() if runs[0].scale == "paper"}
    if cfg.experiments is not None and len(paper_scale) < len(names):
        raise InputError(f"experiments: {', '.join(sorted(set(names) - set(paper_scale)))} is not of scale paper")
    plans = [plan_experiment(name, runs, gpu, cfg.utilisation, cfg.gpus) for name, runs in paper_scale.items()]
    missing = availability(cfg.paper, set().union(*(plan.needs for plan in plans)))
    for plan in plans:
        plan.lacks = [name for name in sorted(plan.needs) if missing[name]]
        if plan.memory > gpu.memory_gb * 1e9:
            plan.lacks.append(f"memory of {cfg.gpu} (set compute.grad_cache_chunk)")
    return plans, missing, machine_lacks(cfg.gpu, cfg.gpus, download_bytes(cfg.paper, missing))


@entrypoint(config_path="../configs", config_name="plan")
def main(cfg: DictConfig) -> None:
    plans, missing, general = make_plan(cfg)
    rows = [{**asdict(plan), "needs": sorted(plan.needs)} for plan in plans]
    assumptions = {"gpus": cfg.gpus, "utilisation": cfg.utilisation}
    deliver(cfg, rows, missing, general, assumptions, lambda: print_plan(plans, missing, general, cfg))


if __name__ == "__main__":
    main()
