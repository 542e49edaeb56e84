"""judgements.jsonl: what a judge said, one instance and strategy a line, in the format `replay` reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmbar.data import Sets
from shared.results import write_atomic


def write_judgements(output_dir: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """Write `output_dir/judgements.jsonl`, whole or not at all."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    return write_atomic(output_dir / "judgements.jsonl", "".join(lines))


def value_records(kind: str, values: Mapping[str, np.ndarray], sets: Sets) -> Iterable[dict[str, Any]]:
    """Lines of a judge that gives each output a number; its kind ("reward_model") stands where a strategy would.

    values: set -> (n, 2).
    """
    strategy = "_".join(word.capitalize() for word in kind.split("_"))
    for name, instances in sets.items():
        for one, pair in zip(instances, values[name], strict=True):
            yield {"set": name, "i": one.i, "strategy": strategy, "values": [float(x) for x in pair]}
