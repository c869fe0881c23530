"""The whole protocol on studies of known truth: how often it says what is not so, and what its words cost.

    every pattern of effects x many studies -> search, looks and words by `scheme.follow`, as a real study has them

Beside it stand two fixed designs: a staged search and eight seeds at the rate it chose, judged by `arms.judge`; and all
live rates with one number of seeds and one look, which tells what the same words cost without looks.
"""

from __future__ import annotations

import math
import multiprocessing
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from rich.progress import track

from lora_bench.calibration.simulate import Share, prepared
from lora_bench.calibration.studies import (
    COLA,
    COLA_COLLAPSE,
    COLA_EFFECTS,
    LOOKS,
    SST2,
    SST2_EFFECTS,
    Simulated,
    Truth,
    carry_through,
)
from lora_bench.verdicts import arms, looks, scheme
from lora_bench.verdicts.family import Wanted
from lora_bench.verdicts.settings import PLACEMENTS

ERROR = 0.05
WORDS = (*looks.DIFFERENT, looks.TIED)
FIXED_SEEDS = (8, 12, 16, 24, 32, 48)
STAGED_SEEDS = 8
COSTED = 0.15
"""Share of the studies from which the price of fixed designs is told: means need fewer than rates of errors."""
BATCH = 25

_ALIKE: Mapping[str, float] = {}
_WORSE: Mapping[str, float] = {"q": -0.035, "k": -0.035, "qk": -0.035}
_AT_MARGIN = {"q": -0.01, "k": -0.01, "qk": -0.01, "v": 0.01, "o": 0.01, "qkvo": 0.01}
_COLA_MEANS = {"q": -0.181, "k": -0.176, "v": -0.033, "o": -0.001, "qk": -0.171, "qkvo": 0.037}
_STEEP = {"below": 2 * SST2.below, "above": 2 * SST2.above}
_FAILING = {"above": SST2.below, "cliffs": (math.inf,), "failing": 0.8}
"""Rates score alike, and seeds fail at the higher ones, as on the task of `sweeps/quick.yaml`."""


@dataclass(frozen=True)
class Pattern:
    """Studies of one truth.

    Attributes:
        is_own: whether it is what the study's own records look like, so that its price is told.
    """

    truth: Truth
    is_own: bool = False


PATTERNS: Mapping[str, Pattern] = {
    "SST-2, all equal": Pattern(Truth(SST2, 0.01, effects=_ALIKE), is_own=True),
    "SST-2, three worse by 3.5": Pattern(Truth(SST2, 0.01, effects=_WORSE), is_own=True),
    "SST-2, as measured": Pattern(Truth(SST2, 0.01, effects=SST2_EFFECTS), is_own=True),
    "CoLA, as measured": Pattern(Truth(COLA, 0.02, effects=COLA_EFFECTS, collapse=COLA_COLLAPSE), is_own=True),
    "SST-2, all a margin apart": Pattern(Truth(SST2, 0.01, effects=_AT_MARGIN)),
    "k collapses in 5 %": Pattern(Truth(SST2, 0.01, collapse={"k": 0.05})),
    "k collapses in 10 %": Pattern(Truth(SST2, 0.01, collapse={"k": 0.1})),
    "k collapses in 20 %": Pattern(Truth(SST2, 0.01, collapse={"k": 0.2})),
    "all collapse in 10 %": Pattern(Truth(SST2, 0.01, collapse=dict.fromkeys(PLACEMENTS, 0.1))),
    "more fail at higher rates": Pattern(Truth(replace(SST2, **_FAILING), 0.01)),
    "scores in steps of 1/200": Pattern(Truth(replace(SST2, step=0.005), 0.01)),
    "heavy tails (t, 3)": Pattern(Truth(replace(SST2, tails="heavy"), 0.01)),
    "curves twice as steep": Pattern(Truth(replace(SST2, **_STEEP), 0.01)),
    "CoLA, all equal": Pattern(Truth(COLA, 0.02, effects=_ALIKE)),
    "CoLA, mean scores, no collapse": Pattern(Truth(COLA, 0.02, effects=_COLA_MEANS)),
}


