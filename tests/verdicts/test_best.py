import numpy as np
import pytest
from scipy import stats

from lora_bench.verdicts.best import chances_of_best


@pytest.mark.parametrize("n_seeds", [(8, 8, 8), (2, 5, 16), (3, 3, 3)])
def test_the_chance_of_best_is_that_of_draws_from_each_cells_t(n_seeds):
    """The integral beside a Monte Carlo of the same posterior; cells of unequal spread and number of seeds."""
    rng = np.random.default_rng(2)
    cells = [rng.normal(0.1 * k, 1 + k, size=n) for k, n in enumerate(n_seeds)]
    draws = [
        np.mean(cell)
        + np.std(cell, ddof=1) / np.sqrt(len(cell)) * stats.t.rvs(len(cell) - 1, size=200_000, random_state=k)
        for k, cell in enumerate(cells)
    ]
    shares = np.bincount(np.argmax(draws, axis=0), minlength=3) / 200_000
    assert chances_of_best(cells) == pytest.approx(shares, abs=0.006)


def test_two_cells_are_one_t_test():
    """Of equal spread and size the chance lies beside the one-sided test's 1 - p, whose posterior has more freedom."""
    first = np.array([0.1, 0.2, 0.3, 0.4] * 16)
    second = first + 0.01
    chance = chances_of_best([first, second])[1]
    assert chance == pytest.approx(1 - stats.ttest_ind(second, first, alternative="greater").pvalue, abs=0.005)


def test_a_cell_of_one_seed_has_no_chance_and_costs_the_others_none():
    """One seed says nothing of its spread."""
    cells = [np.array([0.5, 0.6, 0.7]), np.array([0.9]), np.array([0.5, 0.6, 0.7])]
    chances = chances_of_best(cells)
    assert np.isnan(chances[1])
    assert chances[[0, 2]] == pytest.approx([0.5, 0.5], abs=1e-3)


@pytest.mark.parametrize("n_equal", [1, 2, 3])
def test_cells_without_spread_share_what_they_tie(n_equal):
    """Heads that predict one class score the same in every seed."""
    cells = [np.full(4, 0.5)] * n_equal + [np.full(4, 0.4)]
    assert chances_of_best(cells) == pytest.approx([1 / n_equal] * n_equal + [0])
