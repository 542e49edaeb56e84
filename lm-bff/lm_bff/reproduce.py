"""`make reproduce-lm-bff`: what of the paper shows on two CPU cores, without a download, in under six minutes.

A masked language model of 0.6 million parameters is trained on the spot (`tiny`, cached), and takes RoBERTa-large's
place in the paper's protocol: K=16 examples per class, five splits, mean and standard deviation. With the mirror the
tasks are the paper's (MR, SST-2, CR, TREC); without it a sentiment and a topic task of this project.

    Table 3   majority, zero-shot, in-context learning, fine-tuning, prompt-based fine-tuning, with demonstrations
    Table 2   the task's label words, the same exchanged, unrelated ones
    Table 5   label words found by search, and what templates written by hand are worth on dev
    Figure 3  prompt-based and standard fine-tuning against K

Every trial is a line of `trials.jsonl` in the output folder: a killed reproduction goes on where it was. Numbers of a
model this small are not the paper's; the claims are about their order.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from lm_bff import plots, sweep
from lm_bff.candidates import Candidate
from lm_bff.data import Example, Splits
from lm_bff.model import Pretrained
from lm_bff.run import Model, settings_from, splits_from, store_of
from lm_bff.search_labels import search
from lm_bff.similarity import embedder
from lm_bff.tables import choose, gather
from lm_bff.tasks import Task, get_task
from lm_bff.trials import stored_trial
from shared import InputError, hub
from shared.launch import entrypoint
from shared.results import Run, over_seeds

log = logging.getLogger(__name__)
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
WORTH_PROCESSES = 24
TITLES = {
    "majority": "majority",
    "zero-shot": "zero-shot",
    "icl": "in-context learning",
    "finetune": "fine-tuning",
    "prompt": "prompt-based fine-tuning",
    "prompt-demo": "+ demonstrations",
}


@entrypoint(config_name="reproduce")
def main(cfg: DictConfig) -> None:
    run = Run(cfg.paper, cfg.experiment, cfg.scale, cfg.output_dir, cfg, list(cfg.seeds))
    console = Console()
    tasks = chosen_tasks(cfg, console)
    base = composed(cfg, run.output_dir)
    model = Model(base)
    run.metrics["tasks_from"] = "house" if tasks[0].startswith("house-") else "the paper's splits"
    run.metrics["tiny"] = json.loads((model.folder / "training.json").read_text("utf-8"))
    report_methods(cfg, base, run, tasks, console)
    first = next((task for task in tasks if len(get_task(task).labels) == 2), None)
    if first is None:
        raise InputError(f"tasks={tasks}: give at least one with two classes, for label words and templates")
    report_words(cfg, base, run, first, model.load(), console)
    report_templates(cfg, base, run, first, console)
    report_k(cfg, base, run, first)
    draw_demonstrations(base, run, first)
    run.finish(console)
    console.print(f"everything: {run.output_dir}", highlight=False, soft_wrap=True)


def chosen_tasks(cfg: DictConfig, console: Console) -> list[str]:
    """The paper's tasks where their splits are at hand, else those of this project."""
    if cfg.tasks is not None:
        return list(cfg.tasks)
    try:
        hub.locate("lm-bff", "k-shot")
    except hub.NotAvailable as error:
        console.print("The paper's few-shot splits are not on this machine: tasks of this project take their place.")
        log.info("%s", error)
        return list(cfg.house)
    return list(cfg.real)


def composed(cfg: DictConfig, folder: Path) -> DictConfig:
    """The configuration of `lm_bff.sweep` that all trials share."""
    from hydra.core.global_hydra import GlobalHydra

    # Inside an entrypoint Hydra is initialised already; its configuration has been handed to us, so it may go.
    GlobalHydra.instance().clear()
    overrides = [
        f"filter={cfg.demo_filter}", "grid=one", "task=none", f"model={cfg.model}", f"lr={cfg.lr}",
        f"max_steps={cfg.max_steps}", f"eval_every={cfg.eval_every}",
        f"max_test={cfg.max_test}", f"num_sample={cfg.num_sample}", f"store={folder / 'trials.jsonl'}",
        f"seeds={list(cfg.seeds)}", f"processes={cfg.processes or len(os.sched_getaffinity(0))}", "save_outputs=false",
    ]  # fmt: skip
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose("sweep", overrides)


def trials(base: DictConfig, candidates: Sequence[Candidate] | None = None, **values: Any) -> list[dict[str, Any]]:
    """The records of a sweep with some values changed."""
    cfg = OmegaConf.merge(base, OmegaConf.create(values))
    planned = sweep.plan(cfg, None if candidates is None else lambda task, seed: candidates)
    # A process that starts reads libraries and the model for longer than a few trials of the tiny one take.
    return sweep.run_all(planned, cfg.processes if len(planned) >= WORTH_PROCESSES else 1)


