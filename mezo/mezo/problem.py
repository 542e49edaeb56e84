"""A task and a model as what a loop needs: losses of training examples, and what dev and test say.

    prepare(rows) -> batch    loss(batch) -> (mean, weight)    dev() and test() -> {"loss", metric}

`CausalProblem` is the paper's large models (candidates, answers, generation), `MaskedProblem` its RoBERTa with LM-BFF's
prompts and splits. Both know nothing of how they are trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from lm_bff.model import Pretrained
from lm_bff.tasks import TASKS as MASKED_TASKS
from lm_bff.tasks import get_task as get_masked_task
from mezo.data import load_splits
from mezo.evaluation import dev_loss, evaluate
from mezo.medium import MediumEncoder, medium_splits
from mezo.models import device_of, dtype_of, family_of, folder_of, load_causal
from mezo.modes import Mode, attach
from mezo.objectives import masked_loss, objective_for
from mezo.tasks import get_task
from shared import InputError

Loss = tuple[Tensor, float]


class CausalProblem:
    """A causal language model on one of the large models' tasks."""

    family = "causal"

    def __init__(self, model: nn.Module, tokenizer: Any, task: Any, splits: Any, objective: Any, options: dict) -> None:
        self.model, self.tokenizer, self.task, self.splits, self.objective = model, tokenizer, task, splits, objective
        self.options, self.metric, self.differentiable = options, task.metric, objective.differentiable
        self.train = objective.encode(splits.train)
        self.dev_examples = objective.encode(splits.dev)

    @property
    def count(self) -> int:
        return len(self.train)

    def prepare(self, rows: Sequence[int]) -> Any:
        """The batch of these training examples, laid out once for both evaluations of a step."""
        batch = [self.train[row] for row in rows]
        return batch if self.objective.kind == "f1" else self.objective.lay_out(self.model, batch)

    def loss(self, batch: Any) -> Loss:
        """(mean loss, what it is a mean over: examples, or tokens for lm)."""
        if self.objective.kind == "f1":
            return self.objective.loss(self.model, batch), float(len(batch))
        total, weight = self.objective.total(self.model, batch)
        return total / weight, float(weight)

    def dev(self) -> dict[str, float]:
        found = self._measure(self.splits.dev)
        loss = dev_loss(self.objective, self.model, self.dev_examples, self.options.get("batch_tokens"))
        return {"loss": loss, **found}

    def test(self) -> dict[str, float]:
        return self._measure(self.splits.test)

    def _measure(self, samples: Sequence[Any]) -> dict[str, float]:
        found = evaluate(self.model, self.tokenizer, self.task, samples, splits=self.splits, **self.options)
        return {self.metric: found[self.metric]}


class MaskedProblem:
    """A masked language model with LM-BFF's prompts (or a classification head) on a K-shot split."""

    family = "masked"

    def __init__(
        self, model: nn.Module, encoder: MediumEncoder, splits: Any, kind: str, loss_dtype: str,
        batch_tokens: int | None,
    ) -> None:  # fmt: skip
        self.model, self.encoder, self.splits, self.kind, self.loss_dtype = model, encoder, splits, kind, loss_dtype
        self.task, self.metric, self.differentiable = encoder.task, encoder.task.metric, kind == "cross_entropy"
        self.batch_tokens = batch_tokens
        self.train, self.dev_examples = encoder.encode(splits.train), encoder.encode(splits.dev)
        self.tests = {name: encoder.encode(examples) for name, examples in splits.test.items()}

    @property
    def count(self) -> int:
        return len(self.train)

    def prepare(self, rows: Sequence[int]) -> Any:
        return self.encoder.batch([self.train[row] for row in rows], next(self.model.parameters()).device)

    def loss(self, batch: Any) -> Loss:
        loss = masked_loss(self.model, batch, kind=self.kind, loss_dtype=self.loss_dtype)
        return loss, float(len(batch["labels"]))

    def dev(self) -> dict[str, float]:
        rows = self.dev_examples
        logits = torch.from_numpy(self.encoder.logits(self.model, rows, self.batch_tokens))
        labels = torch.tensor([row.label for row in rows])
        found = self.encoder.evaluate(self.model, rows, self.batch_tokens)
        return {"loss": float(F.cross_entropy(logits, labels)), self.metric: float(found[self.metric])}

    def test(self) -> dict[str, float]:
        """The metric of the task's own test set, and of others (MNLI's mismatched one) under their names."""
        found = {}
        for name, rows in self.tests.items():
            value = float(self.encoder.evaluate(self.model, rows, self.batch_tokens)[self.metric])
            found[self.metric if name == self.task.name else f"{name}_{self.metric}"] = value
        return found


