"""How much lies between two rates that were tried: the curvature, the loss, and the rate that closes the gap."""

import math

import numpy as np
import pytest

from lora_bench.verdicts import between
from lora_bench.verdicts.family import Points


def curve_of(rates: list[float], scores: list[float], *, stuck: tuple[float, ...] = ()) -> dict[float, Points]:
    learns = {rate: np.full(2, rate not in stuck) for rate in rates}
    return {
        rate: Points(np.full(2, score), np.full(2, score), np.ones(2, bool), learns[rate])
        for rate, score in zip(rates, scores, strict=True)
    }


def test_the_curvature_is_that_of_numpys_parabola():
    """An independent fit of the same points."""
    rng = np.random.default_rng(0)
    rates = [5e-4, 1e-3, 2e-3, 3e-3, 1e-2]
    scores = list(0.8 - 0.7 * np.log10(np.array(rates) / 2e-3) ** 2 + rng.normal(0, 0.01, 5))
    expected = -np.polynomial.Polynomial.fit(np.log10(rates), scores, 2).convert().coef[2]
    assert between.curvature_of([curve_of(rates, scores)]) == pytest.approx(expected)


def test_curves_of_other_levels_and_slopes_share_one_curvature():
    """Placements peak where they like, and score what they like."""
    rates = np.array([1e-3, 2e-3, 3e-3, 5e-3])
    curves = [
        curve_of(list(rates), list(level - 0.4 * np.log10(rates / peak) ** 2))
        for level, peak in ((0.8, 1e-3), (0.2, 6e-3))
    ]
    assert between.curvature_of(curves) == pytest.approx(0.4)


@pytest.mark.parametrize(
    "curve",
    [
        curve_of([1e-3, 3e-3], [0.5, 0.6]),
        curve_of([1e-3, 3e-3, 1e-2], [0.6, 0.5, 0.6]),
        curve_of([1e-3, 3e-3, 1e-2], [0.5, 0.6, 0.0], stuck=(1e-2,)),
    ],
    ids=["two rates", "a valley", "two rates that learn"],
)
def test_where_no_peak_shows_nothing_is_lost(curve):
    """A guess would send every study to further rates, or keep every word from being said."""
    assert between.curvature_of([curve]) == 0


@pytest.mark.parametrize(("rate", "other"), [(1e-3, 2e-3), (2e-3, 1e-3), (3e-4, 5e-2)])
def test_the_loss_is_that_of_a_peak_at_the_rate_between(rate, other):
    """Both are equally far from it, whichever is named first."""
    peak = math.sqrt(rate * other)
    for end in (rate, other):
        assert between.lost_between(rate, other, 0.7) == pytest.approx(0.7 * math.log10(end / peak) ** 2)
    assert between.middle(rate, other) == pytest.approx(peak, rel=0.05)
    assert between.middle(rate, other) == float(f"{between.middle(rate, other):.2g}")


def test_the_next_rates_are_those_on_both_sides():
    tried = [1e-2, 1e-3, 3e-3]
    assert [between.beside(rate, tried) for rate in (1e-3, 3e-3, 1e-2)] == [[3e-3], [1e-3, 1e-2], [3e-3]]
