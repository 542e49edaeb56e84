"""transformers' Trainer with the four things SimCSE's recipe asks of it.

1. Order and randomness of examples are a function of (seed, epoch): `EpochSampler`, so a resumed run sees the same.
2. A dev evaluation that encodes sentences instead of running the training loss, and keeps the best weights: strictly
   greater replaces, as in the release. They are written apart from the resume checkpoints, as one file that carries its
   own step and score, so that a kill at any moment leaves a consistent pair.
3. A loss that is not finite stops the run and leaves the batch behind. On a GPU the look at a loss waits until the next
   step, when it has been computed anyway: reading it at once would stall the queue of kernels on every step.
4. Checkpoints are safetensors of the whole ContrastiveModel; no pickled arguments.
"""

import contextlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from shared import InputError
from simcse.batches import Collator, EpochSampler, Positions
from simcse.devset import DevSet
from simcse.embedding import embed_sentences
from simcse.model import ContrastiveModel

log = logging.getLogger(__name__)


class ContrastiveTrainer(Trainer):
    """Trains a ContrastiveModel on the positions of a sampler.

    Args:
        tokenizer: for dev sentences. folder: the run's, for best weights and a dumped batch.
        dev: None = no evaluation. batch_tokens: tokens per evaluation batch.
        trajectory_steps: log alignment and uniformity every so many steps.
    """

    def __init__(
        self,
        model: ContrastiveModel,
        args: TrainingArguments,
        collator: Collator,
        sampler: EpochSampler,
        *,
        tokenizer,
        folder: Path,
        dev: DevSet | None = None,
        batch_tokens: int | None = None,
        trajectory_steps: int | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ):
        self.sampler, self.tokenizer, self.dev = sampler, tokenizer, dev
        self.batch_tokens = batch_tokens
        self.best = BestWeights(folder / "best.safetensors")
        self.guard = LossGuard(folder, tokenizer)
        super().__init__(
            model,
            args,
            data_collator=collator,
            train_dataset=Positions(len(sampler)),
            eval_dataset=dev.sets if dev else None,
            callbacks=[_Epochs(self), *callbacks],
        )
        if dev is not None:
            self.add_callback(_Trajectory(self, trajectory_steps))

    @property
    def encoder(self):
        return self.accelerator.unwrap_model(self.model).encoder

    def _get_train_sampler(self, train_dataset=None) -> EpochSampler:
        return self.sampler

    def training_step(self, model: nn.Module, inputs: dict, num_items_in_batch=None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.guard.watch(loss, inputs, self.state.global_step + 1)
        return loss

    def embed(self, sentences: Sequence[str]) -> np.ndarray:
        """(n, hidden) float32 with the evaluation pooler, in fp32 whatever training runs in."""
        return embed_sentences(self.encoder, self.tokenizer, sentences, batch_tokens=self.batch_tokens)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Dev scores, logged; every process computes them (as ZeRO-3 needs), process 0 keeps the best weights."""
        self.guard.check()
        scores = self.dev.scores(self.embed, self.state.global_step)
        known = {name: score for name, score in scores.items() if score is not None}
        self.log(dict(known))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, known)
        score = known.get(self.dev.main_metric)
        if self.state.global_step and score is not None and score > self.best.score:
            self.best.keep(self.encoder, self.state.global_step, score, write=self.args.should_save)
        return known

    def restore_best(self) -> None:
        """Load the best weights, if any evaluation kept some, into the encoder on every process."""
        self.accelerator.wait_for_everyone()
        if self.best.load(self.encoder):
            self.dev.forget()

    def save_encoder(self, folder: Path, tokenizer) -> None:
        """Write the encoder as a plain model folder, from process 0."""
        with gathered(self.encoder):
            if self.args.should_save:
                self.encoder.save_pretrained(folder, tokenizer)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self.guard.check()
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            state = self.accelerator.unwrap_model(self.model).state_dict() if state_dict is None else state_dict
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except ValueError as error:
            raise InputError(f"{checkpoint}: its optimiser state is of another model ({error}).") from error
        if checkpoint is None or self.is_deepspeed_enabled:
            return
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                moment = self.optimizer.state.get(parameter, {}).get("exp_avg")
                if moment is not None and moment.shape != parameter.shape:
                    raise InputError(
                        f"{checkpoint}: its optimiser state is of another model: {tuple(moment.shape)} where this one "
                        f"has {tuple(parameter.shape)}. Resume with the options the run was started with."
                    )


class BestWeights:
    """The encoder's best weights so far: one safetensors file with step and score in its metadata."""

    def __init__(self, path: Path):
        self.path = path
        self.step, self.score = 0, -float("inf")
        if path.exists():
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
            self.step, self.score = int(metadata["step"]), float(metadata["score"])

    def keep(self, encoder: nn.Module, step: int, score: float, write: bool) -> None:
        """Remember, and on the writing process store, the weights."""
        self.step, self.score = step, score
        with gathered(encoder):
            if write:
                partial = self.path.with_suffix(".partial")
                weights = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
                save_file(weights, partial, metadata={"step": str(step), "score": repr(score)})
                partial.replace(self.path)

    def load(self, encoder: nn.Module) -> bool:
        """Put the stored weights into the encoder; False if none were kept."""
        if not self.path.exists():
            return False
        with safe_open(self.path, "pt") as file, gathered(encoder, write=True):
            encoder.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        return True


@contextlib.contextmanager
def gathered(module: nn.Module, write: bool = False):
    """Whole parameters inside, where ZeRO-3 has cut them into parts; nothing to do otherwise."""
    parameters = [parameter for parameter in module.parameters() if hasattr(parameter, "ds_id")]
    if not parameters:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if write else None):
        yield


