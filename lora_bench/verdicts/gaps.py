"""What a setting lacks, and what failed in it, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from lora_bench.verdicts import tuning
from lora_bench.verdicts.arms import why_failed
from lora_bench.verdicts.settings import FLOOR


def missing(runs: pd.DataFrame, expected: Iterable[str]) -> str:
    """What a full grid would hold and the store does not, in words: absent arms, then rates and seeds of the others.

    A rate counts as part of the grid if at least half of the arms have it, and a seed if two arms have it. After a
    staged search (`tuning.is_staged`) the grid is the rate chosen for each arm.
    """
    adapted = runs[runs["method"] != FLOOR]
    arms = list(dict.fromkeys([*expected, *adapted["arm"]]))
    have = {arm: set(zip(cells["lr"], cells["seed"].astype(int), strict=True)) for arm, cells in adapted.groupby("arm")}
    if tuning.is_staged(adapted):
        chosen = tuning.choose_rates(adapted)["lr"]
        grid = {arm: {float(chosen[arm])} for arm in have}
        adapted = adapted[adapted["lr"] == adapted["arm"].map(chosen)]
    else:
        n_of_rate = adapted.groupby("lr")["arm"].nunique()
        usual = set(n_of_rate.index[n_of_rate * 2 >= len(have)])
        grid = {arm: usual | {rate for rate, _ in cells} for arm, cells in have.items()}
    n_of_seed = adapted.groupby("seed")["arm"].nunique()
    seeds = sorted(int(seed) for seed in n_of_seed.index[n_of_seed >= min(2, len(have))])
    lacking: dict[tuple, list[str]] = {}
    for arm in (name for name in arms if name in have):
        for rate in sorted(grid[arm]):
            lacks = tuple(seed for seed in seeds if (rate, seed) not in have[arm])
            if lacks:
                lacking.setdefault((rate, lacks), []).append(arm)
    absent = [arm for arm in arms if arm not in have]
    lines = [", ".join(absent)] if absent else []
    for (rate, lacks), of_arms in lacking.items():
        which = "all seeds" if len(lacks) == len(seeds) else f"seeds {_seeds_text(lacks)}"
        lines.append(f"{', '.join(of_arms)} at lr {rate:g}, {which}")
    return "; ".join(lines)


def failures(runs: pd.DataFrame) -> list[str]:
    """Runs that ended without a score, by arm, rate and kind."""
    lost = runs[~runs["scored"]].copy()
    lost["why"] = why_failed(lost)
    at_rate = lost.groupby(["arm", "why", "lr"], sort=True)["seed"].agg(list).reset_index()
    seeds_at: dict[tuple[str, str, tuple[int, ...]], list[float]] = {}
    for arm, why, rate, seeds in at_rate.itertuples(index=False, name=None):
        seeds_at.setdefault((arm, why, tuple(sorted(map(int, seeds)))), []).append(rate)
    return [
        f"{arm} at lr {', '.join(f'{rate:g}' for rate in rates)}: seed{'s' if len(seeds) > 1 else ''} "
        f"{', '.join(map(str, seeds))} ({why})"
        for (arm, why, seeds), rates in seeds_at.items()
    ]


def _seeds_text(seeds: Sequence[int]) -> str:
    """Seeds in order, three or more in a row as one: 0, 4 to 9."""
    rows: list[list[int]] = []
    for seed in seeds:
        if rows and seed == rows[-1][-1] + 1:
            rows[-1].append(seed)
        else:
            rows.append([seed])
    return ", ".join(f"{row[0]} to {row[-1]}" if len(row) > 2 else ", ".join(map(str, row)) for row in rows)
