"""GLUE's dev metrics as the authors' release computes and rounds them.

Classification: accuracy; with two classes also precision, recall, F1 and Matthews' correlation of class 1, each rounded
to three decimals. Where a quotient has no denominator the release returns infinity; here it is 0.0, with a warning.
Regression: Pearson and Spearman correlation, not rounded. Tables show them times 100.
"""

import logging
import math

import numpy as np
from scipy.stats import pearsonr, spearmanr

from shared import InputError

log = logging.getLogger(__name__)

DECIMALS = 3
BINARY = ("accuracy", "precision", "recall", "f1", "mcc")
CORRELATIONS = ("pearson", "spearman")


def metric_names(kind: str, classes: int) -> tuple[str, ...]:
    """The metrics of a kind of task, in the order of a table."""
    if kind == "regression":
        return CORRELATIONS
    return BINARY if classes == 2 else BINARY[:1]


def classification_metrics(predictions: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, float]:
    """Accuracy, and with two classes the others.

    Args:
        predictions, labels: (n,) class ids.

    Raises:
        InputError: no examples, different lengths, or labels outside 0..classes-1 (-1 marks hidden labels).
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    _check_lengths(predictions, labels)
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"labels lie in {labels.min()}..{labels.max()}, not in 0..{classes - 1}: -1 marks hidden labels"
        )
    metrics = {"accuracy": round(float((predictions == labels).mean()), DECIMALS)}
    if classes == 2:
        predicted, actual = predictions == 1, labels == 1
        metrics |= binary_metrics(
            true_positives=int((predicted & actual).sum()),
            false_positives=int((predicted & ~actual).sum()),
            true_negatives=int((~predicted & ~actual).sum()),
            false_negatives=int((~predicted & actual).sum()),
        )
    return metrics


def binary_metrics(
    true_positives: int, false_positives: int, true_negatives: int, false_negatives: int
) -> dict[str, float]:
    """Precision, recall, F1 and Matthews' correlation from a table of counts, rounded to three decimals."""
    tp, fp, tn, fn = true_positives, false_positives, true_negatives, false_negatives
    spread = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return {
        "precision": _quotient(tp, tp + fp, "precision"),
        "recall": _quotient(tp, tp + fn, "recall"),
        "f1": _quotient(2 * tp, 2 * tp + fp + fn, "f1"),
        "mcc": _quotient(tp * tn - fp * fn, spread, "mcc"),
    }


def _quotient(numerator: float, denominator: float, name: str) -> float:
    if denominator == 0:
        log.warning("%s has no denominator (one class is never predicted, or never there): counted as 0.0", name)
        return 0.0
    return round(numerator / denominator, DECIMALS)


def regression_metrics(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Pearson and Spearman correlation of two (n,) arrays; 0.0, with a warning, where one of them is constant.

    Raises:
        InputError: fewer than two examples, different lengths, or a prediction that is not finite.
    """
    predictions, labels = np.asarray(predictions, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    _check_lengths(predictions, labels)
    if len(labels) < 2:
        raise InputError("a correlation needs at least two examples")
    if not np.isfinite(predictions).all():
        raise InputError("predictions hold NaN or infinity: training has diverged; lower lr")
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        log.warning("all predictions (or all labels) are equal: correlations are counted as 0.0")
        return dict.fromkeys(CORRELATIONS, 0.0)
    return {
        "pearson": float(pearsonr(predictions, labels).statistic),
        "spearman": float(spearmanr(predictions, labels).statistic),
    }


def _check_lengths(predictions: np.ndarray, labels: np.ndarray) -> None:
    if predictions.shape != labels.shape or predictions.ndim != 1:
        raise InputError(f"predictions {predictions.shape} and labels {labels.shape}: give two rows of one length")
    if len(labels) == 0:
        raise InputError("no examples to score")
