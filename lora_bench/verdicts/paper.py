"""What the LoRA paper printed, as data: a reference beside our own figures, never a number to hit.

Source: Hu et al. 2021, arXiv:2106.09685v2, Tables 5, 6 and 7 (GPT-3 175B, validation accuracy in %). The paper chose
checkpoints on the set that it reports and gives one typical standard deviation per data set, over an unstated number
of seeds.
"""

from __future__ import annotations

import pandas as pd

SPREAD = {"WikiSQL": 0.5, "MultiNLI": 0.1}  # the standard deviation printed with Tables 5 and 6
SHORT = {"WikiSQL": "SQL", "MultiNLI": "MNLI"}

_TABLE_5 = {  # targets: (rank, WikiSQL, MultiNLI), at 18,874,368 adapter parameters each
    "q": (8, 70.4, 91.0),
    "k": (8, 70.0, 90.8),
    "v": (8, 73.0, 91.0),
    "o": (8, 73.2, 91.3),
    "qk": (4, 71.4, 91.3),
    "qv": (4, 73.7, 91.3),
    "qkvo": (2, 73.7, 91.7),
}
_TABLE_6_RANKS = (1, 2, 4, 8, 64)
_TABLE_6 = {
    ("WikiSQL", "q"): (68.8, 69.6, 70.5, 70.4, 70.0),
    ("WikiSQL", "qv"): (73.4, 73.3, 73.7, 73.8, 73.5),
    ("WikiSQL", "qkvo"): (74.1, 73.7, 74.0, 74.0, 73.9),
    ("MultiNLI", "q"): (90.7, 90.9, 91.1, 90.7, 90.7),
    ("MultiNLI", "qv"): (91.3, 91.4, 91.3, 91.6, 91.4),
    ("MultiNLI", "qkvo"): (91.2, 91.7, 91.7, 91.5, 91.4),
}

TABLE_7 = pd.DataFrame(  # layer 48: Frobenius norms; `weight_in` is ||U^T W V^T|| for the directions of each column
    [(4, 61.95, 6.91, 0.32, 21.67, 0.02), (64, 61.95, 3.57, 1.90, 37.71, 0.33)],
    columns=["rank", "weight", "update", "weight_in_update", "weight_in_weight", "weight_in_random"],
)


def weight_types() -> pd.DataFrame:
    """Table 5, one row per data set and placement: dataset, targets, rank, score (a fraction), sd."""
    rows = [
        (name, targets, rank, round(score / 100, 4), SPREAD[name] / 100)
        for targets, (rank, *scores) in _TABLE_5.items()
        for name, score in zip(SPREAD, scores, strict=True)
    ]
    return pd.DataFrame(rows, columns=["dataset", "targets", "rank", "score", "sd"])


def rank() -> pd.DataFrame:
    """Table 6, one row per data set, placement and rank: dataset, targets, rank, score (a fraction), sd."""
    rows = [
        (name, targets, r, round(score / 100, 4), SPREAD[name] / 100)
        for (name, targets), scores in _TABLE_6.items()
        for r, score in zip(_TABLE_6_RANKS, scores, strict=True)
    ]
    return pd.DataFrame(rows, columns=["dataset", "targets", "rank", "score", "sd"])
