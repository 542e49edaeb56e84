"""The laptop reproduction's cells and what is asked of their models, from configs/reproduce.yaml."""

import json
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from mlm_masking import glue
from mlm_masking.pretrain import Text, load_text
from mlm_masking.rates import check_rate, copies_needed
from mlm_masking.small_runs import UNTRAINED, Cell, Probes, compose, offline_task
from mlm_masking.word_order import held_out_lines, order_pairs
from shared import InputError, corpus, hub
from shared.results import write_atomic

PAPER = "mlm-masking"
# Of every run: nothing is kept to go on from (a cell takes seconds), and one bar is enough.
SILENT = ("optim.disable_tqdm=true", "+optim.save_strategy=no", "data_processes=1")
CORPUS_BYTES = 2_400_000
CORPUS = ("data=corpus", "data.name=laptop-corpus", f"data.max_bytes={CORPUS_BYTES}", "data.valid_percent=20")
WHERE_FROM = ("small_package", "large_package")
LETTERS = 160  # of an offline document that is to be classified
DEV_EXAMPLES = 900


def rate_name(rate: float) -> str:
    """0.15 -> "m15"."""
    return f"m{100 * rate:g}"


def pair_name(corruption: float, prediction: float) -> str:
    """(0.2, 0.4) -> "c20_p40"."""
    return f"c{100 * corruption:g}_p{100 * prediction:g}"


def check(cfg: DictConfig) -> None:
    """Refuse what cannot be reproduced, before anything is read. Raises InputError."""
    if cfg.scale != "laptop":
        raise InputError(
            f"scale={cfg.scale}: reproduce runs at laptop scale. The paper's own experiments are single runs: "
            "`make plan-mlm-masking` lists them, `python -m mlm_masking.pretrain scale=paper` makes one."
        )
    if not cfg.seeds or len(set(cfg.seeds)) < len(cfg.seeds):
        raise InputError(f"seeds={list(cfg.seeds)}: give at least one, each once")
    if not cfg.sizes:
        raise InputError("sizes is empty: give at least one model size with its rates")
    for size, one in cfg.sizes.items():
        if not one.rates:
            raise InputError(f"sizes.{size}.rates is empty: give masking rates such as [0.15, 0.4]")
        for rate in one.rates:
            check_rate(f"sizes.{size}.rates", rate)
    first = next(iter(cfg.sizes.values()))
    for rate in cfg.probes.rates:
        if rate not in first.rates:
            raise InputError(f"probes.rates has {rate}, which is none of the first size's rates {list(first.rates)}")
    if cfg.processes is not None and cfg.processes < 1:
        raise InputError(f"processes={cfg.processes}: give 1 or more, or null for one per core")
    if cfg.probes.files is not None and len(cfg.probes.files) != 2:
        raise InputError(f"probes.files={list(cfg.probes.files)}: give two files, [train, dev], or null")
    if cfg.final_blocks < 1:
        raise InputError(f"final_blocks={cfg.final_blocks}: give 1 or more")


def text_overrides(cfg: DictConfig, console: Console) -> list[str]:
    """Which text: the one asked for, else WikiText-2 where it is at hand, else the offline corpus."""
    if cfg.text is not None:
        return list(cfg.text)
    try:
        hub.locate(PAPER, "wikitext2")
    except hub.NotAvailable:
        console.print("WikiText-2 is not on this machine: the offline corpus takes its place.")
        return list(CORPUS)
    return ["data=wikitext2"]


def cells_of(cfg: DictConfig, data: list[str]) -> list[Cell]:
    """Every cell, each once."""
    common = [*data, *cfg.overrides, *SILENT]
    found: dict[tuple[str, int], Cell] = {}

    def add(name: str, overrides: Iterable[str], cost: float, probed: bool = False) -> None:
        for seed in cfg.seeds:
            cell = Cell(name, seed, (*common, *overrides), cost, probed)
            found.setdefault((name, seed), cell)

    for number, (size, one) in enumerate(cfg.sizes.items()):
        for rate in one.rates:
            probed = number == 0 and rate in cfg.probes.rates
            add(f"{size}/{rate_name(rate)}", [*one.overrides, f"masking.rate={rate}"], 1 + 2 * number + rate, probed)
    size, one = next(iter(cfg.sizes.items()))
    for strategy, rates in cfg.strategies.items():
        for rate in rates:
            add(
                f"{size}/{strategy}-{rate_name(rate)}",
                [*one.overrides, f"masking={strategy}", f"masking.rate={rate}"],
                1 + rate,
            )
    for scheme, rates in cfg.replace.items():
        for rate in rates:
            add(
                f"{size}/{scheme}-{rate_name(rate)}",
                [*one.overrides, f"replace={scheme}", f"masking.rate={rate}"],
                1 + rate,
            )
    for corruption, prediction in pairs_of(cfg):
        overrides = [*one.overrides, "rates=decoupled", f"rates.corruption={corruption}"]
        if corruption == prediction:
            add(f"{size}/{rate_name(corruption)}", [*one.overrides, f"masking.rate={corruption}"], 1 + corruption)
        else:
            cost = 0.5 + 0.7 * copies_needed(corruption, prediction)
            name = pair_name(corruption, prediction)
            add(f"{size}/{name}", [*overrides, f"rates.prediction={prediction}"], cost)
    add(f"{size}/{UNTRAINED}", one.overrides, 0.3, probed=True)
    return list(found.values())


