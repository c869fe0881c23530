"""Seeds that did not learn, and arms that learned at no rate: set aside, counted, and never called better or tied."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from lora_bench.verdicts import arms, stats, tuning
from lora_bench.verdicts.looks import DIFFERENT
from lora_bench.verdicts.settings import FLOOR

SEEDS = np.arange(8)
NOISE = np.random.default_rng(3).normal(0, 0.004, size=(4, 8))


def cell(
    arm: str, report: np.ndarray, *, lr: float = 1e-3, n_stuck: int = 0, diverge: bool = False, select=None
) -> pd.DataFrame:
    """An arm's runs at a rate, the first of which did not learn."""
    learns = np.arange(len(report)) >= n_stuck
    scored = learns | (not diverge)
    report = np.where(scored, report, np.nan)
    return pd.DataFrame(
        {
            "arm": arm, "method": "lora" if arm != FLOOR else FLOOR, "targets": arm if arm != FLOOR else "",
            "rank": 4.0, "rank_min": 4.0, "rank_max": 4.0, "lr": lr, "seed": np.arange(len(report)),
            "metric": "accuracy",
            "status": np.where(scored, "finished", "failed"), "error_kind": np.where(scored, None, "nonfinite"),
            "scored": scored, "select": report if select is None else select, "report": report, "train": report,
            "adapter_parameters": 100.0, "learns": learns,
        }
    )  # fmt: skip


def judged(*cells: pd.DataFrame, pairs: tuple[tuple[str, str], ...] = (("qv", "q"),)) -> pd.DataFrame:
    return arms.judge(pd.concat(cells, ignore_index=True), pairs, margin=0.01).contrasts


@pytest.mark.parametrize("diverge", [False, True], ids=["one_class", "diverged"])
@pytest.mark.parametrize("n_stuck", [1, 2, 4])
def test_a_word_is_about_the_seeds_that_learn(n_stuck, diverge):
    """A collapse of one seed in ten hid real differences and made false ones: it says nothing of those that learn."""
    ours, theirs = 0.84 + NOISE[0], np.where(n_stuck > SEEDS, 0.5, 0.80 + NOISE[1])
    one = judged(cell("qv", ours), cell("q", theirs, n_stuck=n_stuck, diverge=diverge)).iloc[0]
    differences = (ours - theirs)[n_stuck:]
    assert (one["verdict"], one["n_pairs"], one["n_seeds"], one["n_stuck_second"]) == (
        "better",
        8 - n_stuck,
        8,
        n_stuck,
    )
    assert one["difference"] == pytest.approx(differences.mean())
    assert one["p"] == pytest.approx(scipy_stats.ttest_1samp(differences, 0).pvalue)
    assert one["p_holm"] == pytest.approx(2 * one["p"])  # the other half of the error is the shares'


@pytest.mark.parametrize("n_stuck", [1, 2, 3, 4])
def test_a_rare_collapse_is_no_difference_of_the_scores(n_stuck):
    ours, theirs = 0.84 + NOISE[0], np.where(n_stuck > SEEDS, 0.5, 0.84 + NOISE[0])
    assert judged(cell("qv", ours), cell("q", theirs, n_stuck=n_stuck)).iloc[0]["verdict"] != "better"


@pytest.mark.parametrize(("n_stuck", "word"), [(5, "unresolved"), (6, "learns more often"), (8, "learns more often")])
def test_shares_that_differ_are_said_by_fishers_test(n_stuck, word):
    theirs = np.where(n_stuck > SEEDS, 0.5, 0.84)
    one = judged(cell("qv", 0.84 + NOISE[0]), cell("q", theirs, n_stuck=n_stuck)).iloc[0]
    table = [[8, 0], [8 - n_stuck, n_stuck]]
    assert one["verdict"] == word
    assert one["p_holm"] == pytest.approx(min(1, 4 * scipy_stats.fisher_exact(table, alternative="greater").pvalue))
    mirrored = judged(cell("qv", 0.84 + NOISE[0]), cell("q", theirs, n_stuck=n_stuck), pairs=(("q", "qv"),)).iloc[0]
    assert mirrored["verdict"] == word.replace("more", "less")


