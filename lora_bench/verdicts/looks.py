"""One look at a family: what each open contrast's scores say, and the words that hold over all rates alive.

    p(different) = max of paired t p over live rates     1 unless all mean differences have one sign
    p(tied)      = max of TOST p over live rates
    p(learns)    = max of Fisher's p over live rates and the steadier one
    interval     = mean difference +- t(1 - level / 2k) s / sqrt(n)        k: contrasts of the family

A word is given where it holds at every pair of live rates (intersection-union, so no correction over rates) after Holm
at the look's level, and is final. A seed whose model predicts one class or diverges says nothing of the placements that
learn: it is set aside and counted. Where one was, half of the level goes to Fisher's exact test of the shares that
learn.

Source: Berger 1982, Technometrics 24:295 (intersection-union); Holm 1979; Schuirmann 1987; Fisher 1935.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import special, stats

from lora_bench.verdicts.family import MIN_PAIRS, Declaration, Points
from lora_bench.verdicts.power import half_width

FUTILE = 0.10
"""Chance of a word at the last look, below which an open contrast gets no more seeds."""
LEARNS_LEVEL = 0.05

BETTER, WORSE = "better", "worse"
MORE_OFTEN, LESS_OFTEN = "learns more often", "learns less often"
DIFFERENT = (BETTER, WORSE, MORE_OFTEN, LESS_OFTEN)
TIED = "tied"
OPEN = "open"
NOT_LEARNED = "did not learn"
UNTOLD = "not told from the head alone"

LEARNS, UNPROVEN, FLAT = "learns", "unproven", "flat"


# ---------------------------------------------------------------- what is said


@dataclass(frozen=True)
class Finding:
    """One contrast at one look, first minus second, at the live rates that `select` ranks highest.

    Attributes:
        word: one of DIFFERENT (said of the first), TIED, OPEN, NOT_LEARNED (one of the two is flat), UNTOLD (whether
            both learn is open).
        look: at which the word was given, by position from 0; None while it may change.
        low, high: interval simultaneous over the family and its looks; nan where differences do not vary.
        n_failed: seeds of the first and of the second that were set aside, of `n_seeds`.
        p_different, p_tied: before Holm, over live rates.
        chance: of a word at the last look, if it is open.
    """

    first: str
    second: str
    word: str = OPEN
    look: int | None = None
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    sd: float = math.nan
    n_pairs: int = 0
    n_seeds: int = 0
    n_failed: tuple[int, int] = (0, 0)
    p_different: float = 1.0
    p_tied: float = 1.0
    chance: float = math.nan

    @property
    def pair(self) -> tuple[str, str]:
        return self.first, self.second

    @property
    def is_final(self) -> bool:
        return self.look is not None

    @property
    def is_spending(self) -> bool:
        """Whether more seeds may bring a word."""
        return not self.is_final and not self.chance < FUTILE


@dataclass(frozen=True)
class Look:
    """What is said after so many seeds, of settled contrasts as it was.

    Attributes:
        number: its position, from 0.
        spent: the share of the error that it and the looks before it took.
        alive: rates of each placement that were alive when it was held.
        chosen: the rate of each placement that was looked at.
        steadier: of these, the rate at which words on scores need not hold, since it is alive for the share of its
            seeds that learn; None where there is none.
        learning: LEARNS, UNPROVEN or FLAT, of each placement.
    """

    number: int
    n_seeds: int
    level: float
    spent: float
    alive: Mapping[str, tuple[float, ...]]
    chosen: Mapping[str, float]
    steadier: Mapping[str, float | None]
    learning: Mapping[str, str]
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Scores:
    """The points of the placements that a look judges, at their live rates with the look's seeds.

    Attributes:
        points: of each placement, in the order of its live rates at which scores are compared.
        chosen: position of the rate that `select` ranks highest, of each placement.
        learning: LEARNS, UNPROVEN or FLAT, of each placement of the family.
        steadier: at the live rate at which only who learns is compared, of placements that have one.
    """

    points: Mapping[str, Sequence[Points]]
    chosen: Mapping[str, int]
    learning: Mapping[str, str]
    steadier: Mapping[str, Points] = field(default_factory=dict)

    def of_learning(self, name: str) -> Sequence[Points]:
        """At the live rates at which who learns is compared: all of them."""
        return [*self.points[name], *(points for at, points in self.steadier.items() if at == name)]


def judge(family: Declaration, number: int, before: Sequence[Finding], scores: Scores) -> tuple[Finding, ...]:
    """The family's findings after a look; those that were final, or whose placements are not looked at, as they were.

    Args:
        number: of the look, from 0.
        before: the findings of the look before, in the order of the family's pairs.
    """
    level, k = family.level(number), len(before)
    findings = list(before)
    words = {}
    for i, finding in enumerate(before):
        if not finding.is_final and {*finding.pair} <= scores.points.keys():
            findings[i], words[i] = _measure(finding.pair, scores, level=level / k, margin=family.margin)
    given = _holm(findings, words, level)
    for i in words:
        pair = findings[i].pair
        if i in given:
            findings[i] = replace(findings[i], word=given[i], look=number)
        elif any(scores.learning[name] != LEARNS for name in pair):
            is_flat = any(scores.learning[name] == FLAT for name in pair)
            word, look = (NOT_LEARNED, number) if is_flat else (UNTOLD, None)
            findings[i] = replace(findings[i], word=word, look=look)
    n_settled = _n_different(findings)
    for i in words:
        if findings[i].word == OPEN:
            findings[i] = replace(findings[i], chance=_chance(findings[i], family, n_settled=n_settled))
    return tuple(findings)


def _measure(pair: tuple[str, str], scores: Scores, *, level: float, margin: float) -> tuple[Finding, str]:
    """A contrast's numbers at the chosen rates, and its p over all pairs of live rates; with the word of a difference
    that it would get."""
    ours, theirs = (scores.points[name] for name in pair)
    has_failed = any(points.n_learning < points.learns.size for points in (*ours, *theirs))
    p_different = p_tied = 0.0
    signs: set[float] = set()
    for our, their in itertools.product(ours, theirs):
        different, tied, sign = p_of((our.report - their.report)[our.learns & their.learns], margin)
        p_different, p_tied = max(p_different, different), max(p_tied, tied)
        signs.add(sign)
    word = BETTER if signs == {1.0} else WORSE
    if len(signs) > 1:
        p_different = 1.0
    if any(scores.learning[name] != LEARNS for name in pair):  # the scores of what never learned are of no placement
        p_different = p_tied = 1.0
    if has_failed:
        level = level / 2
        p_different, p_tied = min(1.0, 2 * p_different), min(1.0, 2 * p_tied)
        p_fewer, p_more = _p_of_learning(*map(scores.of_learning, pair))
        p_share = min(1.0, 2 * min(p_fewer, p_more))
        if p_share < p_different:
            p_different, word = p_share, MORE_OFTEN if p_more < p_fewer else LESS_OFTEN
    our, their = ours[scores.chosen[pair[0]]], theirs[scores.chosen[pair[1]]]
    differences = (our.report - their.report)[our.learns & their.learns]
    low, high = t_interval(differences, level)
    finding = Finding(
        *pair,
        difference=float(differences.mean()) if differences.size else math.nan,
        low=low,
        high=high,
        sd=float(differences.std(ddof=1)) if differences.size > 1 else math.nan,
        n_pairs=differences.size,
        n_seeds=our.learns.size,
        n_failed=(int((~our.learns).sum()), int((~their.learns).sum())),
        p_different=p_different,
        p_tied=p_tied,
    )
    return finding, word


def _p_of_learning(ours: Iterable[Points], theirs: Sequence[Points]) -> tuple[float, float]:
    """That the first learns in fewer seeds, and in more: the largest p over all pairs of rates."""
    p_values = [p_of_shares(our.learns, their.learns) for our, their in itertools.product(ours, theirs)]
    fewer, more = zip(*p_values, strict=True)
    return max(fewer), max(more)


def _holm(findings: Sequence[Finding], words: Mapping[int, str], level: float) -> dict[int, str]:
    """The words that the look's level allows: Holm over the open contrasts, differences first and then ties, each kind
    by itself. Those of earlier looks count as rejected; a tied contrast still counts in the family of differences."""
    k = len(findings)
    given: dict[int, str] = {}
    n_rejected = _n_different(findings)
    for step, i in enumerate(sorted(words, key=lambda i: findings[i].p_different)):
        if findings[i].p_different > level / (k - n_rejected - step):
            break
        given[i] = words[i]
    n_rejected = sum(finding.word == TIED for finding in findings)
    rest = [i for i in words if i not in given]
    for step, i in enumerate(sorted(rest, key=lambda i: findings[i].p_tied)):
        if findings[i].p_tied > level / (k - n_rejected - step):
            break
        given[i] = TIED
    return given


def _n_different(findings: Iterable[Finding]) -> int:
    return sum(finding.word in DIFFERENT for finding in findings)


def _chance(finding: Finding, family: Declaration, *, n_settled: int) -> float:
    """The chance of a word at the last look, the mean there drawn around the one of now; nan at the last look.

    mean at N ~ Normal(d, s^2 (1/n - 1/N)); a word where it clears the t bound, or lies within the margin by it.
    """
    n, s = finding.n_pairs, finding.sd
    if finding.n_seeds >= family.looks[-1] or n < 2:
        return math.nan
    if s == 0:
        return 1.0
    n_last = max(n + 1, round(family.looks[-1] * n / finding.n_seeds))
    level = family.level(len(family.looks) - 1) / (len(family.pairs) - n_settled)
    error = s / math.sqrt(n_last)
    bound = float(special.stdtrit(n_last - 1, 1 - level / 2)) * error
    room = min(bound, family.margin - float(special.stdtrit(n_last - 1, 1 - level)) * error)
    spread = s * math.sqrt(1 / n - 1 / n_last)
    below, above = ((bound + sign * finding.difference) / spread for sign in (1, -1))
    chance = special.ndtr(-below) + special.ndtr(-above)
    if room > 0:
        low, high = ((end - finding.difference) / spread for end in (-room, room))
        chance += special.ndtr(high) - special.ndtr(low)
    return float(chance)


# ---------------------------------------------------------------- tests and intervals


def p_of(differences: np.ndarray, margin: float) -> tuple[float, float, float]:
    """Two-sided paired t p, TOST p and the sign of the mean difference; (1, 1, nan) below MIN_PAIRS.

    Differences that are the same in every seed fit no t distribution: the sign flip test has them, 2 / 2^n two-sided.
    """
    n = differences.size
    if n < MIN_PAIRS:
        return 1.0, 1.0, math.nan
    mean = float(differences.mean())
    sign = float(np.sign(mean))
    if not _varies(differences):
        return (2.0 ** (1 - n) if mean else 1.0), (2.0**-n if abs(mean) < margin else 1.0), sign
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    different = 2 * float(special.stdtr(n - 1, -abs(mean) / error))
    tied = float(special.stdtr(n - 1, (abs(mean) - margin) / error))
    return different, tied, sign


def p_of_shares(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Fisher's exact test of who learns, each side doubled: that the first learns in fewer seeds, and in more.

    Args:
        ours, theirs: whether each seed learns.
    """
    n_ours, n_learn, n = int(ours.sum()), int(ours.sum() + theirs.sum()), ours.size + theirs.size
    fewer = float(stats.hypergeom.cdf(n_ours, n, n_learn, ours.size))
    more = float(stats.hypergeom.sf(n_ours - 1, n, n_learn, ours.size))
    return min(1.0, 2 * fewer), min(1.0, 2 * more)


