"""What a peak between two rates that were tried would be worth, and the rate that closes the gap.

    score = top - curvature (log10 rate - log10 best)^2        lost midway between two rates: curvature (gap / 2)^2

Rates lie on a grid, and placements peak where they like: of two that are alike, one may peak on the grid and the other
between its rates. Where curves are steep, many seeds tell that apart, and it says nothing of the placements.

The curvature is fitted on `select`, one for all placements that learn: a placement's own few seeds hardly tell it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from lora_bench.verdicts.family import Points


def curvature_of(curves: Iterable[Mapping[float, Points]]) -> float:
    """Score lost per squared decade, by least squares over curves that have levels and slopes of their own.

    Args:
        curves: rate -> points, of each placement; rates at which most seeds fail are left out.

    Returns:
        0 where no curve has three rates, or where they bend the other way.
    """
    bend = weight = 0.0
    for curve in curves:
        learning = {rate: points.on_select for rate, points in curve.items() if points.mostly_learn}
        if len(learning) < 3:
            continue
        x, y = np.log10(list(learning)), np.array(list(learning.values()))
        line = np.stack([np.ones_like(x), x], axis=1)
        square = x**2 - line @ np.linalg.lstsq(line, x**2, rcond=None)[0]
        bend -= float(square @ y)
        weight += float(square @ square)
    return max(0.0, bend / weight) if weight else 0.0


def lost_between(rate: float, other: float, curvature: float) -> float:
    """What both lose to a peak midway between them."""
    return curvature * (math.log10(rate / other) / 2) ** 2


def middle(rate: float, other: float) -> float:
    """The geometric mean, of two digits."""
    return float(f"{math.sqrt(rate * other):.2g}")


def beside(rate: float, tried: Iterable[float]) -> list[float]:
    """The next rates tried below and above, of which there may be one alone."""
    below, above = [other for other in tried if other < rate], [other for other in tried if other > rate]
    return [*([max(below)] if below else []), *([min(above)] if above else [])]
