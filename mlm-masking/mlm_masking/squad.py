"""Fine-tune a pre-trained encoder on SQuAD v1.1 and score it with the official exact match and F1.

    python -m mlm_masking.squad ckpt=efficient_mlm_m0.40
    python -m mlm_masking.squad ckpt=... evaluation=paper          # the grid, three seeds
    python -m mlm_masking.squad ckpt=... data.train=train-v1.1.json data.dev=dev-v1.1.json

The settings are those of transformers' example script, which the paper uses: AdamW without weight decay or warm-up,
linear decay, windows of 384 tokens that overlap by 128. Grid, cells and resumption are those of `mlm_masking.finetune`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from mlm_masking.classification import SCORING_TOKENS
from mlm_masking.encoders import load_model, load_tokenizer, locate_model, model_name, position_limit, read_config
from mlm_masking.fitting import Batch, Checkpoint, LossSum, Settings, fit, precision_of
from mlm_masking.grid import Cell, Point
from mlm_masking.grid_run import GridRun, experiment_name, plain, print_grid, settings_of
from mlm_masking.length_buckets import token_batches
from mlm_masking.padding_free import PaddingFree
from mlm_masking.sequences import Sequences
from mlm_masking.squad_metrics import squad_scores
from mlm_masking.squad_windows import Question, Windows, best_answers, make_windows, read_questions
from shared import InputError, hub
from shared.launch import entrypoint
from shared.results import Run, is_main_process, over_seeds, write_atomic
from shared.training import run_folder, seed_everything

PAPER = "mlm-masking"
FILES = {"train": "plain_text/train-*.parquet", "dev": "plain_text/validation-*.parquet"}


@dataclass(frozen=True)
class Prepared:
    """SQuAD for one model: windows to train on, questions to answer and their windows."""

    train: Windows
    dev_questions: list[Question]
    dev: Windows
    origin: str


def prepare(
    model: str | Path,
    *,
    train: str | Path | None = None,
    dev: str | Path | None = None,
    size: int | None = None,
    max_length: int = 384,
    doc_stride: int = 128,
) -> Prepared:
    """Read and tokenise SQuAD, or own files in its format.

    Args:
        size: only the first so many training questions.

    Raises:
        InputError: data that cannot be used, or windows longer than the model's positions.
    """
    config = read_config(locate_model(model))
    if max_length > position_limit(config):
        raise InputError(
            f"max_length={max_length}, but the model's positions hold {position_limit(config)} tokens: "
            f"give max_length={position_limit(config)} or less (and a smaller doc_stride)"
        )
    if (train is None) != (dev is None):
        raise InputError("data.train and data.dev belong together: give both, or neither")
    if train is None:
        folder = hub.locate(PAPER, "squad")
        files = {name: sorted(folder.glob(pattern)) for name, pattern in FILES.items()}
        origin = "squad"
    else:
        files = {"train": [Path(train).expanduser()], "dev": [Path(dev).expanduser()]}
        origin = f"own files ({Path(train).name})"
    sets = {name: [question for file in found for question in read_questions(file)] for name, found in files.items()}
    if size is not None and not 1 <= size <= len(sets["train"]):
        raise InputError(f"data.size={size}: give 1 to {len(sets['train'])}, the number of training questions")
    if lacking := next((one for one in sets["train"] if not one.answers), None):
        raise InputError(f"training question {lacking.id} has no answer: SQuAD v1.1 has one for each")
    tokenizer = load_tokenizer(model, config.vocab_size)
    options = {"max_length": max_length, "doc_stride": doc_stride, "vocab_size": config.vocab_size}
    return Prepared(
        make_windows(tokenizer, sets["train"][:size], **options),
        sets["dev"],
        make_windows(tokenizer, sets["dev"], labelled=False, **options),
        origin,
    )


def span_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """(tokens, hidden) -> (tokens, 2): start and end logit of every token."""
    return model.qa_outputs(hidden)


def padded_logits(logits: Tensor, batch: Batch) -> Tensor:
    """(tokens, 2) -> (rows, longest, 2), minus infinity where there is no token."""
    lengths = torch.from_numpy(batch.lengths).to(logits.device)
    longest = int(batch.lengths.max())
    places = torch.arange(longest, device=logits.device)
    inside = places < lengths[:, None]
    index = (batch.starts[:, None] + places).clamp(max=len(logits) - 1)
    return logits[index].masked_fill(~inside[..., None], float("-inf"))


def loss_function(targets: np.ndarray) -> LossSum:
    """The mean of the NLL of start and end, summed over windows."""

    def loss_sum(model: PreTrainedModel, hidden: Tensor, batch: Batch, rows: np.ndarray) -> Tensor:
        logits = padded_logits(span_logits(model, hidden), batch)
        wanted = torch.from_numpy(targets[rows]).to(logits.device)
        start = F.cross_entropy(logits[..., 0], wanted[:, 0], reduction="sum")
        return (start + F.cross_entropy(logits[..., 1], wanted[:, 1], reduction="sum")) / 2

    return loss_sum


def predict_spans(model: PreTrainedModel, rows: Sequences, settings: Settings) -> list[np.ndarray]:
    """Per window (tokens, 2) logits, without dropout."""
    model.eval()
    found: list[np.ndarray] = [np.empty(0)] * len(rows)
    tokens = SCORING_TOKENS.get(model.device.type, SCORING_TOKENS["cuda"])
    with torch.inference_mode():
        for chosen in token_batches(rows.lengths, tokens):
            batch = PaddingFree(rows.rows(chosen), model)
            with precision_of(settings, model.device):
                hidden = batch.hidden(model)
            logits = span_logits(model, hidden.float()).cpu().numpy()
            for window, start, length in zip(chosen, batch.starts.tolist(), batch.lengths, strict=True):
                found[window] = logits[start : start + length]
    return found


def finetune_squad(
    model: str | Path,
    prepared: Prepared,
    *,
    seed: int = 1,
    settings: Settings | None = None,
    n_best: int = 20,
    max_answer_length: int = 30,
    device: str | None = None,
    checkpoint: Checkpoint | None = None,
    save_to: Path | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Fine-tune once and answer the dev questions.

    Args:
        save_to: a folder for `predictions.json` in the official format.

    Returns: `score` (F1), `metrics` {exact_match, f1} in percent, `training`.

    Raises:
        InputError: see `load_model`; Diverged where the loss is no longer finite.
    """
    settings = settings or Settings(
        lr=3e-5, batch_size=16, epochs=2, weight_decay=0.0, warmup_percent=0, betas=(0.9, 0.999), eps=1e-8,
        optimizer="adamw",
    )  # fmt: skip
    seed_everything(seed)
    network = load_model(model, "question_answering", outputs=2, device=device)
    seed_everything(seed)
    with tqdm(desc=f"SQuAD, seed {seed}", unit=" updates", leave=False, disable=not progress) as bar:
        training = fit(
            network,
            prepared.train.rows,
            loss_function(prepared.train.targets),
            settings,
            seed,
            checkpoint=checkpoint,
            on_update=lambda update: bar.update(update - bar.n),
        )
    logits = predict_spans(network, prepared.dev.rows, settings)
    options = {"n_best": n_best, "max_answer_length": max_answer_length}
    predictions = best_answers(prepared.dev, prepared.dev_questions, logits, **options)
    metrics = squad_scores(predictions, {one.id: one.golds for one in prepared.dev_questions})
    if save_to is not None:
        write_atomic(save_to / "predictions.json", json.dumps(predictions, ensure_ascii=False) + "\n")
    return {"score": metrics["f1"], "metrics": metrics, "training": training}


