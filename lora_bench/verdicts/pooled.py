"""Questions that pool several cells into one contrast: a mean over cells of each seed, or each seed's slope.

A pooled contrast asks one thing where a table of cells asks many, and averages what the seeds share; it must be named
before anyone looks, or it is chosen for what it shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Scores = Mapping[int, float]  # {seed: score}


def difference_of_means(firsts: Sequence[Scores], seconds: Sequence[Scores]) -> dict[int, float]:
    """{seed: mean over the first cells minus mean over the second}, of the seeds that every cell has."""
    return {
        seed: float(np.mean([scores[seed] for scores in firsts]) - np.mean([scores[seed] for scores in seconds]))
        for seed in _shared([*firsts, *seconds])
    }


def slopes_per_doubling(by_rank: Mapping[int, Scores]) -> dict[int, float]:
    """{seed: least-squares slope of its score on log2 of the rank}, of the seeds that every rank has."""
    doublings = np.log2(np.array(list(by_rank), dtype=float))
    centred = doublings - doublings.mean()
    return {
        seed: float(centred @ np.array([scores[seed] for scores in by_rank.values()]) / (centred @ centred))
        for seed in _shared(list(by_rank.values()))
    }


def _shared(cells: Sequence[Scores]) -> list[int]:
    return sorted(set.intersection(*(set(scores) for scores in cells))) if cells else []
