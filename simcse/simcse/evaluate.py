"""Evaluate a sentence encoder: similarity, transfer, and where its sentences stand on the sphere.

    python -m simcse.evaluate model=minilm pooler=avg tasks=[sts] split=test
    python -m simcse.evaluate evaluation=eval_sup_bert_base              # a row of the paper's tables, at paper scale

Prints the tables of the authors' evaluation script and writes results.json. `tasks` takes groups and single names:
`sts` (STS12-16, STS-B, SICK-R), `transfer` (seven tasks), `full` (both), `geometry` (alignment and uniformity on STS-B
dev), `graded` (the project's own pairs, which need no download).
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from shared import InputError, hub
from shared.launch import entrypoint
from shared.results import Run
from simcse.devset import load_dev_set
from simcse.embedding import embed_sentences, load_encoder
from simcse.senteval import (
    STS_TASKS,
    TRANSFER_TASKS,
    evaluate_pairs,
    evaluate_sts,
    evaluate_transfer,
    load_graded_pairs,
)
from simcse.senteval.classifier import PROTOCOLS, SEED
from simcse.senteval.files import Encode
from simcse.senteval.sts import DEV_TASKS, MEASURES, percent, rounded_average

logger = logging.getLogger(__name__)

PAPER = "simcse"
GROUPS = {"sts": STS_TASKS, "transfer": TRANSFER_TASKS, "full": STS_TASKS + TRANSFER_TASKS}
OTHERS = ("geometry", "graded")
SPLITS = ("test", "dev")
DEV_METRICS = {"STSBenchmark": "stsb_dev", "SICKRelatedness": "sickr_dev"}


def expand_tasks(tasks: Sequence[str], split: str) -> list[str]:
    """Groups and names -> task names without repeats, in table order; split=dev keeps what has a dev set.

    Raises:
        InputError: an unknown name, none at all, or with split=dev a test set named alone.
    """
    known = (*GROUPS, *GROUPS["full"], *OTHERS)
    if isinstance(tasks, str) or not tasks or (unknown := [task for task in tasks if task not in known]):
        given = repr(tasks) if isinstance(tasks, str) or not tasks else ", ".join(unknown)
        raise InputError(f"tasks: {given}; give a list out of {', '.join(known)}, as in tasks=[sts,MR]")
    if split not in SPLITS:
        raise InputError(f"split: {split!r} is not one of {', '.join(SPLITS)}")
    wanted = {name for task in tasks for name in GROUPS.get(task, (task,))}
    if split == "dev":
        test_only = set(STS_TASKS) - set(DEV_TASKS)
        if named := sorted(test_only & set(tasks)):
            raise InputError(f"tasks: {', '.join(named)} have no dev set; take split=test or drop them")
        wanted -= test_only
    return [task for task in (*GROUPS["full"], *OTHERS) if task in wanted]


def measure(
    encode: Encode,
    data_dir: str | Path | None,
    tasks: Sequence[str],
    split: str = "test",
    protocol: str | None = None,
    device: str | torch.device | None = None,
) -> dict[str, Any]:
    """Everything `tasks` asks of an encoder, named as results.json and paper.yaml have it.

    Args:
        encode: list of n sentences -> (n, d) float array.
        data_dir: the folder that holds `STS/`, `SICK/`, `MR/` ...; may be None for `graded` alone.
        tasks: groups and names, see `expand_tasks`.
        split: "test", or "dev": STS-B dev and SICK-R trial only.
        protocol: of the transfer tasks, "test" or "fast"; None is "fast" with split=dev, else "test".
        device: where transfer classifiers are trained; None is CUDA where there is one.

    Returns:
        Nested dict. Correlations on a -1..1 scale: `sts.<task>.all` and so on, `sts.avg.all`; with split=dev
        `sts_dev...` and `stsb_dev`, `sickr_dev`, `avg_dev`. Percent: `transfer.<task>.{devacc,acc}`,
        `transfer.avg.{devacc,acc}`, under `transfer_fast` with the fast protocol. `align` and `uniform` (geometry),
        `graded.all` (graded). Averages are of the rounded numbers, and only there when every task of the group was
        measured.

    Raises:
        InputError: see `expand_tasks`, `evaluate_sts`, `evaluate_transfer`.
    """
    names = expand_tasks(tasks, split)
    protocol = protocol or ("fast" if split == "dev" else "test")
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol: {protocol!r} is not one of {', '.join(PROTOCOLS)}")
    metrics: dict[str, Any] = {}
    if sts := [task for task in names if task in STS_TASKS]:
        entries = evaluate_sts(encode, data_dir, sts, split)
        metrics |= _sts_metrics(entries) if split == "test" else _sts_dev_metrics(entries)
    if transfer := [task for task in names if task in TRANSFER_TASKS]:
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        entries = evaluate_transfer(encode, data_dir, transfer, protocol, device=device)
        averages = {
            key: average for key in ("devacc", "acc") if (average := _average(entries, TRANSFER_TASKS, key)) is not None
        }
        metrics["transfer" if protocol == "test" else "transfer_fast"] = entries | (
            {"avg": averages} if averages else {}
        )
    if "geometry" in names:
        geometry = load_dev_set(data_dir).geometry(encode, step=0)
        metrics |= {"align": geometry["eval_alignment"], "uniform": geometry["eval_uniformity"]}
    if "graded" in names:
        metrics["graded"] = evaluate_pairs(encode, load_graded_pairs())
    return metrics


def _sts_metrics(entries: dict[str, dict]) -> dict[str, Any]:
    averages = {}
    for key in MEASURES:
        average = _average(entries, STS_TASKS, key, scale=100)
        if average is not None:
            averages[key] = average / 100
    return {"sts": entries | ({"avg": averages} if averages else {})}


def _sts_dev_metrics(entries: dict[str, dict]) -> dict[str, Any]:
    metrics: dict[str, Any] = {"sts_dev": entries} | {
        DEV_METRICS[task]: entry["all"] for task, entry in entries.items()
    }
    values = [entry["all"] for entry in entries.values()]
    if len(values) == len(DEV_TASKS) and None not in values:
        metrics["avg_dev"] = float(np.mean(values))
    return metrics


def _average(entries: Mapping[str, dict], tasks: Sequence[str], key: str, scale: float = 1) -> float | None:
    values = [entries[task][key] if task in entries else None for task in tasks]
    return rounded_average([None if value is None else scale * value for value in values])


def print_tables(metrics: Mapping[str, Any], console: Console) -> None:
    """The authors' result tables: STS correlations and transfer accuracies in percent, "-" where nothing was run."""
    labels = {"STSBenchmark": "STS-B", "SICKRelatedness": "SICK-R"}
    for group, tasks, key, scale in (
        ("sts", STS_TASKS, "all", 100),
        ("sts_dev", DEV_TASKS, "all", 100),
        ("transfer", TRANSFER_TASKS, "acc", 1),
        ("transfer_fast", TRANSFER_TASKS, "acc", 1),
    ):
        if group not in metrics:
            continue
        entries = metrics[group]
        keys = ("devacc", "acc") if key == "acc" else (key, "wmean", "pearson_all") if group == "sts" else (key,)
        table = Table(title=group, title_justify="left")
        for name in ("", *(labels.get(task, task) for task in tasks), "Avg."):
            table.add_column(name, justify="right")
        for row in keys:
            cells = [_cell(entries, task, row, scale) for task in tasks]
            average = _average(entries, tasks, row, scale)
            table.add_row(row, *cells, "" if average is None else f"{average:.2f}")
        console.print(table)


