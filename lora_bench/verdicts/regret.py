"""How good were choices made before training? Their regret, and how their order agrees with the measured one.

    regret = mean over seeds of report(best) - report(choice)        best: the highest mean on `select`

The best placement is named by `select` and scored on `report`: named by the scores that it is credited with, it would
look better than it is. Seeds that favour a placement favour it on both splits, so a small optimism is left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats as scipy_stats

from lora_bench.verdicts import stats

N_RESAMPLES = 2000
MIN_ORDERED = 3  # two things agree or do not


class Regret(NamedTuple):
    """Of a choice, as a fraction; negative where it beats the best."""

    mean: float
    low: float  # of the 95 % t interval over seeds
    high: float
    n_pairs: int


class Agreement(NamedTuple):
    """Of two orders, from -1 to 1; the interval is of other seeds, and nan for fewer than two."""

    tau: float  # Kendall's tau-b
    low: float
    high: float
    rho: float  # Spearman's


def regret(best: Mapping[int, float], choice: Mapping[int, float]) -> Regret:
    """The regret of a choice, from scores by seed, paired."""
    differences = np.array([best[seed] - choice[seed] for seed in sorted(best.keys() & choice.keys())])
    low, high = stats.mean_interval(differences)
    return Regret(float(differences.mean()) if differences.size else math.nan, low, high, differences.size)


def agreement(predicted: Sequence[float], measured: np.ndarray, *, rng: np.random.Generator) -> Agreement:
    """Rank correlation of predicted scores with mean measured ones; the bootstrap draws seeds.

    Args:
        predicted: (n,), one score a placement.
        measured: (n_seeds, n), the scores of the placements, a row a seed.

    Returns:
        nan throughout for fewer than three placements, no seed, or predictions that are all equal.
    """
    scores, table = np.asarray(predicted, dtype=float), np.asarray(measured, dtype=float)
    if scores.size < MIN_ORDERED or not table.shape[0] or np.ptp(scores) == 0:
        return Agreement(math.nan, math.nan, math.nan, math.nan)
    means = table.mean(axis=0)
    if np.ptp(means) == 0:
        return Agreement(math.nan, math.nan, math.nan, math.nan)
    correlates: tuple[Any, Any] = (scipy_stats.kendalltau, scipy_stats.spearmanr)
    tau, rho = (float(correlate(scores, means).statistic) for correlate in correlates)
    if table.shape[0] < 2:
        return Agreement(tau, math.nan, math.nan, rho)
    drawn = table[rng.integers(table.shape[0], size=(N_RESAMPLES, table.shape[0]))].mean(axis=1)
    taus = tau_b(scores, drawn)
    low, high = np.quantile(taus[np.isfinite(taus)], [0.025, 0.975])
    return Agreement(tau, float(low), float(high), rho)


def tau_b(scores: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of scores (n,) with each row of drawn (m, n): (m,). Source: Kendall 1945, Biometrika 33:239."""
    first, second = np.triu_indices(scores.size, 1)
    ours, theirs = np.sign(scores[first] - scores[second]), np.sign(drawn[:, first] - drawn[:, second])
    with np.errstate(invalid="ignore"):
        return (theirs * ours).sum(axis=1) / np.sqrt((ours**2).sum() * (theirs**2).sum(axis=1))
