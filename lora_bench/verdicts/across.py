"""Arms over several tasks at once: mean ranks, interquartile means, and how often one beats another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from lora_bench.verdicts.stats import require_finite, resample_seeds


@dataclass(frozen=True)
class Across:
    """Cells compared over several tasks, with intervals over seeds; one entry per cell."""

    mean_rank: np.ndarray  # 1 is best; ties share their mean rank
    mean_rank_interval: np.ndarray  # (n_cells, 2)
    iqm: np.ndarray  # interquartile mean of the scores, in their unit
    iqm_interval: np.ndarray
    improvement: np.ndarray  # (n_cells, n_cells): P(row beats column), a tie counts half
    improvement_interval: np.ndarray  # (n_cells, n_cells, 2)


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
    ranks, iqms, wins = [], [], []
    for chunk in np.array_split(np.arange(n_resamples), max(1, n_resamples // 250)):
        drawn = resample_seeds(scores, chunk.size, rng)
        ranks.append(_mean_ranks(drawn))
        iqms.append(_interquartile_mean(drawn))
        wins.append(_improvement(drawn))
    quantiles = [tail, 1 - tail]
    spread = [np.moveaxis(np.quantile(np.concatenate(x), quantiles, axis=0), 0, -1) for x in (ranks, iqms, wins)]
    assert spread[0].shape == (n_cells, 2)
    return Across(
        mean_rank=_mean_ranks(scores[None])[0],
        mean_rank_interval=spread[0],
        iqm=_interquartile_mean(scores[None])[0],
        iqm_interval=spread[1],
        improvement=_improvement(scores[None])[0],
        improvement_interval=spread[2],
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
    """(n_resamples, n_tasks, n_cells, n_seeds) -> (n_resamples, n_cells, n_cells): P(row > column), ties half."""
    n_resamples, n_tasks, n_cells, n_seeds = scores.shape
    flat = np.sort(scores, axis=-1)
    total = np.zeros((n_resamples, n_cells, n_cells))
    for seed in range(n_seeds):  # n_seeds^2 pairs, one seed of the row at a time
        row = flat[..., seed][..., :, None, None]  # (R, T, C, 1, 1)
        column = flat[:, :, None, :, :]  # (R, T, 1, C, S)
        total += ((row > column).sum(axis=-1) + 0.5 * (row == column).sum(axis=-1)).sum(axis=1)
    return total / (n_tasks * n_seeds * n_seeds)
