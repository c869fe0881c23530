"""Intervals, paired contrasts, verdicts and power: functions of arrays, and of a generator where they draw.

    t = mean(d) / (sd(d) / sqrt(n))        d: one difference per seed, between two cells that shared that seed

A contrast is called `better` or `worse` by the paired t test after Holm's correction over the declared contrasts,
`tied` by two one-sided tests against a stated margin, and `unresolved` otherwise. A resolved word needs four pairs;
differences that are the same in every seed fit no t distribution, and are judged by the sign flip. Seeds whose model
predicts one class, or diverges, say nothing of how well a placement does where it learns: they are set aside and
counted, and where there are any, half of the error goes to Fisher's exact test of the shares that learn, as in `looks`.
Source: Student 1908; Holm 1979; Schuirmann 1987; Agarwal et al. 2021, arXiv:2108.13264.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import special, stats

from lora_bench.verdicts.family import MIN_PAIRS
from lora_bench.verdicts.looks import LESS_OFTEN, MORE_OFTEN, p_of, p_of_shares
from lora_bench.verdicts.power import half_width, sd_interval, seeds_to_settle, smallest_difference
from lora_bench.wording import counted

MARGINS = {  # the largest difference that counts as none, in the metric's own unit
    "accuracy": 0.01,
    "balanced_accuracy": 0.01,
    "f1": 0.01,
    "pearson": 0.01,
    "spearman": 0.01,
    "matthews": 0.02,  # twice accuracy's: on balanced labels a point of accuracy moves it by two
}
LEVEL = 0.95
"""Coverage of an interval, and one minus the chance of a false word in a family."""
SMALL = "real, but smaller than the margin"
EXACT_FLIPS = 14  # up to 2^14 sign patterns are listed, beyond that they are drawn


def margin_of(metric: str) -> float:
    """The default margin of equivalence for a metric, in the metric's unit."""
    return MARGINS.get(metric, 0.01)


# ---------------------------------------------------------------- one cell


def mean_interval(scores: np.ndarray, *, level: float = LEVEL) -> tuple[float, float]:
    """Student's t interval of the mean; (nan, nan) below two scores, and of scores that are all the same.

    Args:
        scores: (n,), finite.
        level: coverage, as a fraction.
    """
    scores = np.asarray(scores, dtype=float)
    n = scores.size
    if n < 2 or is_constant(scores):
        return math.nan, math.nan
    half = float(half_width(scores.std(ddof=1), n, level=level))
    return float(scores.mean()) - half, float(scores.mean()) + half


def bootstrap_interval(
    scores: np.ndarray, *, level: float = LEVEL, n_resamples: int = 10_000, rng: np.random.Generator
) -> tuple[float, float]:
    """Percentile interval of the mean score, resampling seeds within each task.

    Tasks are fixed and seeds are drawn: the interval answers "what if we ran other seeds?". With few seeds it is
    too narrow by about sqrt((n - 1) / n), which is why single cells are shown with `mean_interval`.

    Args:
        scores: (n_seeds, n_tasks), in any unit.
        level: coverage, as a fraction.

    Returns:
        (low, high), in the unit of `scores`; nan where no task's scores vary.

    Raises:
        ValueError: if `scores` is not two-dimensional, or is empty or not finite.

    Source: Agarwal et al. 2021, arXiv:2108.13264, section 4.1.
    """
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"scores must be (n_seeds, n_tasks) and not empty, got shape {scores.shape}")
    require_finite(scores)
    if is_constant(scores.T).all():
        return math.nan, math.nan
    drawn = resample_seeds(scores.T[:, None, :], n_resamples, rng)  # (n_resamples, n_tasks, 1, n_seeds)
    return percentiles(drawn.mean(axis=(1, 2, 3)), level)


# ---------------------------------------------------------------- two cells, paired by seed


def paired_t_p(differences: np.ndarray) -> np.ndarray:
    """Two-sided p of the paired t test along the last axis; nan where differences do not vary or n < 2."""
    t, n = _t_statistic(differences)
    return 2 * special.stdtr(n - 1, -np.abs(t))