def t_interval(differences: np.ndarray, error: float) -> tuple[float, float]:
    """Student's t interval that misses the mean difference with this error; nan where differences do not vary."""
    n = differences.size
    if n < 2 or not _varies(differences):
        return math.nan, math.nan
    half = float(half_width(differences.std(ddof=1), n, level=1 - error))
    return float(differences.mean()) - half, float(differences.mean()) + half


def failed_interval(n_failed: int, n: int) -> tuple[float, float]:
    """The exact 95 % interval of the share of seeds that fail. Source: Clopper and Pearson 1934."""
    interval = stats.binomtest(n_failed, n).proportion_ci(confidence_level=0.95, method="exact")
    return float(interval.low), float(interval.high)


def learning_of(points: Sequence[Points], floor: Points, margin: float) -> str:
    """Whether a placement learns, is flat, or neither is shown; the latter two each at 5 %."""
    if is_above(points, floor):
        return LEARNS
    return FLAT if is_flat(points, floor, margin, LEARNS_LEVEL) else UNPROVEN


def is_above(points: Sequence[Points], floor: Points | None) -> bool:
    """Whether the seeds of a placement that learn beat the floor on `select` at some rate, by a one-sided paired t test
    at 5 %. Without a floor a placement is taken to learn."""
    if floor is None:
        return True
    for at_rate in points:
        differences = at_rate.select - floor.select
        mean, bound = _mean_and_bound(differences[np.isfinite(differences) & at_rate.learns], LEARNS_LEVEL)
        if mean > max(bound, 0.0):
            return True
    return False


