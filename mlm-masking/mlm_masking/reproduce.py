"""`make reproduce-mlm-masking`: what of the paper shows on two CPU cores, without a download, in under six minutes.

Some ninety small pre-trainings on WikiText-2 (where it is at hand; else on the offline corpus), every one with three
seeds: the paper's rates at two sizes, spans, 80-10-10, corruption and prediction apart. All models are asked for the
loss on the same held-out text under the same masks, at 15, 40 and 80 %, beside the one at their own rate; some are
fine-tuned, and asked for word order and (with the mirror) BLiMP.

Quality here is the held-out loss where 15 % is hidden, the fixed rate nearest to a whole sentence; the paper's is the
fine-tuned accuracy of models a thousand times as large, so the claims are about order, not about numbers.

Every run is a cell with files of its own (`small_runs`): a killed reproduction goes on where it was, and a finished
cell is not run again.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from mlm_masking import findings, plots
from mlm_masking.laptop_plan import (
    cells_of,
    check,
    open_text,
    pair_name,
    pairs_of,
    probes_of,
    rate_name,
    text_overrides,
)
from mlm_masking.small_runs import UNTRAINED, Cell, CellRun, Probes, run_cells
from shared.launch import entrypoint
from shared.results import Run
from shared.training import run_folder

QUALITY = "held-out loss at 15 % (nats)"
NAMES = {
    "span_t5": "spans (T5)",
    "p801010": "uniform, 80-10-10",
    "same5": "uniform, 5 % same",
    "rand5": "uniform, 5 % random",
}
PROBES = ("order", "blimp", "finetune")

Results = dict[str, list[dict[str, Any]]]  # cell's name -> its parts, one dict per seed in the order of the seeds


def gather(cells: list[Cell], folder: Path, probes: Probes, final_blocks: int) -> Results:
    """The finished cells' parts."""
    found: Results = {}
    for cell in cells:
        found.setdefault(cell.name, []).append(CellRun(cell, folder, probes, final_blocks).results())
    return found


def measure(cfg: DictConfig, results: Results, metrics: dict[str, Any]) -> None:
    """Fill the metrics from the finished cells."""
    first = next(iter(cfg.sizes))
    untrained = f"{first}/{UNTRAINED}"
    trained = {name: parts for name, parts in results.items() if name != untrained}
    by_cell = {name: findings.cell_metrics(parts) for name, parts in trained.items()}
    every_part = [part for of_seeds in results.values() for parts in of_seeds for part in parts.values()]
    metrics["cpu_seconds"] = sum(part["cpu_seconds"] for part in every_part)
    metrics["unigram_loss"] = next(iter(trained.values()))[0]["training"]["unigram_loss"]
    metrics["rates"], metrics["parameters"] = {}, {}
    for size, one in cfg.sizes.items():
        names = {rate_name(rate): f"{size}/{rate_name(rate)}" for rate in one.rates}
        metrics["rates"][size] = {name: by_cell[cell] for name, cell in names.items()}
        metrics["parameters"][size] = results[next(iter(names.values()))][0]["training"]["parameters"]
    for group in ("strategies", "replace"):
        metrics[group] = {
            name: {rate_name(rate): by_cell[f"{first}/{name}-{rate_name(rate)}"] for rate in rates}
            for name, rates in cfg[group].items()
        }
    metrics["decoupled"] = {
        pair_name(c, p): by_cell[f"{first}/{rate_name(c) if c == p else pair_name(c, p)}"] for c, p in pairs_of(cfg)
    }
    metrics["untrained"] = findings.probe_metrics(results[untrained])
    tuned = results[untrained][0].get("finetune", {})
    metrics |= {"finetune_data": tuned.get("data"), "majority": tuned.get("majority")}
    metrics["findings"] = compared(cfg, findings.Findings(results), metrics)


