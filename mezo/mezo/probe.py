"""Linear probing: logistic regression on what the output head is given, written into the head's rows (the paper's LP).

    causal    features in front of each option token of the right candidate, targets these tokens, no intercept
    masked    features at the mask, targets the classes, with intercept: the rows of the label words

Two classes have one weight vector w: their rows become -w/2 and +w/2. Rows of the head of a causal model are often the
input embeddings of "Yes" and "No" too, which stand in prompts: `untie_embeddings` keeps them apart.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from safetensors.torch import load_file, save
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from torch import Tensor, nn

from mezo.problem import CausalProblem, MaskedProblem, Problem
from mezo.scoring import hidden_at_options
from shared import InputError
from shared.results import write_atomic

log = logging.getLogger(__name__)

FOLDS, STRENGTHS = 5, 10
FEATURE_ROWS = 32


def probe(problem: Problem, cfg: DictConfig) -> dict[str, Tensor]:
    """Fit on the training set; returns "ids" (rows of the head), "weight" (n, width) and, for masked models, "bias".

    Raises InputError for a task or model that has no such rows.
    """
    if isinstance(problem, CausalProblem):
        if problem.task.kind != "classification":
            raise InputError(
                f"linear probing: task {problem.task.name} is a {problem.task.kind} task without fixed answers; tune "
                "the head instead (trainer=adam mode=head)"
            )
        features, targets = _causal_features(problem)
    else:
        features, targets = _masked_features(problem)
    intercept = isinstance(problem, MaskedProblem)
    weight, bias, classes = fit(features, targets, intercept, cfg.probe.max_iter, float(cfg.probe.tol))
    rows = {"ids": torch.from_numpy(classes), "weight": torch.from_numpy(weight).float().contiguous()}
    return rows | ({"bias": torch.from_numpy(bias).float()} if intercept else {})


def fit(
    features: np.ndarray, targets: np.ndarray, intercept: bool, max_iter: int = 5000, tol: float = 1e-4
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(weights (classes, width), biases (classes,), classes) of a regression whose strength cross-validation chose."""
    classes, counts = np.unique(targets, return_counts=True)
    if len(classes) < 2:
        raise InputError("linear probing: the training set has one class only; raise data.num_train")
    options = {"fit_intercept": intercept, "max_iter": max_iter, "tol": tol, "random_state": 0}
    folds = min(FOLDS, int(counts.min()))
    if folds < 2:
        log.warning("linear probing: a class has one example; the strength is not chosen by cross-validation")
        found = LogisticRegression(**options).fit(features, targets)
    else:
        found = LogisticRegressionCV(
            Cs=STRENGTHS, cv=folds, scoring="accuracy", use_legacy_attributes=False, l1_ratios=(0,), **options
        ).fit(features, targets)
    weight, bias = found.coef_, np.broadcast_to(found.intercept_, len(found.coef_))
    if len(weight) == 1:
        weight, bias = np.concatenate((-weight / 2, weight / 2)), np.concatenate((-bias / 2, bias / 2))
    return weight, bias, classes


def _causal_features(problem: CausalProblem) -> tuple[np.ndarray, np.ndarray]:
    examples = [problem.objective.encoder.candidates(sample) for sample in problem.splits.train]
    parts = [
        hidden_at_options(problem.model, examples[start : start + FEATURE_ROWS])
        for start in range(0, len(examples), FEATURE_ROWS)
    ]
    return tuple(torch.cat(kind).double().cpu().numpy() if k == 0 else torch.cat(kind).cpu().numpy()
                 for k, kind in enumerate(zip(*parts, strict=True)))  # fmt: skip


@torch.no_grad()
def _masked_features(problem: MaskedProblem) -> tuple[np.ndarray, np.ndarray]:
    if not hasattr(problem.model, "mask_features"):
        raise InputError("linear probing: prompt=false has no mask to take features at; leave prompt=true")
    found = []
    for start in range(0, problem.count, FEATURE_ROWS):
        batch = problem.prepare(range(start, min(problem.count, start + FEATURE_ROWS)))
        batch.pop("labels")
        found.append(problem.model.mask_features(**batch).double().cpu())
    return torch.cat(found).numpy(), np.array([row.label for row in problem.train])


@torch.no_grad()
def write_rows(model: nn.Module, rows: dict[str, Tensor]) -> None:
    """Overwrite these rows of the model's output head, in place."""
    if hasattr(model, "decoder_weight"):
        weight, bias = model.decoder_weight, model.decoder_bias
    else:
        head = model.get_output_embeddings()
        weight, bias = head.weight, head.bias
    ids = rows["ids"].to(weight.device)
    weight[ids] = rows["weight"].to(weight)
    if "bias" in rows and bias is not None:
        bias[ids] = rows["bias"].to(bias)


def save_rows(rows: dict[str, Tensor], path: Path) -> Path:
    """For a replay, which needs them before the first record."""
    return write_atomic(path, save({name: tensor.contiguous() for name, tensor in rows.items()}))


def load_rows(path: Path) -> dict[str, Tensor]:
    return load_file(path)
