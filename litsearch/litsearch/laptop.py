"""What the laptop reproduction is made of: its papers and questions, and its parts (`litsearch.parts`)."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from litsearch.data import fingerprint_queries
from litsearch.locations import Benchmark, open_benchmark
from litsearch.part_work import ENCODER
from litsearch.parts import Part
from litsearch.runs import QUERY_FIELDS
from shared import InputError
from shared.results import write_atomic
from shared.run_folders import runs_root

KEY = "title_abstract"
SIMCSE_MODELS = ("reproduce/triplets/seed-42/model", "triplets/model")  # below runs/simcse/laptop


@dataclass(frozen=True)
class Bench:
    """Papers and questions, and how a part's configuration names them. prefix: of the parts made on them."""

    benchmark: Benchmark
    data: tuple[str, ...]
    prefix: str = ""

    @property
    def has_citations(self) -> bool:
        return any(
            cited in self.benchmark.corpus for paper in self.benchmark.corpus.papers for cited in paper.citations
        )


@dataclass
class Plan:
    """The parts of a reproduction, and which of them are shown where."""

    parts: list[Part] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)  # scored in the paper's table
    expanded: dict[str, str] = field(default_factory=dict)  # first stage on the one-hop corpus -> its expansion
    reranked: dict[str, str] = field(default_factory=dict)  # flavour -> reranking of an expansion
    prompting: str | None = None

    def add(self, name: str, work: str, bench: Bench, shown: bool = False, **more: Any) -> str:
        benchmark = bench.benchmark
        made_with = (
            benchmark.corpus.fingerprint,
            fingerprint_queries(benchmark.queries),
            KEY,
            *more.pop("made_with", ()),
        )
        self.parts.append(Part(name, work, bench.data, made_with=made_with, **more))
        if shown:
            self.shown.append(name)
        return name

    @property
    def names(self) -> list[str]:
        return [part.name for part in self.parts]


# --------------------------------------------------------------------------------------------------------------- data


def data_overrides(data: DictConfig, benchmark: Benchmark, folder: Path) -> tuple[str, ...]:
    """How a part opens the same papers and questions; what is made here is written down for it once."""
    if benchmark.name == "mini":
        return ("data=mini",)
    if data.source in ("auto", "offline"):
        return frozen(benchmark, folder / "data" / benchmark.name)
    given = {name: value for name, value in data.items() if name in ("corpus", "queries") and value is not None}
    group = {"release": "full"}.get(data.source, data.source)
    return (f"data={group}", *(f"data.{name}='{Path(path).expanduser().resolve()}'" for name, path in given.items()))