def is_flat(points: Sequence[Points], floor: Points, margin: float, level: float) -> bool:
    """Whether all seeds of a placement are shown to lie less than a margin above the floor on `select`, at every rate,
    by one-sided paired t tests at this level."""
    for at_rate in points:
        differences = at_rate.select - floor.select
        mean, bound = _mean_and_bound(differences[np.isfinite(differences)], level)
        if not mean + bound < margin:
            return False
    return True


def _mean_and_bound(differences: np.ndarray, level: float) -> tuple[float, float]:
    """The mean and how far the truth may lie from it to one side; infinitely far below two differences."""
    n = differences.size
    if n < 2:
        return math.nan, math.inf
    error = float(differences.std(ddof=1)) / math.sqrt(n) if _varies(differences) else 0.0
    return float(differences.mean()), float(special.stdtrit(n - 1, 1 - level)) * error


def _varies(differences: np.ndarray) -> bool:
    return bool(np.ptp(differences) > 1e-9 * max(float(np.abs(differences).max()), 1e-9))


# ---------------------------------------------------------------- in words


def rates_in_words(rates: Iterable[float], steadier: float | None) -> str:
    """Live rates, the steadier one in brackets: `(0.001) 0.003 0.005`."""
    return " ".join(f"({rate:g})" if rate == steadier else f"{rate:g}" for rate in rates)


