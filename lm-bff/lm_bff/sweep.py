"""Many trials: tasks x methods x K x seeds x grid, `python -m lm_bff.sweep task=[sst-2,mr] methods=[prompt,finetune]`.

The paper's number is a mean over five splits, and for each split the trial of the grid with the best dev score. Every
trial is a line of the store (`store.Store`) and is run once: a sweep that was killed, or that asks for more, runs what
is missing. A process reads a model once and runs its trials one after the other; with `processes` above 1 that many
processes of one thread share the work (on a CPU; a GPU is best served by one).

An `experiment` name stands in the records of the sweep, for tables whose rows differ in more than their settings. A
trial that is stored under another name already is not run again: its line is copied under this name.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from tqdm.auto import tqdm

from lm_bff.candidates import Candidate
from lm_bff.data import Splits
from lm_bff.run import Model, settings_from, splits_from, store_of
from lm_bff.settings import METHODS, TRAINED, TrialSettings
from lm_bff.store import Store
from lm_bff.tables import Scores, gather, print_scores
from lm_bff.tasks import get_task
from lm_bff.trials import stored_trial, trial_identity
from shared import InputError
from shared.launch import entrypoint
from shared.workers import spread


@dataclass(frozen=True)
class Planned:
    """One trial to be run: its configuration (plain values, for another process) and what it is called.

    dev_only: leave the test sets alone, for rankings that must not look at them.
    """

    values: dict[str, Any]
    experiment: str | None = None
    dev_only: bool = False

    @property
    def cfg(self) -> DictConfig:
        return OmegaConf.create(self.values)

    @property
    def label(self) -> str:
        v = self.values
        return f"{v['task']} {v['method']} k={v['k']} seed={v['seed']} bs={v['batch_size']} lr={v['lr']:g}"


# -------------------------------------------------------------------------------------------------------- what to run


def as_list(cfg: DictConfig, name: str) -> list[Any]:
    """A value that may be a list, as one; raises InputError for an empty list or a value that stands twice."""
    value = cfg[name]
    values = list(value) if OmegaConf.is_list(value) else [value]
    if not values or len(set(values)) < len(values):
        raise InputError(f"{name}={values}: give at least one, each once")
    return values


def grid_points(cfg: DictConfig, method: str) -> list[tuple[int, float]]:
    """(batch size, lr) of the grid; methods that train nothing have one point."""
    points = [(b, float(lr)) for b in as_list(cfg.grid, "batch_size") for lr in as_list(cfg.grid, "lr")]
    return points if method in TRAINED else points[:1]


def plan(cfg: DictConfig, candidates: Callable[[str, int], Sequence[Candidate]] | None = None) -> list[Planned]:
    """Every trial of a sweep, those of one split together.

    Args:
        candidates: (task, seed) -> templates and mappings, one trial of each; None for the configuration's own.
    Raises:
        InputError: an unknown task or method, a value given twice, settings that no trial can have.
    """
    methods = as_list(cfg, "methods")
    if unknown := [method for method in methods if method not in METHODS]:
        raise InputError(f"methods has {unknown[0]!r}: choose among {', '.join(METHODS)}")
    planned = []
    axes = (as_list(cfg, "task"), as_list(cfg, "ks"), as_list(cfg, "seeds"), methods)
    for task, k, seed, method in itertools.product(*axes):
        get_task(task)
        for one in candidates(task, seed) if candidates else [Candidate(cfg.template, cfg.mapping)]:
            for batch_size, lr in grid_points(cfg, method):
                values = OmegaConf.to_container(cfg, resolve=True)
                values |= {"task": task, "k": k, "seed": seed, "method": method, "batch_size": batch_size, "lr": lr}
                values |= {
                    "template": list(one.template) if isinstance(one.template, tuple) else one.template,
                    "mapping": None if one.mapping is None else str(dict(one.mapping)),
                }
                planned.append(Planned(values, cfg.experiment, bool(cfg.get("dev_only"))))
                settings_from(planned[-1].cfg, get_task(task))  # refuses before anything runs
    return planned


# ------------------------------------------------------------------------------------------------------ how it is run


@functools.lru_cache(maxsize=4)
def _splits(
    task: str, k: int, seed: int, data_dir: str | None, kind: str, max_test: int | None, use_dev: bool
) -> Splits:
    values = {"k": k, "seed": seed, "data_dir": data_dir, "splits": kind, "max_test": max_test, "use_dev": use_dev}
    return splits_from(OmegaConf.create(values), get_task(task))


@functools.lru_cache(maxsize=2)
def _model(name: str, device: str | None, attention: str | None) -> Model:
    return Model(OmegaConf.create({"model": name, "device": device, "attention": attention}))


@dataclass(frozen=True)
class Prepared:
    """A planned trial with all it needs, the model's weights still unread."""

    settings: TrialSettings
    splits: Splits
    model: Model | None
    name: str
    key: str


