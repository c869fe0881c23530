"""From scores to ranks at a budget, in the words of `adapter.rank_pattern`.

    rank_m = min(full rank, c share_m)        c such that sum rank_m (d_in + d_out) meets the budget

Ranks are rounded down, and what is left goes, a rank at a time, to the matrices that lost most and that it pays for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lora_bench.config.errors import ConfigError
from lora_bench.config.grammar import spell_rank_pattern
from lora_bench.models.roles import Matrix


def rank_map(matrices: Sequence[Matrix], shares: Mapping[str, float], budget: int) -> list[Matrix]:
    """The matrices at ranks that follow their shares and cost at most `budget` parameters; those of rank 0 are left
    out.

    Args:
        shares: by module; not negative, and one of them positive.

    Raises:
        ConfigError: when the budget pays for no rank of the matrices that are to have one, or exceeds their full rank.
    """
    wanted = [matrix for matrix in matrices if shares[matrix.module] > 0]
    limits = {matrix.module: min(matrix.d_in, matrix.d_out) for matrix in wanted}
    most = sum(limits[matrix.module] * matrix.parameters_per_rank for matrix in wanted)
    if budget > most:
        raise ConfigError(f"adapter.budget: {budget:,} is above full rank of the chosen matrices, which costs {most:,}")
    exact = _exact(wanted, shares, limits, budget)
    ranks = {module: math.floor(rank + 1e-9) for module, rank in exact.items()}
    left = budget - sum(ranks[matrix.module] * matrix.parameters_per_rank for matrix in wanted)
    for matrix in sorted(wanted, key=lambda matrix: ranks[matrix.module] - exact[matrix.module]):
        if matrix.parameters_per_rank <= left and ranks[matrix.module] < limits[matrix.module]:
            ranks[matrix.module] += 1
            left -= matrix.parameters_per_rank
    adapted = [replace(matrix, rank=ranks[matrix.module]) for matrix in wanted if ranks[matrix.module]]
    if not adapted:
        raise ConfigError(f"adapter.budget: {budget:,} pays for no rank of the chosen matrices")
    return adapted


def pattern(matrices: Sequence[Matrix], all_matrices: Sequence[Matrix]) -> str:
    """The `adapter.rank_pattern` of adapted matrices; their roles' other matrices have rank 0."""
    ranks = {(matrix.role, matrix.layer): matrix.rank for matrix in matrices}
    roles = {role for role, _ in ranks}
    places = [(matrix.role, matrix.layer) for matrix in all_matrices if matrix.role in roles]
    return spell_rank_pattern({place: ranks.get(place, 0) for place in places})


def _exact(
    matrices: Sequence[Matrix], shares: Mapping[str, float], limits: Mapping[str, int], budget: int
) -> dict[str, float]:
    """Ranks before rounding: what is above a matrix's full rank goes to the others, in proportion."""
    ranks: dict[str, float] = {}
    while True:
        open_ = [matrix for matrix in matrices if matrix.module not in ranks]
        spent = sum(ranks[matrix.module] * matrix.parameters_per_rank for matrix in matrices if matrix.module in ranks)
        total = sum(shares[matrix.module] * matrix.parameters_per_rank for matrix in open_)
        fair = {matrix.module: shares[matrix.module] * (budget - spent) / total for matrix in open_}
        full = [module for module, rank in fair.items() if rank >= limits[module]]
        if not full:
            return ranks | fair
        ranks |= {module: float(limits[module]) for module in full}
        if len(ranks) == len(matrices):
            return ranks
