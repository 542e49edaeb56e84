"""MeZO inside transformers' Trainer: data, logging, evaluation and checkpoints are the library's, the step is ours.

    class MyTrainer(MeZOMixin, Trainer): ...
    trainer = MyTrainer(model, args, train_dataset=data, mezo={"eps": 1e-3, "rng": "counter"})

`MeZOTrainer` is that class without additions. Learning rate, its schedule and weight decay are TrainingArguments'; the
paper's schedule is `lr_scheduler_type="constant"`. Under torchrun every process holds the weights and its own batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from mezo.optimizer import MeZO
from mezo.preflight import check_model
from shared import InputError


class SteppedInTrainingStep(MeZO):
    """MeZO whose step is taken in `training_step`, where the loss is; Trainer's own call of `step()` does nothing."""

    def step(self, closure=None) -> float | None:  # type: ignore[override]
        return None if closure is None else super().step(closure)

    def state_dict(self) -> dict[str, Any]:
        """torch's, and how many seeds have been drawn: a resumed run draws the ones behind them."""
        return {**super().state_dict(), "mezo": {"steps": self.steps_done, "estimates": self.estimates}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        known = state_dict.get("mezo", {"steps": 0, "estimates": 0})
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "mezo"})
        if known["steps"] <= self.steps_done:
            return
        if self.moments is not None:
            raise InputError("mezo: momentum and Adam cannot go on from a Trainer checkpoint; use a trajectory instead")
        for _ in range(known["estimates"] - self.estimates):
            self.seeds()
        self.steps_done, self.estimates = known["steps"], known["estimates"]


class MeZOMixin:
    """Put it in front of Trainer in the list of bases. `mezo`: keyword arguments of `mezo.MeZO`.

    Raises:
        InputError: arguments that make no sense without gradients (accumulation, checkpointing, AMP, sharding).
    """

    def __init__(self, *args: Any, mezo: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        self.mezo_options = dict(mezo or {})
        if kwargs.get("optimizers", (None, None))[0] is not None:
            raise InputError("optimizers: MeZO is the optimiser here; give its options as mezo={...}")
        super().__init__(*args, **kwargs)
        refuse_arguments(self.args)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """MeZO over the parameters that want a gradient, evaluated without writing them."""
        if self.optimizer is None:
            model = self.model if model is None else model
            options = {"weight_decay": self.args.weight_decay, "model": model, "seed": self.args.seed}
            if self.args.world_size > 1:
                options["process_group"] = "default"
            if self.mezo_options.get("restore") == "inplace":
                options.pop("model")
            self.optimizer = self.mezo_optimizer = SteppedInTrainingStep(
                model.named_parameters(), self.args.learning_rate, **{**options, **self.mezo_options}
            )
        return self.optimizer

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Both evaluations and the update; returns the loss at theta + eps z."""
        model.eval()
        inputs = self._prepare_inputs(inputs)
        if self.mezo_optimizer.steps_done == 0:
            check_model(self.model)
        count = next((len(value) for value in inputs.values() if torch.is_tensor(value) and value.dim()), 1)

        def closure() -> tuple[Tensor, int]:
            with self.compute_loss_context_manager():
                return self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch), count

        loss = self.mezo_optimizer.step(closure)
        return torch.tensor(loss, device=self.args.device)


class MeZOTrainer(MeZOMixin, Trainer):
    """transformers' Trainer with MeZO."""


def refuse_arguments(args: TrainingArguments) -> None:
    """InputError for TrainingArguments that belong to gradients."""
    for name, wrong, fix in (
        ("gradient_accumulation_steps", args.gradient_accumulation_steps > 1,
         "nothing is stored per example, so give the whole batch as per_device_train_batch_size"),
        ("gradient_checkpointing", args.gradient_checkpointing, "there are no activations to checkpoint; leave it out"),
        ("fp16", args.fp16, "there are no gradients to scale; load the model with dtype=torch.float16"),
        ("bf16", args.bf16, "load the model with dtype=torch.bfloat16 and compute the loss in fp32"),
        ("deepspeed", bool(args.deepspeed), "MeZO exchanges one float per evaluation; start with torchrun"),
        ("fsdp", bool(args.fsdp), "MeZO exchanges one float per evaluation; start with torchrun"),
        ("n_gpu", args.n_gpu > 1, "start a process per GPU with torchrun, or show one (CUDA_VISIBLE_DEVICES=0)"),
    ):  # fmt: skip
        if wrong:
            raise InputError(f"{name}={getattr(args, name)} does not go with MeZO: {fix}")