def pairs_of(cfg: DictConfig) -> list[tuple[float, float]]:
    """(corruption, prediction) of the decoupling grid."""
    return [(c, p) for c in cfg.decoupled.corruption for p in cfg.decoupled.prediction]


# ------------------------------------------------------------------------------------------------------------- probes


def probes_of(cfg: DictConfig, folder: Path, text: Text, console: Console) -> Probes:
    """What is asked of the models, with what is at hand."""
    asked: dict[str, Any] = {}
    if cfg.probes.order_pairs:
        lines = held_out_lines(text.heldout.tokens, text.tokenizer)
        asked["order"] = order_pairs(lines, cfg.probes.order_pairs)
    if cfg.probes.blimp_pairs:
        try:
            asked |= {"blimp": hub.locate(PAPER, "blimp"), "pairs": cfg.probes.blimp_pairs}
        except hub.NotAvailable:
            console.print("BLiMP is not on this machine: the claim about it stays open.")
    if cfg.probes.finetune:
        asked["finetune"] = OmegaConf.to_container(cfg.probes.finetune)
        asked |= _task(cfg, folder, console)
        if "files" in asked and cfg.probes.files is None:
            examples = len(asked["files"][0].read_text(encoding="utf-8").splitlines())
            asked["finetune"]["size"] = min(examples, asked["finetune"].get("size") or examples)
    return Probes(**asked)


def _task(cfg: DictConfig, folder: Path, console: Console) -> dict[str, Any]:
    """Own files, SST-2, or where it is not at hand documents of the offline corpus, by package."""
    if cfg.probes.files is not None:
        return {"task": glue.load_task("file"), "files": tuple(Path(file).resolve() for file in cfg.probes.files)}
    task, size = glue.load_task("sst2"), cfg.probes.finetune.get("size") or 2000
    try:
        glue.load_data(task)
    except hub.NotAvailable:
        console.print("SST-2 is not on this machine: documents of the offline corpus take its place.")
        return {"task": offline_task("package", WHERE_FROM), "files": write_documents(folder, size)}
    return {"task": task}


def write_documents(folder: Path, size: int, dev: int = DEV_EXAMPLES, max_bytes: int = CORPUS_BYTES) -> tuple:
    """Paths of train.jsonl and dev.jsonl: how a document begins, and whether it is of one of the large packages.

    Large are the packages with the most documents, as few as hold half of all, so that the classes are about equal.
    The documents are those of the text that the models are trained on, there without labels. At most `size` are to
    train on and `dev` (at most a third of all) to score; none is on both sides. What is written already is left.
    """
    paths = folder / "documents" / "train.jsonl", folder / "documents" / "dev.jsonl"
    if all(path.is_file() for path in paths):
        return paths
    documents = corpus.documents(max_bytes=max_bytes)
    large: set[str] = set()
    covered = 0
    for package, count in Counter(document.package for document in documents).most_common():
        if 2 * covered < len(documents):
            large.add(package)
            covered += count
    rows: dict[str, int] = {}
    for document in documents:
        begins = " ".join(f"{document.summary} {document.text}".split())[:LETTERS]
        rows.setdefault(begins, int(document.package in large))
    examples = [{"sentence": text, "label": label} for text, label in rows.items()]
    random.Random(0).shuffle(examples)
    dev = min(dev, len(examples) // 3)
    for path, part in zip(paths, (examples[dev : dev + size], examples[:dev]), strict=True):
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in part))
    return paths


def open_text(cfg: DictConfig, data: list[str]) -> Text:
    """The text of all cells, prepared if that has not been done."""
    return load_text(compose([*data, *cfg.overrides, *SILENT]))
