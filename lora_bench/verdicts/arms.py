"""From the runs of a setting to estimates and contrasts.

An arm is a cell without its learning rate: what an ablation compares, each arm at its own best rate (`tuning`). Rates
are chosen on `select`, scores are read on `report`; failed runs stay, counted and named.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from lora_bench.config.errors import ConfigError
from lora_bench.config.grammar import GROUPS, parse_targets, spell_targets
from lora_bench.config.schema import METHODS
from lora_bench.verdicts import settings, stats, tuning
from lora_bench.verdicts.looks import NOT_LEARNED
from lora_bench.verdicts.settings import FLOOR, PLACEMENTS, REFERENCE_TARGETS
from lora_bench.wording import counted, listed

_ESTIMATED = ("arm", "lr", "seed", "status", "scored", "report", "train")


@functools.total_ordering
@dataclass(frozen=True)
class Arm:
    """A placement and its rank; methods without targets stand under their own name.

    Ordered as the paper's Table 5 and by rank, other placements after it, methods last.
    """

    targets: str  # qv; of a method without: full
    rank: int | tuple[int, int] | None = None  # (lowest, highest) where it goes by matrix; None where it is not known
    map: str = ""  # a mark of its ranks by matrix, where others of this span would have its name

    @property
    def ranks(self) -> str:
        """The rank in words: `4`, `2-3` where it goes by matrix, empty where it is not known."""
        if self.rank is None:
            return ""
        return f"{self.rank}" if isinstance(self.rank, int) else "{}-{}".format(*self.rank)

    def __str__(self) -> str:
        name = f"{self.targets} r={self.ranks}" if self.ranks else self.targets
        return f"{name} map {self.map}" if self.map else name

    def __lt__(self, other: Arm) -> bool:
        return self._place() < other._place()

    def _place(self) -> tuple:
        place = PLACEMENTS.index(self.targets) if self.targets in PLACEMENTS else len(PLACEMENTS)
        low, high = (self.rank, self.rank) if isinstance(self.rank, int) else self.rank or (0, 0)
        return self.targets in METHODS, place, self.targets, high, low, self.map


def arms_of(runs: pd.DataFrame) -> list[Arm]:
    """The arm of each prepared run, in their order."""
    columns = [runs[name] for name in ("targets", "method", "rank", "rank_min", "rank_max")]
    marks = runs["map"] if "map" in runs else [""] * len(runs)
    return [
        Arm(targets, _rank_of(*ranks), mark) if targets else Arm(method)
        for targets, method, *ranks, mark in zip(*columns, marks, strict=True)
    ]


def _rank_of(rank: float, lowest: float, highest: float) -> int | tuple[int, int] | None:
    if pd.notna(rank):
        return int(rank)
    if pd.isna(lowest):
        return None
    return int(lowest) if lowest == highest else (int(lowest), int(highest))


def name_arms(runs: pd.DataFrame) -> pd.DataFrame:
    """Prepared runs with arms named by placement and rank, `qv r=4`. Sorted."""
    arms = arms_of(runs)
    return sort_arms(runs.assign(arm=[str(arm) for arm in arms]), [str(arm) for arm in sorted(set(arms))])


def estimate(runs: pd.DataFrame, rates: Mapping[str, float] | pd.Series) -> pd.DataFrame:
    """Mean and 95 % t interval over seeds of each arm's report score at its rate, with what failed or is missing.

    Returns:
        indexed by the arm's name: method, targets, arm (an `Arm`), ranks (in words), adapter_parameters,
        lr, n_seeds, n_failed, n_missing, mean, low, high, sd, train, gap (train minus report) with its interval,
        seconds, bytes, scores ({seed: score}), failures ({seed: why}), learns ({seed: whether it learns}, of those that
        have a score or diverged), n_stuck (that do not).
    """
    everyone = set(runs.loc[runs["method"] != FLOOR, "seed"])
    first_runs = runs.drop_duplicates("arm")
    arm_of = dict(zip(first_runs["arm"], arms_of(first_runs), strict=True))
    points = first_runs.set_index("arm").to_dict("index")
    spent = runs.groupby("arm")["adapter_parameters"].max().to_dict()  # a failed run may not have been counted
    rate_of = {str(arm): float(rate) for arm, rate in rates.items()}
    kept = [
        name for name in (*_ESTIMATED, "learns", "error_kind", "attributed_seconds", "adapter_bytes") if name in runs
    ]
    chosen = runs.loc[runs["lr"] == runs["arm"].map(rate_of), kept].sort_values("seed")
    nothing = chosen.iloc[:0]
    by_arm = {str(arm): at for arm, at in chosen.groupby("arm", sort=False)}
    rows = {}
    for arm, first in ((str(name), point) for name, point in points.items()):
        at = by_arm.get(arm, nothing)
        is_scored = at["scored"].to_numpy(bool)
        scored, failed = (at, nothing) if is_scored.all() else (at[is_scored], at[~is_scored])
        scores = scored["report"].to_numpy(float)
        low, high = stats.mean_interval(scores)
        learns = _learns_by_seed(at)
        gaps = scored["train"].to_numpy(float) - scores
        has_train = gaps.size > 0 and bool(np.isfinite(gaps).all())
        gap_low, gap_high = stats.mean_interval(gaps) if has_train else (math.nan, math.nan)
        rows[arm] = {
            "method": first["method"],
            "targets": first["targets"],
            "arm": arm_of[arm],
            "ranks": arm_of[arm].ranks,
            "adapter_parameters": spent.get(arm, math.nan),
            "lr": rate_of[arm],
            "n_seeds": len(scored),
            "n_failed": len(failed),
            "n_missing": len(everyone - set(at["seed"])) if first["method"] != FLOOR else 0,
            "mean": float(scores.mean()) if scores.size else math.nan,
            "low": low,
            "high": high,
            "sd": float(scores.std(ddof=1)) if scores.size > 1 else math.nan,
            "train": float(scored["train"].mean()) if has_train else math.nan,
            "gap": float(gaps.mean()) if has_train else math.nan,
            "gap_low": gap_low,
            "gap_high": gap_high,
            "seconds": _mean_of(scored, "attributed_seconds"),
            "bytes": _mean_of(scored, "adapter_bytes"),
            "scores": dict(zip(scored["seed"].astype(int), scores, strict=True)),
            "failures": _failures_by_seed(failed) if len(failed) else {},
            "learns": learns,
            "n_stuck": len(learns) - sum(learns.values()),
        }
    return tuning.by_arm(rows)


def compare(
    estimates: pd.DataFrame, pairs: Sequence[tuple[str, str]], *, margin: float, flat: AbstractSet[str] = frozenset()
) -> pd.DataFrame:
    """Contrast arms paired by seed; `pairs` is the declared family, and an arm that is absent still counts in it.

    Args:
        flat: arms that did not learn at any rate: their scores are not compared.

    Returns:
        one row per pair: first, second, and the fields of `stats.Contrast` (differences are first minus second); the
        verdict is `missing` where no seed is shared, and `did not learn` where one of the two is flat.
    """
    rng = np.random.default_rng(0)
    scores_of, learns_of = (estimates[name].to_dict() if len(estimates) else {} for name in ("scores", "learns"))
    family = []
    for pair in pairs:
        scores, learns = ([of.get(arm, {}) for arm in pair] for of in (scores_of, learns_of))
        seeds = sorted(set(learns[0]) & set(learns[1]))
        ours, theirs = (np.array([by_seed.get(seed, math.nan) for seed in seeds]) for by_seed in scores)
        learn = tuple(np.array([by_seed[seed] for seed in seeds], dtype=bool) for by_seed in learns)
        made = stats.contrast(ours, theirs, margin=margin, learn=(learn[0], learn[1]), rng=rng)
        if not flat.isdisjoint(pair):
            made = replace(made, p=math.nan, p_sign_flip=math.nan, p_equivalent=math.nan)
        family.append(made)
    judged = stats.judge(family)
    rows = []
    for (first, second), contrast in zip(pairs, judged, strict=True):
        absent = [arm for arm in (first, second) if arm not in scores_of]
        note = f"{' and '.join(absent)} not in the store" if absent else contrast.note
        dropped = 0
        if not absent:
            dropped = max(len(learns_of[arm]) for arm in (first, second)) - contrast.n_seeds
        if dropped and not note:
            note = f"{counted(dropped, 'seed')} without a partner left out"
        contrast = replace(contrast, verdict=contrast.verdict if contrast.n_seeds else "missing", note=note)
        if contrast.verdict == "unresolved" and not flat.isdisjoint((first, second)):
            contrast = _not_learned(contrast, [arm for arm in (first, second) if arm in flat])
        rows.append({"first": first, "second": second, **vars(contrast)})
    columns = ["first", "second", *stats.Contrast.__dataclass_fields__]
    table = pd.DataFrame(rows, columns=columns)
    return table.astype(dict.fromkeys(("seeds_needed", "seeds_needed_low", "seeds_needed_high"), "Int64"))


@dataclass(frozen=True)
class Judgement:
    """What a sweep says: each arm's rate, its estimate, and the verdicts of the declared contrasts."""

    rates: pd.DataFrame
    estimates: pd.DataFrame
    contrasts: pd.DataFrame