@dataclass(frozen=True)
class Outcome:
    """What a study said: whether any word was false, its words, and what they took."""

    is_false_difference: bool
    is_false_tie: bool
    n_words: int
    n_runs: int
    n_looks: int

    @property
    def is_false(self) -> bool:
        return self.is_false_difference or self.is_false_tie


# ---------------------------------------------------------------- one study


def by_looks(truth: Truth, seed: Sequence[int], seeds: Sequence[int] = LOOKS) -> Outcome:
    """A study from its declaration to its end; one look is the fixed design with the same rule for rates."""
    course, n_runs = carry_through(truth, seed, seeds=seeds)
    return _outcome(truth, course.findings, n_runs=n_runs, n_looks=len(course.looks))


def staged(truth: Truth, seed: Sequence[int]) -> Outcome:
    """Coarse rates with a seed, three around the best with two, eight at the best of these, judged as a sweep is."""
    family = truth.declaration(seeds=(STAGED_SEEDS,))
    results = Simulated(truth, family, seed)
    rates_of: dict[str, Sequence[float]] = dict.fromkeys(PLACEMENTS, truth.rates)
    for n_rates, n_seeds in ((3, 1), (1, 2)):
        step = [Wanted(name, rate, tuple(family.seeds(n_seeds))) for name in PLACEMENTS for rate in rates_of[name]]
        results.train(step)
        for name, rates in rates_of.items():
            scores = [results.at(name, rate, family.seeds(n_seeds)).select.mean() for rate in rates]
            best = rates[int(np.argmax(scores))]
            rates_of[name] = scheme.around(best) if n_rates == 3 else (best,)
    results.train([Wanted(name, rates[0], tuple(family.seeds(STAGED_SEEDS))) for name, rates in rates_of.items()])
    contrasts = arms.judge(_runs(results), family.pairs, margin=truth.margin).contrasts
    findings = [
        looks.Finding(first, second, word=word)
        for first, second, word in contrasts[["first", "second", "verdict"]].itertuples(index=False)
    ]
    return _outcome(truth, findings, n_runs=results.n_runs, n_looks=1)


def _outcome(truth: Truth, findings: Sequence[looks.Finding], *, n_runs: int, n_looks: int) -> Outcome:
    return Outcome(
        is_false_difference=any(map(truth.is_false_difference, findings)),
        is_false_tie=any(map(truth.is_false_tie, findings)),
        n_words=sum(finding.word in WORDS for finding in findings),
        n_runs=n_runs,
        n_looks=n_looks,
    )


def _runs(results: Simulated) -> pd.DataFrame:
    """What was trained, as `settings.prepare` leaves runs."""
    tables = []
    for (name, rate), points in results.trained.items():
        seeds = np.flatnonzero(points.has_ended)
        scores = {"select": points.select[seeds], "report": points.report[seeds]}
        tables.append(pd.DataFrame({"arm": name, "lr": rate, "seed": seeds} | scores))
    return prepared(pd.concat(tables, ignore_index=True))


# ---------------------------------------------------------------- many studies

Design = str | tuple[int, ...]
"""`staged`, or the seeds of each look."""


@dataclass(frozen=True)
class Batch:
    """Studies of one truth by one design, which one process follows."""

    name: str
    truth: Truth
    design: Design
    seeds: tuple[tuple[int, ...], ...]

    def follow(self) -> list[Outcome]:
        if self.design == "staged":
            return [staged(self.truth, seed) for seed in self.seeds]
        looks_at = tuple(int(n) for n in self.design)
        return [by_looks(self.truth, seed, looks_at) for seed in self.seeds]


