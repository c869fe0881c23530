"""Solve the ranks of an adapter for a rank, or for a budget of adapter parameters.

    parameters = sum over matrices of rank * (d_in + d_out)

A budget is met by one rank everywhere where it divides evenly. Elsewhere every matrix gets the largest common rank that
fits, and some get one more: as many of each size as bring the total nearest to the budget, spread evenly over the
layers. The solution depends on shapes alone, so the same budget always gives the same ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from lora_bench.config.errors import ConfigError
from lora_bench.config.grammar import ROLES, parse_budget
from lora_bench.models.roles import Matrix, select_targets


def solve_ranks(
    matrices: Sequence[Matrix],
    *,
    rank: int | None = None,
    budget: str | int | None = None,
    all_matrices: Sequence[Matrix] | None = None,
    backbone: str = "this backbone",
) -> list[Matrix]:
    """`matrices` with their ranks set, from exactly one of `rank` and `budget`.

    Args:
        matrices: the selected matrices.
        rank: the rank of every matrix.
        budget: adapter parameters, as a number or as roles at a rank (`q@16`: what they cost on the same layers).
        all_matrices: every matrix of the backbone, to price roles that are not selected.

    Raises:
        ConfigError: for a rank above a matrix's, or a budget below rank 1 or above full rank everywhere.
    """
    if (rank is None) == (budget is None):
        raise ConfigError("adapter.rank: give either adapter.rank or adapter.budget, not both or neither")
    if rank is not None:
        for matrix in matrices:
            if not 1 <= rank <= _full_rank(matrix):
                raise ConfigError(
                    f"adapter.rank: {rank} does not fit {matrix.role!r} ({matrix.module}, {matrix.d_in} -> "
                    f"{matrix.d_out}); ranks are 1 to {min(map(_full_rank, matrices))} for these targets"
                )
        return [replace(matrix, rank=rank) for matrix in matrices]
    assert budget is not None
    wanted = budget_parameters(budget, matrices, all_matrices=all_matrices, backbone=backbone)
    ranks = _ranks_for(wanted, budget, matrices)
    return [replace(matrix, rank=solved) for matrix, solved in zip(matrices, ranks, strict=True)]


def budget_parameters(
    budget: str | int,
    matrices: Sequence[Matrix],
    *,
    all_matrices: Sequence[Matrix] | None = None,
    backbone: str = "this backbone",
) -> int:
    """A budget as a number of adapter parameters; `qv@8` is priced on the layers of `matrices`."""
    parsed = parse_budget(budget)
    if isinstance(parsed, int):
        return parsed
    roles, rank = parsed
    layers = sorted({matrix.layer for matrix in matrices})
    try:
        priced = select_targets(all_matrices or matrices, "+".join(roles), layers, backbone=backbone)
        priced = solve_ranks(priced, rank=rank)
    except ConfigError as error:
        raise ConfigError(f"adapter.budget: cannot price {budget!r}: {error}") from None
    return adapter_parameters(priced)


def adapter_parameters(matrices: Sequence[Matrix]) -> int:
    """Trainable parameters of the adapter, without the head."""
    return sum(matrix.rank * matrix.parameters_per_rank for matrix in matrices)


def budget_gap(solved: Sequence[Matrix], wanted: int) -> float:
    """How far the solved ranks are above (or, negative, below) the budget, as a fraction of it."""
    return adapter_parameters(solved) / wanted - 1


def _full_rank(matrix: Matrix) -> int:
    return min(matrix.d_in, matrix.d_out)


def _ranks_for(wanted: int, budget: str | int, matrices: Sequence[Matrix]) -> list[int]:
    costs = np.array([matrix.parameters_per_rank for matrix in matrices], dtype=np.int64)
    limits = np.array([_full_rank(matrix) for matrix in matrices], dtype=np.int64)
    say = (
        f"adapter.budget: {budget!r} ({wanted:,} parameters)"
        if str(budget) != str(wanted)
        else f"adapter.budget: {wanted:,}"
    )
    if wanted < costs.sum():
        raise ConfigError(
            f"{say} is below rank 1 everywhere, which costs {costs.sum():,} for these targets; "
            "raise the budget, or choose fewer targets or layers"
        )
    if wanted > (costs * limits).sum():
        raise ConfigError(
            f"{say} is above full rank everywhere, which costs {(costs * limits).sum():,} for these targets"
        )
    level = _largest_level(wanted, costs, limits)
    ranks = np.minimum(level, limits)
    rest = wanted - int((ranks * costs).sum())
    open_ = [index for index in range(len(matrices)) if limits[index] > level]
    sizes = sorted({int(costs[index]) for index in open_}, reverse=True)
    members = [[i for i in open_ if costs[i] == size] for size in sizes]
    for group, extra in zip(members, _nearest_sum(rest, sizes, [len(group) for group in members]), strict=True):
        ranks[_spread(matrices, group, extra)] += 1
    return [int(value) for value in ranks]


def _largest_level(wanted: int, costs: np.ndarray, limits: np.ndarray) -> int:
    """The largest common rank within `wanted`; a matrix too small for it has its own full rank."""
    low, high = 1, int(limits.max())
    while low < high:
        middle = (low + high + 1) // 2
        if int((np.minimum(middle, limits) * costs).sum()) <= wanted:
            low = middle
        else:
            high = middle - 1
    return low


def _nearest_sum(rest: int, sizes: Sequence[int], available: Sequence[int]) -> list[int]:
    """How many of each size to take so that their sum is nearest to `rest`; among equals, the most even shares."""
    if not sizes:
        return []
    *outer, last = range(len(sizes))
    counts = np.zeros((0, 1), dtype=np.int64)
    if outer:
        grids = np.meshgrid(*(np.arange(available[i] + 1) for i in outer), indexing="ij")
        counts = np.stack([grid.reshape(-1) for grid in grids])
    left = rest - np.array([sizes[i] for i in outer], dtype=np.int64) @ counts
    # the best count of the last size follows from what the others leave
    filled = np.clip(np.rint(left / sizes[last]).astype(np.int64), 0, available[last])
    counts = np.concatenate([counts, filled[None]])
    gaps = np.abs(left - filled * sizes[last])
    shares = counts / np.array(available)[:, None]
    spread = shares.max(axis=0) - shares.min(axis=0)
    best = np.lexsort((spread, gaps))[0]
    return [int(count) for count in counts[:, best]]


def _spread(matrices: Sequence[Matrix], members: Sequence[int], extra: int) -> list[int]:
    """`extra` of the positions `members`: even steps over the layers, and within a layer the roles most in arrears."""
    layers = sorted({matrices[i].layer for i in members})
    owed = {role: Fraction(0) for role in ROLES}
    taken: list[int] = []
    passed = 0
    for layer in layers:
        here = [i for i in members if matrices[i].layer == layer]
        quota = (passed + len(here)) * extra // len(members) - passed * extra // len(members)
        passed += len(here)
        for i in here:
            owed[matrices[i].role] += Fraction(quota, len(here))
        here.sort(key=lambda i: (-owed[matrices[i].role], ROLES.index(matrices[i].role)))
        for i in here[:quota]:
            owed[matrices[i].role] -= 1
        taken += here[:quota]
    return taken
