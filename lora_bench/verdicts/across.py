"""Arms over several tasks at once: mean ranks, interquartile means, and how often one beats another.

The bootstrap cannot tell that a seed not yet run may lose: where every seed of one cell beats every seed of the other,
it gives 1.00 to 1.00. So the probability of improvement has score-type intervals per task (Newcombe 2006, Statist. Med.
25:559, method 5), put together over tasks (Zou and Donner 2008, Statist. Med. 27:1693).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, special, stats

from lora_bench.verdicts.stats import require_finite, resample_seeds


@dataclass(frozen=True)
class Across:
    """Cells compared over several tasks, with intervals over seeds; one entry per cell."""

    mean_rank: np.ndarray  # 1 is best; ties share their mean rank
    mean_rank_interval: np.ndarray  # (n_cells, 2); nan where no resampling moves it
    iqm: np.ndarray  # interquartile mean of the scores, in their unit
    iqm_interval: np.ndarray
    improvement: np.ndarray  # (n_cells, n_cells): P(row beats column), a tie counts half
    improvement_interval: np.ndarray  # (n_cells, n_cells, 2); nan on the diagonal


def across_tasks(
    scores: np.ndarray, *, level: float = 0.95, n_resamples: int = 2_000, rng: np.random.Generator
) -> Across:
    """Aggregate over tasks: mean rank, interquartile mean, probability of improvement.

    Seeds are resampled within each task and jointly for all cells, since runs of one seed are paired.

    Args:
        scores: (n_tasks, n_cells, n_seeds), finite; put tasks on one scale before (all in [0, 1]).

    Source: Agarwal et al. 2021, arXiv:2108.13264, sections 4.2 and 4.3.
    """
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 3 or 0 in scores.shape:
        raise ValueError(f"scores must be (n_tasks, n_cells, n_seeds) and not empty, got shape {scores.shape}")
    require_finite(scores)
    tail = (1 - level) / 2
    n_cells = scores.shape[1]
    ranks, iqms = [], []
    for chunk in np.array_split(np.arange(n_resamples), max(1, n_resamples // 250)):
        drawn = resample_seeds(scores, chunk.size, rng)
        ranks.append(_mean_ranks(drawn))
        iqms.append(_interquartile_mean(drawn))
    quantiles = [tail, 1 - tail]
    spread = [np.moveaxis(np.quantile(np.concatenate(x), quantiles, axis=0), 0, -1) for x in (ranks, iqms)]
    for of_cells in spread:
        of_cells[of_cells[:, 0] == of_cells[:, 1]] = math.nan
    assert spread[0].shape == (n_cells, 2)
    return Across(
        mean_rank=_mean_ranks(scores[None])[0],
        mean_rank_interval=spread[0],
        iqm=_interquartile_mean(scores[None])[0],
        iqm_interval=spread[1],
        improvement=_improvement(scores).mean(axis=0),
        improvement_interval=_improvement_intervals(scores, level),
    )


def _mean_ranks(scores: np.ndarray) -> np.ndarray:
    """(n_resamples, n_tasks, n_cells, n_seeds) -> (n_resamples, n_cells): rank of the cell means, over tasks."""
    means = scores.mean(axis=-1)
    above = (means[..., None, :] > means[..., :, None]).sum(axis=-1)
    equal = (means[..., None, :] == means[..., :, None]).sum(axis=-1)
    return (above + (equal + 1) / 2).mean(axis=1)


def _interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """(n_resamples, n_tasks, n_cells, n_seeds) -> (n_resamples, n_cells), trimmed over all tasks and seeds."""
    pooled = np.moveaxis(scores, 2, 1).reshape(scores.shape[0], scores.shape[2], -1)
    return stats.trim_mean(pooled, 0.25, axis=-1)


def _improvement(scores: np.ndarray) -> np.ndarray:
    """(n_tasks, n_cells, n_seeds) -> (n_tasks, n_cells, n_cells): P(row > column), ties half, over pairs of seeds."""
    row, column = scores[:, :, None, :, None], scores[:, None, :, None, :]
    return ((row > column) + 0.5 * (row == column)).mean(axis=(-2, -1))


def _improvement_intervals(scores: np.ndarray, level: float) -> np.ndarray:
    """The intervals of the mean over tasks, each of which has one share of the squared distance to either end."""
    n_tasks, n_cells, n_seeds = scores.shape
    by_task = _improvement(scores)
    intervals = np.full((n_cells, n_cells, 2), math.nan)
    for row in range(n_cells):
        for column in set(range(n_cells)) - {row}:
            shares = by_task[:, row, column]
            ends = np.array([improvement_interval(float(share), n_seeds, level=level) for share in shares])
            away = np.sqrt(((ends - shares[:, None]) ** 2).sum(axis=0)) / n_tasks
            intervals[row, column] = shares.mean() - away[0], shares.mean() + away[1]
    return intervals


def improvement_interval(share: float, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """The interval of the probability that one cell's seed scores above another's, of n seeds each.

    All values for which the share lies within z standard errors, that error being the one that holds at the value.

    Args:
        share: of the n x n pairs of seeds that the first wins, ties half.

    Source: Newcombe 2006, Statist. Med. 25:559, method 5 (after Hanley and McNeil 1982).
    """
    z = float(special.ndtri((1 + level) / 2))

    def outside(value: float) -> float:
        other = 1 - value
        variance = value * other * (1 + (n - 1) * (other / (2 - value) + value / (1 + value))) / n**2
        return abs(share - value) - z * math.sqrt(variance)

    tiny = 1e-9
    has_low, has_high = share > 2 * tiny and outside(tiny) > 0, share < 1 - 2 * tiny and outside(1 - tiny) > 0
    low: Any = optimize.brentq(outside, tiny, share - tiny) if has_low else 0.0
    high: Any = optimize.brentq(outside, share + tiny, 1 - tiny) if has_high else 1.0
    return float(low), float(high)
