"""Seeds whose model says one thing whatever it reads: they are no estimate of how well a placement learns."""

from __future__ import annotations

import numpy as np

ONE_CLASS = 0.99
"""Share of the rows that get one class, from which on a model has collapsed."""
ONE_LABEL = 0.95
"""Share of the rows that have one label, from which on predicting one class may be right."""
ONE_NUMBER = 0.01
"""Spread of a regression's predictions over that of its labels, up to which they are one number."""


def has_collapsed(labels: np.ndarray, logits: np.ndarray) -> bool:
    """Whether a model predicts one class, or one number; not to be told of no rows.

    Args:
        labels: (n_rows,) label numbers, or target numbers of a regression.
        logits: (n_rows, n_labels); (n_rows, 1) of a regression.
    """
    if not labels.size:
        return False
    if logits.shape[1] == 1:
        spread = float(np.std(labels.astype(float)))
        return spread > 0 and float(np.std(logits)) <= ONE_NUMBER * spread
    if _largest_share(labels) >= ONE_LABEL:
        return False
    return _largest_share(logits.argmax(axis=1)) >= ONE_CLASS


def _largest_share(values: np.ndarray) -> float:
    return float(np.unique(values, return_counts=True)[1].max() / values.size)
