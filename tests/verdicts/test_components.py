"""The spread of seeds and of starts within them, against statsmodels and against draws whose spread is known."""

import numpy as np
import pandas as pd
import pytest
from statsmodels.regression.mixed_linear_model import MixedLM

from lora_bench.verdicts.components import components


def drawn(seed, *, outer, inner, sizes):
    rng = np.random.default_rng(seed)
    return [0.7 + outer * rng.normal() + inner * rng.normal(size=size) for size in sizes]


@pytest.mark.parametrize("seed", range(4))
def test_balanced_components_are_those_of_restricted_maximum_likelihood(seed):
    """Where neither is zero the two estimators are one (Searle, Casella and McCulloch 1992)."""
    groups = drawn(seed, outer=2.0, inner=1.0, sizes=[4] * 12)
    rows = pd.DataFrame([(place, score) for place, group in enumerate(groups) for score in group], columns=["g", "y"])
    fitted = MixedLM(rows["y"], np.ones(len(rows)), groups=rows["g"]).fit(reml=True)
    found = components(groups)
    assert found.inner.sd**2 == pytest.approx(fitted.scale, rel=1e-4)
    assert found.outer.sd**2 == pytest.approx(float(np.asarray(fitted.cov_re)[0, 0]), rel=1e-3)


@pytest.mark.parametrize(
    ("outer", "sizes"),
    [(1.0, [4] * 8), (0.0, [4] * 8), (0.3, [4] * 4), (3.0, [4] * 4), (1.0, [4, 4, 3, 2, 1, 4, 3, 4])],
    ids=["alike", "no outer spread", "few", "much", "some lost"],
)
def test_intervals_hold_what_they_promise(outer, sizes):
    """In 1,500 draws a coverage of .95 is told within .011 (two standard errors)."""
    found = [components(drawn(seed, outer=outer, inner=1.0, sizes=sizes)) for seed in range(1500)]
    inner = np.mean([one.inner.low <= 1.0 <= one.inner.high for one in found])
    over = np.mean([one.outer.low <= outer <= one.outer.high for one in found])
    assert inner == pytest.approx(0.95, abs=0.017)
    assert over >= 0.95 - 0.017
    assert all(one.outer.low <= one.outer.sd <= one.outer.high for one in found)


def test_what_cannot_be_told_is_refused():
    for groups in ([np.array([1.0, 2.0])], [np.array([1.0]), np.array([2.0])], []):
        with pytest.raises(ValueError, match="two outer draws"):
            components(groups)


def test_equal_scores_have_no_spread():
    found = components([np.array([0.5, 0.5]), np.array([0.5, 0.5])])
    assert found.total == 0 and found.outer == found.inner == (0, 0, 0)
