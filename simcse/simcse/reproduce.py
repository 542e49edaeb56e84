"""`make reproduce-simcse`: what of the paper shows on two CPU cores, without a download, in under six minutes.

(a) A tiny encoder from random weights: untrained, unsupervised, pairs, triplets, and triplets at temperature 1, over
    three seeds. Supervision shows here; the unsupervised recipe does not, because it needs a pre-trained encoder.
(b) A real pre-trained encoder (MiniLM) with CLS pooling, before and after unsupervised SimCSE: there it does show.
(c) Retrieval on the offline corpus, the summary line against the body of the same document.

Beside them stand encoders that have learned nothing (`baselines`). Trainings are separate runs with folders and results
of their own, `<cell>/seed-<n>`: a killed reproduction goes on where it was, and a finished cell is not trained again.
They run side by side, one per core, in processes of one thread: at 2 layers of 128 a second thread gains little.
"""

import json
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from tqdm.auto import tqdm

from shared import InputError
from shared.launch import entrypoint
from shared.results import Run, over_seeds
from shared.training import read_metrics, run_folder
from shared.workers import quiet, spread
from simcse import plots
from simcse.analyze import Analysis, analyze_embeddings, load_pairs
from simcse.baselines import bag_of_words, random_vectors
from simcse.embedding import embed_sentences, load_encoder
from simcse.retrieval import corpus_task, recall_at_k
from simcse.senteval import evaluate_pairs

log = logging.getLogger(__name__)

TRAJECTORY_STEPS = 10
CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@dataclass(frozen=True)
class Training:
    """One training of the reproduction: where it goes and the overrides of `simcse.train` that make it."""

    cell: str
    seed: int
    folder: Path
    overrides: tuple[str, ...]

    @property
    def results(self) -> dict[str, Any]:
        return json.loads((self.folder / "results.json").read_text(encoding="utf-8"))["metrics"]

    @property
    def trajectory(self) -> list[tuple[int, float, float]]:
        """(step, alignment, uniformity) along the training."""
        lines = [line for line in read_metrics(self.folder / "metrics.jsonl") if "eval_alignment" in line]
        return [(line["step"], line["eval_alignment"], line["eval_uniformity"]) for line in lines]


def trainings(cfg: DictConfig, folder: Path) -> list[Training]:
    """Every training of the reproduction, the longest first so that no core waits at the end.

    The first seed of the unsupervised cell also leaves its trajectory, for Figure 2.
    """
    at_end = "eval.steps=null"
    text, triplets = f"data.max_examples={cfg.unsup_examples}", f"data.sample={cfg.triplet_examples}"
    follow, silent = (f"eval.trajectory_steps={steps}" for steps in (TRAJECTORY_STEPS, "null"))
    minilm = [f"data.max_examples={cfg.minilm.max_examples}", at_end]
    found = [_training("minilm", "unsup_minilm", cfg.seed, folder, minilm)]
    for seed in cfg.seeds:
        for cell, experiment in cfg.cells.items():
            more = [f"optim.num_train_epochs={cfg.epochs[cell]}", at_end]
            if cell == "unsup":
                more += [text, follow if seed == cfg.seeds[0] else silent]
            else:
                more.append(triplets)
            found.append(_training(cell, experiment, seed, folder, more))
    for temperature in cfg.temperatures:
        epochs = f"optim.num_train_epochs={cfg.epochs.triplets}"
        more = [f"loss.temperature={temperature}", epochs, triplets, at_end]
        found.append(_training(f"tau{temperature}", "triplets", cfg.seed, folder, more))
    for name, overrides in cfg.trajectories.items():
        found.append(_training(name, "unsup", cfg.seed, folder, [text, follow, at_end, *overrides]))
    return found


def _training(cell: str, experiment: str, seed: int, folder: Path, more: Iterable[str]) -> Training:
    output_dir = folder / cell / f"seed-{seed}"
    fixed = [f"experiment={experiment}", f"seed={seed}", "optim.disable_tqdm=true"]
    return Training(cell, seed, output_dir, (*fixed, *more))


def run_training(training: Training, data_dir: str | None) -> None:
    """Train one of them in this process; its own table is not printed. Raises InputError."""
    from simcse.train import train

    GlobalHydra.instance().clear()  # with one process this is the reproduction's own, whose configuration is read
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = hydra.compose("config", list(training.overrides))
    cfg.output_dir, cfg.eval.data_dir = str(training.folder), data_dir
    with quiet("simcse"):
        train(cfg)


def run_all(todo: list[Training], processes: int, data_dir: str | None) -> None:
    """Run the trainings, `processes` at a time, each in a process of one thread. Raises the first InputError."""
    progress = tqdm(total=len(todo), desc="trainings", unit="run")
    with progress:
        for number, _ in spread(partial(run_training, data_dir=data_dir), todo, processes):
            progress.set_postfix_str(f"{todo[number].cell}, seed {todo[number].seed}")
            progress.update()


