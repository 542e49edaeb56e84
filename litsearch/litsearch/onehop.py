"""One-hop expansion: the papers that the best ones cite join the candidates (LitSearch, section 4).

    python -m litsearch.onehop run=RUN.jsonl [cutoff_count=50] [total_count=200]

Of every question the first `cutoff_count` papers stay; gone through in order, each adds those of its citations that are
not there yet; after the paper with which there are `total_count` or more it stops, and the list is cut there. The new
run's `retrieved` is that list, `original_retrieved` the one that came in. It is not in an order worth scoring: it is
what `litsearch.rerank` is given.

Citations that lead out of the corpus are left out and counted; in the release they end reranking with a KeyError.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from litsearch.data import Corpus
from litsearch.locations import open_benchmark
from litsearch.metrics import recall_at_k
from litsearch.reranked import check_output, input_digest, read_stage_input
from litsearch.runs import Run, RunRecord, write_run
from shared import InputError
from shared.launch import entrypoint
from shared.run_folders import run_folder

log = logging.getLogger(__name__)
CUTOFF_COUNT, TOTAL_COUNT = 50, 200


@dataclass(frozen=True)
class Expansion:
    """retrieved: the expanded list; added: how many of it are citations; outside: citations that were left out."""

    retrieved: list[int]
    added: int
    outside: int


def expand(
    retrieved: Sequence[int], corpus: Corpus, cutoff_count: int = CUTOFF_COUNT, total_count: int = TOTAL_COUNT
) -> Expansion:
    """Expand one question's list of corpusids.

    Raises InputError for counts out of range, or an id that is not in the corpus.
    """
    check_counts(cutoff_count, total_count)
    first = list(retrieved[:cutoff_count])
    found = dict.fromkeys(first)
    outside: set[int] = set()
    for corpusid in first:
        for cited in corpus.paper(corpusid).citations:
            if cited in corpus:
                found.setdefault(cited)
            else:
                outside.add(cited)
        if len(found) >= total_count:
            break
    kept = list(found)[:total_count]
    return Expansion(kept, len(kept) - min(len(first), len(kept)), len(outside))


def check_counts(cutoff_count: int, total_count: int) -> None:
    """Refuse counts that are no whole numbers of at least 1, or a cutoff above the total."""
    for name, value in (("cutoff_count", cutoff_count), ("total_count", total_count)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value!r}: give a whole number of at least 1")
    if cutoff_count > total_count:
        raise InputError(
            f"cutoff_count={cutoff_count} is more than total_count={total_count}: nothing could be added; "
            f"give at most {total_count}"
        )


def expand_run(run: Run, corpus: Corpus, cutoff_count: int = CUTOFF_COUNT, total_count: int = TOTAL_COUNT) -> Run:
    """The run with every list expanded. Raises InputError (see `expand`)."""
    expansions = [expand(record.retrieved, corpus, cutoff_count, total_count) for record in run]
    records = [
        RunRecord(record.query, found.retrieved, None, {**record.extra, "original_retrieved": record.retrieved})
        for record, found in zip(run, expansions, strict=True)
    ]
    about = {
        "cutoff_count": cutoff_count,
        "total_count": total_count,
        "input": input_digest(run),
        "added": sum(found.added for found in expansions),
        "outside": sum(found.outside for found in expansions),
    }
    stages = [*(run.metadata.get("stages") or [run.path.stem if run.path else "run"]), "onehop"]
    return Run(records, {**run.metadata, "stages": stages, "onehop": about})


@entrypoint(config_name="onehop")
def main(cfg: DictConfig) -> None:
    onehop(cfg)


def onehop(cfg: DictConfig, console: Console | None = None) -> Path:
    """Do what the configuration says; the path of the new run."""
    check_counts(cfg.cutoff_count, cfg.total_count)
    benchmark = open_benchmark(cfg.data, full_papers=False)
    run = read_stage_input(cfg.run, benchmark)
    stem = run.path.name.removesuffix(".gz").removesuffix(".jsonl")
    folder = run_folder(cfg.paper, cfg.scale, cfg.experiment, cfg.output_dir)
    out = Path(cfg.out).expanduser().resolve() if cfg.out is not None else folder / f"{stem}.onehop.jsonl"
    check_output(out, input_digest(run), "onehop")
    new = expand_run(run, benchmark.corpus, cfg.cutoff_count, cfg.total_count)
    if not new.metadata["onehop"]["added"]:
        log.warning("no citation leads to a paper of this corpus: the lists are only cut to %d", cfg.cutoff_count)
    write_run(out, new)
    console = console or Console(soft_wrap=True)
    report(run, new, console)
    console.print(f"run: {out}", highlight=False)
    return out


def report(before: Run, after: Run, console: Console) -> None:
    """What it did to the candidates: how many there are, and how many of the answers are among them."""

    def ceiling(run: Run) -> float:
        return 100 * sum(recall_at_k(record.retrieved, record.query.corpusids) for record in run) / len(run)

    about = after.metadata["onehop"]
    cut = Run([RunRecord(record.query, record.retrieved[: about["cutoff_count"]]) for record in before])
    sizes = [len(retrieved) for retrieved in after.retrieved]
    console.print(
        f"one-hop: {about['added']:,} citations joined {len(after)} questions "
        f"({min(sizes)} to {max(sizes)} candidates each); {about['outside']:,} lead out of the corpus",
        highlight=False,
    )
    console.print(
        f"answers among the candidates: {ceiling(cut):.1f}% of the first {about['cutoff_count']}, "
        f"{ceiling(after):.1f}% after expansion, {ceiling(before):.1f}% of all that were retrieved",
        highlight=False,
    )


if __name__ == "__main__":
    main()
