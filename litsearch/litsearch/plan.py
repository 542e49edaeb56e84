"""`python -m litsearch.plan gpu=H200`: what the paper's tables need, cost and take; what is missing here.

    tokens   keys: papers x tokens of a key, at most the retriever's limit; reranking: 597 prompts of 100 or 200 papers.
             Where the mirror has the real small corpus, a key's and a prompt's tokens are measured on its texts;
             elsewhere they are the paper's figures (190 a key, 25,000 to 30,000 a prompt of 100). Full papers fill
             every limit here.
    FLOP     2 x parameters of the blocks x tokens, for a language model that reads prompts also the attention:
             2 x layers x heads x head size x tokens^2 a prompt
    memory   weights, and activations of one batch of keys or keys and values of the prompts read at once: as many as
             fit, `at_once` at most
    index    float16 vectors on disk
    hours    FLOP / (peak x utilisation), float32 at `fp32_fraction` of the peak; writing: the weights are read once per
             token of all prompts at once. BM25: words / the speed of tokenizing, which is measured here, on one core.
    money    prompts at least, prompts and whole answers at most, by the prices of `price_date`

Start-up and downloads are not counted. Exact counts before a run: `python -m litsearch.rerank ... dry_run=true`.
"""

from __future__ import annotations

import functools
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table

from litsearch.keys import title_abstract
from litsearch.locations import PAPER, is_in_mirror, open_benchmark
from litsearch.rerank.cost import CHARACTERS_PER_TOKEN, TURN_TOKENS
from litsearch.rerank.prompt import document_text, messages
from litsearch.text import terms
from shared import InputError, hub
from shared.generation import Price
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
# Counted on the release: papers, questions, words of a key; and tokens where nothing is measured.
PAPERS, QUESTIONS = 64_183, 597
WORDS = {"title_abstract": 134, "full_paper": 6041}
KEY_TOKENS, PROMPT_TOKENS = 190.0, 27_500 / 100  # of a title with abstract; of a prompt, per paper in it
REPLY_TOKENS = 4  # "[12] > " of an answer, a paper each
MODEL_WIDTH = 15  # of a name in the table
SAMPLE = 400  # texts that are measured
MEMORY_USED = 0.9  # of a GPU, by vLLM
BATCH_TOKENS = 65_536  # of one forward pass on a GPU (litsearch.transformer_embedder)
ORDER = ("retrieve", "onehop", "rerank")
ENTRYPOINTS = {"_rerank": "rerank", "_onehop": "rerank", "_expand": "onehop"}


@dataclass(frozen=True)
class Encoder:
    """A retriever's model: all parameters, those of its blocks, width of the feed-forward layer, dimensions."""

    parameters: float
    blocks: float
    feed_forward: int
    dimensions: int


@dataclass(frozen=True)
class Reader:
    """A language model that reranks: parameters, those active per token, and the shape of its attention."""

    parameters: float
    active: float
    layers: int
    heads: int
    kv_heads: int
    head_size: int

    def kv_bytes(self, tokens: float) -> float:
        """Keys and values of `tokens` positions in 16 bits."""
        return tokens * 2 * 2 * self.layers * self.kv_heads * self.head_size


# Published configurations; T5 models by their encoders alone.
ENCODERS = {
    "gtr-t5-large": Encoder(335.7e6, 302.0e6, 4096, 768),
    "instructor-xl": Encoder(1.24e9, 1.208e9, 16_384, 768),
    "e5-large-v2": Encoder(335.1e6, 302.3e6, 4096, 1024),
    "GritLM-7B": Encoder(7.24e9, 6.98e9, 14_336, 4096),
}
READERS = {"Qwen/Qwen3-30B-A3B-Instruct-2507": Reader(30.53e9, 3.35e9, 48, 32, 4, 128)}


@dataclass
class Plan:
    """One experiment with one model; bytes, hours, money as (no answers, answers at full length)."""

    experiment: str
    model: str
    command: str
    tokens: float = 0.0
    answer_tokens: float = 0.0
    flop: float | None = None
    memory: float | None = None
    index: float | None = None
    hours: float | None = None
    money: tuple[float, float] | None = None
    currency: str | None = None
    needs: list[str] = field(default_factory=lambda: ["query", "corpus_clean"])
    lacks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Measured:
    """Tokens of a key (cut at `limit`), of a prompt per paper in it, and words a second of one core."""

    source: str
    lengths: np.ndarray | None
    prompt_tokens: float
    words_per_second: float

    def key_tokens(self, key: str, limit: int) -> float:
        if key == "full_paper":
            return limit
        return min(KEY_TOKENS, limit) if self.lengths is None else float(np.minimum(self.lengths, limit).mean())