def frozen(benchmark: Benchmark, folder: Path) -> tuple[str, ...]:
    """Write corpus and questions as files in the release's format, for other processes."""
    papers = [
        {"corpusid": p.corpusid, "title": p.title, "abstract": p.abstract, "citations": list(p.citations)}
        | {"full_paper": p.full_paper}
        for p in benchmark.corpus.papers
    ]
    queries = [
        {name: getattr(query, name) for name in QUERY_FIELDS} | {"corpusids": list(query.corpusids)}
        for query in benchmark.queries
    ]
    for name, records in (("corpus_clean", papers), ("query", queries)):
        write_atomic(folder / f"{name}.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    files = (f"data.corpus='{folder / 'corpus_clean.jsonl'}'", f"data.queries='{folder / 'query.jsonl'}'")
    return ("data=files", f"data.name={benchmark.name}", *files)


def onehop_bench(cfg: DictConfig, bench: Bench, folder: Path) -> Bench:
    """Papers with citations: the same ones, or the documentation of what is installed here."""
    if bench.has_citations:
        return bench
    limits = {name: cfg.onehop.corpus[name] for name in ("max_papers", "max_queries")}
    benchmark = open_benchmark({"source": "offline", "name": "offline", **limits}, full_papers=False)
    return Bench(benchmark, frozen(benchmark, folder / "data" / "offline"), "offline-")


# -------------------------------------------------------------------------------------------------------------- parts


def make_plan(cfg: DictConfig, bench: Bench, cited: Bench, console: Console) -> Plan:
    """All parts, those that take long first."""
    plan = Plan()
    by_length = ("minilm", "simcse", "random")
    for name in sorted(cfg.retrievers, key=lambda name: by_length.index(name) if name in by_length else 9):
        if name == "simcse":
            add_simcse(cfg, plan, bench, console)
        else:
            add_retriever(cfg, plan, bench, name)
    if cfg.prompting.run:  # an engine that starts takes long as well
        add_prompting(cfg, plan, bench)
    if cfg.hybrid:
        plan.add("hybrid", "hybrid", bench, True, options={"top_k": cfg.top_k}, needs=tuple(cfg.hybrid))
    for flavour in cfg.rerank.flavours:
        add_rerank(plan, bench, cfg.rerank.first, flavour, cfg.rerank.max_k, shown=True)
    add_onehop(cfg, plan, bench, cited)
    plan.shown.sort(key=shown_order(cfg))
    return plan


def shown_order(cfg: DictConfig):
    order = [*cfg.retrievers, "hybrid"]
    return lambda name: (order.index(name) if name in order else len(order), name)


def add_retriever(cfg: DictConfig, plan: Plan, bench: Bench, name: str, **more: Any) -> None:
    overrides = [f"retriever={name}", *more.pop("overrides", [])]
    options: dict[str, Any] = {"top_k": cfg.top_k}
    if name == "bm25":
        overrides += ["retriever.processes=1", "retriever.cache=false"]  # another part has the other core
    if name == "lsa":
        overrides += [f"retriever.components={min(256, len(bench.benchmark.corpus) - 1)}"]
    if name == "simcse":
        overrides += [f"retriever.max_length={cfg.simcse.max_length}"]
    if name == "minilm":
        dtype = cfg.minilm.key_dtype or native_dtype()
        overrides += [f"retriever.max_length={cfg.minilm.max_length}", f"retriever.key_dtype={dtype}"]
        options["index"] = more["all_cores"] = True
    options["overrides"] = overrides
    plan.add(f"{bench.prefix}{name}", "retrieve", bench, not bench.prefix, options=options, **more)


def native_dtype() -> str:
    """bfloat16 where this CPU multiplies it itself: half the time of float32, and elsewhere many times its time."""
    import torch

    able = torch.cpu.get_capabilities()
    return "bfloat16" if able.get("avx512_bf16") or able.get("amx_bf16") else "float32"


def add_simcse(cfg: DictConfig, plan: Plan, bench: Bench, console: Console) -> None:
    """The encoder that simcse/ has trained on this machine; where there is none, it is trained first."""
    from shared.generation.fingerprint import model_fingerprint

    places = (
        [Path(cfg.simcse.model)] if cfg.simcse.model else [runs_root() / "simcse/laptop" / p for p in SIMCSE_MODELS]
    )
    found = next((place for place in places if (place / "config.json").is_file()), None)
    if found is not None:
        path = found.expanduser().resolve()
        more = {"overrides": [f"retriever.model='{path}'"], "made_with": (model_fingerprint(str(path)),)}
        add_retriever(cfg, plan, bench, "simcse", **more)
        return
    if cfg.simcse.model:
        raise InputError(f"simcse.model={cfg.simcse.model}: there is no model in this folder; null trains one")
    console.print("SimCSE's laptop run has left no encoder here: one is trained by its command first.")
    fixed = [f"experiment={cfg.simcse.experiment}", "optim.disable_tqdm=true", "eval.steps=null"]
    plan.parts.append(Part(ENCODER, "train", options={"overrides": [*fixed, *cfg.simcse.overrides]}))
    add_retriever(cfg, plan, bench, "simcse", overrides=["retriever.model=trained"], needs=(ENCODER,))


def add_rerank(plan: Plan, bench: Bench, first: str, flavour: str, max_k: int, shown: bool = False) -> str:
    options = {"overrides": [f"llm={flavour}", f"max_k={max_k}"]}
    return plan.add(f"{first}-{flavour}", "rerank", bench, shown, options=options, needs=(first,))


def add_onehop(cfg: DictConfig, plan: Plan, bench: Bench, cited: Bench) -> None:
    if cited is not bench:
        for name in cfg.onehop.corpus.retrievers:
            add_retriever(cfg, plan, cited, name)
    counts = {name: cfg.onehop[name] for name in ("cutoff_count", "total_count")}
    for name in cfg.onehop.first:
        first = f"{cited.prefix}{name}"
        if first in plan.names:
            plan.expanded[first] = plan.add(f"{first}-onehop", "onehop", cited, options=counts, needs=(first,))
    expanded = plan.expanded.get(f"{cited.prefix}{cfg.onehop.rerank}")
    if expanded is not None:
        for flavour in cfg.rerank.flavours:
            plan.reranked[flavour] = add_rerank(plan, cited, expanded, flavour, cfg.onehop.total_count)


def add_prompting(cfg: DictConfig, plan: Plan, bench: Bench) -> None:
    backend = cfg.prompting.backend
    if backend == "auto":
        backend = "vllm" if importlib.util.find_spec("vllm") else "transformers"
    overrides = [f"llm={backend}", "model=tiny", f"max_k={cfg.prompting.max_k}", "llm.generator.dtype=float32"]
    overrides += ["max_tokens=200"]
    if backend == "vllm":  # a small engine that starts soon
        overrides += ["llm.generator.kv_cache_gib=1", "llm.generator.enforce_eager=true"]
    options = {"overrides": overrides, "questions": cfg.prompting.questions}
    plan.prompting = plan.add("prompting", "rerank", bench, options=options, needs=("bm25",))