def compared(cfg: DictConfig, found: findings.Findings, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What the claims are judged by."""
    first = next(iter(cfg.sizes))
    sizes = {size: list(one.rates) for size, one in cfg.sizes.items()}
    errors = [
        abs(one["pred_rate"]["mean"] - float(name[1:]) / 100)
        for cells in metrics["rates"].values()
        for name, one in cells.items()
    ]
    return {
        **findings.rate_findings(found, sizes),
        "decoupled": findings.decoupling_findings(found, first, pairs_of(cfg)),
        "strategies": findings.strategy_findings(found, first, sizes[first], cfg.strategies),
        "replace": findings.replacement_findings(found, first, cfg.replace),
        "probes": findings.probe_findings(found, first),
        "largest_rate_error": max(errors),
    }


# ------------------------------------------------------------------------------------------------------------ terminal


def show(metrics: Mapping[str, Any], console: Console) -> None:
    """Every cell's held-out losses and the probes, mean (standard deviation over seeds)."""
    first = next(iter(metrics["rates"]))
    groups = dict(metrics["rates"])
    for group in ("strategies", "replace"):
        groups |= {f"{first}, {NAMES.get(name, name)}": cells for name, cells in metrics[group].items()}
    groups[f"{first}, corruption and prediction apart"] = metrics["decoupled"]
    title = f"held-out loss in nats per token; token frequencies alone: {metrics['unigram_loss']:.2f}"
    columns = ("trained at", "own rate", "15 %", "40 %", "80 %", "updates until context is in use")
    table = Table(*columns, title=title, title_justify="left")
    for group, cells in groups.items():
        table.add_section()
        table.add_row(f"[bold]{group}[/]")
        for name, one in cells.items():
            losses = (one[key] for key in findings.LOSSES)
            left = ", ".join("-" if each is None else str(each) for each in one["left_plateau_at"])
            table.add_row(_label(name), *map(_spread, losses), left)
    console.print(table)
    rows = {_label(name): one for name, one in metrics["rates"][first].items() if any(p in one for p in PROBES)}
    if rows:
        titles = {"order": "word order", "blimp": "BLiMP", "finetune": f"fine-tuned: {metrics['finetune_data']}"}
        asked = [name for name in PROBES if name in metrics["untrained"]]
        columns = ["pre-trained at", *(titles[name] for name in asked)]
        table = Table(*columns, title="accuracy x 100", title_justify="left")
        for label, one in (rows | {"not at all": metrics["untrained"]}).items():
            table.add_row(label, *(_spread(one[name], 100, 1) for name in asked))
        console.print(table)


def _spread(value: Mapping[str, Any], scale: float = 1.0, digits: int = 2) -> str:
    std = "" if value["std"] is None else f" ({value['std'] * scale:.{digits}f})"
    return f"{value['mean'] * scale:.{digits}f}{std}"


def _label(name: str) -> str:
    """m40 -> "40 %"; c20_p40 -> "corrupt 20, predict 40"."""
    if name.startswith("m"):
        return f"{name[1:]} %"
    corruption, prediction = name.split("_")
    return f"corrupt {corruption[1:]}, predict {prediction[1:]}"


# --------------------------------------------------------------------------------------------------------------- plots


def draw(cfg: DictConfig, run: Run) -> None:
    """The paper's figures at this scale."""
    metrics = run.metrics
    first = next(iter(cfg.sizes))
    millions = {size: f"{size} ({count / 1e6:.2f} M parameters)" for size, count in metrics["parameters"].items()}
    by_size = {millions[size]: _curve(cells) for size, cells in metrics["rates"].items()}
    schemes = {NAMES.get(name, name): _curve(cells) for name, cells in metrics["replace"].items()}
    spans = {NAMES.get(name, name): _curve(cells) for name, cells in metrics["strategies"].items()}
    by_strategy = {"uniform": _curve(metrics["rates"][first]), **spans, **schemes}
    panels = {"model size": by_size, f"strategy ({first})": by_strategy}
    run.save_plot(
        "quality_by_rate",
        plots.quality_by_rate(panels, f"{QUALITY}, lower is better", list(schemes)),
        "Held-out loss with 15 % of the tokens hidden against the masking rate in training; bars: standard deviation "
        f"over {len(cfg.seeds)} seeds (the paper shows fine-tuned accuracy by size and by strategy).",
    )
    labels = {"own": "its own rate", "at15": "15 %", "at40": "40 %", "at80": "80 %"}
    for size, cells in metrics["rates"].items():
        curves = {labels[key]: _curve(cells, key) for key in findings.LOSSES}
        run.save_plot(
            f"losses_by_rate_{size}",
            plots.losses_by_rate(curves, metrics["unigram_loss"], millions[size]),
            f"The {size} models' held-out loss with 15, 40 and 80 % hidden, the same text and masks for all, and at "
            "the rate each was trained at.",
        )
    draw_decoupling(cfg, run)
    draw_probes(run, first)


def _curve(cells: Mapping[str, Any], key: str = "at15") -> dict[float, Any]:
    return {float(name[1:]) / 100: one[key] for name, one in cells.items() if key in one}


def draw_decoupling(cfg: DictConfig, run: Run) -> None:
    """Heat map at equal updates, and the same runs against their compute."""
    cells = {(c, p): run.metrics["decoupled"][pair_name(c, p)] for c, p in pairs_of(cfg)}
    if not cells:
        return
    least = min(one["flops"] for one in cells.values())
    losses = {pair: one["at15"] for pair, one in cells.items()}
    compute = {pair: one["flops"] / least for pair, one in cells.items()}
    run.save_plot(
        "decoupling",
        plots.decoupling(losses, compute, QUALITY),
        "Corruption and prediction apart, at equal updates and equal text: predicting more than is corrupted takes "
        "copies of every sequence, so the cost differs (paper: section 4).",
    )
    lines = {}
    for corruption in sorted({pair[0] for pair in cells}):
        points = [(one["flops"], one["at15"]) for (c, _), one in cells.items() if c == corruption]
        lines[f"corruption {100 * corruption:g} %"] = sorted(points, key=lambda point: point[0])
    run.save_plot(
        "decoupling_compute",
        plots.compute_against_loss(lines, QUALITY),
        "The same runs against their compute; along a line the prediction rate grows.",
    )


def draw_probes(run: Run, first: str) -> None:
    """The probes of the first size's models, if any were asked."""
    metrics, panels = run.metrics, {}
    titles = {
        "finetune": "fine-tuning, " + str(metrics["finetune_data"]).replace("_", " "),
        "order": "word order",
        "blimp": "BLiMP",
    }
    for name, title in titles.items():
        curve = _curve(metrics["rates"][first], name)
        if curve:
            chance = {"majority class": metrics["majority"]} if name == "finetune" else {"chance": 0.5}
            panels[title] = (curve, chance | {"not pre-trained": metrics["untrained"][name]["mean"]})
    if panels:
        run.save_plot(
            "probes",
            plots.probes_by_rate(panels),
            f"Accuracy of the {first} models after fine-tuning, on word order and on BLiMP, by the rate in training.",
        )


# ---------------------------------------------------------------------------------------------------------------- main


def reproduce(cfg: DictConfig, console: Console) -> Path:
    """Run, measure, draw, judge; returns the path of results.json. Raises InputError."""
    check(cfg)
    folder = run_folder(cfg.paper, cfg.scale, cfg.experiment, cfg.output_dir)
    data = text_overrides(cfg, console)
    cells = cells_of(cfg, data)
    run = Run(cfg.paper, cfg.experiment, cfg.scale, output_dir=folder, config=cfg, seed=list(cfg.seeds))
    text = open_text(cfg, data)
    probes = probes_of(cfg, folder, text, console)
    ran = run_cells(cells, folder, probes, cfg.final_blocks, cfg.processes or len(os.sched_getaffinity(0)))
    tokens = sum(len(stream.tokens) for stream in text.streams)
    run.metrics |= {"tokens": tokens, "runs": len(cells), "runs_now": ran}
    run.metrics["text"] = data[0].partition("=")[2]
    measure(cfg, gather(cells, folder, probes, cfg.final_blocks), run.metrics)
    show(run.metrics, console)
    draw(cfg, run)
    path = run.finish(console)
    console.print(f"everything: {folder}", highlight=False, soft_wrap=True)
    return path


@entrypoint(config_name="reproduce")
def main(cfg: DictConfig) -> None:
    reproduce(cfg, Console())


if __name__ == "__main__":
    main()
