"""`python -m lm_bff.run task=sst-2 method=prompt-demo seed=42`: one trial, or one per template and their ensemble.

    configuration -> task, splits, model, TrialSettings -> trial (from the store if it is finished) -> a table

Every trial is one line of `runs/lm-bff/<scale>/trials.jsonl`; a trial that is there is not run again. `compat` says
whose conventions ran (the release's, or the paper's and today's libraries') and stands in the line.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from lm_bff.candidates import Candidate, read_candidates
from lm_bff.data import PAPER, Example, Splits, load_splits
from lm_bff.ensemble import ensemble_metrics
from lm_bff.label_words import Label, parse_mapping
from lm_bff.model import Pretrained
from lm_bff.model_names import model_folder
from lm_bff.settings import TrialSettings
from lm_bff.store import Store
from lm_bff.tasks import Task, get_task
from lm_bff.trials import stored_trial, trial_identity
from shared import InputError
from shared.launch import entrypoint
from shared.training import runs_root

log = logging.getLogger(__name__)

SEVERAL = ("ensemble", "mixture")


def mapping_from(value: Any, task: Task) -> dict[Label, str] | None:
    """Label words from a text, which has to have the labels as they are, or from the command line's {0: bad, 1: good}.

    There Hydra takes no quotes around keys, so a key stands for the label that is spelt so.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return parse_mapping(value)
    spelt = {str(label): label for label in task.labels}
    return parse_mapping({spelt.get(str(key), key): word for key, word in OmegaConf.to_container(value).items()})


def settings_from(cfg: DictConfig, task: Task) -> TrialSettings:
    """The trial's settings; raises InputError naming what is wrong."""
    template = cfg.template
    if template is not None and not isinstance(template, str):
        template = tuple(template)
    return TrialSettings(
        method=cfg.method,
        seed=cfg.seed,
        lr=float(cfg.lr),
        batch_size=cfg.batch_size,
        micro_batch_size=cfg.micro_batch_size,
        max_steps=cfg.max_steps,
        eval_every=cfg.eval_every,
        max_grad_norm=cfg.max_grad_norm,
        weight_decay=cfg.weight_decay,
        template=template,
        mapping=mapping_from(cfg.mapping, task),
        num_sample=cfg.num_sample,
        filter=cfg.filter.model,
        filter_keep=cfg.filter.keep,
        max_length=cfg.max_length,
        first_sent_limit=cfg.first_sent_limit,
        other_sent_limit=cfg.other_sent_limit,
        truncate_head=cfg.truncate_head,
        segments=str(cfg.segments),
        random_segments=cfg.random_segments,
        freeze_layers=cfg.freeze_layers,
        regression_loss=cfg.compat.regression_loss,
        stsb_demos=cfg.compat.stsb_demos,
        adam_eps=cfg.compat.adam_eps,
        demo_sampler=cfg.compat.demo_sampler,
        icl_examples=cfg.icl.examples,
        icl_max_length=cfg.icl.max_length,
        icl_placement=cfg.icl.placement,
        icl_cls=cfg.compat.icl_cls,
        bf16=cfg.bf16,
        batch_tokens=cfg.batch_tokens,
        dropout=cfg.dropout,
    )


