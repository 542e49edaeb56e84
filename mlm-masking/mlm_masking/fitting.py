"""Train all weights of an encoder and its head for a fixed number of updates: the loop under GLUE and SQuAD.

The release's settings: Adam with decoupled weight decay 0.1 on all parameters, linear warm-up over 6% of the updates
(integer division) and linear decay to zero, no clipping, the last state is the one that is scored. The loss of an
update is summed over its examples and divided by their number.

A killed run goes on from its last checkpoint and ends with the same weights: order is a function of (seed, epoch), and
the random states of dropout are in the checkpoint.
"""

import io
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mlm_masking.length_buckets import epoch_batches
from mlm_masking.optimizer import KINDS as OPTIMIZERS
from mlm_masking.optimizer import build_optimizer, linear_schedule
from mlm_masking.padding_free import Padded, PaddingFree, attention_of
from mlm_masking.sequences import Sequences
from shared import InputError
from shared.results import write_atomic

log = logging.getLogger(__name__)

# How a batch is composed and laid out. packed: random examples, no padding; bucketed: examples of like length, padded
# to the longest; random: random examples, padded to the longest (the release, and most recipes).
BATCHINGS: dict[str, tuple[str, type]] = {
    "packed": ("random", PaddingFree),
    "bucketed": ("bucketed", Padded),
    "random": ("random", Padded),
}
PRECISIONS = ("fp32", "bf16")
LOOK_EVERY = 50  # updates between looks at the loss: each look makes a GPU wait