def judge(runs: pd.DataFrame, pairs: Sequence[tuple[str, str]], *, margin: float) -> Judgement:
    """Rates chosen on `select`, cells estimated and contrasted on `report`: the way from runs to verdicts that analyses
    of real sweeps share with their calibration on sweeps of known truth."""
    rates = tuning.choose_rates(runs)
    estimates = estimate(runs, rates["lr"])
    return Judgement(rates, estimates, compare(estimates, pairs, margin=margin, flat=tuning.flat_arms(rates)))


def learned(estimates: pd.DataFrame, rates: pd.DataFrame) -> pd.Series:
    """Whether each arm learned, by its name: in half of its seeds, as a study's search asks of a rate, and at a rate
    that `select` tells from the head alone. Of one that did not, the mean is that of a guess, and ranks with none."""
    n_ended = estimates["learns"].map(len)
    learns = (n_ended > 0) & (2 * estimates["n_stuck"] <= n_ended)
    return learns & ~estimates.index.isin(tuning.flat_arms(rates))


def _not_learned(contrast: stats.Contrast, arms: Sequence[str]) -> stats.Contrast:
    nothing = dict.fromkeys(("seeds_needed", "seeds_needed_low", "seeds_needed_high"))
    note = f"{listed(arms)} did not learn at any rate tried"
    return replace(contrast, verdict=NOT_LEARNED, note=note, **nothing)


