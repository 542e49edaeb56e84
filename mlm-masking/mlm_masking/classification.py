"""A task's fine-tuning as plain functions: data tokenised for a model, the loss, the scores, one run.

The head is transformers' own on the hidden state of `<s>`: dropout, dense, tanh, dropout, linear. The release has 0.0
for both dropouts where transformers has 0.1, which changes scores slightly (`pooler_dropout`).
"""

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from mlm_masking import glue
from mlm_masking.encoders import load_model, load_tokenizer, locate_model, position_limit, read_config
from mlm_masking.fitting import Batch, Checkpoint, Diverged, LossSum, Settings, fit, precision_of
from mlm_masking.glue_metrics import classification_metrics, regression_metrics
from mlm_masking.length_buckets import token_batches
from mlm_masking.padding_free import PaddingFree
from mlm_masking.sequences import Sequences, encode
from shared import InputError
from shared.results import write_atomic
from shared.training import seed_everything

log = logging.getLogger(__name__)

SCORING_TOKENS = {"cpu": 2048, "cuda": 65536}


@dataclass(frozen=True)
class Prepared:
    """A task's sets, tokenised for one model: rows and labels of training, of each scored set, of each to predict."""

    task: glue.Task
    train: Sequences
    train_labels: np.ndarray
    dev: dict[str, tuple[Sequences, np.ndarray]]
    predict: dict[str, Sequences]
    origin: str

    def statistics(self, trained_length: int | None) -> dict[str, Any]:
        sets = {"train": self.train} | {name: rows for name, (rows, _) in self.dev.items()}
        return {name: rows.statistics(trained_length) for name, rows in sets.items()}


def prepare(
    model: str | Path,
    task: glue.Task,
    *,
    train: str | None = None,
    dev: str | Mapping[str, str] | None = None,
    source: str | None = None,
    size: int | None = None,
    fraction: float | None = None,
    sampling_seed: int = 0,
    max_length: int | None = None,
    predict: Mapping[str, str] | None = None,
) -> Prepared:
    """Read a task's data and tokenise it with the model's tokenizer.

    Args:
        train, dev, source: see `glue.load_data`. size, fraction, sampling_seed: see `glue.subsample`.
        max_length: tokens per row; None is what the model's positions hold.
        predict: {name: set or file} to predict beside the scored sets.

    Raises:
        InputError: data or tokenizer that cannot be used.
    """
    config = read_config(locate_model(model))
    tokenizer = load_tokenizer(model, config.vocab_size)
    limit = position_limit(config)
    if max_length is not None and max_length > limit:
        raise InputError(f"max_length={max_length}, but the model's positions hold {limit} tokens: give no more")
    data = glue.load_data(task, train=train, dev=dev, source=source)
    chosen = glue.subsample(data.train, size=size, fraction=fraction, seed=sampling_seed)

    def rows(examples: glue.Examples) -> Sequences:
        return encode(
            tokenizer, examples.text_a, examples.text_b, limit=max_length or limit, vocab_size=config.vocab_size
        )

    prepared = Prepared(
        task,
        rows(chosen),
        chosen.labels,
        {name: (rows(examples), examples.labels) for name, examples in data.dev.items()},
        {name: rows(glue.load_unlabelled(task, where, source)) for name, where in (predict or {}).items()},
        data.origin,
    )
    cut = sum(s.truncated for s in (prepared.train, *(found for found, _ in prepared.dev.values())))
    if cut:
        log.warning("%s: %d examples are longer than %d tokens and were cut", task.title, cut, max_length or limit)
    return prepared


def loss_function(task: glue.Task, labels: np.ndarray) -> LossSum:
    """The summed loss of a batch: NLL of the class, or squared error on the raw score (release)."""

    def loss_sum(model: PreTrainedModel, hidden: Tensor, batch: Batch, rows: np.ndarray) -> Tensor:
        logits = classify(model, hidden, batch)
        wanted = torch.from_numpy(labels[rows]).to(logits.device)
        if task.kind == "regression":
            return F.mse_loss(logits.squeeze(-1), wanted.to(logits.dtype), reduction="sum")
        return F.cross_entropy(logits, wanted, reduction="sum")

    return loss_sum


