"""Linear probing: what a frozen encoder's layers say about a sentence, read off by a linear classifier.

Per layer, the hidden state of `<s>` or the mean over tokens is standardised and given to a logistic regression (ridge
regression for scores), whose penalty is chosen on a tenth of the training set. The majority class, and an encoder of
the same shape with random weights, are what a layer must beat to have learned something.
"""

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel, PreTrainedModel

from mlm_masking import glue
from mlm_masking.classification import SCORING_TOKENS, Prepared, score
from mlm_masking.length_buckets import token_batches
from mlm_masking.padding_free import PaddingFree, attention_of
from mlm_masking.sequences import Sequences
from shared import InputError
from shared.training import seed_everything

log = logging.getLogger(__name__)

POOLINGS = ("first", "mean")
PENALTIES = (0.01, 0.1, 1.0)
HELD_OUT = 0.1
ITERATIONS = 300


def layer_features(model: PreTrainedModel, sequences: Sequences, pooling: str, layers: Sequence[int]) -> np.ndarray:
    """(layers, rows, hidden) float32 features of a frozen encoder, without dropout.

    Args:
        pooling: "first" (`<s>`) or "mean" (all tokens of the row).
        layers: 0 is the embedding layer, n the last one (the final LayerNorm applied).

    Raises:
        InputError: an unknown pooling, or a layer the model does not have.
    """
    if pooling not in POOLINGS:
        raise InputError(f"pooling={pooling}: give one of {', '.join(POOLINGS)}")
    last = model.config.num_hidden_layers
    if not layers or min(layers) < 0 or max(layers) > last:
        raise InputError(f"layers={list(layers)}: the model has layers 0 (embeddings) to {last}")
    features = np.empty((len(layers), len(sequences), model.config.hidden_size), dtype=np.float32)
    tokens = SCORING_TOKENS.get(model.device.type, SCORING_TOKENS["cuda"])
    model.eval()
    with torch.inference_mode(), attention_of(model, PaddingFree.implementation):
        for rows in token_batches(sequences.lengths, tokens):
            batch = PaddingFree(sequences.rows(rows), model)
            states = _hidden_states(model, batch)
            for index, layer in enumerate(layers):
                features[index, rows] = _pooled(states[layer], batch, pooling).float().cpu().numpy()
    return features


def _hidden_states(model: PreTrainedModel, batch: PaddingFree) -> list[torch.Tensor]:
    """(tokens, hidden) of the embeddings and every layer; the last entry is what the heads see."""
    output = model.base_model(
        input_ids=batch.input_ids, position_ids=batch.position_ids, layout=batch.layout, output_hidden_states=True
    )
    return [state[0] for state in output.hidden_states[:-1]] + [output.last_hidden_state[0]]


def _pooled(states: torch.Tensor, batch: PaddingFree, pooling: str) -> torch.Tensor:
    if pooling == "first":
        return states[batch.starts]
    totals = torch.cat([states.new_zeros(1, states.shape[1], dtype=torch.float64), states.double().cumsum(0)])
    lengths = torch.from_numpy(batch.lengths).to(states.device)
    return (totals[batch.starts + lengths] - totals[batch.starts]) / lengths[:, None]


def probe_layer(
    task: glue.Task, train: np.ndarray, labels: np.ndarray, tests: dict[str, tuple[np.ndarray, np.ndarray]], seed: int
) -> dict[str, Any]:
    """Fit on one layer's features and score: {"penalty", set: metrics}.

    Args:
        train: (rows, hidden). labels: (rows,). tests: {set: (features, labels)}.
    """
    scaler = StandardScaler().fit(train)
    scaled = scaler.transform(train)
    order = np.random.Generator(np.random.Philox(key=[seed, 0])).permutation(len(labels))
    held = max(1, round(HELD_OUT * len(labels)))
    inner, outer = order[held:], order[:held]
    if len(inner) < 2 or (task.kind == "classification" and len(np.unique(labels[inner])) < 2):
        raise InputError(f"{len(labels)} training examples of {task.title} are too few to probe with")

    def quality(penalty: float) -> float:
        outputs = _fit(task, scaled[inner], labels[inner], penalty)(scaled[outer])
        if task.kind == "regression":
            return -float(np.mean((outputs[:, 0] - labels[outer]) ** 2))
        return float((outputs.argmax(1) == labels[outer]).mean())

    penalty = max(PENALTIES, key=quality)
    outputs = _fit(task, scaled, labels, penalty)
    scores = {name: score(task, outputs(scaler.transform(x)), y) for name, (x, y) in tests.items()}
    return {"penalty": penalty, **scores}


def _fit(task: glue.Task, features: np.ndarray, labels: np.ndarray, penalty: float):
    """A function from features to (rows, outputs) scores. `penalty` weighs the data, as scikit-learn's C does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 300 iterations change no third decimal any more
        if task.kind == "regression":
            ridge = Ridge(alpha=1 / penalty).fit(features, labels)
            return lambda x: ridge.predict(x)[:, None]
        model = LogisticRegression(C=penalty, max_iter=ITERATIONS).fit(features, labels)

    def outputs(x: np.ndarray) -> np.ndarray:
        probabilities = np.zeros((len(x), len(task.labels)))
        probabilities[:, model.classes_] = model.predict_proba(x)
        return probabilities

    return outputs


def baseline(prepared: Prepared) -> dict[str, Any]:
    """What the majority class (the mean score) gets on every scored set."""
    task, labels = prepared.task, prepared.train_labels
    if task.kind == "regression":
        constant = np.array([float(labels.mean())])
    else:
        constant = np.bincount(labels, minlength=len(task.labels)).astype(np.float64)
    return {name: score(task, np.tile(constant, (len(y), 1)), y) for name, (_, y) in prepared.dev.items()}


def random_twin(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """An untrained encoder of the same shape."""
    seed_everything(seed)
    return AutoModel.from_config(model.config, add_pooling_layer=False).to(model.device).eval()


def probe_encoder(
    model: PreTrainedModel,
    prepared: Prepared,
    *,
    pooling: str = "mean",
    layers: Sequence[int] | None = None,
    seed: int = 1,
) -> dict[str, Any]:
    """Probe every layer (or those given) on one task.

    Returns: `layers` {layer: {"penalty", set: metrics}}, `best` (layer and score, chosen on the first scored set),
        `score` of the last probed layer.
    """
    task = prepared.task
    layers = list(range(model.config.num_hidden_layers + 1)) if layers is None else list(layers)
    train = layer_features(model, prepared.train, pooling, layers)
    sets = {name: (layer_features(model, rows, pooling, layers), y) for name, (rows, y) in prepared.dev.items()}
    found = {}
    for index, layer in enumerate(layers):
        tests = {name: (features[index], y) for name, (features, y) in sets.items()}
        found[str(layer)] = probe_layer(task, train[index], prepared.train_labels, tests, seed)
    first = next(iter(prepared.dev))
    scores = {layer: result[first][task.metric] for layer, result in found.items()}
    best = max(scores, key=scores.get)
    return {"layers": found, "best": {"layer": int(best), "score": scores[best]}, "score": scores[str(layers[-1])]}