def equivalence_p(differences: np.ndarray, margin: float) -> np.ndarray:
    """p of two one-sided t tests that the mean difference lies inside (-margin, margin), along the last axis.

    Source: Schuirmann 1987, J. Pharmacokinet. Biopharm. 15:657.
    """
    if not margin > 0:
        raise ValueError(f"margin must be above 0, got {margin}")
    above, n = _t_statistic(differences, shift=-margin)
    below, _ = _t_statistic(differences, shift=margin)
    return np.maximum(special.stdtr(n - 1, -above), special.stdtr(n - 1, below))


def sign_flip_p(
    differences: np.ndarray, *, n_resamples: int = 20_000, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Two-sided p of the sign-flip permutation test of a zero mean, along the last axis.

    All 2^n patterns are listed up to n = 14 (the smallest p that n pairs can give is 2 / 2^n); beyond that patterns
    are drawn, and the observed one counts among them (Phipson and Smyth 2010), so p is never zero.
    """
    differences = np.asarray(differences, dtype=float)
    n = differences.shape[-1]
    if n == 0:
        return np.full(differences.shape[:-1], np.nan)
    observed = np.abs(differences.sum(axis=-1))
    slack = 1e-12 * np.abs(differences).sum(axis=-1)  # sums that are equal on paper must count as equal
    if n <= EXACT_FLIPS:
        # half of the patterns do: the other half mirrors them
        signs = 1.0 - 2.0 * ((np.arange(2 ** (n - 1))[:, None] >> np.arange(n)) & 1)
        flipped = np.abs(differences @ signs.T)
        return (flipped >= (observed - slack)[..., None]).mean(axis=-1)
    if rng is None:
        raise ValueError(f"{n} pairs have too many sign patterns to list: give a generator")
    signs = 1.0 - 2.0 * rng.integers(2, size=(n_resamples, n))
    flipped = np.abs(differences @ signs.T)
    return ((flipped >= (observed - slack)[..., None]).sum(axis=-1) + 1) / (n_resamples + 1)


def share_inside(values: np.ndarray, low: float, high: float) -> tuple[float, float, float]:
    """How many values lie in [low, high], with exact binomial tests that most do, and that most do not.

    For quantities on a grid, such as best learning rates, which repeat themselves and fit no t distribution.

    Returns:
        (share inside, p that the true share is at most one half, p that it is at least one half); nan when empty.
    """
    values = np.asarray(values, dtype=float)
    if values.size == 0:
        return math.nan, math.nan, math.nan
    inside = int(((values >= low) & (values <= high)).sum())
    n = values.size
    return inside / n, float(stats.binom.sf(inside - 1, n, 0.5)), float(stats.binom.cdf(inside, n, 0.5))


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p over the last axis. A nan stays nan and still counts as a member of the family.

    Over any number of families at once: a calibration judges tens of thousands, and statsmodels, with which this is
    tested, takes fifty milliseconds for each. Source: Holm 1979, Scand. J. Stat. 6:65.
    """
    p = np.asarray(p, dtype=float)
    size = p.shape[-1]
    known = np.where(np.isnan(p), 1.0, p)
    order = np.argsort(known, axis=-1, kind="stable")
    stepped = np.take_along_axis(known, order, axis=-1) * (size - np.arange(size))
    stepped = np.minimum(np.maximum.accumulate(stepped, axis=-1), 1.0)
    adjusted = np.empty_like(known)
    np.put_along_axis(adjusted, order, stepped, axis=-1)
    return np.where(np.isnan(p), np.nan, adjusted)


@dataclass(frozen=True)
class Contrast:
    """One paired comparison, first cell minus second; all scores in the metric's own unit."""

    n_pairs: int  # seeds in which both learn
    difference: float = math.nan
    low: float = math.nan  # 95 % interval of the difference, for this contrast alone
    high: float = math.nan
    sd: float = math.nan  # of the seed-wise differences
    p: float = math.nan
    p_sign_flip: float = math.nan
    p_equivalent: float = math.nan
    margin: float = field(kw_only=True)
    p_holm: float = math.nan
    p_equivalent_holm: float = math.nan
    n_seeds: int = 0  # that both cells have ended, in whatever way
    n_stuck_first: int = 0  # of these, seeds that predict one class or diverged
    n_stuck_second: int = 0
    verdict: str = (
        "unresolved"  # better | worse | tied | learns more often | learns less often | unresolved, of the first
    )
    note: str = ""  # why no test applied, or what a reader must know beside the verdict
    seeds_needed: int | None = None  # in all, for 80 % power to call it either way; None if resolved or unknowable
    seeds_needed_low: int | None = None  # 95 % interval of these, since the sd is an estimate
    seeds_needed_high: int | None = None
    smallest_difference: float = math.nan  # what this many pairs see with 80 % power after correction

    @property
    def has_stuck(self) -> bool:
        return self.n_stuck_first + self.n_stuck_second > 0


def contrast(
    first: np.ndarray,
    second: np.ndarray,
    *,
    margin: float,
    learn: tuple[np.ndarray, np.ndarray] | None = None,
    level: float = LEVEL,
    rng: np.random.Generator | None = None,
) -> Contrast:
    """Compare two cells over the seeds that they share; `judge` turns a family of these into verdicts.

    Args:
        first, second: (n_seeds,), aligned by seed, finite where both learn.
        learn: whether each seed of the first and of the second learns, (n_seeds,) each; None: all do.
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"scores must be paired: got shapes {first.shape} and {second.shape}")
    n_seeds, stuck = first.size, (0, 0)
    if learn is not None:
        stuck = int((~learn[0]).sum()), int((~learn[1]).sum())
        first, second = (scores[learn[0] & learn[1]] for scores in (first, second))
    made = Contrast(first.size, margin=margin, n_seeds=n_seeds, n_stuck_first=stuck[0], n_stuck_second=stuck[1])
    differences = first - second
    require_finite(differences)
    n = differences.size
    shared = "shared seed that learns" if any(stuck) else "shared seed"
    if n == 0:
        return replace(made, note=f"no {shared}")
    if n == 1:
        return replace(made, difference=float(differences[0]), note=f"one {shared}: no interval and no test")
    low, high = mean_interval(differences, level=level)
    sd = float(differences.std(ddof=1))
    note = ""
    p, p_equivalent = float(paired_t_p(differences)), float(equivalence_p(differences, margin))
    if is_constant(differences):
        note = "the difference is the same in every seed: judged by the sign flip"
        low, high, sd = math.nan, math.nan, 0.0
        p, p_equivalent, _ = p_of(differences, margin)
        if np.ptp(first) == 0 == np.ptp(second):
            note, p_equivalent = "the scores do not vary over seeds", 1.0  # stuck alike is no tie
    if n < MIN_PAIRS:
        note = f"{n} {shared.replace('seed', 'seeds').replace('learns', 'learn')}: a verdict needs {MIN_PAIRS}"
    return replace(
        made,
        difference=float(differences.mean()),
        low=low,
        high=high,
        sd=sd,
        p=p,
        p_sign_flip=float(sign_flip_p(differences, rng=rng or np.random.default_rng(0))),
        p_equivalent=p_equivalent,
        note=note,
    )


def judge(family: list[Contrast], *, level: float = LEVEL, power: float = 0.8) -> list[Contrast]:
    """Correct a declared family of contrasts and give each its verdict.

    Both questions are corrected over the whole family: is there a difference, and is it inside the margin. A difference
    that is significant and still inside the margin is called by its sign, and the note says that it is small.
    `seeds_needed` answers, from this contrast's own spread: how many seeds until a difference of one margin is seen,
    and no difference at all is shown to be a tie, each with this power? (Corrected as Bonferroni does, so a little
    more than Holm asks for.) That depends on the sd of the differences alone, not on the difference that was found,
    and grows with it: the ends of the sd's 95 % interval (chi-square, n - 1 degrees of freedom) give the seeds'.
    Who follows the number alone reaches 80 % about as often as not, as the sd is as often too small: the upper end is
    what promises it.
    """
    if not family:
        return []
    error = 1 - level
    asked = [_asked(pair) for pair in family]
    adjusted = holm(np.array([p for p, _, _ in asked]))
    adjusted_equivalent = holm(np.array([p for _, p, _ in asked]))
    judged = []
    for pair, p, p_equivalent, (_, _, word) in zip(family, adjusted, adjusted_equivalent, asked, strict=True):
        verdict, note = "unresolved", pair.note
        if p < error:
            verdict = word
            if p_equivalent < error:
                note = SMALL
        elif p_equivalent < error:
            verdict = "tied"
        needed, smallest = (None, None, None), math.nan
        if pair.n_pairs >= 2 and pair.sd > 0:
            corrected = error / len(family)
            smallest = smallest_difference(pair.n_pairs, pair.sd, error=corrected, power=power)
            if verdict == "unresolved" and not pair.has_stuck:
                sds = pair.sd, *sd_interval(pair.sd, pair.n_pairs, level=level)
                needed = tuple(
                    seeds_to_settle(pair.margin / sd, error=corrected, power=power, least=MIN_PAIRS) for sd in sds
                )
        judged.append(
            replace(
                pair,
                p_holm=float(p),
                p_equivalent_holm=float(p_equivalent),
                verdict=verdict,
                note=note,
                seeds_needed=needed[0],
                seeds_needed_low=needed[1],
                seeds_needed_high=needed[2],
                smallest_difference=smallest,
            )
        )
    return judged


def _asked(pair: Contrast) -> tuple[float, float, str]:
    """The p of a difference and of a tie, before Holm, and the word that the difference would get; nan: no test."""
    p, p_tied = (pair.p, pair.p_equivalent) if pair.n_pairs >= MIN_PAIRS else (math.nan, math.nan)
    word = "better" if pair.difference > 0 else "worse"
    if not pair.has_stuck:
        return p, p_tied, word
    learn = (np.arange(pair.n_seeds) >= n_stuck for n_stuck in (pair.n_stuck_first, pair.n_stuck_second))
    fewer, more = p_of_shares(*learn)
    p_share = min(1.0, 2 * min(fewer, more))
    if not 2 * p <= p_share:
        return p_share, min(1.0, 2 * p_tied), MORE_OFTEN if more < fewer else LESS_OFTEN
    return 2 * p, min(1.0, 2 * p_tied), word


def cannot_resolve(n_seeds: int, n_contrasts: int) -> str | None:
    """Why no outcome of a design could be significant, or None if one could.

    The paired t test can always be significant from MIN_PAIRS seeds on; the sign-flip test beside it only if
    2 / 2^n seeds is below the corrected level.
    """
    if n_seeds < MIN_PAIRS:
        return f"{counted(n_seeds, 'seed')}: no verdict is possible below {MIN_PAIRS}"
    if 2.0 ** (1 - n_seeds) > 0.05 / max(n_contrasts, 1):
        return (
            f"{n_seeds} seeds, {counted(n_contrasts, 'contrast')}: the sign-flip test printed "
            f"beside the verdict cannot be significant (its smallest p is {2.0 ** (1 - n_seeds):.3g}); the paired t "
            "test can"
        )
    return None


# ---------------------------------------------------------------- helpers


def require_finite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise ValueError("scores hold a value that is not finite")


def is_constant(differences: np.ndarray) -> np.ndarray:
    """Whether values do not vary along the last axis, but for rounding."""
    scale = np.maximum(np.abs(differences).max(axis=-1), 1e-9)
    return np.ptp(differences, axis=-1) <= 1e-9 * scale


def _t_statistic(differences: np.ndarray, shift: float = 0.0) -> tuple[np.ndarray, int]:
    """t of the mean difference from `shift`, along the last axis; nan where the differences do not vary."""
    differences = np.asarray(differences, dtype=float)
    n = differences.shape[-1]
    if n < 2:
        return np.full(differences.shape[:-1], np.nan), max(n, 2)
    error = differences.std(axis=-1, ddof=1) / math.sqrt(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (differences.mean(axis=-1) - shift) / error
    return np.where(is_constant(differences), np.nan, t), n


def percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resample_seeds(scores: np.ndarray, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """(n_tasks, n_cells, n_seeds) -> (n_resamples, ...): seeds drawn per task, the same ones for all cells."""
    n_tasks, _, n_seeds = scores.shape
    drawn = rng.integers(n_seeds, size=(n_resamples, n_tasks, 1, n_seeds))
    return np.take_along_axis(scores[None], drawn, axis=-1)