def classify(model: PreTrainedModel, hidden: Tensor, batch: Batch) -> Tensor:
    """(rows, outputs) logits from the hidden state of each row's `<s>`: transformers' own head."""
    return model.classifier(hidden[batch.starts][:, None])


def predict_logits(model: PreTrainedModel, sequences: Sequences, settings: Settings) -> np.ndarray:
    """(rows, outputs) float32 logits of all rows, without dropout, in the order of `sequences`."""
    model.eval()
    logits = np.empty((len(sequences), model.config.num_labels), dtype=np.float32)
    tokens = SCORING_TOKENS.get(model.device.type, SCORING_TOKENS["cuda"])
    with torch.inference_mode():
        for rows in token_batches(sequences.lengths, tokens):
            batch = PaddingFree(sequences.rows(rows), model)
            with precision_of(settings, model.device):
                hidden = batch.hidden(model)
            logits[rows] = classify(model, hidden.float(), batch).cpu().numpy()
    return logits


def score(task: glue.Task, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The task's metrics of (rows, outputs) logits.

    Raises:
        InputError: hidden labels; Diverged for logits that are not finite.
    """
    if not np.isfinite(logits).all():
        raise Diverged("the model's outputs are NaN or infinite: lower lr")
    if task.kind == "regression":
        return regression_metrics(logits[:, 0], labels)
    return classification_metrics(logits.argmax(axis=1), labels, len(task.labels))


def finetune(
    model: str | Path,
    task: str | glue.Task,
    *,
    seed: int = 1,
    settings: Settings | None = None,
    prepared: Prepared | None = None,
    pooler_dropout: float = 0.0,
    device: str | None = None,
    checkpoint: Checkpoint | None = None,
    save_to: Path | None = None,
    progress: bool = False,
    **data_options: Any,
) -> dict[str, Any]:
    """Fine-tune once and score the last state: a plain function, nothing is written unless asked.

    Args:
        model: folder or name of a pre-trained encoder. task: a name in configs/task, or a Task.
        settings: hyper-parameters, by default lr 5e-5, batches of 32, three epochs.
        prepared: from `prepare`, so that several runs share the tokenised data; else `data_options` go to it.
        checkpoint: where a killed run goes on. save_to: a folder for the trained model and predictions.

    Returns: `score` (the task's metric on its first scored set), `metrics` {set: {metric: value}}, `training`
        (see `fitting.fit`).

    Raises:
        InputError: see `prepare`, `load_model`; Diverged where the loss is no longer finite.
    """
    task = glue.load_task(task) if isinstance(task, str) else task
    settings = settings or Settings()
    prepared = prepared or prepare(model, task, **data_options)
    seed_everything(seed)
    network = load_model(model, "classification", outputs=task.outputs, pooler_dropout=pooler_dropout, device=device)
    seed_everything(seed)  # dropout starts from the seed, however many numbers the new head has drawn
    bar = tqdm(desc=f"{task.title}, seed {seed}", unit=" updates", leave=False, disable=not progress)
    with bar:
        training = fit(
            network,
            prepared.train,
            loss_function(task, prepared.train_labels),
            settings,
            seed,
            checkpoint=checkpoint,
            on_update=lambda update: bar.update(update - bar.n),
        )
    metrics = {
        name: score(task, predict_logits(network, rows, settings), labels)
        for name, (rows, labels) in prepared.dev.items()
    }
    if save_to is not None:
        save(network, prepared, settings, save_to)
    first = next(iter(prepared.dev))
    if task.metric not in metrics[first]:
        raise InputError(f"task.metric={task.metric}: {task.title} has {', '.join(metrics[first])}")
    return {"score": metrics[first][task.metric], "metrics": metrics, "training": training}


def save(model: PreTrainedModel, prepared: Prepared, settings: Settings, folder: Path) -> None:
    """Write the model (safetensors) and a tsv of predictions per set to predict; the folder appears whole."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    for name, rows in prepared.predict.items():
        logits = predict_logits(model, rows, settings)
        task = prepared.task
        values = logits[:, 0].tolist() if task.kind == "regression" else [task.labels[k] for k in logits.argmax(axis=1)]
        lines = [f"{index}\t{value}" for index, value in enumerate(values)]
        write_atomic(partial / f"{name}.tsv", "\n".join(["index\tprediction", *lines]) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