class SquadGrid(GridRun):
    """The cells of one configuration of SQuAD."""

    def __init__(self, cfg: DictConfig, folder: Path):
        windows = {"max_length": cfg.max_length, "doc_stride": cfg.doc_stride}
        answers = {"n_best": cfg.n_best, "max_answer_length": cfg.max_answer_length}
        super().__init__(cfg, folder, plain(cfg.task_grid), {"data_options": plain(cfg.data), **windows, **answers})
        self.answers = answers
        self.prepared = prepare(self.model, **plain(cfg.data), **windows)
        self.fixed |= {"data": self.prepared.origin, "windows": len(self.prepared.train.rows)}

    def train(self, settings: Settings, seed: int, checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
        return finetune_squad(
            self.model,
            self.prepared,
            seed=seed,
            settings=settings,
            device=self.device,
            checkpoint=checkpoint,
            save_to=folder,
            progress=self.cfg.progress,
            **self.answers,
        )


def summary(grid: SquadGrid, best: Point, results: Mapping[Cell, dict[str, Any]]) -> dict[str, Any]:
    """What goes into results.json."""
    chosen = [results[Cell(best, seed)] for seed in grid.seeds]
    if diverged := [one["diverged"] for one in chosen if one["score"] is None]:
        raise InputError(f"SQuAD: {diverged[0]}")
    return {
        "score": over_seeds([one["score"] for one in chosen]),
        **{name: over_seeds([one["metrics"][name] for one in chosen]) for name in ("exact_match", "f1")},
        "best": asdict(best),
        "cells": {cell.name: result["score"] for cell, result in results.items()},
        "training": chosen[0]["training"],
        "data": grid.prepared.origin,
        "windows": grid.prepared.train.rows.statistics(grid.cfg.trained_length),
        "model": model_name(grid.model),
    }


@entrypoint(config_path="../configs", config_name="squad")
def main(cfg: DictConfig) -> None:
    """Fine-tune on SQuAD."""
    settings_of(cfg)
    name, cells_name = experiment_name(cfg, "squad", "")
    grid = SquadGrid(cfg, run_folder(PAPER, cfg.scale, cells_name, cfg.output_dir))
    run = Run(PAPER, name, cfg.scale, cfg.output_dir, config=cfg, seed=grid.seeds)
    best, results = grid.run()
    run.metrics |= summary(grid, best, results)
    if is_main_process():
        console = Console()
        print_grid(f"SQuAD v1.1: F1 on {grid.prepared.origin}", 1, grid, best, results, console)
        run.finish(console)


if __name__ == "__main__":
    main()
