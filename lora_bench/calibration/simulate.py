"""Sweeps whose truth is known, put through the code that judges real ones.

    score[placement, rate, seed] = level + curve[rate] + shared[seed] + own[placement, rate, seed] + effect[placement]

A simulated sweep has the shape of sweeps/weight_types.yaml: 7 placements, 5 learning rates, some seeds. Select and
report see the same trained run, each with the noise of its own rows, so choosing the rate on select can mislead as it
can in reality. `arms.judge` chooses, estimates and contrasts, as it does for a store.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rich.progress import track
from scipy import special, stats

from lora_bench.verdicts import arms, power
from lora_bench.verdicts.arms import Judgement
from lora_bench.verdicts.family import MIN_PAIRS
from lora_bench.verdicts.settings import PLACEMENTS, REFERENCE_TARGETS
from lora_bench.verdicts.stats import half_width, mean_interval

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
CURVE = np.array([-0.06, -0.015, 0.0, -0.01, -0.10])
LEVEL = 0.60
MARGIN = 0.02
ERROR = 0.05
PAIRS = arms.against_reference(PLACEMENTS)
SHIFTED = "k"  # the placement that a known effect is put on


@dataclass(frozen=True)
class Trials:
    """How the verdicts are put to the test: how noisy the sweeps are, and how many of them are drawn."""

    sd: float = 0.02  # of the difference of two cells in one seed, as a share of 1
    n_studies: int = 2000  # of each pattern
    n_processes: int = 2
    n_sweeps: int = 2000  # without an effect, of each kind
    n_power_sweeps: int = 300  # with one, for each effect and number of seeds
    seed: int = 0

    def generators(self, stream: int, n_sweeps: int, label: str) -> Iterator[np.random.Generator]:
        """One generator a sweep, all of one stream; with a bar on the terminal."""
        rng = np.random.default_rng([self.seed, stream])
        for _ in track(range(n_sweeps), label, transient=True, disable=not sys.stderr.isatty()):
            yield rng


@dataclass(frozen=True)
class Share:
    """How often something happened in a number of sweeps."""

    count: int
    n: int

    @property
    def value(self) -> float:
        return self.count / self.n

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The exact binomial (Clopper-Pearson) interval."""
        interval = stats.binomtest(self.count, self.n).proportion_ci(confidence_level=level, method="exact")
        return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Errors:
    """What went wrong over sweeps whose placements are all alike."""

    verdict: Share  # a contrast called better or worse
    uncorrected: Share  # some p below the nominal level, before Holm: what a naive reading would claim
    missed: Share  # the interval of the reference misses the mean that its chosen rate has


def simulate(
    rng: np.random.Generator,
    *,
    sd: float,
    n_seeds: int,
    effects: dict[str, float] | None = None,
) -> pd.DataFrame:
    """The runs of one sweep, prepared as `settings.prepare` leaves them.

    Args:
        sd: of the difference of two cells in one seed, as a share of 1; half of its variance is each cell's own, of
            which two thirds are training's, which both splits see, and one third that of a split's rows.
        effects: placement -> what is added to its score.
    """
    shape = (len(PLACEMENTS), len(RATES), n_seeds)
    shift = np.array([(effects or {}).get(name, 0.0) for name in PLACEMENTS])[:, None, None]
    own = sd / math.sqrt(2)
    truth = LEVEL + CURVE[None, :, None] + rng.normal(0, sd, n_seeds) + shift
    trained = truth + own * math.sqrt(2 / 3) * rng.normal(size=shape)
    select, report = (trained + own * math.sqrt(1 / 3) * rng.normal(size=shape) for _ in range(2))
    return _runs(RATES, select, report)


def resample(rng: np.random.Generator, residuals: np.ndarray, *, n_seeds: int, shift: float = 0.0) -> pd.DataFrame:
    """A sweep at one rate whose paired differences are real ones: drawn from A/A residuals, each with a random sign.

    Args:
        residuals: differences between runs that differ in nothing but the adapter's init, as shares of 1.
        shift: how much worse SHIFTED is than the others.
    """
    drawn = rng.choice(residuals, (len(PLACEMENTS), n_seeds)) * rng.choice([-1.0, 1.0], (len(PLACEMENTS), n_seeds))
    drawn[PLACEMENTS.index(REFERENCE_TARGETS)] = 0.0
    scores = LEVEL - drawn - shift * (np.array(PLACEMENTS) == SHIFTED)[:, None]
    return _runs(RATES[2:3], scores[:, None], scores[:, None])