def spoken(finding: Mapping[str, Any], *, n_last: int) -> str:
    """The word of a finding, or of an open one what can still become of it: `open (61 % to be settled at 32 seeds)`.

    Args:
        finding: its fields, as a journal keeps them.
        n_last: seeds of the family's last look.
    """
    chance = finding["chance"]
    if finding["word"] != OPEN:
        return str(finding["word"])
    if chance is None or math.isnan(chance):
        high = max(map(abs, ends(finding)))
        within = f": |difference| < {100 * high:.1f}" if math.isfinite(high) else ""
        return f"open at {finding['n_seeds']}{within}"
    if chance < FUTILE:
        return f"open; {n_last} seeds will not settle it"
    return f"open ({100 * chance:.0f} % to be settled at {n_last} seeds)"


def ends(finding: Mapping[str, Any]) -> tuple[float, float]:
    """The interval of a finding as it is shown.

    nan where there is none, and where fewer pairs of seeds learn than a word takes: that of two pairs is thousands of
    points wide, and would hide the other contrasts in a figure.
    """
    if finding["n_pairs"] < MIN_PAIRS:
        return math.nan, math.nan
    low, high = (math.nan if finding[end] is None else float(finding[end]) for end in ("low", "high"))
    return low, high


def failed_in_words(finding: Mapping[str, Any]) -> str:
    """`q 1 of 16 (0 to 30 %)`: seeds that predicted one class or diverged, with the exact interval of their share.

    Empty where there are none.
    """
    return ", ".join(failed_shares(finding).values())


def failed_shares(finding: Mapping[str, Any]) -> dict[str, str]:
    """The same by placement, of those that have some."""
    shares = {}
    for name, n_failed in zip((finding["first"], finding["second"]), finding["n_failed"], strict=True):
        if n_failed:
            low, high = failed_interval(n_failed, finding["n_seeds"])
            shares[name] = f"{name} {n_failed} of {finding['n_seeds']} ({100 * low:.0f} to {100 * high:.0f} %)"
    return shares
