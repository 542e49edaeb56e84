"""Score one judge: replay recorded judgements, or ask a model (or a rule), then read its judgements by the same rules.

    python -m llmbar.evaluate judge=recorded recorded=GPT-4.jsonl.gz data=llmbar
    python -m llmbar.evaluate judge=vllm model=meta-llama/Llama-3.1-8B-Instruct strategy=metrics_reference
    python -m llmbar.evaluate judge=openai base_url=http://127.0.0.1:8000/v1 model=NAME strategy=[cot,swap,swap_cot]
    python -m llmbar.evaluate judge=longer data=all

Whatever the judge is, what it said goes to `judgements.jsonl` in the replay format and is scored by replaying that
file, so a number can always be recomputed from the texts behind it. Where a server failed some items, the others are
kept: the same command again asks only for what is missing.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from llmbar import summary
from llmbar.data import HOUSE, Sets, load_file, load_sets
from llmbar.judgements import value_records, write_judgements
from llmbar.locations import data_folder, prompt_folder
from llmbar.prompts import read_templates
from llmbar.replay import Replay, Rules, replay
from llmbar.strategies import all_strategies, from_config
from llmbar.tables import print_rows
from shared import InputError, hub
from shared.launch import entrypoint
from shared.results import Run

log = logging.getLogger(__name__)


@entrypoint(config_name="evaluate")
def main(cfg: DictConfig) -> None:
    run = Run(cfg.paper, cfg.experiment, cfg.scale, cfg.output_dir, cfg, cfg.seed)
    result = evaluate(cfg, run.output_dir)
    if result is None:  # a dry run asks nothing and leaves no result
        return
    run.metrics |= result
    # Beside the paper's numbers where paper.yaml has them for this experiment; the paper's own layout below.
    path = run.finish(Console(quiet=cfg.scale != "paper"))
    print_rows(result["judge"], result["rows"], Console())
    Console(soft_wrap=True).print(f"results: {path}", highlight=False)


def evaluate(cfg: DictConfig, output_dir: Path) -> dict[str, Any] | None:
    """The metrics of one judge (see `measure`), with judgements.jsonl in `output_dir`; None for a dry run.

    Raises InputError for anything in the configuration, data or recorded file that cannot be used.
    """
    sets = load_data(cfg.data)
    kind = cfg.judge.kind
    if kind == "recorded":
        path, extra = Path(_required(cfg, "recorded")).expanduser(), {}
        rules = recorded_rules(cfg, path)
    elif kind == "generation":
        from llmbar.generating import ask_model  # late: it imports torch, and a replay need not

        asked = ask_model(cfg, sets, output_dir)
        if asked is None:
            return None
        path, rules, extra = asked
    else:
        values, extra = judge_values(cfg, sets)
        path = write_judgements(output_dir, value_records(kind, values, sets))
        rules = Rules(judge=cfg.judge.name or kind, strategies={})
    scored = replay(path, sets, rules, cfg.allow_partial)
    metrics = measure(scored, cfg.seed) | extra
    if cfg.against is not None:
        metrics["against"] = compare_with(Path(cfg.against).expanduser(), scored, sets, cfg)
    return metrics


def measure(scored: Replay, seed: int, intervals: bool = True) -> dict[str, Any]:
    """cells (a list), rows (family -> strategy -> columns), and what the file was made of."""
    return {
        "judge": scored.judge,
        "written_for_this_project": any(name in HOUSE for name in scored.sets),
        "rows": summary.rows(scored, intervals, seed),
        "cells": summary.cells(scored, intervals, seed),
        "judgements": scored.lines - scored.lines_elsewhere,
        "second_stage_prompts_checked": scored.prompts_checked,
    }


def load_data(data: DictConfig) -> Sets:
    """The sets of the `data` group, each cut to its first `limit` instances if there is one."""
    if data.file is not None:
        path = Path(data.file).expanduser()
        sets = {path.stem: load_file(path, path.stem)}
    elif not data.sets:
        raise InputError("data.sets is empty; name sets, or a file of your own with data=file data.file=PATH")
    else:
        sets = load_sets(data_folder(list(data.sets)), list(data.sets))
    if data.limit is not None:
        if not isinstance(data.limit, int) or data.limit < 1:
            raise InputError(f"data.limit={data.limit!r}; give a whole number above 0, or null for all")
        sets = {name: instances[: data.limit] for name, instances in sets.items()}
    return sets


def recorded_rules(cfg: DictConfig, path: Path) -> Rules:
    """How a recorded file is read; the prompts are needed only to check second stages."""
    if cfg.data.limit is not None:
        raise InputError("data.limit does not go with judge=recorded; choose sets with data=..., or allow_partial=true")
    chosen = from_config(OmegaConf.to_container(cfg.strategy))
    known = all_strategies() | chosen
    _, folder = prompt_folder(cfg.prompts)
    name = cfg.judge.name or path.name.removesuffix(".gz").removesuffix(".jsonl")
    only = None if set(chosen) >= _released() else frozenset(chosen)
    return Rules(name, known, read_templates(folder, known), cfg.parsing, only)


def _released() -> set[str]:
    return {name for name, one in all_strategies().items() if one.stages[0].decide_by == "text"}


def judge_values(cfg: DictConfig, sets: Sets) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(set -> (n, 2) values, what else to report) of a judge that gives each output a number."""
    kind, judge = cfg.judge.kind, cfg.judge
    extra: dict[str, Any] = {}
    if kind in ("longer", "shorter"):
        from llmbar import heuristics

        values = {name: getattr(heuristics, kind)(instances) for name, instances in sets.items()}
    elif kind == "preference_model":
        from llmbar.preference_model import PreferenceModel

        names = list(judge.fit_on)
        pairs = [one for instances in load_sets(data_folder(names), names).values() for one in instances]
        model = PreferenceModel().fit(pairs)
        values = {name: model.values(instances) for name, instances in sets.items()}
        extra = {"fitted_on": names, "weights": model.weights}
    elif kind == "embedding":
        from llmbar.embedding import embedding_values

        everything = [one for instances in sets.values() for one in instances]
        embedded = embedding_values(
            everything, hub.model_path(judge.encoder, "llmbar"), judge.batch_size, judge.max_length
        )
        ends = np.cumsum([len(instances) for instances in sets.values()])[:-1]
        values = dict(zip(sets, np.split(embedded.values, ends), strict=True))
        extra = {"encoder": judge.encoder, "texts": embedded.texts, "texts_truncated": embedded.truncated}
    elif kind == "reward_model":
        from llmbar.reward_model import RewardModel

        options = {key: judge[key] for key in ("label", "text_format", "batch_size", "dtype", "device")}
        reward = RewardModel(hub.model_path(_required(cfg, "model"), "llmbar"), **options)
        values = {name: reward.values(instances) for name, instances in sets.items()}
        extra = {"text_format": reward.text_format}
    else:
        raise InputError(f"judge.kind={kind!r} is unknown; see configs/judge/")
    return values, extra


def compare_with(path: Path, scored: Replay, sets: Sets, cfg: DictConfig) -> list[dict[str, Any]]:
    """This judge minus the one recorded in `against`, paired by instance."""
    rules = recorded_rules(OmegaConf.merge(cfg, {"data": {"limit": None}, "strategy": {}}), path)
    other = replay(path, sets, replace(rules, only=None), allow_partial=True)
    compared = summary.compare_judges(scored, other, seed=cfg.seed)
    if not compared:
        raise InputError(f"against: {path.name} has no strategy and set in common with {scored.judge}")
    return [{"judge": scored.judge, "against": other.judge, **entry} for entry in compared]


def _required(cfg: DictConfig, name: str) -> str:
    if cfg[name] is None:
        raise InputError(f"{name} is missing: judge={cfg.judge.kind} needs it ({name}=...)")
    return cfg[name]


if __name__ == "__main__":
    main()
