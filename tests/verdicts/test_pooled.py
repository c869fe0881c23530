import numpy as np
import pytest

from lora_bench.verdicts import pooled


def test_a_pooled_difference_is_of_the_seeds_that_every_cell_has():
    """A seed that one cell lacks would weigh the others'."""
    firsts, seconds = [{0: 1.0, 1: 3.0, 2: 9.0}, {0: 3.0, 1: 5.0}], [{0: 1.0, 1: 1.0, 2: 0.0}]
    assert pooled.difference_of_means(firsts, seconds) == {0: 1.0, 1: 3.0}
    assert pooled.difference_of_means([], []) == {}


@pytest.mark.parametrize("ranks", [(1, 2, 4), (1, 4, 64), (2, 8, 16, 32)])
def test_a_slope_is_that_of_least_squares_on_the_doublings(ranks):
    """numpy's fit of each seed by itself; ranks need not be evenly spaced."""
    scores = np.random.default_rng(0).normal(size=(len(ranks), 3))
    slopes = pooled.slopes_per_doubling({rank: dict(enumerate(row)) for rank, row in zip(ranks, scores, strict=True)})
    fitted = np.polyfit(np.log2(ranks), scores, 1)[0]
    assert list(slopes.values()) == pytest.approx(list(fitted))
