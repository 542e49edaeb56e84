"""`make reproduce-llmbar`: everything of the paper that a laptop can show, offline, in under three minutes.

With the release at hand (REPRO_MIRROR): every recorded judge is replayed and compared with the released statistics
and the paper's tables, the claims are judged, and judges without a language model are scored on all thirteen sets.
Without it: the 40 instances written for this project take the sets' place, and only the judges that need no recorded
answers run. In both cases the whole prompting path (messages, both orders, shared auxiliary texts, synthesis) runs on
a real engine with a model of 100,000 parameters that has learned the answer forms and nothing else: its accuracy is
chance.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from llmbar import page, paper_tables, plots, summary
from llmbar.data import HOUSE, HOUSE_FOLDER, RELEASED, Sets, load_sets
from llmbar.evaluate import evaluate
from llmbar.findings import JUDGES, findings, paired_strategies
from llmbar.locations import recorded_files
from llmbar.prompts import read_templates
from llmbar.replay import Replay, Rules, replay
from llmbar.strategies import all_strategies
from llmbar.tables import print_rows
from shared import hub
from shared.launch import entrypoint
from shared.results import Run, write_atomic

log = logging.getLogger(__name__)
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
MODEL_FREE = ("longer", "shorter", "preference_model", "embedding")
PAIRS = (("Vanilla", "Vanilla_NoRules"), ("CoT", "Vanilla"), ("Swap", "CoT"), ("Swap_CoT", "CoT"),
         ("Metrics_Reference", "Vanilla_NoRules"), ("Metrics_Reference", "Vanilla"))  # fmt: skip


@dataclass
class Recorded:
    """The recorded judges of this machine, replayed on all released sets."""

    sets: Sets
    files: dict[str, Path] = field(default_factory=dict)
    replays: dict[str, Replay] = field(default_factory=dict)
    rows: dict[str, Any] = field(default_factory=dict)


@entrypoint(config_name="reproduce")
def main(cfg: DictConfig) -> None:
    disable_progress_bar()
    run = Run(cfg.paper, cfg.experiment, cfg.scale, cfg.output_dir, cfg, cfg.seed)
    console = Console()
    try:
        sets = load_sets(hub.locate("llmbar", "dataset"), list(RELEASED))
    except hub.NotAvailable as error:
        console.print(
            "The released data are not on this machine: the instances written for this project take their place."
        )
        log.info("%s", error)
        sets = load_sets(HOUSE_FOLDER, list(HOUSE))
    run.metrics["data"] = "house" if set(sets) <= set(HOUSE) else "released"
    if run.metrics["data"] == "released":
        report_recorded(cfg, run, sets, console)
    report_model_free(cfg, run, console)
    if cfg.prompting.run:
        report_prompting(cfg, run, console)
    run.finish(console)
    console.print(f"everything: {run.output_dir}", highlight=False, soft_wrap=True)


def report_recorded(cfg: DictConfig, run: Run, sets: Sets, console: Console) -> None:
    """Replay, tables, findings, plots and page of the recorded judges, if there are any."""
    try:
        files = recorded_files()
    except hub.NotAvailable as error:
        console.print("No recorded judges on this machine: tables and claims need them.")
        log.info("%s", error)
        return
    recorded = replay_all(files, sets, cfg.seed)
    run.metrics["replay"] = recorded.rows
    run.metrics["replay_check"] = check_statistics(recorded, files[0].parent / "expected_statistics.json")
    run.metrics["findings"] = findings(recorded.rows, recorded.replays, cfg.seed)
    run.metrics["paired"] = paired_strategies(recorded.replays, PAIRS, cfg.seed)
    check = run.metrics["replay_check"]
    console.print(
        f"replayed {check['judgements']:,} judgements of {', '.join(recorded.replays)}: {check['equal']} of "
        f"{check['cells']} cells equal the released statistics, {check['second_stage_prompts']:,} second-stage prompts "
        "rebuilt to their digests"
    )
    report_tables(cfg, run, recorded, console)
    write_cells(run.output_dir, recorded, cfg.seed)
    draw_recorded(run, recorded)
    write_page(run, recorded, cfg.page_instances)


def replay_all(files: list[Path], sets: Sets, seed: int) -> Recorded:
    """Every file replayed as released; a judge whose release made an exception also with the corrected rule."""
    strategies = all_strategies()
    templates = read_templates(hub.locate("llmbar", "prompts"), strategies)
    recorded = Recorded(sets)
    for path in sorted(files, key=paper_order):
        judge = judge_name(path)
        recorded.files[judge] = path
        recorded.replays[judge] = replay(path, sets, Rules(judge, strategies, templates))
        recorded.rows[judge] = summary.rows(recorded.replays[judge], seed=seed)
        if any(judge in stage.released_rule for one in strategies.values() for stage in one.stages):
            corrected = replay(path, sets, Rules(judge, strategies, templates, "corrected"))
            recorded.rows[f"{judge} (corrected parsing)"] = summary.rows(corrected, seed=seed)
    return recorded


def judge_name(path: Path) -> str:
    return path.name.removesuffix(".jsonl.gz")


def paper_order(path: Path) -> tuple[int, str]:
    """The order of the paper's tables, then others by name."""
    judge = judge_name(path)
    return (JUDGES.index(judge) if judge in JUDGES else len(JUDGES)), judge


