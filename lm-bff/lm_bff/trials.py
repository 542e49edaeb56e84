"""Trials that are run once: found in the store, or run now and stored.

A trial's key is a digest of everything that decides its result: task, data (its texts and labels), model, and every
setting. So a sweep that was killed goes on where it was, and changed data or options are never mistaken for old ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from lm_bff.data import Example, Splits
from lm_bff.model import Pretrained
from lm_bff.settings import TrialSettings, digest
from lm_bff.store import Store
from lm_bff.tasks import Task
from lm_bff.training import OnEvaluation, run_trial


def data_digest(splits: Splits) -> str:
    """A short name for the examples of train, dev and test."""
    state = hashlib.sha256()
    for name, examples in (("train", splits.train), ("dev", splits.dev), *sorted(splits.test.items())):
        state.update(f"\0{name}\0".encode())
        _add(state, examples)
    return state.hexdigest()[:16]


def _add(state: Any, examples: Iterable[Example]) -> None:
    for example in examples:
        state.update("\x1f".join([*example.sentences, repr(example.label)]).encode())
        state.update(b"\x1e")


def trial_identity(task: Task, splits: Splits, model: str, settings: TrialSettings, k: int) -> dict[str, Any]:
    """What names a trial in the store: `key`, and the fields it is found by.

    The values of the task that the settings leave to it (template, label words, limits, num_sample) enter the key too.
    """
    described = {
        "template": task.template,
        "mapping": [list(pair) for pair in task.mapping.items()],
        "limits": [task.max_length, task.first_sent_limit, task.other_sent_limit, task.double_demo, task.num_sample],
        "metric": task.metric,
    }
    identity = {
        "task": task.name,
        "method": settings.method,
        "k": k,
        "seed": settings.seed,
        "model": model,
        "data": data_digest(splits),
    }
    return {"key": digest({**identity, "settings": settings.as_dict(), "described": described}), **identity}


def stored_trial(
    store: Store,
    pretrained: Pretrained | None,
    model: str,
    task: Task,
    splits: Splits,
    settings: TrialSettings,
    *,
    k: int = 16,
    labels: dict[str, Any] | None = None,
    save_outputs: bool = True,
    on_evaluation: OnEvaluation | None = None,
) -> dict[str, Any]:
    """The record of a trial: from the store if it is finished, else run and stored.

    Args:
        model: the name that goes into the key, so it has to stand for the weights.
        labels: further fields of the record (compat, experiment, ...) that do not decide the result.
    """
    identity = trial_identity(task, splits, model, settings, k)
    finished = store.get(identity["key"])
    if finished is not None:
        return finished
    result = run_trial(pretrained, task, splits.train, splits.dev, splits.test, settings, on_evaluation=on_evaluation)
    record = {**identity, **(labels or {}), **result.record(), "missing_tests": list(splits.missing)}
    outputs = None
    if save_outputs:
        outputs = {"dev": result.dev_outputs, **{f"test:{name}": out for name, out in result.test_outputs.items()}}
    return store.append(record, outputs)