@functools.cache
def measured() -> Measured:
    """Measured on the real small corpus where it is; speed is measured in any case (of the texts that are here)."""
    real = is_in_mirror("mini")
    data = {"source": "mini"} if real else {"source": "offline", "max_papers": SAMPLE, "max_queries": SAMPLE}
    benchmark = open_benchmark(data)
    papers = benchmark.corpus.papers
    chosen = [papers[i] for i in np.random.default_rng(0).permutation(len(papers))[:SAMPLE]]
    texts = [title_abstract(paper) for paper in chosen]
    started = time.process_time()
    for text in texts:
        terms(text)
    speed = sum(len(text.split()) for text in texts) / (time.process_time() - started)
    if not real:
        return Measured("the paper's figures", None, PROMPT_TOKENS, speed)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(hub.model_path("minilm", PAPER)) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    lengths = np.array([len(encoded.ids) for encoded in tokenizer.encode_batch(texts)])
    questions = [query.query for query in benchmark.queries[:10]]
    documents = [document_text(paper, "title_abstract") for paper in chosen[:100]]
    return Measured(f"{len(texts)} real papers", lengths, prompt_tokens(questions, documents) / len(documents), speed)


def prompt_tokens(questions: list[str], documents: list[str]) -> float:
    """Mean tokens of the prompts that show `documents`, as a dry run counts them for a server without a tokenizer."""
    prompts = [messages(question, documents) for question in questions]
    characters = sum(len(turn["content"]) for prompt in prompts for turn in prompt) / len(prompts)
    return characters / CHARACTERS_PER_TOKEN + TURN_TOKENS * len(prompts[0])


# ------------------------------------------------------------------------------------------------------- experiments


def stage_of(experiment: str) -> str:
    """The entrypoint that an experiment file is for."""
    return next((stage for suffix, stage in ENTRYPOINTS.items() if experiment.endswith(suffix)), "retrieve")


def plan_retrieval(name: str, cfg: DictConfig, gpu: GPU, assume: DictConfig) -> Plan:
    """Indexing all keys; searching them is seconds. Raises InputError for a model whose size is not listed."""
    key, retriever = cfg.key.name, OmegaConf.to_container(cfg.retriever)
    plan = Plan(name, retriever.get("model") or retriever["name"], f"python -m litsearch.retrieve experiment={name}")
    if retriever["kind"] == "bm25":
        plan.tokens = PAPERS * WORDS[key]
        plan.hours = plan.tokens / measured().words_per_second / 3600
        return plan
    if plan.model not in ENCODERS:
        raise InputError(f"retriever.model={plan.model}: its size is not listed; known: {', '.join(ENCODERS)}")
    model, limit = ENCODERS[plan.model], retriever["max_length"]
    plan.tokens = PAPERS * measured().key_tokens(key, limit[key] if isinstance(limit, dict) else limit)
    plan.flop = 2 * model.blocks * plan.tokens
    full = retriever["key_dtype"] == "float32"
    peak = gpu.tflops * 1e12 * (assume.fp32_fraction if full else assume.utilisation)
    plan.hours = plan.flop / peak / 3600
    width = 4 if full else 2
    plan.memory = width * (model.parameters + 2 * BATCH_TOKENS * model.feed_forward)
    plan.index = 2.0 * PAPERS * model.dimensions
    plan.needs.append(plan.model)
    return plan


def plan_reranking(name: str, cfg: DictConfig, gpu: GPU, assume: DictConfig) -> Plan:
    """One prompt a question. Raises InputError for an open model whose size is not listed."""
    options = cfg.llm.generator
    plan = Plan(name, str(options.model), f"python -m litsearch.rerank experiment={name} run=RUN llm={cfg.llm_choice}")
    prompt, reply = cfg.max_k * measured().prompt_tokens, min(cfg.max_tokens, REPLY_TOKENS * cfg.max_k)
    plan.tokens, plan.answer_tokens = QUESTIONS * prompt, QUESTIONS * reply
    if options.backend == "openai":
        price = assume.price or options.price
        if price is not None:
            price = Price(**OmegaConf.to_container(price))
            plan.currency = price.currency
            least = plan.tokens * price.prompt / 1e6
            plan.money = (least, least + plan.answer_tokens * price.completion / 1e6)
        plan.hours = (plan.tokens + plan.answer_tokens) / assume.tokens_per_minute / 60
        if not os.environ.get(options.api_key_env):
            plan.lacks.append(f"${options.api_key_env} is not set")
        return plan
    if plan.model not in READERS:
        raise InputError(f"llm={cfg.llm_choice}: the size of {plan.model} is not listed; known: {', '.join(READERS)}")
    model = READERS[plan.model]
    attention = 2 * model.layers * model.heads * model.head_size * prompt**2
    plan.flop = QUESTIONS * (2 * model.active * prompt + attention)
    weights = 2 * model.parameters
    kv, room = model.kv_bytes(prompt + reply), MEMORY_USED * gpu.memory_gb * 1e9 - weights
    at_once = max(1, min(assume.at_once, int(room / kv)))
    plan.memory = weights + at_once * kv
    reading = plan.flop / (gpu.tflops * 1e12 * assume.utilisation)
    writing = plan.answer_tokens / at_once * weights / (gpu.bandwidth_gbs * 1e9 * assume.bandwidth)
    plan.hours = (reading + writing) / 3600
    plan.needs.append(plan.model.rsplit("/")[-1])
    if kv > room:
        plan.lacks.append(
            f"memory: {plan.model} and one prompt need {plan.memory / 1e9:.0f} GB, more than one {assume.gpu}"
        )
    return plan


