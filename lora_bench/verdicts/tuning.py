"""The learning rate of each arm: chosen on `select`, never on `report`, with a certificate of the search.

    rate(arm) = argmax over rates of mean over seeds of the score on `select`       (a tie goes to the higher rate)

Of equal rates the higher is nearer to where other placements learn. A placement that does no better than the head alone
at any rate has no rate to be shown at (`flat`).

A placement that learns at another rate than its rival is neither better nor worse for it: each gets its own. The search
may be a grid, or staged (`lora-bench next_stage`), which leaves rates with unequal seeds behind.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from lora_bench.verdicts import looks, stats
from lora_bench.verdicts.family import Points
from lora_bench.verdicts.settings import FLOOR

FLAT = "flat"  # the certificate of an arm that does no better than the head alone at any rate
UNCERTIFIED = ("edge", "behind", "single", FLAT)  # certificates of a rate that another may beat
HALF_DECADE = 0.5  # in log10: one step of a grid such as 1e-3, 3e-3, 1e-2
A_STEP = HALF_DECADE + 0.03  # what still is one: 3 stands for the root of ten, so steps are 0.48 and 0.52
FULL = "full"


def choose_rates(runs: pd.DataFrame) -> pd.DataFrame:
    """The learning rate of every arm, chosen on `select`, with a certificate.

    Only rates with the most scored seeds of the arm compete, so that one lucky seed of an unfinished rate, or the
    survivors of a diverging one, cannot win. A rate with fewer, as the earlier stages of a staged search leave behind,
    counts as tried, and stands against the winner on the seeds that both have. Certificate: `inside` the rates tried;
    `inside*`, at the edge but within one standard error of a rate that is inside; `edge`; `behind` a rate with fewer
    seeds by more than two standard errors of a difference (from the spread within the arm's rates); `single` when one
    rate was tried; or `flat` where the runs hold the head alone, and the arm is shown to be within the metric's margin
    of it on `select` at every rate tried (`looks.learning_of`). `add` lists rates that would settle it. A rate that
    diverged counts as tried.

    Args:
        runs: prepared runs with a column `arm`.

    Returns:
        one row per arm, indexed by arm in order of appearance: lr, second (the next best of the rates that compete, nan
        without one), certificate, add, rates, select, select_error, passed_over (which could not compete, and why).
    """
    narrow = runs[["arm", "lr", "seed", "select"]].assign(select=runs["select"].where(runs["scored"]))
    points = narrow.groupby(["arm", "lr", "seed"], sort=True)["select"].mean().reset_index()
    of_arm = dict(iter(points.groupby("arm", sort=False)))
    rows = {arm: _choose(*_seeds_by_rates(of_arm[arm])) for arm in narrow["arm"].unique()}
    floors = set(runs.loc[runs["method"] == FLOOR, "arm"]) if "method" in runs else set()
    for floor in floors:
        at_floor = of_arm[floor][of_arm[floor]["lr"] == rows[floor]["lr"]].set_index("seed")["select"].dropna()
        margin = stats.margin_of(str(runs["metric"].iloc[0]) if "metric" in runs else "")
        for arm in rows.keys() - floors:
            if _is_flat(of_arm[arm], at_floor, margin):
                tried = rows[arm]["rates"]
                around = [beyond(tried[0], 10**-0.5), beyond(tried[-1], 10**0.5)]
                rows[arm] |= {"certificate": FLAT, "add": around}
    return by_arm(rows)


def flat_arms(rates: pd.DataFrame) -> set[str]:
    """The arms that did not learn at any rate, of a frame of `choose_rates`."""
    return set(rates.index[rates["certificate"] == FLAT])


def at_chosen_rates(runs: pd.DataFrame) -> pd.DataFrame:
    """The scored runs of every arm at the rate that `select` chose for it: what tables and section 7 read."""
    rates = choose_rates(runs)["lr"]
    return runs[runs["scored"] & (runs["lr"] == runs["arm"].map(rates))]


def at_leading_rates(runs: pd.DataFrame) -> pd.DataFrame:
    """The scored runs of every arm at its two best rates: those of which is read whether they learn."""
    rates = choose_rates(runs)[["lr", "second"]]
    is_leading = (rates.loc[runs["arm"]].to_numpy() == runs[["lr"]].to_numpy()).any(axis=1)
    return runs[runs["scored"] & is_leading]


def best_rates_by_seed(runs: pd.DataFrame) -> pd.DataFrame:
    """Each seed's own best rate on `select`: arm by seed; nan where the seed lacks a rate that the arm was run at."""
    scored = runs.loc[runs["scored"], ["arm", "seed", "lr", "select"]]
    rows = {}
    for arm, of_arm in scored.groupby("arm", sort=False):
        table = of_arm.set_index(["seed", "lr"])["select"].unstack("lr").dropna()
        rows[str(arm)] = table.iloc[:, ::-1].idxmax(axis=1)  # the first, so the higher rate, of equals
    return by_arm(rows)


def beside_full(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs by which LoRA's best rate is held against that of full fine-tuning: of arms at three rates or more."""
    both = runs[(runs["targets"] != "") | (runs["arm"] == FULL)]
    n_rates = both.groupby("arm")["lr"].nunique()
    return both[both["arm"].isin(n_rates.index[n_rates > 2])]


def over_full(runs: pd.DataFrame) -> pd.Series:
    """How far the best LoRA rate lies above that of full fine-tuning: log10 of their ratio, averaged over placements,
    by seed. Empty unless both ran at three rates or more, at all of which some seed has a score.

    Source: Schulman et al. 2025, "LoRA Without Regret": about tenfold.
    """
    both = beside_full(runs)
    if FULL not in set(both["arm"]) or both["arm"].nunique() < 2:
        return pd.Series(dtype=float)
    best: Any = np.log10(best_rates_by_seed(both).astype(float))
    if FULL not in best.index or len(best) < 2:
        return pd.Series(dtype=float)
    return (best.drop(FULL).mean() - best.loc[FULL]).dropna()


def judge_log_ratios(log_ratios: np.ndarray, center: float) -> tuple[str, float, float]:
    """Whether most seeds' log10 ratios lie within one step of a grid of the center: supported, refuted or unresolved;
    the share of seeds that do; and the smaller binomial p."""
    share, p_inside, p_outside = stats.share_inside(log_ratios, center - A_STEP, center + A_STEP)
    status = "supported" if p_inside < 0.05 else "refuted" if p_outside < 0.05 else "unresolved"
    return status, share, min(p_inside, p_outside)


def shared_rate(runs: pd.DataFrame) -> float:
    """The one rate that does best on `select` over the seeds that all adapted arms have at it.

    Only rates with the most such seeds compete; nan if no rate has one.
    """
    scored = runs[runs["scored"] & (runs["targets"] != "")]
    if scored.empty:
        return math.nan
    table = scored.pivot_table(index=["lr", "seed"], columns="arm", values="select").dropna()
    by_rate = table.mean(axis=1).groupby("lr").agg(["mean", "size"])
    return float(by_rate["mean"][by_rate["size"] == by_rate["size"].max()].idxmax()) if len(table) else math.nan


def is_staged(runs: pd.DataFrame) -> bool:
    """Whether the rates look like the stages of a search.

    One rate of some arm has all seeds and its others at most half as many, and no arm has two rates with all; or two
    have all, and the others, two or more of every arm, a quarter of them at most.
    """
    if runs.empty:
        return False
    n_seeds = runs.groupby(["arm", "lr"])["seed"].nunique()
    most = int(n_seeds.max())
    full = (n_seeds == most).groupby("arm").sum()
    partial = n_seeds.where(n_seeds < most).groupby("arm").max()
    has_one_full = (full <= 1).all() and ((full == 1) & (partial * 2 <= most)).any()
    n_partial = (n_seeds < most).groupby("arm").sum()
    has_two_full = (full <= 2).all() and (n_partial >= 2).all() and (partial * 4 <= most).all()
    return bool(has_one_full or has_two_full)


def beyond(rate: float, factor: float) -> float:
    """The rate times the factor, moved to the nearest of 1, 2, 3, 5 times a power of ten that lies beyond the rate."""
    target = math.log10(rate * factor)
    power = math.floor(target)
    choices = [float(f"{m}e{p}") for p in range(power - 1, power + 2) for m in (1, 2, 3, 5)]
    beyond = [c for c in choices if (c > rate * 1.01 if factor > 1 else c < rate * 0.99)]
    return min(beyond, key=lambda c: abs(math.log10(c) - target))


def by_arm(rows: dict[str, Any]) -> pd.DataFrame:
    """A frame of one row per arm, in the order in which they were put in."""
    return pd.DataFrame.from_dict(rows, orient="index").reindex(list(rows))


# ---------------------------------------------------------------- helpers


def _choose(rates: list[float], has_run: np.ndarray, table: np.ndarray) -> dict[str, Any]:
    """One arm's row of `choose_rates`, from what `_seeds_by_rates` gives."""
    is_scored = np.isfinite(table)
    run, scored = has_run.sum(axis=0), is_scored.sum(axis=0)
    most = int(scored.max(initial=0))
    if most == 0:
        return _no_rate(rates)
    competes = np.flatnonzero(scored == most)
    means = np.array([table[is_scored[:, i], i].mean() for i in competes])
    level = means.max() - 1e-12 * max(1.0, abs(means.max()))
    best = int(np.flatnonzero(means >= level)[-1])
    winner = int(competes[best])
    rivals = [i for i in np.argsort(-means, kind="stable") if i != best]
    certificate, add = _certify(rates, has_run, table, winner)
    passed_over = [
        f"{rates[i]:g} ({run[i] - scored[i]} failed)"
        if run[i] > scored[i]
        else f"{rates[i]:g} ({run[i]} of {most} seeds)"
        for i in np.flatnonzero(scored < most)
    ]
    return {
        "lr": rates[winner],
        "second": rates[competes[rivals[0]]] if rivals else math.nan,
        "certificate": certificate,
        "add": add,
        "rates": rates,
        "select": float(means[best]),
        "select_error": _deviation(table[:, winner]) / math.sqrt(most),
        "passed_over": passed_over,
    }


def _is_flat(points: pd.DataFrame, floor: pd.Series, margin: float) -> bool:
    """Whether no rate lifts an arm above the floor on `select`; with a single shared seed, by a margin."""
    by_rate = points.pivot_table(index="seed", columns="lr", values="select").reindex(floor.index)
    table, at_floor = by_rate.to_numpy(float), floor.to_numpy(float)
    n_shared = np.isfinite(table).sum(axis=0)
    ended = np.ones(at_floor.size, bool)
    several = [Points(scores, scores, ended, ended) for scores in table.T[n_shared > 1]]
    of_floor = Points(at_floor, at_floor, ended, ended)
    if not several or (table[:, n_shared == 1] - at_floor[:, None] >= margin).any():
        return False
    return looks.learning_of(several, of_floor, margin) == looks.FLAT


def _certify(rates: list[float], has_run: np.ndarray, table: np.ndarray, winner: int) -> tuple[str, list[float]]:
    """Whether another rate may beat the winner, and which ones to add to know it."""
    is_scored = np.isfinite(table)
    run, scored = has_run.sum(axis=0), is_scored.sum(axis=0)
    is_full = scored == scored.max()
    is_whole = (run == scored) | is_full  # the survivors of a diverging rate say nothing
    shared = is_scored & is_scored[:, [winner]]
    n_shared = np.where(shared.any(axis=0), shared.sum(axis=0), math.nan)
    lead = np.where(shared, table - table[:, [winner]], 0.0).sum(axis=0) / n_shared
    two_errors = 2 * math.sqrt(2) * _spread_within(table) / np.sqrt(n_shared)
    ahead = ~is_full & is_whole & (lead > two_errors)
    if ahead.any():
        return "behind", [rates[i] for i in np.flatnonzero(ahead)]
    is_tried = (run == len(table)) | is_full | (has_run & is_scored[:, [winner]]).any(axis=0)
    tried = np.flatnonzero(is_tried)
    if len(tried) == 1:
        return "single", [beyond(rates[winner], 10**-0.5), beyond(rates[winner], 10**0.5)]
    inside = tried[1:-1]
    if winner in inside:
        return "inside", []
    if (is_whole & (lead >= -_deviation(table[:, winner]) / np.sqrt(n_shared)))[inside].any():
        return "inside*", []
    return "edge", _extend([rates[i] for i in tried], rates[winner])


def _seeds_by_rates(points: pd.DataFrame) -> tuple[list[float], np.ndarray, np.ndarray]:
    """An arm's rates; then, seeds by rates, whether it ran and what it scored, nan where there is no score."""
    rates, column = np.unique(points["lr"].to_numpy(float), return_inverse=True)
    seeds, row = np.unique(points["seed"].to_numpy(int), return_inverse=True)
    table = np.full((len(seeds), len(rates)), math.nan)
    table[row, column] = points["select"]
    has_run = np.zeros(table.shape, bool)
    has_run[row, column] = True
    return rates.tolist(), has_run, table


def _deviation(scores: np.ndarray) -> float:
    """Standard deviation of an arm's scores at one rate; nan for fewer than two."""
    scores = scores[np.isfinite(scores)]
    return float(np.std(scores, ddof=1)) if scores.size > 1 else math.nan


def _spread_within(table: np.ndarray) -> float:
    """Standard deviation over seeds, pooled over the rates that have two or more; nan where none has."""
    n = np.isfinite(table).sum(axis=0)
    several = table[:, n > 1]
    if not several.size:
        return math.nan
    return math.sqrt(float((np.nanvar(several, axis=0) * n[n > 1]).sum() / (n[n > 1] - 1).sum()))


def _no_rate(rates: list[float]) -> dict:
    return {
        "lr": rates[0] if rates else math.nan,
        "second": math.nan,
        "certificate": "none",
        "add": [],
        "rates": rates,
        "select": math.nan,
        "select_error": math.nan,
        "passed_over": [f"{rate:g} (no seed has a score)" for rate in rates],
    }


def _extend(tried: list[float], winner: float) -> list[float]:
    """Two rates beyond the edge at which the winner sits, in steps of the grid's own ratio there."""
    down = winner == tried[0]
    ratio = tried[0] / tried[1] if down else tried[-1] / tried[-2]
    ratio = min(ratio, 0.5) if down else max(ratio, 2.0)
    first = beyond(winner, ratio)
    return sorted([first, beyond(first, ratio)])