def splits_from(cfg: DictConfig, task: Task) -> Splits:
    """Train, dev and test of the run, cut as `use_dev` and `max_test` say."""
    splits = load_splits(task, cfg.k, cfg.seed, cfg.data_dir, cfg.splits)
    if cfg.max_test is not None:
        if not isinstance(cfg.max_test, int) or cfg.max_test < 1:
            raise InputError(f"max_test={cfg.max_test}: give 1 or more, or null for all")
        splits = replace(splits, test={name: spread(examples, cfg.max_test) for name, examples in splits.test.items()})
    for name in splits.missing:
        log.warning("%s: the test set %s is not there and is left out", task.name, name)
    return splits if cfg.use_dev else replace(splits, dev=[])


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """At most `count` examples at even distances: test files are often sorted by label."""
    if count >= len(examples):
        return list(examples)
    return [examples[number * len(examples) // count] for number in range(count)]


def candidates_from(cfg: DictConfig, task: Task) -> list[Candidate]:
    """What `templates` names, or the one candidate that changes nothing."""
    if cfg.templates is None:
        return [Candidate()]
    if cfg.template is not None:
        raise InputError("template and templates are both given; give one of them")
    if cfg.several not in SEVERAL:
        raise InputError(f"several={cfg.several}: give one of {', '.join(SEVERAL)}")
    first = Path(cfg.templates).expanduser()
    kind = "prompt" if first.is_file() and "\t{" in first.read_text("utf-8", errors="replace") else "template"
    return read_candidates(first, kind, task, cfg.top)


class Model:
    """The model of a run: its folder is known at once, its weights are read when a trial has to be run."""

    def __init__(self, cfg: DictConfig):
        self.cfg, self._loaded = cfg, None
        folder = model_folder(cfg.model)
        # A trained-on-the-spot model is one of many by the same name: its folder's name tells them apart.
        self.name = f"{cfg.model}:{folder.name}" if cfg.model == "tiny" else str(cfg.model)
        self.folder = folder

    def load(self) -> Pretrained:
        if self._loaded is None:
            self._loaded = Pretrained.load(self.folder, device=self.cfg.device, attention=self.cfg.attention)
        return self._loaded


def store_of(cfg: DictConfig) -> Store:
    return Store(
        runs_root() / PAPER / cfg.scale / "trials.jsonl" if cfg.store is None else Path(cfg.store).expanduser()
    )


def run(cfg: DictConfig) -> list[dict[str, Any]]:
    """Run what the configuration asks for; returns the stored records, the ensemble's (if any) last."""
    task = get_task(cfg.task)
    settings = settings_from(cfg, task)
    splits = splits_from(cfg, task)
    candidates = candidates_from(cfg, task)
    if settings.method == "icl" and len(candidates) > 1:
        raise InputError(f"method=icl with {len(candidates)} templates: in-context learning takes one template")
    if len(candidates) > 1 and cfg.several == "mixture":
        if any(one.mapping for one in candidates):
            raise InputError("several=mixture takes templates without mappings: one model has one set of label words")
        candidates = [Candidate(template=tuple(one.template for one in candidates))]
    store = store_of(cfg)
    model = None if settings.method == "majority" else Model(cfg)
    records = []
    for one in candidates:
        wanted = settings if one.template is None else replace(settings, template=one.template)
        wanted = wanted if one.mapping is None else replace(wanted, mapping=one.mapping)
        records.append(_trial(cfg, store, model, task, splits, wanted))
    if len(records) > 1:
        records.append(_ensemble(cfg, store, task, splits, records))
    return records


def _trial(cfg: DictConfig, store: Store, model: Model | None, task: Task, splits: Splits, settings: TrialSettings):
    name = "none" if model is None else model.name
    key = trial_identity(task, splits, name, settings, cfg.k)["key"]
    if (finished := store.get(key)) is not None:
        log.warning("this trial is finished and is not run again (%s in %s)", key, store.path)
        return finished
    return stored_trial(
        store,
        None if model is None else model.load(),
        name,
        task,
        splits,
        settings,
        k=cfg.k,
        labels={"compat": cfg.compat.name, "scale": cfg.scale, "filter": cfg.filter.model, "splits": cfg.splits},
        save_outputs=cfg.save_outputs,
        on_evaluation=lambda step, score: log.info("step %d: dev %s %.4f", step, task.metric, score),
    )


def _ensemble(cfg: DictConfig, store: Store, task: Task, splits: Splits, members: list[dict]) -> dict[str, Any]:
    """The averaged outputs' metrics, as a record that is not stored: its members are."""
    outputs = [store.outputs(member) for member in members]
    named = {"dev": splits.dev, **{f"test:{name}": examples for name, examples in splits.test.items()}}
    metrics = {
        name: ensemble_metrics(task, [member[name] for member in outputs], examples)
        for name, examples in named.items()
        if examples
    }
    return {
        "task": task.name,
        "method": f"ensemble of {len(members)} {cfg.method}",
        "seed": cfg.seed,
        "metric": task.metric,
        "dev": metrics.pop("dev", {}),
        "test": {name.removeprefix("test:"): values for name, values in metrics.items()},
        "members": [member["key"] for member in members],
        "mean_of_members": float(np.mean([member["dev"].get(task.metric, np.nan) for member in members]))
        if splits.dev
        else None,
    }


def show(records: list[dict[str, Any]], compat: str, console: Console) -> None:
    """A table of the records, times 100."""
    first = records[0]
    table = Table(title=f"{first['task']}, seed {first['seed']}, compat {compat}", title_justify="left")
    for column in ("method", "template", "metric"):
        table.add_column(column, overflow="fold")
    for column in ("dev", "test"):
        table.add_column(column, justify="right")
    for record in records:
        template = (record.get("settings") or {}).get("template") or "the task's"
        for name, values in record["test"].items() or [("none", {})]:
            for metric in values or record["dev"]:
                table.add_row(
                    record["method"],
                    template if isinstance(template, str) else f"{len(template)} templates",
                    metric if name in (record["task"], "none") else f"{metric} ({name})",
                    _percent(record["dev"].get(metric)),
                    _percent(values.get(metric)),
                )
    console.print(table)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


@entrypoint()
def main(cfg: DictConfig) -> None:
    show(run(cfg), cfg.compat.name, Console())


if __name__ == "__main__":
    main()
