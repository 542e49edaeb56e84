"""The metrics of the fifteen tasks, on a scale of 0 to 1 (-1 to 1 for correlations); tables multiply by 100.

Accuracy for most; Matthews correlation for CoLA; F1 of the label "1" and accuracy for MRPC and QQP; Pearson and
Spearman for STS-B. Where a correlation is undefined, because the predictions or the labels are constant, it is 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shared import InputError


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    return float((predictions == labels).mean())


def f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """F1 of class 1 of two; 0 where it is predicted for none and expected of none."""
    from sklearn.metrics import f1_score  # here and below: whoever only names metrics need not wait for these imports

    return float(f1_score(labels, predictions, pos_label=1, average="binary", zero_division=0.0))


def mcc(predictions: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    if len(labels) < 2 or np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    from scipy import stats

    return float(stats.pearsonr(predictions, labels).statistic)


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    if len(labels) < 2 or np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    from scipy import stats

    return float(stats.spearmanr(predictions, labels).statistic)


METRICS = {"acc": accuracy, "f1": f1, "mcc": mcc, "pearson": pearson, "spearman": spearman}


def compute(names: Sequence[str], predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Metrics by name.

    Args:
        predictions, labels: (n,) class numbers, or scores for a regression.
    Raises:
        InputError: nothing to measure, or different lengths.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape or predictions.ndim != 1 or not len(labels):
        raise InputError(
            f"metrics: {predictions.shape} predictions for {labels.shape} labels; give one each, at least 1"
        )
    return {name: METRICS[name](predictions, labels) for name in names}