def against_reference(arms: Iterable[str], reference: str = REFERENCE_TARGETS) -> list[tuple[str, str]]:
    """The contrasts of a sweep of placements: the reference against each other one that was run, or was to be."""
    return [(reference, arm) for arm in dict.fromkeys(arms) if arm not in (reference, FLOOR)]


def same_targets(word: str, targets: str) -> bool:
    """Whether a word as a sweep writes it means a run's targets: `attention` and `vqok` mean `qkvo`, and `mlp` the MLP
    with a gate or without, whichever the backbone has."""
    try:
        names = parse_targets(word)
    except ConfigError:
        return False
    roles = {role for name in names for role in GROUPS.get(name, (name,))}
    return targets in (spell_targets(roles), spell_targets(roles - ({"gate"} - set(names))))


def difference_sd(runs: pd.DataFrame) -> float:
    """Typical sd of seed-wise differences between arms at equal rates, pooled over a setting: what a plan needs.

    For each rate the arms-by-seeds table is stripped of arm and seed means; the residual variance doubled is that of a
    difference of two arms. nan if no rate has two arms with two common seeds.
    """
    squares, freedom = 0.0, 0
    scored = runs[runs["scored"] & (runs["method"] != FLOOR)]
    for _, at in scored.groupby("lr"):
        table = at.pivot_table(index="arm", columns="seed", values="report").dropna(axis=1).to_numpy()
        if min(table.shape, default=0) >= 2:
            residual = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
            squares += float((residual**2).sum())
            freedom += (table.shape[0] - 1) * (table.shape[1] - 1)
    return math.sqrt(2 * squares / freedom) if freedom else math.nan


