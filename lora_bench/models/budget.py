"""Solve the ranks of an adapter for a rank, or for a budget of adapter parameters.

    parameters = sum over matrices of rank * (d_in + d_out)

A budget is met by one rank everywhere where it divides evenly. Elsewhere every matrix gets the largest common rank that
fits, and some get one more: as many of each size as bring the total nearest to the budget, spread evenly over the
layers. The solution depends on shapes alone, so the same budget always gives the same ranks. Matrices whose rank a
pattern gives (`adapter.rank_pattern`) keep it, and the others share the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from lora_bench.config.errors import ConfigError
from lora_bench.config.grammar import GROUPS, ROLES, RankRule, parse_budget
from lora_bench.models.roles import Matrix, select_layers, select_targets


def solve_ranks(
    matrices: Sequence[Matrix],
    *,
    rank: int | None = None,
    budget: str | int | None = None,
    pattern: Sequence[RankRule] = (),
    all_matrices: Sequence[Matrix] | None = None,
    backbone: str = "this backbone",
) -> list[Matrix]:
    """`matrices` with their ranks set, from exactly one of `rank` and `budget`, or from a pattern that has them all.

    Args:
        matrices: the selected matrices.
        rank: the rank of every matrix that the pattern does not give one.
        budget: adapter parameters, as a number or as roles at a rank (`q@16`: what they cost on the same layers).
        pattern: ranks by role and layers, of which the last that fits a matrix holds; 0 leaves the matrix out.
        all_matrices: every matrix of the backbone, to price roles that are not selected.

    Raises:
        ConfigError: for a rank above a matrix's, a budget below rank 1 or above full rank everywhere, or a pattern that
            names what is not selected, leaves nothing, or gives all ranks beside a budget.
    """
    given = _pattern_ranks(matrices, pattern, all_matrices or matrices)
    rest = [matrix for matrix, own in zip(matrices, given, strict=True) if own is None]
    taken = sum((own or 0) * matrix.parameters_per_rank for matrix, own in zip(matrices, given, strict=True))
    if rest and (rank is None) == (budget is None):
        if pattern and rank is None:
            raise ConfigError(
                f"adapter.rank_pattern: no rank for {rest[0].role!r} in layer {rest[0].layer}; add it, or give the "
                "others adapter.rank or adapter.budget"
            )
        raise ConfigError("adapter.rank: give either adapter.rank or adapter.budget, not both or neither")
    if not rest and budget is not None:
        raise ConfigError(
            f"adapter.budget: {budget!r} beside an adapter.rank_pattern that gives every matrix its rank ({taken:,} "
            "parameters); give adapter.budget=null, or leave roles or layers to the budget"
        )
    solved = _common_rank(rest, rank) if rank is not None else []
    if rest and budget is not None:
        wanted = budget_parameters(budget, matrices, all_matrices=all_matrices, backbone=backbone)
        solved = _ranks_for(wanted - taken, budget, rest, taken=taken)
    shared = iter(solved)
    ranks = [next(shared) if own is None else own for own in given]
    if pattern and not any(ranks):
        raise ConfigError("adapter.rank_pattern: rank 0 everywhere; leave at least one matrix a rank")
    return [replace(matrix, rank=own) for matrix, own in zip(matrices, ranks, strict=True)]


def _common_rank(matrices: Sequence[Matrix], rank: int) -> list[int]:
    for matrix in matrices:
        if not 1 <= rank <= _full_rank(matrix):
            raise ConfigError(
                f"adapter.rank: {rank} does not fit {matrix.role!r} ({matrix.module}, {matrix.d_in} -> "
                f"{matrix.d_out}); ranks are 1 to {min(map(_full_rank, matrices))} for these targets"
            )
    return [rank] * len(matrices)


def _pattern_ranks(
    matrices: Sequence[Matrix], pattern: Sequence[RankRule], all_matrices: Sequence[Matrix]
) -> list[int | None]:
    """The rank that a pattern gives each matrix; None where no rule fits it."""
    ranks: list[int | None] = [None] * len(matrices)
    for rule in pattern:
        key, layers = "adapter.rank_pattern", set(select_layers(all_matrices, rule.layers, key="adapter.rank_pattern"))
        for name in rule.roles:
            members = GROUPS.get(name, (name,))
            fits = [i for i, matrix in enumerate(matrices) if matrix.role in members and matrix.layer in layers]
            if not fits:
                has = ", ".join(role for role in ROLES if any(matrix.role == role for matrix in matrices))
                numbers = ",".join(map(str, sorted({matrix.layer for matrix in matrices})))
                raise ConfigError(
                    f"{key}: {rule.text!r} names no adapted matrix ({name!r}); adapter.targets and adapter.layers give "
                    f"{has} in layers {numbers}"
                )
            for i in fits:
                if rule.rank > _full_rank(matrices[i]):
                    raise ConfigError(
                        f"{key}: {rule.rank} does not fit {matrices[i].role!r} ({matrices[i].module}, "
                        f"{matrices[i].d_in} -> {matrices[i].d_out}); its ranks are up to {_full_rank(matrices[i])}"
                    )
                ranks[i] = rule.rank
    return ranks


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


def shared_rank(matrices: Sequence[Matrix], all_matrices: Sequence[Matrix]) -> int | None:
    """The rank of adapted matrices that are every matrix of their roles in their layers, all at one rank, so that
    targets, layers and a rank say it all; None where they do not."""
    roles, layers = {matrix.role for matrix in matrices}, {matrix.layer for matrix in matrices}
    n_there = sum(matrix.role in roles and matrix.layer in layers for matrix in all_matrices)
    ranks = {matrix.rank for matrix in matrices}
    return ranks.pop() if len(ranks) == 1 and n_there == len(matrices) else None


def budget_gap(solved: Sequence[Matrix], wanted: int) -> float:
    """How far the solved ranks are above (or, negative, below) the budget, as a fraction of it."""
    return adapter_parameters(solved) / wanted - 1


def _full_rank(matrix: Matrix) -> int:
    return min(matrix.d_in, matrix.d_out)


def _ranks_for(wanted: int, budget: str | int, matrices: Sequence[Matrix], *, taken: int = 0) -> list[int]:
    """Ranks whose parameters come nearest to `wanted`, of a budget of which `taken` is spent already."""
    costs = np.array([matrix.parameters_per_rank for matrix in matrices], dtype=np.int64)
    limits = np.array([_full_rank(matrix) for matrix in matrices], dtype=np.int64)
    say = (
        f"adapter.budget: {budget!r} ({wanted:,} parameters)"
        if str(budget) != str(wanted)
        else f"adapter.budget: {wanted:,}"
    )
    if taken:
        say = f"adapter.budget: {budget!r} less {taken:,} of adapter.rank_pattern ({wanted:,} parameters)"
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