class LossGuard:
    """Stops at a loss that is NaN or infinite, and leaves the batch as `bad_batch.{safetensors,json}` in the folder."""

    def __init__(self, folder: Path, tokenizer):
        self.folder, self.tokenizer = folder, tokenizer
        self.last: tuple[torch.Tensor, dict, int] | None = None

    def watch(self, loss: torch.Tensor, batch: dict, step: int) -> None:
        """Check the step before, remember this one; on a CPU nothing is gained by waiting, so this one at once."""
        self.check()
        self.last = (loss, batch, step)
        if loss.device.type == "cpu":
            self.check()

    def check(self) -> None:
        """Raises InputError if the remembered loss is not finite."""
        last, self.last = self.last, None
        if last is None or torch.isfinite(last[0]):
            return
        loss, batch, step = last
        tensors = {name: tensor.cpu().contiguous() for name, tensor in batch.items() if torch.is_tensor(tensor)}
        save_file(tensors, self.folder / "bad_batch.safetensors", metadata={"step": str(step)})
        texts = [self.tokenizer.batch_decode(rows, skip_special_tokens=True) for rows in tensors["input_ids"]]
        path = self.folder / "bad_batch.json"
        path.write_text(json.dumps({"step": step, "sentences": texts}, ensure_ascii=False, indent=1), encoding="utf-8")
        raise InputError(
            f"the loss is {loss.item()} at step {step}; the batch is in {path}. Usual causes: optim.learning_rate too "
            f"high, loss.temperature too small, fp16 (use bf16)."
        )


class _Epochs(TrainerCallback):
    """Tells the sampler its epoch: accelerate reaches a sampler through one or two wrappers only, and a resumed run on
    several processes has three."""

    def __init__(self, trainer: ContrastiveTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        self.trainer.sampler.set_epoch(int((state.epoch or 0) + 1e-6))

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.trainer.guard.check()


class _Trajectory(TrainerCallback):
    """Scores of the untrained encoder, and alignment and uniformity along training (SimCSE, Fig. 2: every 10 steps)."""

    def __init__(self, trainer: ContrastiveTrainer, steps: int | None):
        self.trainer, self.steps = trainer, steps

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step == 0:
            self.trainer.evaluate()
            self._log(state)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.steps and state.global_step % self.steps == 0:
            self._log(state)

    def _log(self, state) -> None:
        self.trainer.log(self.trainer.dev.geometry(self.trainer.embed, state.global_step))