def on_front(costs: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Which cells no other cell beats: none costs at most as much and scores more, or costs less and scores as much."""
    costs, scores = np.asarray(costs, dtype=float), np.asarray(scores, dtype=float)
    cheaper = (costs[None] < costs[:, None]) & (scores[None] >= scores[:, None])
    better = (costs[None] <= costs[:, None]) & (scores[None] > scores[:, None])
    known = np.isfinite(costs) & np.isfinite(scores)
    return known & ~((cheaper | better) & known[None]).any(axis=1)


def highest(table: pd.DataFrame, column: str) -> pd.Series:
    """The row with the highest value of a column, the first of equals."""
    return table.iloc[table[column].argmax()]


def sort_arms(runs: pd.DataFrame, order: Sequence[str] = (*PLACEMENTS, FLOOR)) -> pd.DataFrame:
    """Runs with their arms in the given order, unknown arms before the floor."""
    place: dict[str, float] = {arm: i for i, arm in enumerate(order)}
    last = place.get(FLOOR, len(order))
    key = runs["arm"].map(lambda arm: place.get(str(arm), last - 0.5))
    return runs.assign(_key=key).sort_values(["_key", "arm", "lr", "seed"], kind="stable").drop(columns="_key")


def _mean_of(scored: pd.DataFrame, name: str) -> float:
    return float(pd.to_numeric(scored[name], errors="coerce").mean()) if name in scored and len(scored) else math.nan


def why_failed(failed: pd.DataFrame) -> pd.Series:
    kinds = failed["error_kind"] if "error_kind" in failed else pd.Series(None, index=failed.index, dtype=object)
    kinds = kinds.where(kinds.notna(), None)
    return kinds.where(failed["status"] != "finished", "finished without a finite score").map(
        lambda kind: kind or "failed"
    )


def _learns_by_seed(at: pd.DataFrame) -> dict[int, bool]:
    """Whether each seed learns, of those that came to a result: a score, or that it diverged."""
    is_scored = at["scored"].to_numpy(bool)
    learns = is_scored & at["learns"].to_numpy(bool) if "learns" in at else is_scored
    has_diverged = (at["status"] == "finished").to_numpy(bool)
    if "error_kind" in at:
        has_diverged = has_diverged | (at["error_kind"] == "nonfinite").to_numpy(bool)
    ended = is_scored | has_diverged
    return dict(zip(at["seed"].to_numpy(int)[ended].tolist(), learns[ended].tolist(), strict=True))


def _failures_by_seed(failed: pd.DataFrame) -> dict[int, str]:
    return {int(seed): str(why) for seed, why in zip(failed["seed"], why_failed(failed), strict=True)}


def chosen_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """The scored runs of every arm at the rate that `select` chose for it: those that tables and section 7 read."""
    return _of_arms(frame, tuning.at_chosen_rates)


def leading_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """The scored runs of every arm at its two best rates (`tuning.at_leading_rates`), and of the head alone."""
    return _of_arms(frame, tuning.at_leading_rates)


def _of_arms(frame: pd.DataFrame, pick: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    """What is picked of the arms that compete: those within what may be compared (`settings.comparable`)."""
    groups = settings.comparable(settings.prepare(frame))
    return pd.concat([pick(name_arms(group)) for group in groups])
