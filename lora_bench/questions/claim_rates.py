"""Claims on learning rates: each seed's best rate of one arm over that of another, by exact binomial tests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from lora_bench import wording
from lora_bench.questions.claim_sides import NOT_RUN, OPEN, REFUTED, SUPPORTED
from lora_bench.verdicts import stats, tuning
from lora_bench.verdicts.looks import NOT_LEARNED


def judge_shift(
    claim: Mapping[str, Any], runs: pd.DataFrame, ends: tuple[str, str] | str, rates: pd.DataFrame
) -> tuple[tuple[str, str], int]:
    """By the best rate of each seed; none where a side did not learn, and open where a side's best is at an edge of the
    rates tried, so that it may lie beyond.

    Args:
        ends: the two arms, or what the store lacks.
        rates: as `tuning.choose_rates` gives them.

    Returns:
        status and evidence, and the runs behind them.
    """
    if isinstance(ends, str):
        return (NOT_RUN, ends), 0
    best = pd.DataFrame(np.log10(tuning.best_rates_by_seed(runs[runs["arm"].isin(ends)]).astype(float)))
    if len(best) < 2 or runs[runs["arm"].isin(ends)].groupby("arm")["lr"].nunique().min() < 3:
        return (NOT_RUN, f"needs three rates or more for {ends[0]} and {ends[1]}"), 0
    n_runs, certificates = int(runs["arm"].isin(ends).sum()), rates.loc[list(ends), "certificate"]
    if stuck := [arm for arm in ends if certificates[arm] == tuning.FLAT]:
        return (NOT_LEARNED, f"{wording.listed(stuck)} did not learn"), n_runs
    shift = (best.loc[ends[1]] - best.loc[ends[0]]).dropna().to_numpy()
    what = f"best rate of {ends[1]} over that of {ends[0]}"
    status, evidence = by_seeds(shift, 0.0, what) if claim["kind"] == "rate_flat" else falling(shift, what)
    at_edge = [arm for arm in ends if certificates[arm] == "edge"]
    if at_edge and status in (SUPPORTED, REFUTED):
        status, evidence = OPEN, f"{evidence}; the best rate of {wording.listed(at_edge)} is at an edge of those tried"
    return (status, evidence), n_runs


def judge_tenfold(runs: pd.DataFrame) -> tuple[tuple[str, str], int]:
    if tuning.FULL not in set(runs["arm"]):
        return (NOT_RUN, "needs full fine-tuning at its own rates beside LoRA (adapter=full)"), 0
    ratio = tuning.over_full(runs).to_numpy()
    if not ratio.size:
        needs = "needs three rates or more of full fine-tuning and of LoRA, and a seed with a score at all of them"
        return (NOT_RUN, needs), 0
    return by_seeds(ratio, 1.0, "best LoRA rate over that of full fine-tuning"), len(tuning.beside_full(runs))


def by_seeds(log_ratios: np.ndarray, center: float, what: str) -> tuple[str, str]:
    if not len(log_ratios):
        return NOT_RUN, "no seed has a score at every rate of both"
    status, share, p = tuning.judge_log_ratios(log_ratios, center)
    status = OPEN if status not in (SUPPORTED, REFUTED) else status
    low, high = 10 ** (center - tuning.A_STEP), 10 ** (center + tuning.A_STEP)
    n = len(log_ratios)
    counted = f"{round(share * n)} of {wording.counted(n, 'seed')}"
    evidence = (
        f"{what}: {10 ** log_ratios.mean():.2g} (geometric mean), {counted} between "
        f"{low:.2g} and {high:.2g}; binomial p {wording.p_value(p)}"
    )
    return status, evidence


def falling(log_ratios: np.ndarray, what: str) -> tuple[str, str]:
    """Whether most seeds' best rates fall by more than one step of a usual grid."""
    if not len(log_ratios):
        return NOT_RUN, "no seed has a score at every rate of both"
    share, p_falls, p_not = stats.share_inside(log_ratios, -math.inf, np.nextafter(-tuning.A_STEP, -math.inf))
    status = SUPPORTED if p_falls < 0.05 else REFUTED if p_not < 0.05 else OPEN
    n, p = len(log_ratios), min(p_falls, p_not)
    counted = f"{round(share * n)} of {wording.counted(n, 'seed')}"
    return status, (
        f"{what}: {10 ** log_ratios.mean():.2g} (geometric mean), {counted} below "
        f"{10**-tuning.A_STEP:.2g}, more than a step of a grid; binomial p {wording.p_value(p)}"
    )
