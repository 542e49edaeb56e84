"""A run that was made from another run: what one-hop expansion and the rerankers share.

Such a run keeps what came in (`pre_reranked`), and its metadata a digest of it, so that a result is neither overwritten
by nor mistaken for one of another input.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from litsearch.locations import Benchmark
from litsearch.runs import Run, RunRecord, metadata_path, read_metadata, read_run
from shared import InputError

log = logging.getLogger(__name__)


def read_stage_input(path: str | Path | None, benchmark: Benchmark, max_k: int | None = None) -> Run:
    """The run to go on from, checked against corpus and questions.

    Args:
        max_k: candidates wanted of every question; a warning says where there are fewer.

    Raises InputError for max_k < 1, and see `litsearch.runs.read_run`.
    """
    if path is None:
        raise InputError("run is missing: give the run file to go on from, run=FILE.jsonl")
    if max_k is not None and (isinstance(max_k, bool) or not isinstance(max_k, int) or max_k < 1):
        raise InputError(f"max_k={max_k!r}: give a whole number of at least 1")
    run = read_run(path, benchmark.queries, benchmark.corpus)
    empty = [record.query.query for record in run if not record.retrieved]
    if empty:
        raise InputError(f"run: {path}: {len(empty)} questions have nothing retrieved, the first is {empty[0]!r}")
    if max_k is not None:
        short = sum(len(retrieved) < max_k for retrieved in run.retrieved)
        if short:
            log.warning("%s: %d of %d questions have fewer than max_k=%d candidates", path, short, len(run), max_k)
    return run


def input_digest(run: Run, max_k: int | None = None) -> str:
    """sha256 over questions and candidates: two runs with the same give the same result."""
    content = [[record.query.query, record.retrieved[:max_k]] for record in run]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def check_output(path: Path, digest: str, stage: str) -> None:
    """Refuse to overwrite a run that was made from another input, or that was not made by this stage."""
    if not path.is_file():
        return
    made_from = (read_metadata(path).get(stage) or {}).get("input") if metadata_path(path).is_file() else None
    if made_from != digest:
        what = "was made from another run" if made_from else f"is not a result of {stage}"
        raise InputError(f"{path} exists and {what}; give another name (out=...), or delete it")


def reranked_run(
    run: Run,
    orders: Sequence[Sequence[int]],
    max_k: int,
    keep_rest: bool,
    stage: str,
    metadata: Mapping[str, Any],
    extras: Sequence[Mapping[str, Any]] | None = None,
    scores: Sequence[Sequence[float]] | None = None,
) -> Run:
    """The run with the first `max_k` papers of every question in a new order.

    Args:
        orders: positions within these papers, best first.
        keep_rest: let the papers beyond max_k follow; the release drops them.
        stage: what the run is called after; metadata, extras: added to the run and to each record.
        scores: of the papers in their new order; not kept together with the rest, which has none.
    """
    records = []
    for i, (record, order) in enumerate(zip(run, orders, strict=True)):
        retrieved = [record.retrieved[position] for position in order]
        rest = record.retrieved[max_k:] if keep_rest else []
        extra = {**record.extra, **(extras[i] if extras else {}), "pre_reranked": record.retrieved}
        kept = list(scores[i]) if scores is not None and not rest else None
        records.append(RunRecord(record.query, retrieved + rest, kept, extra))
    stages = [*(run.metadata.get("stages") or [run.path.stem if run.path else "run"]), stage]
    return Run(records, {**run.metadata, **metadata, "stages": stages})