def scores(records: Iterable[dict[str, Any]]) -> list[float]:
    """Test scores (0..1), one per seed, of the trials that dev chose."""
    return list(gather(list(records)).by_seed.values())


# ------------------------------------------------------------------------------------------------------------- Table 3


def report_methods(cfg: DictConfig, base: DictConfig, run: Run, tasks: Sequence[str], console: Console) -> None:
    """tasks.<task>.<method>: over the seeds; average.<method>: the mean over tasks, over the seeds."""
    records = trials(base, task=list(tasks), methods=list(cfg.methods))
    found: dict[str, dict[str, list[float]]] = {}
    for task in tasks:
        for method in cfg.methods:
            found.setdefault(task, {})[method] = scores(
                r for r in records if (r["task"], r["method"]) == (task, method)
            )
    run.metrics["tasks"] = {
        task: {method: over_seeds(values) for method, values in of_task.items()} for task, of_task in found.items()
    }
    run.metrics["average"] = {
        method: over_seeds(list(np.mean([found[task][method] for task in tasks], axis=0))) for method in cfg.methods
    }
    spread = {method: [float(np.std(found[task][method])) for task in tasks] for method in cfg.methods}
    run.metrics["spread"] = {method: float(np.mean(values)) for method, values in spread.items()}
    title = f"K=16, mean (std) over {len(cfg.seeds)} splits, x 100; tiny model"
    table = Table("", *tasks, "average", title=title, title_justify="left")
    for method in cfg.methods:
        cells = [found[task][method] for task in tasks] + [run.metrics["average"][method]["values"]]
        table.add_row(TITLES[method], *(f"{100 * np.mean(v):.1f} ({100 * np.std(v):.1f})" for v in cells))
    console.print(table)
    boxes = {task: {TITLES[m]: v for m, v in of_task.items() if m != "majority"} for task, of_task in found.items()}
    chance = {task: float(np.mean(of_task["majority"])) for task, of_task in found.items() if "majority" in of_task}
    run.save_plot(
        "methods",
        plots.box_over_seeds(boxes, chance),
        caption="Table 3 with a model of 0.6 million parameters: each dot is one split of 16 examples per class.",
    )


# ------------------------------------------------------------------------------------------------- Table 2, label words


def report_words(
    cfg: DictConfig, base: DictConfig, run: Run, task_name: str, pretrained: Pretrained, console: Console
) -> None:
    """words.<name>: prompt-based fine-tuning with these label words; words.searched: with those found on each split."""
    task = get_task(task_name)
    own = [task.mapping[label] for label in task.labels]
    chosen = {"own": own}
    for name, words in cfg.mappings.items():
        chosen[name] = [own[word] if isinstance(word, int) else word for word in words]
    found = {
        name: scores(trials(base, [Candidate(None, mapping_of(task, words))], task=task_name, methods=["prompt"]))
        for name, words in chosen.items()
    }
    zero = {
        name: scores(trials(base, [Candidate(None, mapping_of(task, words))], task=task_name, methods=["zero-shot"]))
        for name, words in chosen.items()
    }
    searched, best, shown = [], {}, []
    for seed in cfg.seeds:
        splits = splits_of(base, task, seed)
        ranked = search(pretrained, task, splits.train, k_likely=cfg.words, n_pairs=cfg.pairs)
        best[str(seed)] = [list(one.mapping.values()) for one in ranked[:5]]
        searched += trials(base, [Candidate(None, ranked[0].mapping)], task=task_name, methods=["prompt"], seeds=[seed])
        shown = shown or ranked
    found["searched"] = scores(searched)
    run.metrics["words"] = {name: over_seeds(values) for name, values in found.items()} | {
        "zero_shot": {name: over_seeds(values) for name, values in zero.items()},
        "task": task_name,
        "chosen": {name: " / ".join(words) for name, words in chosen.items()},
        "found": best,
    }
    table = Table("label words", "zero-shot", "prompt-based fine-tuning", title=task_name, title_justify="left")
    for name, values in found.items():
        words = (
            " / ".join(chosen[name])
            if name in chosen
            else "searched on each split: " + " / ".join(best[str(cfg.seeds[0])][0])
        )
        untrained = f"{100 * np.mean(zero[name]):.1f}" if name in zero else "-"
        table.add_row(words, untrained, f"{100 * np.mean(values):.1f} ({100 * np.std(values):.1f})")
    console.print(table)
    run.save_plot(
        "label_words",
        plots.top_candidates(shown, label="zero-shot accuracy on 32 examples × 100"),
        caption=f"Label words found for {task_name} on the first split, by zero-shot training accuracy.",
    )