def check_statistics(recorded: Recorded, expected: Path) -> dict[str, Any]:
    """Cells equal to the released statistics, integers and floats to the last digit (where the release is at hand)."""
    known = json.loads(expected.read_text("utf-8")) if expected.is_file() else {}
    cells = equal = 0
    for judge, replayed in recorded.replays.items():
        for (strategy, name), tally in replayed.tallies.items():
            released = known.get(judge, {}).get(name, {}).get(strategy)
            if released is not None:
                cells += 1
                equal += _released_form(tally) == released
    return {
        "judgements": sum(one.lines for one in recorded.replays.values()),
        "cells": cells,
        "equal": equal,
        "second_stage_prompts": sum(one.prompts_checked for one in recorded.replays.values()),
    }


def _released_form(tally: Any) -> dict[str, Any]:
    cell = tally.cell()
    names = {"given": "False", "swapped": "True", "average": "average", "orders": "agreement"}
    return {
        "n": cell.n,
        "correct_False": cell.correct_given,
        "correct_True": cell.correct_swapped,
        "correct_both": cell.correct_both,
        "equal": cell.equal,
        "acc": cell.accuracy,
        "agr": cell.agreement,
        "unparsed": cell.unparsed,
        "legacy_kappa": {released: cell.legacy_kappa[ours] for ours, released in names.items()},
    }


def report_tables(cfg: DictConfig, run: Run, recorded: Recorded, console: Console) -> None:
    """The paper's tables beside the recorded figures: a summary, the cells that differ, and tables.md in full."""
    titles = {name: table["title"] for name, table in run.paper.tables.items()}
    compared = paper_tables.compare_tables(run.paper, recorded.rows, cfg.tables)
    run.metrics["tables"] = paper_tables.agreement(compared)
    write_atomic(run.output_dir / "tables.md", paper_tables.markdown(compared, titles))
    if cfg.tables:
        paper_tables.print_tables(compared, titles, console)
    paper_tables.print_summary(compared, titles, console)


def write_cells(output_dir: Path, recorded: Recorded, seed: int) -> None:
    """cells.json: every (judge, strategy, set) with counts, kappas and intervals; too long for results.json."""
    cells = [
        {"judge": judge, **cell} for judge, one in recorded.replays.items() for cell in summary.cells(one, seed=seed)
    ]
    write_atomic(output_dir / "cells.json", json.dumps(cells, indent=1) + "\n")


def draw_recorded(run: Run, recorded: Recorded) -> None:
    rows = {judge: recorded.rows[judge] for judge in recorded.replays}
    drawn = {
        "accuracy_per_subset": (
            plots.accuracy_per_subset(rows),
            "Accuracy of Metrics+Reference* per subset, beside the agreement of two human experts.",
        ),
        "natural_and_adversarial": (
            plots.natural_and_adversarial(rows),
            "The paper's figure 4: how far judges that are close on Natural are apart on Adversarial.",
        ),
        "older_sets": (
            plots.older_sets(rows),
            "The paper's figure 5: the same judges on FairEval, LLMEval^2, MT-Bench and the Adversarial average.",
        ),
        "accuracy_against_agreement": (
            plots.accuracy_against_agreement(rows),
            "Agreement between the two orders is no sign of being right; swapping raises it more than accuracy.",
        ),
        "first_position": (
            plots.first_position(recorded.replays),
            "Share of answers that chose the output shown first; 50 % without position bias.",
        ),
        "length_and_error": (
            plots.length_and_error(recorded.replays, recorded.sets),
            "Accuracy of Vanilla* by the right output's length relative to the wrong one's, and how many instances.",
        ),
    }
    for name, (figure, caption) in drawn.items():
        run.save_plot(name, figure, caption=caption)


