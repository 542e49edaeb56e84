"""Which template, mapping or prompt is best: `python -m lm_bff.rank task=sst-2 seed=42 kind=template candidates=FILE`.

Every candidate is fine-tuned (prompt, no demonstrations, one grid point) and scored on dev; the test set is not looked
at. The file that is written has the best first, each with its dev score, ties in the order of the searched file; its
first line is the paper's "auto" (sections 4.1 and 5.1), its first lines are what ensembles and the joint search of
templates and label words take.

Trials are stored like all others, so a ranking that was killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from lm_bff.candidates import Candidate, ranked, read_candidates, write_candidates
from lm_bff.search_labels import output_path
from lm_bff.sweep import plan, run_all
from lm_bff.tasks import get_task
from shared import InputError
from shared.launch import entrypoint


def dev_scores(records: Sequence[dict[str, Any]]) -> list[float]:
    """The dev score of each record. Raises InputError for one without."""
    scores = [record["dev"].get(record["metric"]) for record in records]
    if None in scores:
        raise InputError(
            f"trial {records[scores.index(None)]['key']} has no dev score to rank by; use_dev has to be true"
        )
    return scores


def rank(cfg: DictConfig, candidates: Sequence[Candidate], progress: bool = True) -> list[Candidate]:
    """The candidates with their dev scores, best first. Raises InputError as trials do."""
    planned = plan(cfg, lambda task, seed: candidates)
    if len(planned) != len(candidates):
        raise InputError(
            f"ranking takes one task, seed, method and grid point, but there are {len(planned)} trials for "
            f"{len(candidates)} candidates"
        )
    return ranked(candidates, dev_scores(run_all(planned, cfg.processes, progress)))


@entrypoint(config_name="rank")
def main(cfg: DictConfig) -> None:
    task = get_task(cfg.task)
    cfg.seeds, cfg.ks = [cfg.seed], [cfg.k]
    found = rank(cfg, read_candidates(cfg.candidates, cfg.kind, task, cfg.first))
    path = write_candidates(_path(cfg), found, with_score=True)
    table = Table("rank", "dev", cfg.kind, title=f"{task.name}, seed {cfg.seed}", title_justify="left")
    for number, one in enumerate(found[: cfg.show]):
        table.add_row(str(number), f"{one.score:.5f}", one.line(with_score=False).replace("[", "\\["))
    console = Console(soft_wrap=False)
    console.print(table)
    Console(soft_wrap=True).print(f"{len(found)} candidates: {path}", highlight=False)


def _path(cfg: DictConfig) -> Path:
    return output_path(cfg, f"ranked_{cfg.kind}", get_task(cfg.task))


if __name__ == "__main__":
    main()
