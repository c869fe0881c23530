"""The official metrics, from logits. Higher is better in all of them.

    matthews = (TP TN - FP FN) / sqrt((TP + FP) (TP + FN) (TN + FP) (TN + FN)), and 0 where a factor is 0

`f1` is that of label 1, as in MRPC and QQP; `balanced_accuracy` is the mean recall over the labels that occur.
Source: Wang et al. 2019, arXiv:1804.07461, table 1.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats
from sklearn import metrics as sklearn_metrics

CLASSIFICATION = ("accuracy", "balanced_accuracy", "matthews", "f1")
REGRESSION = ("pearson", "spearman")


class NonFiniteLogits(ValueError):
    """A model put out NaN or infinity; no metric of it means anything."""


def score(metrics: Sequence[str], labels: np.ndarray, logits: np.ndarray) -> dict[str, float | None]:
    """Every metric of one split.

    Args:
        labels: (n,) label numbers, or target numbers for `pearson` and `spearman`.
        logits: (n, n_labels); (n, 1) for regression. The first of equal logits is the prediction.

    Returns:
        Metric name to value. A correlation is None where either side is constant, since it is undefined there.

    Raises:
        NonFiniteLogits: if any logit is NaN or infinite.
        ValueError: on an unknown metric, no rows, or shapes and labels that do not fit.
    """
    labels, logits = np.asarray(labels), np.asarray(logits)
    if labels.ndim != 1 or logits.ndim != 2 or len(labels) != len(logits):
        raise ValueError(f"labels must be (n,) and logits (n, n_labels), got {labels.shape} and {logits.shape}")
    if len(labels) == 0:
        raise ValueError("no rows to score; give at least one")
    logits = logits.astype(np.float64)
    if not np.isfinite(logits).all():
        rows = int((~np.isfinite(logits)).any(axis=1).sum())
        raise NonFiniteLogits(f"{rows} of {len(logits)} rows have logits that are not finite")
    return {metric: _score_one(metric, labels, logits) for metric in metrics}


def _score_one(metric: str, labels: np.ndarray, logits: np.ndarray) -> float | None:
    if metric in REGRESSION:
        if logits.shape[1] != 1:
            raise ValueError(f"{metric} scores one output per row, got {logits.shape[1]}")
        return _correlation(metric, labels.astype(np.float64), logits[:, 0])
    if metric not in CLASSIFICATION:
        raise ValueError(f"no metric {metric!r}; metrics are {', '.join((*CLASSIFICATION, *REGRESSION))}")
    n_labels = logits.shape[1]
    if n_labels < 2 or not np.isin(labels, np.arange(n_labels)).all():
        raise ValueError(f"{metric} needs labels 0 to {max(n_labels, 2) - 1} and one logit for each, got {n_labels}")
    predicted = logits.argmax(axis=1)
    if metric == "accuracy":
        return float((predicted == labels).mean())
    if metric == "balanced_accuracy":
        return float(np.mean([(predicted[labels == label] == label).mean() for label in np.unique(labels)]))
    if metric == "matthews":
        return float(sklearn_metrics.matthews_corrcoef(labels, predicted))
    if n_labels != 2:
        raise ValueError(f"f1 is that of label 1 of two, got {n_labels} labels; use balanced_accuracy")
    return float(sklearn_metrics.f1_score(labels, predicted, zero_division=0))  # pyright: ignore[reportArgumentType]    a number will do


def _correlation(metric: str, labels: np.ndarray, outputs: np.ndarray) -> float | None:
    if not np.isfinite(labels).all():
        raise ValueError(f"{metric} needs finite labels")
    if len(labels) < 2 or np.ptp(labels) == 0 or np.ptp(outputs) == 0:
        return None
    correlate: Any = stats.pearsonr if metric == "pearson" else stats.spearmanr
    value = float(correlate(labels, outputs).statistic)
    return value if np.isfinite(value) else None
