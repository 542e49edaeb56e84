"""Ensembles (section 7.2, Table 4 of the paper): one model per template, their outputs averaged.

    python -m lm_bff.ensemble task=rte method=prompt-demo templates='ranked/{task}/16-{seed}.txt' n_models=20

For each seed and each of the first n templates of a ranked file the grid is run, the trial with the best dev score is
the template's model, and the models' test outputs are averaged.

Classes: the mean of the models' logits, then the largest. A regression: the mean of the predicted scores (the release
takes the largest of one column there, which is always the first).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.console import Console

from lm_bff.candidates import Candidate, read_candidates
from lm_bff.data import Example
from lm_bff.outcome import measure
from lm_bff.settings import digest
from lm_bff.store import Store
from lm_bff.tasks import Task, get_task
from shared import InputError
from shared.launch import entrypoint


def average(outputs: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of the members' (n, classes) outputs. Raises InputError for none, or for different shapes."""
    if not outputs:
        raise InputError("ensemble: no members; give at least one template")
    shapes = {member.shape for member in outputs}
    if len(shapes) > 1:
        raise InputError(f"ensemble: members have outputs of shapes {sorted(shapes)}; were they tested on other data?")
    return np.mean(np.stack(outputs).astype(np.float64), axis=0)


def ensemble_metrics(task: Task, outputs: Sequence[np.ndarray], examples: Sequence[Example]) -> dict[str, float]:
    """The task's metrics of the averaged outputs."""
    return measure(task, average(outputs), examples)


# --------------------------------------------------------------------------------------------- seeds x templates x grid


def members(records: Sequence[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """For each seed the chosen trial of each template (best dev score, first of equals), in the order they come."""
    from lm_bff.tables import choose

    groups: dict[tuple, list[dict[str, Any]]] = {}
    for record in records:
        settings = record["settings"]
        name = (record["seed"], str(settings["template"]), str(settings["mapping"]))
        groups.setdefault(name, []).append(record)
    found: dict[int, list[dict[str, Any]]] = {}
    for (seed, *_), group in groups.items():
        found.setdefault(seed, []).append(choose(group)[seed])
    return found


def ensemble_record(
    store: Store, task: Task, chosen: Sequence[dict[str, Any]], examples: dict[str, Sequence[Example]], experiment: str
) -> dict[str, Any]:
    """The averaged outputs' metrics of one seed as a record, stored under the names of its members.

    Args:
        chosen: one trial per template. examples: test sets by name, and "dev".
    """
    outputs = [store.outputs(record) for record in chosen]
    metrics = {
        name: ensemble_metrics(task, [one["dev" if name == "dev" else f"test:{name}"] for one in outputs], rows)
        for name, rows in examples.items()
        if rows
    }
    first = chosen[0]
    base = {name: first.get(name) for name in ("k", "model", "data", "compat", "scale", "filter", "splits", "use_dev")}
    keys = [record["key"] for record in chosen]
    settings = {name: first["settings"][name] for name in ("max_steps", "eval_every", "method")}
    record = {
        "key": digest({"ensemble": keys, "experiment": experiment}),
        "task": task.name,
        "method": "ensemble",
        "seed": first["seed"],
        **base,
        "experiment": experiment,
        "metric": task.metric,
        "settings": settings,
        "dev": metrics.pop("dev", {}),
        "test": metrics,
        "members": keys,
    }
    return store.append(record)


def run_ensemble(cfg: DictConfig, progress: bool = True) -> list[dict[str, Any]]:
    """Run all members; returns one record per seed.

    Raises:
        InputError: no templates file, fewer templates than models asked for, or a trial that cannot be run.
    """
    from lm_bff import sweep

    task = get_task(cfg.task)

    def candidates(name: str, seed: int) -> list[Candidate]:
        if cfg.templates is None:
            raise InputError("templates is missing: give a file of ranked templates, {seed} standing for the seed")
        path = cfg.templates.replace("{seed}", str(seed)).replace("{task}", name)
        found = read_candidates(path, cfg.kind, task, cfg.n_models)
        if len(found) < cfg.n_models:
            raise InputError(f"{path} has {len(found)} {cfg.kind}s, fewer than n_models={cfg.n_models}")
        return found

    cfg = cfg.copy()
    cfg.ks, cfg.methods, cfg.save_outputs = [cfg.k], [cfg.method], True
    planned = sweep.plan(cfg, candidates)
    records = sweep.run_all(planned, cfg.processes, progress)
    store = sweep.store_of(cfg)
    by_seed = {one.values["seed"]: sweep.prepare(one).splits for one in planned}
    return [
        ensemble_record(store, task, chosen, {"dev": by_seed[seed].dev, **by_seed[seed].test}, cfg.name)
        for seed, chosen in members(records).items()
    ]


@entrypoint(config_name="ensemble")
def main(cfg: DictConfig) -> None:
    from lm_bff.tables import gather, print_scores

    records = run_ensemble(cfg)
    task = get_task(cfg.task)
    tests = list(records[0]["test"]) or [None]
    print_scores([gather(records, test, metric) for test in tests for metric in task.metrics], Console())


if __name__ == "__main__":
    main()