Batch = PaddingFree | Padded
# (model, hidden states of the batch's tokens, the batch, its rows) -> the batch's loss, summed over rows
LossSum = Callable[[PreTrainedModel, Tensor, Batch, np.ndarray], Tensor]


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of a fine-tuning, with the release's defaults.

    `optimizer`: "release" adds eps before bias correction, "adamw" (torch's) after it.
    """

    lr: float = 5e-5
    batch_size: int = 32
    epochs: int = 3
    warmup_percent: int = 6
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    optimizer: str = "release"
    batching: str = "packed"
    precision: str = "fp32"

    def __post_init__(self) -> None:
        for name in ("lr", "batch_size", "epochs"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise InputError(f"{name}={value}: give a number above 0")
        for name in ("batch_size", "epochs", "warmup_percent"):
            if getattr(self, name) != int(getattr(self, name)):
                raise InputError(f"{name}={getattr(self, name)}: give a whole number")
        if not 0 <= self.warmup_percent < 100:
            raise InputError(f"warmup_percent={self.warmup_percent}: give a whole number from 0 to 99")
        if self.batching not in BATCHINGS:
            raise InputError(f"batching={self.batching}: give one of {', '.join(BATCHINGS)}")
        if self.precision not in PRECISIONS:
            raise InputError(f"precision={self.precision}: give one of {', '.join(PRECISIONS)}")
        if self.optimizer not in OPTIMIZERS:
            raise InputError(f"optimizer={self.optimizer}: give one of {', '.join(OPTIMIZERS)}")


class Diverged(InputError):
    """The loss is no longer finite. The message names the update, learning rate and examples."""


def update_counts(examples: int, batch_size: int, epochs: int, warmup_percent: int = 6) -> tuple[int, int]:
    """(updates, warm-up updates) as the release's script computes them: integer division, both times.

    Raises:
        InputError: fewer examples than one batch over all epochs.
    """
    updates = epochs * examples // batch_size
    if updates == 0:
        raise InputError(
            f"{examples} training examples x {epochs} epochs make no batch of {batch_size}: lower batch_size"
        )
    return updates, updates * warmup_percent // 100


@dataclass
class Progress:
    """What a checkpoint keeps beside weights and optimiser."""

    update: int = 0
    examples: int = 0
    tokens: int = 0
    loss: float = 0.0
    seconds: float = 0.0


class Checkpoint:
    """One file with everything a killed run needs, replaced every `every` updates and removed at the end.

    Args:
        path: the file. identity: what the run is; a file of another run is refused. every: None for none.
    """

    def __init__(self, path: Path | None, identity: dict[str, Any], every: int | None):
        self.path, self.identity, self.every = path, identity, every if path is not None else None

    def due(self, update: int) -> bool:
        return self.every is not None and update % self.every == 0

    def save(self, model: PreTrainedModel, optimizer: Any, schedule: Any, progress: Progress) -> None:
        state = {
            "identity": self.identity,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "progress": vars(progress),
            "random": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(self.path, buffer.getvalue())

    def load(self, model: PreTrainedModel, optimizer: Any, schedule: Any) -> Progress:
        """The state of an earlier run, or a fresh start. Raises InputError for a file of another run."""
        if self.path is None or not self.path.is_file():
            return Progress()
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        if state["identity"] != self.identity:
            changed = sorted(k for k in self.identity if state["identity"].get(k) != self.identity[k])
            raise InputError(
                f"{self.path} is of a run with another {', '.join(changed) or 'setting'}: give another output_dir, "
                "or remove it"
            )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"])
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda"])
        return Progress(**state["progress"])

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def make_batch(settings: Settings, sequences: Sequences, rows: np.ndarray, model: PreTrainedModel) -> Batch:
    """The rows as a batch of the kind that `settings.batching` names."""
    return BATCHINGS[settings.batching][1](sequences.rows(rows), model)


def precision_of(settings: Settings, device: torch.device) -> AbstractContextManager:
    """bf16 autocast, or nothing."""
    return torch.autocast(device.type, torch.bfloat16) if settings.precision == "bf16" else nullcontext()


def batches_from(
    sequences: Sequences, settings: Settings, seed: int, updates: int, done: int
) -> Iterator[tuple[int, np.ndarray]]:
    """(update, rows) from update `done` + 1 to `updates`, epoch after epoch."""
    per_epoch = math.ceil(len(sequences) / settings.batch_size)
    order = BATCHINGS[settings.batching][0]
    for epoch in range(done // per_epoch, math.ceil(updates / per_epoch)):
        batches = epoch_batches(sequences.lengths, settings.batch_size, order, seed, epoch)
        for index, rows in enumerate(batches):
            update = epoch * per_epoch + index + 1
            if done < update <= updates:
                yield update, rows


def fit(
    model: PreTrainedModel,
    sequences: Sequences,
    loss_sum: LossSum,
    settings: Settings,
    seed: int,
    *,
    checkpoint: Checkpoint | None = None,
    on_update: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Train `model` in place.

    Args:
        sequences: the training rows; their number fixes the number of updates.
        loss_sum: see `LossSum`.
        seed: of the order of examples. Dropout uses torch's generator: seed it before.
        on_update: called after each update with its number (a progress bar).

    Returns: updates, warm-up updates, the mean loss over the run, examples per second, tokens per second.

    Raises:
        Diverged: the loss became NaN or infinite.
    """
    updates, warmup = update_counts(len(sequences), settings.batch_size, settings.epochs, settings.warmup_percent)
    optimizer, schedule = optimizer_and_schedule(model, settings, updates, warmup)
    checkpoint = checkpoint or Checkpoint(None, {}, None)
    progress = checkpoint.load(model, optimizer, schedule)
    total = torch.tensor(progress.loss, dtype=torch.float64, device=model.device)
    model.train()
    started = time.perf_counter() - progress.seconds
    implementation = BATCHINGS[settings.batching][1].implementation
    with attention_of(model, implementation):
        for update, rows in batches_from(sequences, settings, seed, updates, progress.update):
            batch = make_batch(settings, sequences, rows, model)
            with precision_of(settings, model.device):
                hidden = batch.hidden(model)
            loss = loss_sum(model, hidden.float(), batch, rows) / len(rows)
            if update % LOOK_EVERY == 0 or update == updates or model.device.type == "cpu":
                _check_finite(loss, update, schedule, rows)
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            total += loss.detach()
            progress.update, progress.examples = update, progress.examples + len(rows)
            progress.tokens += int(batch.lengths.sum())
            if checkpoint.due(update) and update < updates:
                progress.loss, progress.seconds = float(total), time.perf_counter() - started
                checkpoint.save(model, optimizer, schedule, progress)
            if on_update is not None:
                on_update(update)
    seconds = time.perf_counter() - started
    return {
        "updates": updates,
        "warmup_updates": warmup,
        "train_loss": round(float(total) / updates, 6),
        "examples": progress.examples,
        "examples_per_second": round(progress.examples / seconds, 2),
        "tokens_per_second": round(progress.tokens / seconds, 1),
    }


def _check_finite(loss: Tensor, update: int, schedule: Any, rows: np.ndarray) -> None:
    if not bool(torch.isfinite(loss)):
        shown = ", ".join(map(str, rows[:8]))
        raise Diverged(
            f"the loss is {loss.item()} at update {update} (lr {schedule.get_last_lr()[0]:.3g}, training rows {shown}"
            f"{', ...' if len(rows) > 8 else ''}): lower lr"
        )


def optimizer_and_schedule(model: PreTrainedModel, settings: Settings, updates: int, warmup: int) -> tuple[Any, Any]:
    """The optimiser over all parameters in one group, and linear warm-up and decay to zero at `updates`."""
    optimizer = build_optimizer(
        model.parameters(),
        settings.optimizer,
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )
    return optimizer, linear_schedule(optimizer, warmup, updates)
