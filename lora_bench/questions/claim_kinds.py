"""How claims beyond one contrast of two cells are read from records: trends over budgets and ranks, pooled placements,
levels of a factor, ratios of training time, the spectra of saved adapters, and what is left of their start.

    trend(seed)  = least-squares slope on log2 of the rank, or of the budget, of a score, or of a difference,
                   times the doublings from the lowest to the highest: a margin a doubling would call a rise flat that
                   is many margins over the range
    stable rank  = |BA|_F^2 / |BA|_2^2, geometric mean over matrices

Each gives values by seed, which `claims` judges as it judges any contrast, or says in words what the store lacks.
Source of the stable rank: Rudelson and Vershynin 2007, J. ACM 54(4):21.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from lora_bench import wording
from lora_bench.questions import factor, subspaces
from lora_bench.reports import intruders
from lora_bench.reports.scope import Scope
from lora_bench.store import StoreReader
from lora_bench.verdicts import arms, pooled, settings, stats, subspace, tuning
from lora_bench.verdicts.arms import same_targets

Claim = Mapping[str, Any]
By = dict[int, float]
"""Seed -> value."""
MIN_POINTS = 3
"""Ranks or budgets of a trend: two are a contrast."""


# ---------------------------------------------------------------- values by seed


@dataclass(frozen=True)
class Trend:
    """A trend or a pooled contrast, and the cells that it rests on."""

    by_seed: By
    cells: tuple[str, ...]  # names of arms


def trend(claim: Claim, estimates: pd.DataFrame) -> Trend | str:
    """The values of a claim of kind `interaction`, `rank_slope` or `pooled`, or what the store lacks for it."""
    if claim["kind"] == "interaction":
        return _over_budgets(claim, estimates)
    if claim["kind"] == "rank_slope":
        cells = of_targets(claim["targets"], estimates)
        by_rank = {
            arm.rank: ((str(name),), scores)
            for name, arm, scores in zip(cells.index, cells["arm"], cells["scores"], strict=True)
            if _single(arm)
        }
        if len(by_rank) < MIN_POINTS:
            return f"needs {claim['targets']} at three ranks or more; the store has {_there(by_rank, 'rank')}"
        return _over_the_range(by_rank)
    return _pooled(claim, estimates)


def with_seeds(points: dict, n_seeds: Mapping[Any, int], *, least: int) -> dict:
    """The points that have the seeds which a word takes, if so many are left; all of them otherwise: a run beside the
    others would leave the seeds that all points share to one."""
    whole = {name: point for name, point in points.items() if n_seeds[name] >= stats.MIN_PAIRS}
    return whole if len(whole) >= least else points


def _over_budgets(claim: Claim, estimates: pd.DataFrame) -> Trend | str:
    meeting = {
        budget: (names, {seed: ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()})
        for budget, names, ours, theirs in _meetings(claim["first"], claim["second"], estimates)
    }
    if len(meeting) < MIN_POINTS:
        return (
            f"needs {claim['first']} and {claim['second']} at three budgets; the store has {_there(meeting, 'budget')}"
        )
    return _over_the_range(meeting)


def _over_the_range(by_point: dict[int, tuple[tuple[str, ...], By]]) -> Trend | str:
    """The trend over points, each with its cells and its values."""
    kept = with_seeds(by_point, {point: len(values) for point, (_, values) in by_point.items()}, least=MIN_POINTS)
    slopes = pooled.slopes_per_doubling({point: kept[point][1] for point in sorted(kept)})
    doublings = math.log2(max(kept) / min(kept))
    by_seed = {seed: slope * doublings for seed, slope in slopes.items()}
    return Trend(by_seed, tuple(name for names, _ in kept.values() for name in names)) if by_seed else _NO_SEED


def _meetings(first: str, second: str, estimates: pd.DataFrame) -> Iterator[tuple[int, tuple[str, str], dict, dict]]:
    """Budgets at which two placements meet, with the two cells and their scores by seed."""
    theirs = of_targets(second, estimates).to_dict("index")
    for name, cell in of_targets(first, estimates).to_dict("index").items():
        for other_name, other in theirs.items():
            counts = cell["adapter_parameters"], other["adapter_parameters"]
            if max(counts) <= min(counts) * (1 + settings.SAME_BUDGET):
                yield int(counts[0]), (str(name), str(other_name)), cell["scores"], other["scores"]


def _pooled(claim: Claim, estimates: pd.DataFrame) -> Trend | str:
    wanted = [*claim["firsts"], *claim["seconds"]]
    budgets = sorted({float(count) for word in wanted for count in of_targets(word, estimates)["adapter_parameters"]})
    most = Trend({}, ())
    for budget in budgets:
        near = estimates[np.isclose(estimates["adapter_parameters"], budget, rtol=settings.SAME_BUDGET)]
        cells = {word: of_targets(word, near)["scores"] for word in wanted}
        if all(len(cell) for cell in cells.values()):
            sides = ([cells[word].iloc[0] for word in claim[side]] for side in ("firsts", "seconds"))
            values = pooled.difference_of_means(*sides)
            if len(values) > len(most.by_seed):
                most = Trend(values, tuple(str(cell.index[0]) for cell in cells.values()))
    return most if most.by_seed else f"needs {', '.join(wanted)} at one budget, with common seeds"


def named(claim: Claim) -> str:
    """What the values of a trend are called."""
    if claim["kind"] == "interaction":
        return f"{claim['first']} − {claim['second']}, its trend from the lowest budget to the highest"
    if claim["kind"] == "rank_slope":
        return f"{claim['targets']}, its trend from the lowest rank to the highest"
    return " − ".join(f"mean of {', '.join(claim[side])}" for side in ("firsts", "seconds"))


def same_rank(claim: Claim, estimates: pd.DataFrame) -> tuple[str, str] | str:
    """The two arms of a claim that compares placements at one rank, whatever they cost: the rank with most common
    seeds, then the highest."""
    best: tuple | None = None
    for first, cell in of_targets(claim["first"], estimates).to_dict("index").items():
        for second, other in of_targets(claim["second"], estimates).to_dict("index").items():
            if _single(cell["arm"]) and cell["arm"].rank == other["arm"].rank:
                key = len(cell["scores"].keys() & other["scores"].keys()), cell["arm"].rank
                best = max(best or (key, ()), (key, (str(first), str(second))))
    return best[1] if best else f"needs {claim['first']} and {claim['second']} at one rank; the store has no such pair"


# ---------------------------------------------------------------- levels of a factor


def factor_judgements(runs: pd.DataFrame, scope: Scope, claims: Sequence[Claim]) -> Iterator[tuple[str, Claim, dict]]:
    """For each claim on levels of a factor, and setting that has both: its title, the claim, and the contrast's row.

    Of several placements and budgets the one with most seeds counts. A claim on time has `ratio`, by seed, in log10.
    """
    for by in dict.fromkeys(claim["by"] for claim in claims):
        of_factor = [claim for claim in claims if claim["by"] == by]
        is_method = by == "method"
        asked = replace(scope, method=None) if is_method else scope
        levelled = runs.assign(level=factor.factor_levels(runs, by, scope))
        for setting in asked.settings(levelled, free=settings.METHOD_SETTINGS if is_method else (by,)):
            for claim in of_factor:
                rows = list(_levels_judged(setting, claim, scope))
                if rows:
                    yield setting.title, claim, max(rows, key=lambda row: row["n_seeds"])


def _levels_judged(setting: settings.Setting, claim: Claim, scope: Scope) -> Iterator[dict]:
    first, second = (factor.plain_level(str(claim[side])) for side in ("first", "second"))
    for placed in factor.compared(setting, claim["by"], second):
        targets = placed.runs.loc[placed.runs["targets"] != "", "targets"].iloc[0]
        if first not in placed.levels or not same_targets(claim.get("targets", "qv"), str(targets)):
            continue
        levelled = placed.runs.assign(arm=placed.runs["level"])
        judged = arms.judge(levelled, [(first, second)], margin=scope.margin_of(setting.metric))
        row = judged.contrasts.iloc[0].to_dict()
        row["rates"] = judged.rates
        row["run_ids"] = set(levelled.loc[levelled["arm"].isin([first, second]), "run_id"])
        if claim["kind"] == "time_ratio":
            at = tuning.at_chosen_rates(levelled)
            seconds = at.pivot_table(index="seed", columns="arm", values="attributed_seconds")
            seconds = seconds.reindex(columns=[first, second]).dropna()
            row["ratio"] = {
                int(seed): math.log10(ours / theirs) for seed, ours, theirs in seconds.itertuples(name=None)
            }
        yield row


# ---------------------------------------------------------------- spectra


def stable_rank(pairs: Mapping[str, subspace.LowRank]) -> float:
    """The geometric mean over matrices of |BA|_F^2 / |BA|_2^2; nan where an update is zero, or there is none.

    Args:
        pairs: by module.
    """
    values = []
    for pair in pairs.values():
        singular = subspace.update_basis(pair.A, pair.B)[1]
        values.append(float((singular**2).sum() / singular[0] ** 2) if singular[0] > 0 else math.nan)
    return float(np.exp(np.mean(np.log(values)))) if values else math.nan


def spectral_slopes(claim: Claim, named: pd.DataFrame, store: StoreReader) -> tuple[By, int] | str:
    """{seed: slope of log stable rank on log rank}, from adapters saved at the chosen rates, of a placement that has
    two ranks or more; and the runs that the slopes are of."""
    chosen = _learned(named)
    by_seed: dict[int, dict[int, float]] = {}
    placed = of_targets(claim["targets"], chosen)
    for run_id, seed, rank in zip(placed["run_id"].astype(str), placed["seed"], placed["rank"], strict=True):
        if store.adapter(run_id) is None:
            continue
        try:
            pairs = subspace.read_adapter(store.path(run_id), store.record(run_id)["manifest"])
        except (FileNotFoundError, ValueError):  # somebody moved or cut its file; the other runs still speak
            continue
        by_seed.setdefault(int(seed), {})[int(rank)] = stable_rank(pairs)
    several = {seed: by_rank for seed, by_rank in by_seed.items() if len(by_rank) > 1}
    slopes = {
        seed: float(np.polyfit(np.log(list(by_rank)), np.log(list(by_rank.values())), 1)[0])
        for seed, by_rank in sorted(several.items())
    }
    finite = {seed: slope for seed, slope in slopes.items() if math.isfinite(slope)}
    if not finite:
        return f"needs saved adapters of {claim['targets']} at two ranks of one seed (keep_adapters=all)"
    return finite, sum(len(several[seed]) for seed in finite)


def within(values: np.ndarray, low: float, high: float) -> tuple[str, str]:
    """A claim that a mean lies in [low, high]: supported where its 95 % t interval does, refuted where it lies outside
    altogether, open otherwise; with the interval in words. Four seeds or more of one value are that value."""
    if values.size < 2:
        return "open", f"{values.mean():.2f} from one seed"
    below, above = stats.mean_interval(values)
    words = f"{values.mean():.3f} ({below:.3f} to {above:.3f}) over {values.size} seeds"
    if not math.isfinite(below):
        words = f"{values.mean():.2f} in each of {values.size} seeds"
        if values.size < stats.MIN_PAIRS:
            return "open", words
        below = above = float(values.mean())
    if low <= below and above <= high:
        return "supported", words
    return ("refuted" if above < low or below > high else "open"), words


def judge_spectral(claim: Claim, named: pd.DataFrame, store: StoreReader | None) -> tuple[tuple[str, str], int]:
    """Status and evidence of a claim on stable ranks, and the runs behind it."""
    by_seed = spectral_slopes(claim, named, store) if store else "needs the adapters of a store"
    if isinstance(by_seed, str):
        return ("not run", by_seed), 0
    slopes, n_runs = by_seed
    status, words = within(np.array(list(slopes.values())), claim["low"], claim["high"])
    return (status, f"slope of log stable rank on log rank: {words}"), n_runs


def starts_kept(claim: Claim, named: pd.DataFrame, store: StoreReader) -> tuple[int, By] | str:
    """The lowest or highest rank of a placement whose adapters were saved at the chosen rates, and {seed: share of A's
    row space that lies in its start's}."""
    placed = of_targets(claim["targets"], _learned(named))
    of_weights = sorted(set(placed["init"]) & set(settings.OF_WEIGHTS)) if "init" in placed else []
    if of_weights:
        return f"is about a random start, and init={of_weights[0]} begins with the weight's own directions"
    is_kept = np.array([store.adapter(str(run_id)) is not None for run_id in placed["run_id"]], dtype=bool)
    kept = placed[is_kept]
    end = kept["rank"].min() if claim["rank"] == "lowest" else kept["rank"].max()
    adapters, _ = subspaces.read(kept[kept["rank"] == end], store)
    if not adapters:
        return f"needs saved adapters of {claim['targets']} of one rank (keep_adapters=all)"
    return int(end), {seed: adapter.kept_of_start() for (_, seed), adapter in sorted(adapters.items())}


def judge_start(claim: Claim, named: pd.DataFrame, store: StoreReader | None) -> tuple[tuple[str, str], int]:
    """Status and evidence of a claim on what is left of A's start, and the runs behind it."""
    kept = starts_kept(claim, named, store) if store else "needs the adapters of a store"
    if isinstance(kept, str):
        return ("not run", kept), 0
    rank, by_seed = kept
    status, words = within(np.array(list(by_seed.values())), float(claim["low"]), float(claim["high"]))
    about = f"of {claim['targets']} at rank {rank}, share of A's row space within its start's"
    return (status, f"{about}: {words}"), len(by_seed)


def judge_intruders(
    claim: Claim, named: pd.DataFrame, store: StoreReader | None, scope: Scope
) -> tuple[tuple[str, str], int]:
    """Status and evidence of a claim on intruder dimensions, and the runs behind it."""
    counts = intruders.counted(claim["rank"], named, store, scope.weights)
    if isinstance(counts, str):
        return ("not run", counts), 0
    status, words = within(counts.differences, float(claim["low"]), float(claim["high"]))
    (score,) = stats.judge([stats.contrast(*counts.scores, margin=scope.margin_of(str(named["metric"].iloc[0])))])
    apart = f"{wording.plus_minus(score.difference, score.high, wording.signed)} points"
    means = [np.mean(list(side.values())) for side in (counts.lora, counts.full)]
    evidence = (
        f"{counts.arm} has {means[0]:.2f} intruders a matrix among its first {subspace.INTRUDER_TOP} directions, full "
        f"fine-tuning {means[1]:.2f}: {words}; its score is {apart} from that of full fine-tuning"
    )
    if score.verdict in ("better", "worse") and score.note != stats.SMALL:
        status, evidence = "open", f"{evidence}, so that the scores are not equal"
    return (status, evidence), 2 * len(counts.lora)


def at_most(log_ratios: np.ndarray, bound: float) -> tuple[str, str]:
    """A claim that a ratio, given in log10 by seed, is at most the bound: by its 95 % t interval."""
    if log_ratios.size < 2:
        return "open", "needs two seeds that measured their time"
    low, high = stats.mean_interval(log_ratios)
    mean = float(log_ratios.mean())
    low, high = (mean, mean) if math.isnan(low) else (low, high)
    words = f"ratio of times {10**mean:.2f} ({10**low:.2f} to {10**high:.2f}) over {log_ratios.size} seeds"
    bound = math.log10(bound)
    return ("supported" if high <= bound else "refuted" if low > bound else "open"), words


# ---------------------------------------------------------------- helpers

_NO_SEED = "no seed has a score in all of these cells"


def _learned(named: pd.DataFrame) -> pd.DataFrame:
    """Runs of one rank at their chosen rates that learned: of others the update has hardly a direction."""
    chosen = tuning.at_chosen_rates(named)
    chosen = chosen[chosen["learns"].astype(bool)] if "learns" in chosen else chosen
    return chosen[chosen["rank"].notna()]


def of_targets(word: str, estimates: pd.DataFrame) -> pd.DataFrame:
    """The cells or runs of a placement, as a sweep writes it."""
    return estimates[estimates["targets"].map(lambda targets: same_targets(word, str(targets))).astype(bool)]


def _single(arm: arms.Arm) -> bool:
    return isinstance(arm.rank, int)


def _there(points: Mapping[int, Any], what: str) -> str:
    """`rank 1, 4`: a number alone would read as how many there are."""
    return f"{what} {', '.join(f'{point:,}' for point in sorted(points))}" if points else "none"
