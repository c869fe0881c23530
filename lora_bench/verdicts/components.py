"""Where the spread of a score comes from when one draw lies within another, as the adapter's start does within a seed.

score = mean + seed + start, both random (one-way analysis of variance): the start's variance is that within seeds, the
seed's what the means of seeds vary beyond it, or nothing. The first interval is exact for normal draws; the second is
that of Williams (1962, Biometrika 49), which covers at least as often as it says, and nearly so where seeds have unlike
numbers of starts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import chi2, f

from lora_bench.verdicts import stats

START = "replicate"
"""The column that tells starts of the adapter apart within a seed."""


class Component(NamedTuple):
    """A standard deviation with its interval, in the unit of the scores."""

    sd: float
    low: float
    high: float


class Components(NamedTuple):
    """What the outer and the inner draw contribute."""

    outer: Component
    inner: Component

    @property
    def total(self) -> float:
        """Standard deviation of one run: a new outer draw with a new inner one."""
        return math.hypot(self.outer.sd, self.inner.sd)


def components(groups: Sequence[np.ndarray], *, level: float = stats.LEVEL) -> Components:
    """The two standard deviations.

    Args:
        groups: of each outer draw, the scores of its inner draws, (n_i,); a group of one says nothing of the inner.

    Raises:
        ValueError: for fewer than two groups, or none of two scores or more.
    """
    sizes = np.array([len(group) for group in groups])
    if len(groups) < 2 or sizes.sum() == len(groups):
        raise ValueError("components: two outer draws are needed, one of them with two inner ones")
    scores, means = np.concatenate(groups), np.array([np.mean(group) for group in groups])
    between, within = len(groups) - 1, int(sizes.sum()) - len(groups)
    per_group = (sizes.sum() - (sizes**2).sum() / sizes.sum()) / between
    squares_within = float(((scores - np.repeat(means, sizes)) ** 2).sum())
    squares_between = float((sizes * (means - scores.mean()) ** 2).sum())
    inner, outer = squares_within / within, squares_between / between
    tails = ((1 + level) / 2, (1 - level) / 2)
    inner_limits = [squares_within / chi2.ppf(tail, within) for tail in tails]
    outer_limits = [
        (squares_between - between * inner * f.ppf(tail, between, within)) / (per_group * chi2.ppf(tail, between))
        for tail in tails
    ]
    return Components(
        Component(*(math.sqrt(max(0.0, value)) for value in ((outer - inner) / per_group, *outer_limits))),
        Component(*map(math.sqrt, (inner, *inner_limits))),
    )


def cells(runs: pd.DataFrame) -> pd.DataFrame:
    """Where the spread of each cell at each rate comes from.

    Args:
        runs: prepared, with arms and whether each learns; cells of which no seed has two starts are left out.

    Returns:
        cell, targets, lr, is_best (the highest mean on select of the cell's rates), n_seeds and n_runs (that learn),
        n_failed, mean, sd (of one run), seed_sd and start_sd with _low and _high, share (the start's, of the variance),
        and change (mean minus that at the best rate, over seeds) with _low and _high; scores as fractions.
    """
    fine = runs["scored"] & runs["learns"] if "learns" in runs else runs["scored"]
    rows = []
    for (cell, lr), at in runs.groupby(["arm", "lr"], sort=False):
        if at.groupby("seed")[START].nunique().max() < 2:
            continue
        learned = at[fine[at.index]]
        groups = [group.to_numpy(float) for _, group in learned.groupby("seed")["report"]]
        row = {"cell": cell, "targets": at["targets"].iloc[0], "lr": lr, "n_seeds": len(groups), "n_runs": len(learned)}
        row |= {
            "n_failed": len(at) - len(learned),
            "select": learned["select"].mean(),
            "mean": learned["report"].mean(),
        }
        if len(groups) > 1 and len(learned) > len(groups):
            parts = components(groups)
            row |= _named("seed_sd", parts.outer) | _named("start_sd", parts.inner) | {"sd": parts.total}
            row["share"] = parts.inner.sd**2 / parts.total**2 if parts.total else math.nan
        rows.append(row)
    if not rows:
        return pd.DataFrame()
    frame = pd.DataFrame(rows, columns=list(dict.fromkeys([*rows[0], *_SPREADS])))
    frame["is_best"] = frame["select"] == frame.groupby("cell")["select"].transform("max")
    best = frame[frame["is_best"]].drop_duplicates("cell").set_index("cell")["lr"]
    changes = [
        _change(runs[fine & (runs["arm"] == cell)], best.get(cell), lr)
        for cell, lr in zip(frame["cell"], frame["lr"], strict=True)
    ]
    return frame.join(pd.DataFrame(changes, index=frame.index)).drop(columns="select")


_SPREADS = ["seed_sd", "seed_sd_low", "seed_sd_high", "start_sd", "start_sd_low", "start_sd_high", "sd", "share"]


def _named(name: str, component: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), component, strict=True))


def _change(runs: pd.DataFrame, best: float | None, lr: float) -> dict[str, float]:
    """A rate's mean minus that of the best, of the runs that differ in it alone; the interval is over seeds."""
    change: dict[str, float] = dict.fromkeys(("change", "change_low", "change_high"), math.nan)
    if best is None or lr == best:
        return change
    table = runs.pivot_table(index=["seed", START], columns="lr", values="report")
    if lr not in table or best not in table:
        return change
    by_seed = (table[lr] - table[best]).dropna().groupby("seed").mean().to_numpy(float)
    if by_seed.size:
        change["change"] = float(by_seed.mean())
        change["change_low"], change["change_high"] = stats.mean_interval(by_seed)
    return change
