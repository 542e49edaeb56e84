"""transformers' Trainer with what masked-LM pre-training asks of it.

1. Batches are numbered (`micro_batches`), and masks are made here, on the device, from (seed, epoch, index): nothing
   depends on workers, ranks or a resumption.
2. The loss of an update is one sum over all its predicted tokens, in micro-batches and on ranks, over their number.
3. Adam decays all parameters alike; the learning rate is 1/warm-up at the first update and 0 at the last.
4. A loss that is not finite stops the run before it reaches the weights (on a GPU: a step later, since reading a loss
   at once would stall it) and names the examples.
5. A time budget ends the run with a checkpoint, on all ranks at the same update.
"""

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from mlm_masking.heldout import HeldOut, model_inputs, named_losses
from mlm_masking.loss import bits_and_perplexity
from mlm_masking.masker import Counts, Masker
from mlm_masking.micro_batches import MicroBatches
from mlm_masking.model import MaskedLanguageModel, predicted
from mlm_masking.optimizer import build_optimizer, linear_schedule
from shared import InputError

WEIGHTS = "model.safetensors"
# The same tensors as the embedding and the head's bias, under other names.
TIED = ("head.", "backbone.lm_head.decoder.")


class MaskingTrainer(Trainer):
    """Trains a `MaskedLanguageModel`.

    Args:
        batches: this rank's micro-batches of the whole run. masker: makes them into examples.
        heldout: None = no evaluation. optimizer_kind: "release" or "adamw".
        stop_after_minutes: the time budget; None = none.
        on_snapshot: called with the number of updates every `snapshot_every` updates.
    """

    def __init__(
        self,
        model: MaskedLanguageModel,
        args: TrainingArguments,
        batches: MicroBatches,
        masker: Masker,
        *,
        heldout: HeldOut | None = None,
        optimizer_kind: str = "release",
        stop_after_minutes: float | None = None,
        snapshot_every: int | None = None,
        on_snapshot: Callable[[int], None] | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ):
        self.batches, self.masker, self.heldout, self.optimizer_kind = batches, masker, heldout, optimizer_kind
        self.examples: list[tuple[int, Tensor]] = []
        self.guard = _LossGuard(self)
        self.budget = _TimeBudget(stop_after_minutes)
        self.window = _LogWindow(self)
        own = [_Progress(self), self.budget, self.window]
        if snapshot_every:
            own.append(_Snapshots(snapshot_every, on_snapshot))
        super().__init__(
            model, args, train_dataset=batches, eval_dataset=heldout and heldout.blocks, callbacks=[*own, *callbacks]
        )
        self.loss_is_scaled_for_ga = True

    @property
    def plain_model(self) -> MaskedLanguageModel:
        return self.accelerator.unwrap_model(self.model)

    # ------------------------------------------------------------------------------------------------------ batches

    def get_train_dataloader(self):
        return self.batches.loader(self.args.dataloader_num_workers, self.args.dataloader_pin_memory)

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device):
        """The masked micro-batches of one update, and the number of tokens predicted in it over all ranks."""
        items = [next(epoch_iterator) for _ in range(num_batches)]
        progress = self.state.global_step / self.batches.updates
        inputs, count = [], 0
        for item in items:
            ids = item["input_ids"].to(device, non_blocking=True)
            batch = self.masker(ids, item["index"], item["epoch"], progress)
            positions, targets = predicted(batch.labels)
            count += len(targets)
            inputs.append(model_inputs(batch, positions, targets, device))
        self.examples = [(item["epoch"], item["index"]) for item in items]
        total = torch.tensor(count, dtype=torch.float32, device=device)
        if self.args.world_size > 1:
            torch.distributed.all_reduce(total)
        return inputs, total.clamp(min=1)

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch: Tensor | None = None):
        """This micro-batch's part of the update's loss, times the ranks because gradients are averaged over them."""
        loss = model(**inputs) * (self.args.world_size / num_items_in_batch)
        self.guard.watch(loss.detach())
        self.window.add(loss.detach())
        return loss

    # ---------------------------------------------------------------------------------------------------- optimiser

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            args = self.args
            self.optimizer = build_optimizer(
                [parameter for parameter in self.model.parameters() if parameter.requires_grad],
                self.optimizer_kind,
                lr=args.learning_rate,
                betas=(args.adam_beta1, args.adam_beta2),
                eps=args.adam_epsilon,
                weight_decay=args.weight_decay,
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.lr_scheduler is None:
            warmup = self.args.get_warmup_steps(num_training_steps)
            self.lr_scheduler = linear_schedule(optimizer or self.optimizer, warmup, num_training_steps)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_grad_norm(self, model, grad_norm=None):
        return grad_norm  # not computed where it is not clipped: it is one more pass over all gradients

    # ------------------------------------------------------------------------------------------- logs and evaluation

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's log; to a training loss (nats) it adds bits, perplexity, measured rates and tokens per second."""
        if "loss" in logs:
            self.guard.check()
            logs |= self.window.close()
        super().log(logs, start_time)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Held-out losses: at the model's own rate and at the fixed ones; on every process (ZeRO-3 needs that)."""
        self.guard.check()
        begun = time.perf_counter()
        metrics = named_losses(self.heldout.losses(self.model, self.state.global_step / self.batches.updates))
        self.window.counted_from += time.perf_counter() - begun
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # -------------------------------------------------------------------------------------------------- checkpoints

    def _save_checkpoint(self, model, trial) -> None:
        self.window.join()
        super()._save_checkpoint(model, trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self.guard.check()
        if self.is_deepspeed_enabled:
            Path(output_dir).mkdir(parents=True, exist_ok=True)  # DeepSpeed's own checkpoint holds the weights
        else:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            state = self.plain_model.state_dict()
            kept = {name: tensor.contiguous() for name, tensor in state.items() if not name.startswith(TIED)}
            save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        stored = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        mine = {name: t for name, t in self.plain_model.state_dict().items() if not name.startswith(TIED)}
        wrong = [n for n in sorted(mine.keys() | stored.keys()) if _shape(mine.get(n)) != _shape(stored.get(n))]
        if wrong:
            raise InputError(
                f"{resume_from_checkpoint} is of another model: {wrong[0]} is {_shape(stored.get(wrong[0]))} there and "
                f"{_shape(mine.get(wrong[0]))} here. Resume with the model the run was started with."
            )
        self.plain_model.load_state_dict(stored, strict=False)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # trainer_state.json is written next and says that the checkpoint is whole: not before every rank's part is.
        self.accelerator.wait_for_everyone()

    def whole_state(self) -> dict[str, Tensor]:
        """The model's state dict with whole tensors; a joint act of all ranks under ZeRO-3."""
        model = self.plain_model
        with _gathered(model):
            return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def _shape(tensor: Tensor | None) -> tuple[int, ...] | str:
    return "missing" if tensor is None else tuple(tensor.shape)


@contextlib.contextmanager
def _gathered(module: nn.Module):
    """Whole parameters inside, where ZeRO-3 has cut them into parts; nothing to do otherwise."""
    parameters = [parameter for parameter in module.parameters() if hasattr(parameter, "ds_id")]
    if not parameters:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=None):
        yield


class _LossGuard:
    """Looks at every loss: at once on a CPU, else when the next one comes and the first is computed anyway."""

    def __init__(self, trainer: MaskingTrainer):
        self.trainer = trainer
        self.last: tuple[Tensor, int, float, list[tuple[int, Tensor]]] | None = None

    def watch(self, loss: Tensor) -> None:
        self.check()
        trainer = self.trainer
        self.last = (loss, trainer.state.global_step + 1, trainer.lr_scheduler.get_last_lr()[0], trainer.examples)
        if loss.device.type == "cpu":
            self.check()

    def check(self) -> None:
        """Raises InputError if the remembered loss is not finite."""
        last, self.last = self.last, None
        if last is None or bool(torch.isfinite(last[0])):
            return
        loss, update, rate, examples = last
        scaler = getattr(self.trainer.accelerator, "scaler", None)
        scale = f", loss scale {scaler.get_scale():g}" if scaler is not None else ""
        epoch, first = examples[0]
        shown = {"epoch": epoch, "index": [int(place) for _, index in examples for place in index]}
        folder = Path(self.trainer.args.output_dir).parent
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"bad_batch_rank{self.trainer.args.process_index}.json"
        path.write_text(json.dumps({"update": update, "learning_rate": rate, **shown}) + "\n", encoding="utf-8")
        raise InputError(
            f"the loss is {float(loss)} at update {update} (learning rate {rate:.3g}{scale}, epoch {epoch}, blocks "
            f"{', '.join(str(int(place)) for place in first[:8])}, ...; all of them in {path}): lower "
            "optim.learning_rate or lengthen optim.warmup_steps; with fp16, use bf16"
        )


class _Progress(TrainerCallback):
    """Trainer counts the whole run as one epoch; logs say passes over the data."""

    def __init__(self, trainer: MaskingTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        state.epoch = self.trainer.batches.passes(state.global_step)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        state.epoch = self.trainer.batches.passes(state.global_step)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.trainer.guard.check()


class _LogWindow(TrainerCallback, ExportableState):
    """Losses and masks since the last log line.

    Checkpoints keep them (in trainer_state.json), so that the first line of a resumed run is that of a run that was
    never stopped, wherever the checkpoint was made.
    """

    def __init__(self, trainer: MaskingTrainer):
        self.trainer = trainer
        self.loss: Tensor | float = 0.0
        self.logged_at = 0
        self.counted_from, self.counted_before = 0.0, 0

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        kept = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        self.loss, self.logged_at, counts = 0.0, state.global_step, Counts()
        if kept:
            kept = kept["attributes"]
            self.loss, self.logged_at, counts = kept["loss"], kept["logged_at"], Counts(**kept["counts"])
        self.trainer.masker.counts = counts
        self.counted_from, self.counted_before = time.perf_counter(), counts.tokens

    def add(self, loss: Tensor) -> None:
        """A micro-batch's part of an update's loss."""
        self.loss = self.loss + loss.double()

    def join(self) -> float:
        """The sum so far as the mean over ranks; from here on each rank has it. A joint act of all ranks."""
        args = self.trainer.args
        if args.world_size > 1:
            loss = torch.as_tensor(self.loss, dtype=torch.float64, device=args.device).clone()
            torch.distributed.all_reduce(loss)
            self.loss = loss / args.world_size
        return float(self.loss)

    def close(self) -> dict[str, float]:
        """What a log line says of the updates since the one before it; begins anew."""
        trainer, step = self.trainer, self.trainer.state.global_step
        loss, counts, now = self.join() / (step - self.logged_at), trainer.masker.reset_counts(), time.perf_counter()
        tokens = (int(counts.tokens) - self.counted_before) * trainer.args.world_size
        bits, perplexity = bits_and_perplexity(loss)
        speed = round(tokens / (now - self.counted_from), 1)
        self.loss, self.logged_at, self.counted_from, self.counted_before = 0.0, step, now, 0
        return {
            "loss": loss,
            "loss_bits": bits,
            "ppl": perplexity,
            "pred_rate": counts.prediction_rate,
            "corr_rate": counts.corruption_rate,
            "tokens_per_second": speed,
        }

    def state(self) -> dict[str, Any]:
        counts = {name: int(value) for name, value in vars(self.trainer.masker.counts).items()}
        return {"args": {}, "attributes": {"loss": float(self.loss), "logged_at": self.logged_at, "counts": counts}}


class _TimeBudget(TrainerCallback):
    """Ends the run, with a checkpoint, at the first update after the budget is spent on the slowest rank."""

    def __init__(self, minutes: float | None):
        if minutes is not None and not minutes > 0:
            raise InputError(f"stop_after_minutes={minutes}: give a number above 0, or null")
        self.minutes, self.begun, self.stopped = minutes, time.monotonic(), False

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.minutes is None or state.global_step >= state.max_steps:
            return
        spent = torch.tensor(float(time.monotonic() - self.begun > 60 * self.minutes), device=args.device)
        if args.world_size > 1:
            torch.distributed.all_reduce(spent)
        if float(spent):
            self.stopped = control.should_training_stop = control.should_save = True


class _Snapshots(TrainerCallback):
    """Calls a function at every n-th update (exports of the model along the run)."""

    def __init__(self, every: int, call: Callable[[int], Any]):
        self.every, self.call = every, call

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step % self.every == 0:
            self.call(state.global_step)