def plan_experiment(name: str, gpu: GPU, assume: DictConfig) -> list[Plan]:
    """One plan, or for reranking one per language model."""
    stage = stage_of(name)
    if stage == "onehop":
        return [Plan(name, "-", f"python -m litsearch.onehop experiment={name} run=RUN")]
    if stage == "retrieve":
        (cfg,) = runs_of(CONFIGS, name)
        return [plan_retrieval(name, cfg, gpu, assume)]
    plans = []
    for llm in assume.llms:
        if not (CONFIGS / "llm" / f"{llm}.yaml").is_file():
            raise InputError(f"llms: there is no configs/llm/{llm}.yaml")
        (cfg,) = runs_of(CONFIGS, name, (f"llm={llm}",), "rerank")
        OmegaConf.set_struct(cfg, False)
        cfg.llm_choice = llm
        plans.append(plan_reranking(name, cfg, gpu, assume))
    return plans


def make_plan(cfg: DictConfig) -> tuple[list[Plan], dict[str, str | None], list[str]]:
    """All plans, what is missing of their sources, and what the machine lacks.

    Raises InputError: an unknown GPU, experiment or model, or a number outside its range.
    """
    gpu = chosen_gpu(cfg.gpu)
    fractions = ("utilisation", "fp32_fraction", "bandwidth")
    check_numbers(cfg, fractions, counts=("at_once", "tokens_per_minute"))
    names = sorted(chosen_experiments(CONFIGS, cfg.experiments), key=lambda name: (ORDER.index(stage_of(name)), name))
    plans = [plan for name in names for plan in plan_experiment(name, gpu, cfg)]
    missing = availability(PAPER, set().union(*(plan.needs for plan in plans)))
    lacks = machine_lacks(cfg.gpu, int(any(plan.flop for plan in plans)), download_bytes(PAPER, missing))
    lacks += sorted({lack for plan in plans for lack in plan.lacks})
    return plans, missing, lacks


# ------------------------------------------------------------------------------------------------------------ output


def print_plan(plans: list[Plan], missing: dict[str, str | None], lacks: list[str], cfg: DictConfig) -> None:
    """A line per experiment and model, sums, what is missing, and the commands in their order."""
    console = Console()
    console.print(
        f"scale paper: {PAPERS:,} papers, {QUESTIONS} questions, one {cfg.gpu} at {cfg.utilisation:.0%} of its peak; "
        f"tokens by {measured().source}; prices of {cfg.price_date}",
        highlight=False,
        soft_wrap=True,
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("experiment", "model"):
        table.add_column(name, no_wrap=True)
    currency = next((plan.currency for plan in plans if plan.currency), "money")
    for name in ("tokens", "FLOP", "GB", "hours", currency):
        table.add_column(name, justify="right", no_wrap=True)
    for plan in plans:
        if plan.model != "-":
            table.add_row(*_shown(plan))
    money = [plan.money for plan in plans if plan.money]
    table.add_section()
    hours = sum(plan.hours or 0 for plan in plans if plan.flop)
    table.add_row("all on the GPU", "", "", "", "", f"{hours:.1f}", _money(tuple(map(sum, zip(*money, strict=True)))))
    console.print(table)
    print_lacks(console, lacks, missing)
    console.print("commands, from the folder litsearch:", style="bold")
    for command in dict.fromkeys(plan.command for plan in plans):
        console.print(f"  {command}", highlight=False, soft_wrap=True)
    note = "RUN is the run that the earlier experiment wrote. How all this is estimated: litsearch/plan.py."
    console.print(note, style="dim", soft_wrap=True)


def _shown(plan: Plan) -> list[str]:
    flop = "-" if plan.flop is None else f"{plan.flop:.1e}"
    memory = "-" if plan.memory is None else f"{plan.memory / 1e9:.0f}"
    hours = "-" if plan.hours is None else f"{plan.hours:.2f}"
    name = plan.model.rsplit("/")[-1]
    model = name if len(name) <= MODEL_WIDTH else name[: MODEL_WIDTH - 1] + "…"
    return [plan.experiment, model, f"{plan.tokens / 1e6:.1f} M", flop, memory, hours, _money(plan.money)]


def _money(money: tuple[float, ...] | None) -> str:
    return f"{money[0]:,.0f}-{money[1]:,.0f}" if money else "-"


@entrypoint(config_name="plan")
def main(cfg: DictConfig) -> None:
    plans, missing, lacks = make_plan(cfg)
    rows: list[dict[str, Any]] = [asdict(plan) for plan in plans]
    source, speed = measured().source, measured().words_per_second
    assumptions = {name: cfg[name] for name in ("utilisation", "fp32_fraction", "bandwidth", "at_once")}
    assumptions |= {"price_date": str(cfg.price_date), "tokens_by": source, "tokenized_words_per_second": speed}
    deliver(cfg, rows, missing, lacks, assumptions, lambda: print_plan(plans, missing, lacks, cfg))


if __name__ == "__main__":
    main()
