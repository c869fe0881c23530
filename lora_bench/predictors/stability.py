"""How stable is a prediction? The same predictor on other rows of train, with another head.

    top     = share of the draws whose best role is the most frequent one
    overlap = mean over pairs of draws of sum_m min(r_m, r'_m) c_m / sum_m max(r_m, r'_m) c_m

with ranks r, and c the parameters of one of them.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from lora_bench.models.roles import Matrix
from lora_bench.predictors.predict import Prediction


def stability(draws: Sequence[Prediction], matrices: Sequence[Matrix]) -> dict[str, float]:
    """`top` and `overlap` of the draws of one predictor, two or more, each from 0 to 1."""
    costs = {matrix.module: matrix.parameters_per_rank for matrix in matrices}
    tops = Counter(draw.roles[0] for draw in draws)
    overlaps = [overlap(first.ranks, second.ranks, costs) for first, second in itertools.combinations(draws, 2)]
    return {"top": max(tops.values()) / len(draws), "overlap": float(np.mean(overlaps))}


def overlap(first: Mapping[str, int], second: Mapping[str, int], costs: Mapping[str, int]) -> float:
    """The parameters that two maps share, as a share of those that either has."""
    pairs = [(first.get(module, 0) * cost, second.get(module, 0) * cost) for module, cost in costs.items()]
    return sum(map(min, pairs)) / sum(map(max, pairs))