def _cell(entries: Mapping[str, dict], task: str, key: str, scale: float) -> str:
    if task not in entries:
        return "-"
    value = entries[task][key]
    return percent(None if value is None else value * scale / 100)


class RememberingEncode:
    """`embed_sentences` as a function of sentences, which encodes a sentence once over all tasks of a run.

    Attributes:
        limit: tokens a sentence may have, special ones included.
        encoded: distinct sentences encoded so far.
        truncated: those among them that were longer than `limit` tokens and were cut to it.
    """

    def __init__(self, encoder, tokenizer, max_length: int | None = None, batch_tokens: int | None = None):
        self.limit = min(max_length or encoder.max_length, encoder.max_length)
        options = {} if batch_tokens is None else {"batch_tokens": batch_tokens}
        self._embed = partial(embed_sentences, encoder, tokenizer, max_length=max_length, progress=True, **options)
        self._tokenizer = tokenizer
        self._vectors: dict[str, np.ndarray] = {}
        self.truncated = 0

    @property
    def encoded(self) -> int:
        return len(self._vectors)

    def __call__(self, sentences: Sequence[str]) -> np.ndarray:
        new = [sentence for sentence in dict.fromkeys(sentences) if sentence not in self._vectors]
        if new:
            self._vectors.update(zip(new, self._embed(new), strict=True))
            self.truncated += self._count_too_long(new)
        return np.stack([self._vectors[sentence] for sentence in sentences])

    def _count_too_long(self, sentences: list[str]) -> int:
        # A token is made of at least one byte, so a sentence with fewer bytes than the limit cannot be too long.
        suspects = [sentence for sentence in sentences if len(sentence.encode()) > self.limit - 2]
        if not suspects:
            return 0
        tokens = self._tokenizer(suspects, return_attention_mask=False, verbose=False)["input_ids"]
        return sum(len(ids) > self.limit for ids in tokens)


def experiment_name(cfg: DictConfig, pooler: str) -> str:
    """`cfg.experiment`, else eval_<model>_<pooler>, with `_dev` for that split: one results.json for each."""
    if cfg.experiment:
        return cfg.experiment
    model = Path(cfg.model).name or "model"
    return f"eval_{model}_{pooler}" + ("_dev" if cfg.split == "dev" else "")


def evaluate(cfg: DictConfig, console: Console | None = None) -> Path:
    """Run one evaluation as `configs/evaluate.yaml` describes it; returns the path of results.json."""
    console = console or Console()
    names = expand_tasks(cfg.tasks, cfg.split)  # a typo is found before the model is loaded
    data_dir = cfg.data_dir
    if data_dir is None and set(names) - {"graded"}:
        data_dir = hub.locate(PAPER, "senteval")
    encoder, tokenizer = load_encoder(cfg.model, cfg.pooler, cfg.device)
    run = Run(PAPER, experiment_name(cfg, encoder.eval_pooler), cfg.scale, cfg.output_dir, config=cfg, seed=SEED)
    encode = RememberingEncode(encoder, tokenizer, cfg.max_length, cfg.batch_tokens)
    run.metrics |= measure(encode, data_dir, list(cfg.tasks), cfg.split, cfg.protocol, encoder.device)
    run.metrics |= {
        "model": str(cfg.model),
        "pooler": encoder.eval_pooler,
        "sentences_encoded": encode.encoded,
        "sentences_truncated": encode.truncated,
    }
    print_tables(run.metrics, console)
    if encode.truncated:
        console.print(f"{encode.truncated} of {encode.encoded} sentences were cut to {encode.limit} tokens")
    return run.finish(console)


@entrypoint(config_path="../configs", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Evaluate one model."""
    evaluate(cfg)


if __name__ == "__main__":
    main()