class Looks:
    """Everything that is measured on trained and untrained encoders: dev scores, geometry, spectra, retrieval."""

    def __init__(self, cfg: DictConfig):
        self.pairs, self.source = load_pairs("dev", cfg.data_dir)
        self.task = corpus_task(cfg.retrieval.documents)
        self.max_length = cfg.retrieval.max_length

    def baseline(self, encode) -> dict[str, Any]:
        """Dev score and retrieval of an encoder without weights."""
        return {"stsb_dev": evaluate_pairs(encode, self.pairs)["all"]}

    def analysis(self, model: str | Path, pooler: str | None = None) -> Analysis:
        """Dev score, alignment, uniformity, spectrum and cosine densities of a saved encoder."""
        encoder, tokenizer = load_encoder(str(model), pooler)
        vectors = embed_sentences(encoder, tokenizer, self.pairs.sentences)
        return analyze_embeddings(vectors[: len(self.pairs)], vectors[len(self.pairs) :], self.pairs.gold)

    def retrieval(self, model: str | Path, pooler: str | None = None) -> dict[str, float]:
        """Recall@k on the offline corpus of a saved encoder."""
        encoder, tokenizer = load_encoder(str(model), pooler)

        def encode(texts: list[str]) -> np.ndarray:
            return embed_sentences(encoder, tokenizer, texts, max_length=self.max_length)

        return recall_at_k(encode, self.task)


def summary(analyses: list[Analysis]) -> dict[str, Any]:
    """stsb_dev, align and uniform over seeds."""
    names = {"stsb_dev": "spearman", "align": "align", "uniform": "uniform"}
    return {name: over_seeds([one.metrics[key] for one in analyses]) for name, key in names.items()}


def single(analysis: Analysis) -> dict[str, float]:
    return {
        "stsb_dev": analysis.metrics["spearman"],
        "align": analysis.metrics["align"],
        "uniform": analysis.metrics["uniform"],
    }


def measure(cfg: DictConfig, done: list[Training], looks: Looks, run: Run) -> dict[str, Analysis]:
    """Fill run.metrics from the finished trainings; returns the analyses that the figures need."""
    by_cell: dict[str, list[Training]] = {}
    for training in done:
        by_cell.setdefault(training.cell, []).append(training)
    scratch = {cell: [looks.analysis(one.folder / "model") for one in by_cell[cell]] for cell in cfg.cells}
    untrained = [looks.analysis(one.folder / "scratch", "avg") for one in by_cell["triplets"]]
    minilm = by_cell["minilm"][0].folder / "model"
    before, after = looks.analysis("minilm", "cls_before_pooler"), looks.analysis(minilm)
    averaged = looks.analysis("minilm", "avg")
    first = by_cell["triplets"][0].folder

    run.metrics |= {"sts_data": looks.source, "retrieval_data": f"{len(looks.task)} documents of the offline corpus"}
    run.metrics["baseline"] = {
        "bag_of_words": looks.baseline(bag_of_words),
        "random_vectors": looks.baseline(random_vectors),
    }
    run.metrics["scratch"] = {"untrained": summary(untrained)} | {cell: summary(scratch[cell]) for cell in scratch}
    run.metrics["minilm"] = {
        "before": single(before),
        "after": single(after),
        "avg": {"stsb_dev": averaged.metrics["spearman"]},
        "steps": by_cell["minilm"][0].results["train"]["steps"],
    }
    run.metrics["temperature"] = {
        str(t): looks.analysis(by_cell[f"tau{t}"][0].folder / "model").metrics["spearman"] for t in cfg.temperatures
    }
    run.metrics["retrieval"] = {
        "bag_of_words": recall_at_k(bag_of_words, looks.task),
        "untrained": looks.retrieval(first / "scratch", "avg"),
        "triplets": looks.retrieval(first / "model"),
        "minilm_before": looks.retrieval("minilm", "cls_before_pooler"),
        "minilm_after": looks.retrieval(minilm),
    }
    analyses = {
        "untrained": untrained[0],
        "triplets": scratch["triplets"][0],
        "minilm_before": before,
        "minilm_after": after,
    }
    run.metrics["spectrum"] = {
        name: {key: one.metrics["singular_values"][key] for key in ("top1_share", "effective_rank")}
        for name, one in analyses.items()
    }
    run.metrics["training_text"] = {
        cell: by_cell[cell][0].results["text"]["source"] for cell in ("unsup", "triplets", "minilm")
    }
    return analyses | {"unsup": scratch["unsup"][0], "pairs": scratch["pairs"][0], "tau1": scratch["tau1"][0]}