def test_without_a_seed_that_failed_nothing_changes():
    cells = cell("qv", 0.84 + NOISE[0]), cell("q", 0.80 + NOISE[1])
    bare = [one.drop(columns="learns") for one in cells]
    pd.testing.assert_frame_equal(judged(*cells), judged(*bare))


def test_few_seeds_with_a_failure_keep_the_error():
    """Eight seeds of which each is stuck with one half, in both arms alike: at most 5 % may be called different."""
    rng = np.random.default_rng(0)
    called = 0
    for _ in range(1000):
        learn = rng.random((2, 8)) < 0.6
        scores = np.where(learn, rng.normal(0.8, 0.01, (2, 8)), 0.5)
        (one,) = stats.judge([stats.contrast(*scores, margin=0.01, learn=(learn[0], learn[1]))])
        called += one.verdict in DIFFERENT
    assert called / 1000 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 1000)


# ---------------------------------------------------------------- arms that learn at no rate

HEAD = 0.52 + NOISE[2]


def grid(arm: str, lead: tuple[float, ...], *, n_seeds: int = 8) -> list[pd.DataFrame]:
    """An arm at rates from 1e-3 up, so far above the head alone."""
    noise = np.random.default_rng(7).normal(0, 0.001, size=(len(lead), 8))
    return [
        cell(arm, (HEAD + more + noise[i])[:n_seeds], lr=rate, select=(HEAD + more + noise[i])[:n_seeds])
        for i, (rate, more) in enumerate(zip((1e-3, 3e-3, 1e-2), lead, strict=False))
    ]


@pytest.mark.parametrize("lead", [(0.0, 0.0, 0.0), (-0.001, -0.002, 0.0), (-0.03, 0.0, -0.001)])
def test_an_arm_that_is_the_head_alone_at_every_rate_is_flat_and_gets_no_word_of_its_scores(lead):
    """It was certified inside its grid, called worse, and made published claims supported."""
    runs = pd.concat([*grid("q", lead), *grid("qv", (0.1, 0.3, 0.2)), cell(FLOOR, HEAD)], ignore_index=True)
    made = arms.judge(runs, (("qv", "q"), ("q", "qv")), margin=0.01)
    assert made.rates["certificate"].to_dict() == {"q": "flat", "qv": "inside", FLOOR: "single"}
    assert set(made.contrasts["verdict"]) == {"did not learn"}
    assert set(made.contrasts["note"]) == {"q did not learn at any rate tried"}
    assert made.contrasts["seeds_needed"].isna().all()


@pytest.mark.parametrize("lead", [(0.0, 0.05, 0.0), (0.02, 0.02, 0.02), (0.0, 0.0, 0.3)])
@pytest.mark.parametrize("n_seeds", [1, 2, 8])
def test_an_arm_that_learns_at_one_rate_is_not_flat(lead, n_seeds):
    runs = pd.concat([*grid("q", lead, n_seeds=n_seeds), cell(FLOOR, HEAD)], ignore_index=True)
    assert tuning.choose_rates(runs)["certificate"]["q"] != "flat"


def test_without_the_head_alone_no_arm_is_flat():
    assert tuning.choose_rates(pd.concat(grid("q", (0.0, 0.0, 0.0))))["certificate"]["q"] != "flat"


@pytest.mark.parametrize("rates", [(1e-3, 3e-3), (1e-4, 1e-3, 1e-2)])
def test_of_equal_rates_the_higher_is_chosen(rates):
    runs = pd.concat([cell("q", np.full(4, 0.5), lr=rate) for rate in rates])
    assert tuning.choose_rates(runs)["lr"]["q"] == rates[-1]
    assert (tuning.best_rates_by_seed(runs).loc["q"] == rates[-1]).all()