def mapping_of(task: Task, words: Sequence[str]) -> dict[Any, str]:
    return dict(zip(task.labels, words, strict=True))


def splits_of(base: DictConfig, task: Task, seed: int) -> Splits:
    return splits_from(OmegaConf.merge(base, {"task": task.name, "seed": seed}), task)


# ------------------------------------------------------------------------------------------------- templates, K, plots


def report_templates(cfg: DictConfig, base: DictConfig, run: Run, task_name: str, console: Console) -> None:
    """templates: each one's dev and test score; the one that dev prefers against the task's own."""
    rows = []
    for template in cfg.templates:
        records = trials(base, [Candidate(template)], task=task_name, methods=["prompt"])
        dev = [record["dev"][record["metric"]] for record in choose(records).values()]
        rows.append({"template": template, "dev": over_seeds(dev), "test": over_seeds(scores(records))})
    rows.sort(key=lambda row: -row["dev"]["mean"])
    run.metrics["templates"] = {"ranked": rows, "best_test": rows[0]["test"], "worst_test": rows[-1]["test"]}
    table = Table("template", "dev", "test", title=f"{task_name}, templates by dev score", title_justify="left")
    for row in rows:
        table.add_row(
            row["template"],
            *(f"{100 * row[k]['mean']:.1f} ({100 * np.std(row[k]['values']):.1f})" for k in ("dev", "test")),
        )
    console.print(table)
    run.save_plot(
        "templates",
        plots.top_candidates([Candidate(row["template"], score=row["dev"]["mean"]) for row in rows]),
        caption=f"Templates for {task_name} by their dev score, mean over the splits.",
    )


def report_k(cfg: DictConfig, base: DictConfig, run: Run, task_name: str) -> None:
    """k.<method>.<K>: over the seeds, on the first K examples per class of each split."""
    task, model, store = get_task(task_name), Model(base), store_of(base)
    found: dict[str, dict[int, list[float]]] = {}
    for method in ("finetune", "prompt"):
        for k in cfg.ks:
            for seed in cfg.seeds:
                values = OmegaConf.merge(base, {"task": task_name, "seed": seed, "method": method})
                splits = first_of_each_class(splits_from(values, task), k)
                record = stored_trial(
                    store, model.load(), model.name, task, splits, settings_from(values, task),
                    k=k, labels={"experiment": "k", "scale": cfg.scale}, save_outputs=False,
                )  # fmt: skip
                found.setdefault(method, {}).setdefault(k, []).append(record["test"][task.name][task.metric])
    run.metrics["k"] = {m: {str(k): over_seeds(v) for k, v in by_k.items()} for m, by_k in found.items()}
    run.save_plot(
        "k_curve",
        plots.k_curve({TITLES[method]: by_k for method, by_k in found.items()}),
        caption=f"Figure 3 with the tiny model on {task_name}: mean and deviation over the splits.",
    )


def first_of_each_class(splits: Splits, k: int) -> Splits:
    """The splits with the first k examples per class in train and in dev."""

    def cut(examples: Sequence[Example]) -> list[Example]:
        seen: dict[Any, int] = {}
        kept = []
        for example in examples:
            seen[example.label] = seen.get(example.label, 0) + 1
            if seen[example.label] <= k:
                kept.append(example)
        return kept

    return replace(splits, train=cut(splits.train), dev=cut(splits.dev))


def draw_demonstrations(base: DictConfig, run: Run, task_name: str) -> None:
    """The similarity heat map of queries and the demonstrations that may be drawn for them."""
    from lm_bff import demonstrations

    if base.filter.model is None:
        return
    task = get_task(task_name)
    splits = splits_of(base, task, base.seeds[0])
    queries = next(iter(splits.test.values()))[:12]
    support = [task.context_class(example.label) for example in splits.train]
    similar = embedder(base.filter.model).similarities(queries, splits.train)
    chosen = demonstrations.select(
        support, len(queries), 4, np.random.default_rng(0), classes=len(task.labels), similarities=similar,
        keep=base.filter.keep,
    )  # fmt: skip
    figure = plots.demonstration_heat_map(similar, support, chosen, [task.mapping[label] for label in task.labels])
    run.save_plot(
        "demonstrations",
        figure,
        caption="Similarity of test sentences to the training examples; dots: drawn as demonstrations.",
    )


if __name__ == "__main__":
    main()