def outcomes(
    patterns: Mapping[str, Pattern], *, n_studies: int, seed: int, n_processes: int
) -> dict[tuple[str, Design], list[Outcome]]:
    """What the studies of every pattern said, by pattern and design.

    A study's draws depend on the seed, its pattern's name and its number alone: however many are asked for, and however
    many processes share them, the first are the same.
    """
    batches = list(_batches(patterns, n_studies, seed))
    said_by: dict[tuple[str, Design], list[Outcome]] = {}
    if n_processes == 1:
        done: Iterator[list[Outcome]] = map(Batch.follow, batches)
        return _collect(said_by, batches, done)
    with ProcessPoolExecutor(n_processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        return _collect(said_by, batches, pool.map(Batch.follow, batches))


def _collect(
    said_by: dict[tuple[str, Design], list[Outcome]], batches: Sequence[Batch], done: Iterator[list[Outcome]]
) -> dict[tuple[str, Design], list[Outcome]]:
    bar = track(done, "simulated studies", len(batches), transient=True, disable=not sys.stderr.isatty())
    for batch, of_batch in zip(batches, bar, strict=True):
        said_by.setdefault((batch.name, batch.design), []).extend(of_batch)
    return said_by


def _batches(patterns: Mapping[str, Pattern], n_studies: int, seed: int) -> Iterator[Batch]:
    n_costed = max(1, round(COSTED * n_studies))
    for name, pattern in patterns.items():
        stream = tuple(name.encode())
        designs: dict[Design, int] = {LOOKS: n_studies}
        if pattern.is_own:
            designs |= {"staged": n_studies} | {(n,): n_costed for n in FIXED_SEEDS}
        for design, n in designs.items():
            for first in range(0, n, BATCH):
                numbers = range(first, min(n, first + BATCH))
                yield Batch(name, pattern.truth, design, tuple((seed, *stream, number) for number in numbers))


# ---------------------------------------------------------------- what they come to

COLUMNS = (
    *("label", "n_studies", "share", "low", "high", "differences", "ties", "words", "runs", "n_looks"),
    *("other", "other_low", "other_high", "staged_words", "staged_runs", "fixed_seeds", "fixed_runs", "saved"),
)


def table_of(patterns: Mapping[str, Pattern], said_by: Mapping[tuple[str, Design], Sequence[Outcome]]) -> pd.DataFrame:
    """One row per pattern.

    Returns:
        label, n_studies, share, low, high (any false word, with the 95 % binomial interval), differences, ties (shares
        with a false one), words, runs, n_looks (means); of patterns that are the study's own also other,
        other_low, other_high, staged_words, staged_runs (the staged design), fixed_seeds, fixed_runs (for as many words
        at one look) and saved (share of these runs); nan elsewhere.
    """
    rows = []
    for name, pattern in patterns.items():
        said = said_by[name, LOOKS]
        row = {"label": name, "n_studies": len(said)}
        row |= dict(zip(("share", "low", "high"), _share(said), strict=True)) | {
            "differences": np.mean([outcome.is_false_difference for outcome in said]),
            "ties": np.mean([outcome.is_false_tie for outcome in said]),
            "words": np.mean([outcome.n_words for outcome in said]),
            "runs": np.mean([outcome.n_runs for outcome in said]),
            "n_looks": np.mean([outcome.n_looks for outcome in said]),
        }
        if pattern.is_own:
            row |= dict(zip(("other", "other_low", "other_high"), _share(said_by[name, "staged"]), strict=True))
            row["staged_words"] = np.mean([outcome.n_words for outcome in said_by[name, "staged"]])
            row["staged_runs"] = np.mean([outcome.n_runs for outcome in said_by[name, "staged"]])
            row |= _price(float(row["words"]), {n: said_by[name, (n,)] for n in FIXED_SEEDS})
            row["saved"] = 1 - row["runs"] / row["fixed_runs"]
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def _share(said: Sequence[Outcome]) -> tuple[float, float, float]:
    share = Share(sum(outcome.is_false for outcome in said), len(said))
    return share.value, *share.interval()


def _price(words: float, by_seeds: Mapping[int, Sequence[Outcome]]) -> dict[str, float]:
    """Seeds and runs at which one look gives as many words, between the numbers that were tried; the most where even
    these give fewer."""
    mean_words = np.maximum.accumulate([np.mean([outcome.n_words for outcome in said]) for said in by_seeds.values()])
    mean_runs = [np.mean([outcome.n_runs for outcome in said]) for said in by_seeds.values()]
    return {
        "fixed_seeds": float(np.interp(words, mean_words, list(by_seeds))),
        "fixed_runs": float(np.interp(words, mean_words, mean_runs)),
    }
