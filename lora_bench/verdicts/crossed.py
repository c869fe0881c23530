"""A contrast over seeds and rows, both drawn: what if other seeds were run, and other rows of the task were asked?

    P[s, r] = n score_s - (n - 1) score_s without row r        a row's share in a seed's score (its pseudo-value)
    var(mean of P) = (MS_seeds + MS_rows - MS_rest) / (seeds x rows)        the mean squares of the two-way table

The pseudo-values of an accuracy are the hits themselves, and the interval is that of the two-way analysis of variance.
Those of the other metrics make them nearly a mean over rows (the jackknife), so that one formula serves all of them,
without a draw. Sources: Tukey 1958, Ann. Math. Statist. 29:614; Satterthwaite 1946, Biometrics Bull. 2:110.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats as distributions

AUC = "auc"
OF_CLASSES = ("accuracy", "balanced_accuracy", "matthews", "f1")


def value_of(metric: str, counts: np.ndarray) -> np.ndarray:
    """A metric of many confusion matrices at once.

    Leaving out each row, and every threshold, asks for a score a row: one by one from rows, as the official metrics of
    `tasks.metrics` are, that takes seconds a run. Both give the same values.

    Args:
        metric: one of OF_CLASSES; `f1` is that of label 1 of two.
        counts: (..., K, K), rows of each label (first axis) with each prediction (second).

    Returns:
        (...), and 0 where a Matthews correlation or an F1 has nothing to divide by.

    Source of Matthews' correlation over K labels: Gorodkin 2004, Comput. Biol. Chem. 28:367.
    """
    counts = np.asarray(counts, dtype=float)
    rows = counts.sum(axis=(-2, -1))
    hits = np.trace(counts, axis1=-2, axis2=-1)
    of_label, of_prediction = counts.sum(axis=-1), counts.sum(axis=-2)
    if metric == "accuracy":
        return hits / rows
    if metric == "balanced_accuracy":
        recall = np.diagonal(counts, axis1=-2, axis2=-1) / np.where(of_label > 0, of_label, 1)
        return recall.sum(axis=-1) / (of_label > 0).sum(axis=-1)
    if metric == "f1":
        return _ratio(2 * counts[..., 1, 1], of_label[..., 1] + of_prediction[..., 1])
    if metric == "matthews":
        spread = (rows**2 - (of_label**2).sum(axis=-1)) * (rows**2 - (of_prediction**2).sum(axis=-1))
        return _ratio(hits * rows - (of_label * of_prediction).sum(axis=-1), np.sqrt(np.maximum(spread, 0)))
    raise ValueError(f"no metric of classes {metric!r}; those are {', '.join(OF_CLASSES)}")


def shares_of_rows(metric: str, labels: np.ndarray, predicted: np.ndarray) -> tuple[float, np.ndarray]:
    """A seed's score and each row's pseudo-value, (n_rows,).

    Args:
        labels, predicted: (n_rows,) label numbers; for `auc` the second are numbers that grow with label 1.
    """
    labels, n = np.asarray(labels), len(labels)
    if metric == AUC:
        return _shares_of_auc(labels, np.asarray(predicted, dtype=float))
    n_labels = int(max(labels.max(), predicted.max(), 1)) + 1
    counts = np.zeros((n_labels, n_labels))
    np.add.at(counts, (labels, predicted), 1)
    one_less = counts - np.eye(n_labels**2).reshape(n_labels, n_labels, n_labels, n_labels)  # [label, predicted]
    with np.errstate(divide="ignore", invalid="ignore"):  # cells that hold no row are not read
        without = value_of(metric, one_less)
    score = float(value_of(metric, counts))
    return score, n * score - (n - 1) * without[labels, predicted]


def interval(shares: np.ndarray, centre: float, *, level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of a mean over seeds and rows, both random; never narrower than that over seeds.

    Args:
        shares: (n_seeds, n_rows); of a contrast, the differences of two cells' pseudo-values.
        centre: the mean that the interval is around, in the unit of the shares.

    Returns:
        (low, high); nan of fewer than two seeds or rows, and where nothing varies.
    """
    seeds, rows = shares.shape
    if seeds < 2 or rows < 2 or np.ptp(shares) == 0:
        return math.nan, math.nan
    mean, of_seed, of_row = shares.mean(), shares.mean(axis=1), shares.mean(axis=0)
    rest = shares - of_seed[:, None] - of_row + mean
    squares = np.array([rows * of_seed.var(ddof=1), seeds * of_row.var(ddof=1), 0.0])
    free = np.array([seeds - 1, rows - 1, (seeds - 1) * (rows - 1)])
    squares[2] = (rest**2).sum() / free[2]
    total = squares[0] + squares[1] - squares[2]
    if total <= squares[0]:  # the rows' own variance is estimated below zero
        total, freedom = squares[0], float(free[0])
    else:
        freedom = float(total**2 / (squares**2 / free).sum())
    if total <= 0:
        return math.nan, math.nan
    quantile = distributions.t.ppf((1 + level) / 2, [freedom, seeds - 1])
    half = float((quantile * np.sqrt(np.array([total, squares[0]]) / shares.size)).max())  # few seeds, many rows
    return centre - half, centre + half


def tuned_threshold(metric: str, labels: np.ndarray, outputs: np.ndarray) -> float:
    """The threshold on a two-label model's output from which on label 1 is said, best by a metric on these rows.

    Args:
        outputs: (n_rows,) logit of label 1 minus that of label 0; 0 is the threshold that the model itself uses.

    Returns:
        halfway between two outputs; of equally good ones that nearest to 0.
    """
    order = np.argsort(outputs, kind="stable")
    ordered, positive = outputs[order], labels[order] == 1
    edges = np.flatnonzero(np.diff(ordered) > 0) + 1  # the first of the rows that are label 1
    cuts = np.r_[0, edges, len(ordered)]
    missed = np.r_[0, np.cumsum(positive)][cuts]  # label 1 below the threshold
    refused = cuts - missed
    counts = np.stack([refused, (~positive).sum() - refused, missed, positive.sum() - missed], axis=-1)
    values = value_of(metric, counts.reshape(-1, 2, 2))
    between = (ordered[edges - 1] + ordered[edges]) / 2
    thresholds = np.r_[min(ordered[0] - 1, 0.0), between, max(ordered[-1] + 1, 0.0)]
    best = thresholds[values >= values.max() - 1e-12]
    return float(best[np.abs(best).argmin()])


def _shares_of_auc(labels: np.ndarray, outputs: np.ndarray) -> tuple[float, np.ndarray]:
    """The area under the curve: the share of (label 1, label 0) pairs in the right order, ties half.

    Source: DeLong et al. 1988, Biometrics 44:837.
    """
    positive = labels == 1
    n_positive, n_negative, n = int(positive.sum()), int((~positive).sum()), len(labels)
    if min(n_positive, n_negative) < 2:
        return math.nan, np.full(n, math.nan)
    within = np.zeros(n)
    for of_label in (positive, ~positive):
        within[of_label] = distributions.rankdata(outputs[of_label])
    overall = distributions.rankdata(outputs)
    wins = np.where(positive, overall - within, n_positive - (overall - within))  # against the rows of the other label
    score = float(wins[positive].sum() / (n_positive * n_negative))
    others = np.where(positive, n_negative, n_positive)
    same = np.where(positive, n_positive, n_negative)
    without = (same * score - wins / others) / (same - 1)
    return score, n * score - (n - 1) * without


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1), 0.0)