def judge(runs: pd.DataFrame) -> Judgement:
    """The verdicts of a simulated sweep, by the code that judges real ones."""
    return arms.judge(runs, PAIRS, margin=MARGIN)


def errors(sweeps: Iterable[pd.DataFrame]) -> Errors:
    """Judge sweeps in which all placements are alike."""
    verdict = uncorrected = missed = n = 0
    for runs in sweeps:
        judged = judge(runs)
        contrasts = judged.contrasts
        verdict += bool(contrasts["verdict"].isin(["better", "worse"]).any())
        uncorrected += bool((contrasts["p"] < ERROR).any())
        at = judged.estimates.loc[REFERENCE_TARGETS]
        missed += not at["low"] <= LEVEL + CURVE[RATES.index(at["lr"])] <= at["high"]
        n += 1
    return Errors(Share(verdict, n), Share(uncorrected, n), Share(missed, n))


def detections(sweeps: Iterable[pd.DataFrame]) -> Share:
    """How often the reference is called better than the placement that was made worse."""
    is_found = [_verdict_on_shifted(judge(runs).contrasts) == "better" for runs in sweeps]
    return Share(sum(is_found), len(is_found))


def promised_power(difference: float, sd: float, n_seeds: int) -> float:
    """The power that a plan promises for one contrast of the family: none below the pairs that a verdict takes."""
    if n_seeds < MIN_PAIRS:
        return 0.0
    return float(power.detection_power(difference, sd, n_seeds, error=ERROR / len(PAIRS)))


def coverage(scores: np.ndarray, n_seeds: int, *, n_draws: int, rng: np.random.Generator) -> float:
    """How often the 95 % interval of `n_seeds` of the scores holds the mean of all of them."""
    mean = scores.mean()
    n_holding = 0
    for _ in range(n_draws):
        low, high = mean_interval(rng.choice(scores, n_seeds, replace=False))
        n_holding += low <= mean <= high
    return n_holding / n_draws


def expected_coverage(n_seeds: int, n_all: int) -> float:
    """What `coverage` is on average where scores are normal: above 95 %, since the few are part of the many.

    The mean of n of N scores varies about the mean of all by sigma sqrt(1/n - 1/N), and s does not depend on it.
    """
    bound = special.stdtrit(n_seeds - 1, 0.975) / math.sqrt(1 - n_seeds / n_all)
    return float(1 - 2 * special.stdtr(n_seeds - 1, -bound))


def coverage_band(
    n_seeds: int, n_all: int, *, rng: np.random.Generator, n_sets: int = 300, n_draws: int = 300
) -> tuple[float, float]:
    """Where `coverage` lies for 95 % of sets of `n_all` normal scores: the few sets that they hold overlap."""
    scores = rng.normal(size=(n_sets, 1, n_all))
    drawn = np.take_along_axis(scores, rng.random((n_sets, n_draws, n_all)).argsort(axis=-1)[..., :n_seeds], axis=-1)
    half = half_width(drawn.std(axis=-1, ddof=1), n_seeds)
    shares = (np.abs(drawn.mean(axis=-1) - scores.mean(axis=-1)) <= half).mean(axis=-1)
    low, high = np.quantile(shares, [0.025, 0.975])
    return float(low), float(high)


def _verdict_on_shifted(contrasts: pd.DataFrame) -> str:
    return str(contrasts.loc[contrasts["second"] == SHIFTED, "verdict"].item())


def _runs(rates: tuple[float, ...], select: np.ndarray, report: np.ndarray) -> pd.DataFrame:
    """Scores (placements, rates, seeds) as prepared runs."""
    index = pd.MultiIndex.from_product([PLACEMENTS, rates, range(report.shape[-1])], names=["arm", "lr", "seed"])
    runs = pd.DataFrame({"select": select.ravel(), "report": report.ravel()}, index=index).reset_index()
    return prepared(runs)


def prepared(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs with arm, lr, seed, select and report, with what `settings.prepare` leaves beside these."""
    return runs.assign(
        targets=runs["arm"],
        method="lora",
        status="finished",
        scored=True,
        train=np.nan,
        adapter_parameters=36_864,
        rank=8,
        rank_min=8,
        rank_max=8,
    )