def write_page(run: Run, recorded: Recorded, most: int) -> None:
    """instances.html: the instances most judges get wrong."""
    missed = page.commonly_missed(recorded.replays, recorded.sets, most=most)
    page.add_explanations(missed, recorded.files)
    total = sum(len(instances) for name, instances in recorded.sets.items() if name.startswith("LLMBar/"))
    write_atomic(run.output_dir / "instances.html", page.render(missed, list(recorded.replays), total))
    run.metrics["commonly_missed"] = {
        "shown": len(missed),
        "no_judge_ever_right": sum(one.share == 0 for one in missed),
    }


def report_model_free(cfg: DictConfig, run: Run, console: Console) -> None:
    """Heuristics, the preference model and the embedding judge, on all released sets or on ours."""
    released = run.metrics["data"] == "released"
    family = "LLMBar" if released else "House"
    run.metrics["judges"] = {}
    for kind in cfg.model_free:
        overrides = [f"judge={kind}", f"data={'all' if released else 'house'}"]
        if kind == "preference_model" and not released:
            overrides.append("judge.fit_on=[House/Natural]")  # 20 pairs: the path, not a result
        result = evaluate(compose(overrides, run, kind, cfg.seed), run.output_dir / "judges" / kind)
        rows = {name: next(iter(strategies.values())) for name, strategies in result["rows"].items()}
        about = {key: result[key] for key in ("fitted_on", "weights", "texts_truncated") if key in result}
        run.metrics["judges"][kind] = rows | about
    table = {family: {kind: rows[family] for kind, rows in run.metrics["judges"].items()}}
    print_rows("judges without a language model", table, console)
    figure = plots.model_free(table[family])
    run.save_plot(
        "model_free",
        figure,
        caption=f"Judges without a language model on {family}: what is right on Natural is wrong on Adversarial.",
    )


def report_prompting(cfg: DictConfig, run: Run, console: Console) -> None:
    """The prompting path on a real engine: all strategies, a few instances, a model that knows only the forms."""
    backend = cfg.prompting.backend
    if backend == "auto":
        backend = "vllm" if importlib.util.find_spec("vllm") else "transformers"
    data = "llmbar" if run.metrics["data"] == "released" else "house"
    overrides = [f"judge={backend}", "model=tiny", f"data={data}", f"data.limit={cfg.prompting.instances}",
                 f"strategy=[{','.join(cfg.prompting.strategies)}]"]  # fmt: skip
    if backend == "vllm":  # a small engine that starts soon: it answers some hundred short prompts
        overrides += [
            f"judge.generator.{option}" for option in ("dtype=float32", "kv_cache_gib=1", "enforce_eager=true")
        ]
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    result = evaluate(compose(overrides, run, "tiny", cfg.seed), run.output_dir / "judges" / "tiny")
    calls = result["calls"]
    run.metrics["prompting"] = {
        "backend": backend,
        "prompts": result["prompts"],
        "instances": calls["instances"],
        "calls_naive": calls["naive"],
        "calls_asked": calls["asked"],
        "unparsed": sum(cell["unparsed"] for cell in result["cells"]),
        "accuracy_is_chance": True,
        "rows": result["rows"],
    }
    console.print(
        f"prompting path on {backend}: {calls['instances']} instances, {calls['asked']} calls instead of "
        f"{calls['naive']} by sharing; the model has learned the answer forms only, so its accuracy is chance"
    )
    print_rows("tiny model, accuracy is chance,", result["rows"], console)


def compose(overrides: list[str], run: Run, name: str, seed: int) -> DictConfig:
    """The configuration of `llmbar.evaluate` with overrides, as on its command line."""
    from hydra.core.global_hydra import GlobalHydra

    # Inside an entrypoint Hydra is initialised already; its configuration has been handed to us, so it may go.
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = hydra.compose("evaluate", overrides=[*overrides, f"seed={seed}"])
    OmegaConf.update(cfg, "experiment", name)
    return cfg


if __name__ == "__main__":
    main()
