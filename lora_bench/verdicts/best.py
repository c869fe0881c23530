"""Which cell is best, as a chance: each cell's true mean is where its seeds leave it.

    P(k is best) = integral of f_k(x) prod_j F_j(x) dx        f_k, F_k: Student's t around the mean of k's seeds

The posterior of a mean under the flat prior (p(mean, sd) ~ 1 / sd), each cell by its own spread.
Source: Gelman et al. 2013, Bayesian Data Analysis, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

POINTS = 4000  # of the integral, equally far apart in the probability of k


def chances_of_best(scores: Sequence[np.ndarray]) -> np.ndarray:
    """The chance of each cell to have the highest true mean.

    Args:
        scores: of each cell, (n_seeds,), in one unit.

    Returns:
        (n_cells,), their sum 1; nan for a cell of fewer than two seeds, which the others are not held against.
    """
    chances = np.full(len(scores), math.nan)
    known = [k for k, of_cell in enumerate(scores) if len(of_cell) > 1]
    if not known:
        return chances
    means, scales, free = np.array(
        [(np.mean(scores[k]), np.std(scores[k], ddof=1) / math.sqrt(len(scores[k])), len(scores[k]) - 1) for k in known]
    ).T
    at = (np.arange(POINTS) + 0.5) / POINTS
    for place, k in enumerate(known):
        values = means[place] + scales[place] * stats.t.ppf(at, free[place])
        below = np.ones(POINTS)
        for other in set(range(len(known))) - {place}:
            below = below * _below(values, means[other], scales[other], free[other])
        chances[k] = below.mean()
    return chances / np.nansum(chances)  # cells that are constant and equal share what ties cost


def _below(values: np.ndarray, mean: float, scale: float, free: float) -> np.ndarray:
    if scale > 0:
        return stats.t.cdf((values - mean) / scale, free)
    return (values > mean) + 0.5 * (values == mean)