def prepare(planned: Planned) -> Prepared:
    """Read splits and settings and name the trial. Raises InputError as `run` does."""
    cfg = planned.cfg
    task = get_task(cfg.task)
    settings = settings_from(cfg, task)
    splits = _splits(cfg.task, cfg.k, cfg.seed, cfg.data_dir, cfg.splits, cfg.max_test, cfg.use_dev)
    if planned.dev_only:
        splits = replace(splits, test={}, missing=())
    model = None if settings.method == "majority" else _model(cfg.model, cfg.device, cfg.attention)
    name = "none" if model is None else model.name
    return Prepared(settings, splits, model, name, trial_identity(task, splits, name, settings, cfg.k)["key"])


def run_planned(planned: Planned) -> dict[str, Any]:
    """The record of a planned trial, run if it is not stored, under the sweep's name."""
    cfg, ready = planned.cfg, prepare(planned)
    store = _store(str(store_of(cfg).path))
    record = store.get(ready.key)
    if record is None:
        record = stored_trial(
            store,
            None if ready.model is None else ready.model.load(),
            ready.name,
            get_task(cfg.task),
            ready.splits,
            ready.settings,
            k=cfg.k,
            labels={
                "experiment": planned.experiment,
                "compat": cfg.compat.name,
                "scale": cfg.scale,
                "filter": cfg.filter.model,
                "splits": cfg.splits,
                "use_dev": cfg.use_dev,
            },
            save_outputs=cfg.save_outputs,
        )
    return named(store, record, planned.experiment)


def named(store: Store, record: dict[str, Any], experiment: str | None) -> dict[str, Any]:
    """The record under an experiment's name; a line is added where it stands under another."""
    if experiment is None or record.get("experiment") == experiment:
        return record
    key = f"{record['key'].split('@')[0]}@{experiment}"
    return store.get(key) or store.append({**record, "key": key, "experiment": experiment})


@functools.lru_cache(maxsize=4)
def _store(path: str) -> Store:
    return Store(path)


def run_all(planned: Sequence[Planned], processes: int = 1, progress: bool = True) -> list[dict[str, Any]]:
    """The records of all planned trials, in their order; stored ones are read, the others run.

    Raises:
        InputError: the first trial that cannot be run ends the sweep; what is finished by then is stored.
    """
    if not isinstance(processes, int) or processes < 1:
        raise InputError(f"processes={processes}: give 1 or more")
    bar = tqdm(total=len(planned), desc="trials", unit="trial", disable=not progress or len(planned) < 2)
    records: dict[int, dict[str, Any]] = {}
    missing = []
    for number, one in enumerate(planned):
        store = _store(str(store_of(one.cfg).path))
        record = store.get(prepare(one).key)
        if record is None:
            missing.append(number)
        else:
            records[number] = named(store, record, one.experiment)
            bar.update()
    with bar:
        for place, record in spread(run_planned, [planned[number] for number in missing], processes):
            records[missing[place]] = record
            bar.set_postfix_str(planned[missing[place]].label)
            bar.update()
    return [records[number] for number in range(len(planned))]


# ---------------------------------------------------------------------------------------------------------- the table


def scores_of(records: Sequence[dict[str, Any]]) -> list[Scores]:
    """One line per (task, k, method, test set, metric): mean (std) over the seeds of the trials dev chose."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["task"], record["k"], record["method"]), []).append(record)
    return [
        gather(group, test=test, metric=metric)
        for (task, _, _), group in groups.items()
        for test in group[0]["test"] or [None]
        for metric in get_task(task).metrics
    ]


def sweep(cfg: DictConfig, progress: bool = True) -> list[dict[str, Any]]:
    """Plan and run; returns the records in the plan's order."""
    return run_all(plan(cfg), cfg.processes, progress)


@entrypoint(config_name="sweep")
def main(cfg: DictConfig) -> None:
    records = sweep(cfg)
    print_scores(scores_of(records), Console())
    Console(soft_wrap=True).print(f"store: {Path(store_of(cfg).path)}", highlight=False)


if __name__ == "__main__":
    main()
