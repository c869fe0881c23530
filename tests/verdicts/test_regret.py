"""Regret and rank correlation against scipy, and on orders that are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from lora_bench.verdicts import regret


def test_regret_and_its_interval_are_those_of_a_paired_t_test():
    """What the best would have gained: scipy's interval of the differences over the seeds that both have."""
    rng = np.random.default_rng(0)
    best, choice = ({seed: float(rng.normal(0.8, 0.02)) for seed in range(low, 10)} for low in (0, 2))
    lost = regret.regret(best, choice)
    test = scipy_stats.ttest_rel(*([scores[seed] for seed in range(2, 10)] for scores in (best, choice)))
    interval = test.confidence_interval(0.95)
    assert lost.n_pairs == 8
    assert (lost.low, lost.high) == pytest.approx((interval.low, interval.high))
    assert lost.mean == pytest.approx((interval.low + interval.high) / 2)


@pytest.mark.parametrize("sign", [1, -1], ids=["right", "reversed"])
def test_a_predictor_that_knows_the_order_agrees_wholly_and_one_that_reverses_it_not_at_all(sign):
    measured = np.array([0.70, 0.72, 0.75, 0.80]) + np.random.default_rng(0).normal(0, 1e-3, size=(8, 1))
    agreed = regret.agreement(sign * np.array([1.0, 2.0, 4.0, 30.0]), measured, rng=np.random.default_rng(0))
    assert agreed == pytest.approx((sign,) * 4)


@pytest.mark.parametrize("has_ties", [False, True])
def test_the_interval_of_the_correlation_is_that_of_scipy_s_tau_over_drawn_seeds(has_ties):
    """The bootstrap computes tau for all draws at once: each must be what scipy gives."""
    rng = np.random.default_rng(1)
    scores = np.array([1.0, 1.0, 3.0, 2.0, 0.0]) if has_ties else rng.normal(size=5)
    drawn = rng.integers(0, 4, size=(60, 5)) / 4.0 if has_ties else rng.normal(size=(60, 5))
    drawn = drawn[np.ptp(drawn, axis=1) > 0]
    expected = [scipy_stats.kendalltau(scores, row).statistic for row in drawn]
    np.testing.assert_allclose(regret.tau_b(scores, drawn), expected)
    agreed = regret.agreement(scores, drawn[:8], rng=rng)
    assert agreed.rho == pytest.approx(scipy_stats.spearmanr(scores, drawn[:8].mean(axis=0)).statistic)
    assert -1 <= agreed.low <= agreed.tau <= agreed.high <= 1


@pytest.mark.parametrize(
    ("scores", "measured"),
    [([1.0, 2.0], np.ones((8, 2))), ([1.0, 1.0, 1.0], np.random.default_rng(0).normal(size=(8, 3))),
     ([1.0, 2.0, 3.0], np.empty((0, 3))), ([1.0, 2.0, 3.0], np.ones((8, 3)))],
    ids=["two", "all_alike", "no_seed", "measured_alike"],
)  # fmt: skip
def test_without_an_order_there_is_no_correlation(scores, measured):
    """A number would be read as one."""
    assert np.isnan(regret.agreement(scores, measured, rng=np.random.default_rng(0))).all()
