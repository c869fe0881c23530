"""How large a difference some seeds can show, and how many seeds a difference needs."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from scipy import special, stats


def half_width(sd: Any, n: Any, *, level: float = 0.95) -> Any:
    """Half of Student's t interval of a mean, from the sd and the number of scores; nan below two, and without spread:
    seeds that agree to the last row do not show that all would.

    Args:
        sd, n: numbers, arrays or columns of one shape.
        level: coverage, as a fraction.

    Returns:
        in the unit of `sd`.
    """
    return special.stdtrit(n - 1, (1 + level) / 2) * np.where(np.asarray(sd) > 1e-12, sd, math.nan) / np.sqrt(n)


def detection_power(difference: float | np.ndarray, sd: float, n_pairs: int, *, error: float = 0.05) -> np.ndarray:
    """Probability that a two-sided paired t test at `error` sees a true mean difference.

    The sample sd is integrated over its own distribution (chi with n - 1 degrees of freedom): with u = s / sd,
    reject when |z + difference sqrt(n) / sd| > t u.
    """
    if n_pairs < 2:
        return np.zeros(np.shape(difference))
    centre = np.asarray(difference, dtype=float)[..., None] * math.sqrt(n_pairs) / sd
    bound = special.stdtrit(n_pairs - 1, 1 - error / 2) * _sd_nodes(n_pairs)
    return (special.ndtr(centre - bound) + special.ndtr(-centre - bound)).mean(axis=-1)


def tie_power(margin: float, sd: float, n_pairs: int, *, difference: float = 0.0, error: float = 0.05) -> float:
    """Probability that two one-sided tests at `error` show a true mean difference to lie inside the margin."""
    if n_pairs < 2:
        return 0.0
    room = margin * math.sqrt(n_pairs) / sd - special.stdtrit(n_pairs - 1, 1 - error) * _sd_nodes(n_pairs)
    centre = difference * math.sqrt(n_pairs) / sd
    inside = special.ndtr(room - centre) - special.ndtr(-room - centre)
    return float(np.where(room > 0, inside, 0.0).mean())


def smallest_difference(n_pairs: int, sd: float, *, error: float = 0.05, power: float = 0.8) -> float:
    """The smallest true difference that this many pairs see with the given power; inf below two pairs."""
    if n_pairs < 2:
        return math.inf
    return sd * _smallest_in_sd(n_pairs, error, power)


def seeds_to_detect(difference: float, sd: float, *, error: float = 0.05, power: float = 0.8) -> int:
    """Seeds until a true difference is seen with the given power, by a paired t test at `error`."""
    return _first(lambda n: detection_power(difference, sd, n, error=error) >= power)


def seeds_to_tie(margin: float, sd: float, *, error: float = 0.05, power: float = 0.8) -> int:
    """Seeds until no difference at all is shown to be a tie with the given power."""
    return _first(lambda n: tie_power(margin, sd, n, error=error) >= power)


def sd_interval(sd: float, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """The interval of a standard deviation that n normal values estimate: (n - 1) s^2 / sigma^2 is chi-square."""
    low, high = (math.sqrt((n - 1) / stats.chi2.ppf((1 + side * level) / 2, n - 1)) for side in (1, -1))
    return sd * low, sd * high


@functools.lru_cache(maxsize=4096)
def seeds_to_settle(margin_in_sd: float, *, error: float, power: float = 0.8, least: int = 2) -> int:
    """Seeds until a difference of one margin is seen, and no difference at all is shown to be a tie, each with the
    given power; `least` at least.

    Args:
        margin_in_sd: the margin over the standard deviation of a paired difference.
    """
    needs = (seeds(margin_in_sd, 1.0, error=error, power=power) for seeds in (seeds_to_detect, seeds_to_tie))
    return max(*needs, least)


@functools.lru_cache(maxsize=4096)
def _smallest_in_sd(n_pairs: int, error: float, power: float) -> float:
    """`smallest_difference` in standard deviations of a paired difference."""
    low, high = 0.0, 1.0
    while detection_power(high, 1.0, n_pairs, error=error) < power:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if detection_power(middle, 1.0, n_pairs, error=error) < power else (low, middle)
    return high


@functools.lru_cache(maxsize=4096)
def _sd_nodes(n_pairs: int, n_nodes: int = 512) -> np.ndarray:
    """Equally likely values of sample sd / sd with n - 1 degrees of freedom."""
    mass = (np.arange(n_nodes) + 0.5) / n_nodes
    return np.sqrt(stats.chi2.ppf(mass, n_pairs - 1) / (n_pairs - 1))


def _first(holds, *, limit: int = 100_000) -> int:
    """Smallest n >= 2 at which a condition that stays true from there on holds; `limit` if none does."""
    high = 2
    while high < limit and not holds(high):
        high *= 2
    if high >= limit:
        return limit
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return max(high, 2)