Problem = CausalProblem | MaskedProblem


def mode_of(cfg: DictConfig) -> Mode:
    """The configuration's mode; linear probing writes rows of the head, which then has to be its own."""
    mode = Mode(**OmegaConf.to_container(cfg.mode, resolve=True))
    if (cfg.trainer == "lp" or cfg.probe_first) and cfg.probe.untie_embeddings:
        mode = replace(mode, untie_embeddings=True)
    return mode


def build_problem(cfg: DictConfig) -> tuple[Problem, Callable[[], nn.Module]]:
    """The problem of a configuration, and a function that builds its model (mode attached) once more.

    Raises InputError for whatever is missing or does not fit, before any step.
    """
    folder = folder_of(cfg.model)
    build = causal_problem if family_of(folder, cfg.family) == "causal" else masked_problem
    return build(cfg, folder)


def model_builder(cfg: DictConfig, make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """`make()` with the configuration's mode attached, in evaluation mode."""

    def build() -> nn.Module:
        model = make()
        attach(model, mode_of(cfg))
        return model.eval()

    return build


@dataclass
class Loaded:
    """What was read beside the weights."""

    tokenizer: Any = None


def causal_model(cfg: DictConfig, folder: Path) -> tuple[Callable[[], nn.Module], Loaded]:
    """A function that builds the model with its mode, and where the tokenizer is afterwards."""
    dtype, device, loaded = dtype_of(cfg.dtype), device_of(cfg.device), Loaded()

    def make() -> nn.Module:
        model, loaded.tokenizer = load_causal(folder, dtype=dtype, device=device, attention=cfg.attention)
        return model

    return model_builder(cfg, make), loaded


def masked_task(name: str):
    """LM-BFF's task by its name, with or without hyphens."""
    return get_masked_task(next((t for t in MASKED_TASKS if t.replace("-", "") == str(name).lower()), str(name)))


def masked_model(cfg: DictConfig, folder: Path) -> tuple[Callable[[], nn.Module], MediumEncoder]:
    """A function that builds the model with its mode, and what encodes examples for it."""
    pretrained = Pretrained.load(folder, device=device_of(cfg.device), attention=cfg.attention)
    encoder, dtype = MediumEncoder(pretrained, masked_task(cfg.task), prompt=cfg.prompt), dtype_of(cfg.dtype)
    return model_builder(cfg, lambda: encoder.model(seed=cfg.seed).to(dtype)), encoder


def causal_problem(cfg: DictConfig, folder: Path) -> tuple[CausalProblem, Callable[[], nn.Module]]:
    if not cfg.prompt:
        raise InputError("prompt=false is for masked language models, which then get a classification head")
    task = get_task(cfg.task)
    options = OmegaConf.to_container(cfg.evaluation, resolve=True)
    splits = load_splits(
        task, num_train=cfg.data.num_train, num_dev=cfg.data.num_dev, num_test=cfg.data.num_test, seed=cfg.data.seed,
        data_dir=cfg.data.data_dir,
    )  # fmt: skip
    if cfg.trainer != "none" and not splits.train:
        raise InputError(f"task={task.name}: no training example is left beside dev; raise data.num_train")
    build, loaded = causal_model(cfg, folder)
    model = build()
    objective = objective_for(
        task, loaded.tokenizer, kind=cfg.objective, model_type=model.config.model_type,
        only_train_option=cfg.only_train_option, max_length=options.get("max_length", 2048),
        bos=options.get("bos", "authors"), loss_dtype=cfg.loss_dtype,
    )  # fmt: skip
    return CausalProblem(model, loaded.tokenizer, task, splits, objective, options), build


def masked_problem(cfg: DictConfig, folder: Path) -> tuple[MaskedProblem, Callable[[], nn.Module]]:
    kinds = {"auto": "cross_entropy", "accuracy": "accuracy"}
    if cfg.objective not in kinds:
        raise InputError(f"objective={cfg.objective}: masked language models have auto (cross-entropy) and accuracy")
    splits = medium_splits(masked_task(cfg.task).name, cfg.data.k, cfg.data.seed, cfg.data.data_dir)
    build, encoder = masked_model(cfg, folder)
    batch_tokens = cfg.evaluation.get("batch_tokens")
    return MaskedProblem(build(), encoder, splits, kinds[cfg.objective], cfg.loss_dtype, batch_tokens), build