def draw(cfg: DictConfig, run: Run, done: list[Training], analyses: dict[str, Analysis], source: str) -> None:
    """The paper's figures at this scale."""
    first = {one.cell: one for one in reversed(done) if one.seed in (cfg.seed, cfg.seeds[0])}
    runs = {"unsupervised": first["unsup"].trajectory}
    runs |= {name.replace("_", " "): first[name].trajectory for name in cfg.trajectories}
    ends = "; ".join(f"{name}: alignment {p[-1][1]:.2f}, uniformity {p[-1][2]:.2f}" for name, p in runs.items())
    caption = (
        f"Alignment against uniformity of the tiny encoder on {source}, every {TRAJECTORY_STEPS} steps "
        "(paper: Figure 2). "
        "Without pre-training every variant trades alignment away alike."
    )
    run.save_plot("fig2_trajectories", plots.trajectories(runs), caption, f"Ends: {ends}.")
    points = [
        (name, m["align"], m["uniform"], m["spearman"]) for name, m in ((n, a.metrics) for n, a in analyses.items())
    ]
    caption = f"Alignment, uniformity and Spearman correlation on {source} (paper: Figure 3)."
    alt = "; ".join(f"{name}: alignment {a:.3f}, uniformity {u:.2f}, Spearman {s:.3f}" for name, a, u, s in points)
    run.save_plot("fig3_alignment_uniformity", plots.alignment_uniformity(points), caption, alt)
    shown = ("untrained", "triplets", "minilm_before", "minilm_after")
    spectra = {name: analyses[name].spectrum for name in shown}
    caption = f"Singular values of the embeddings of {source}, divided by the largest (paper: Figure F.1)."
    run.save_plot(
        "figF1_singular_values", plots.singular_values(spectra), caption, "Falling curves, trained ones flatter."
    )
    bins = {name: analyses[name].cosine_bins for name in shown}
    caption = f"Density of the cosine of {source} pairs by gold similarity; dotted: median (paper: Figure G.1)."
    run.save_plot(
        "figG1_cosine_densities", plots.cosine_densities(bins), caption, "Stacked densities of four encoders."
    )
    scratch = run.metrics["scratch"]
    measured = {0.05: scratch["triplets"]["stsb_dev"], 1.0: scratch["tau1"]["stsb_dev"]}
    measured |= {float(t): score for t, score in run.metrics["temperature"].items()}
    paper = {t: run.paper.number(f"table_d1.{row}.dev") for t, row in _PAPER_TEMPERATURES.items()}
    caption = (
        "Spearman correlation against temperature: the tiny encoder on triplets, and the paper's BERT-base (Table D.1)."
    )
    figure = plots.sts_against("temperature", measured, paper=paper, log=True)
    run.save_plot("tableD1_temperature", figure, caption, "Both curves fall steeply towards temperature 1.")
    values = {f"scratch, {cell}": scores["stsb_dev"] for cell, scores in scratch.items()}
    values |= {f"MiniLM CLS, {when}": run.metrics["minilm"][when]["stsb_dev"] for when in ("before", "after")}
    floor = {name.replace("_", " "): one["stsb_dev"] for name, one in run.metrics["baseline"].items()}
    caption = (
        f"Spearman correlation on {source}; bars: standard deviation over {len(cfg.seeds)} seeds; dashed: baselines."
    )
    run.save_plot("summary", plots.bars(values, floor), caption)


_PAPER_TEMPERATURES = {0.001: "t_0001", 0.01: "t_001", 0.05: "t_005", 0.1: "t_01", 1.0: "t_1"}


def check(cfg: DictConfig) -> None:
    """Refuse what cannot be reproduced. Raises InputError."""
    if cfg.scale != "laptop":
        raise InputError(
            f"scale={cfg.scale}: reproduce runs at laptop scale. The paper's own experiments are single runs: "
            "`make plan-simcse` lists them, `python -m simcse.train experiment=NAME` runs one."
        )
    if not cfg.seeds or len(set(cfg.seeds)) < len(cfg.seeds):
        raise InputError(f"seeds={list(cfg.seeds)}: give at least one, each once.")


def reproduce(cfg: DictConfig) -> Path:
    """Train, measure, draw, judge; returns the path of results.json."""
    check(cfg)
    folder = run_folder(cfg.paper, cfg.scale, cfg.experiment, cfg.output_dir)
    run = Run(cfg.paper, cfg.experiment, cfg.scale, output_dir=folder, config=cfg, seed=list(cfg.seeds))
    looks = Looks(cfg)
    log.info("dev set: %s; retrieval: %d documents of the offline corpus", looks.source, len(looks.task))
    todo = trainings(cfg, folder)
    run_all(todo, cfg.processes or os.cpu_count() or 1, cfg.data_dir)
    analyses = measure(cfg, todo, looks, run)
    draw(cfg, run, todo, analyses, looks.source)
    return run.finish()


@entrypoint(config_path="../configs", config_name="reproduce")
def main(cfg: DictConfig) -> None:
    reproduce(cfg)


if __name__ == "__main__":
    main()
