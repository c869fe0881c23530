"""The instrument's own test finds what was put there, and notices an instrument that is off."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "analysis"))

import calibration

from lora_bench import stats


def test_noise_is_what_was_asked_for():
    """The sd of a seed-wise difference between placements is the knob of every figure."""
    rng = np.random.default_rng(0)
    runs = calibration.simulate(rng, sd=0.03, n_seeds=4000, effects={"qv": 0.05})
    table = runs[runs["lr"] == 3e-3].pivot_table(index="seed", columns="arm", values="report")
    assert (table["qv"] - table["k"]).std() == pytest.approx(0.03, rel=0.05)
    assert (table["qv"] - table["k"]).mean() == pytest.approx(0.05, abs=0.002)
    assert (table["o"] - table["k"]).mean() == pytest.approx(0.0, abs=0.002)


def test_a_large_effect_is_found_and_none_is_rarely_claimed():
    assert calibration.power_row(0.02, 8, 4.0, 10, seed=0)["found"] == 1.0
    assert calibration.null_row(0.02, 5, 60, seed=0)["false_positives"] <= 0.15


def test_an_uncorrected_instrument_is_caught(monkeypatch):
    """Without Holm, six tests at 5 % raise a false verdict far more often: the calibration must show it."""
    monkeypatch.setattr(stats, "holm", lambda p: np.asarray(p))
    row = calibration.null_row(0.02, 8, 60, seed=0)
    assert row["low"] > calibration.ERROR
