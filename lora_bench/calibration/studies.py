"""Simulated studies whose truth is known, followed from the first rate to the last look by the code of real ones.

    score[p, rate, seed] = level + effect[p] - curve(log10 rate - peak[p]) + shared[seed] + own[p, rate, seed]

Each placement peaks at a rate of its own, which lies between the rates tried, as a placement of a real backbone does;
noise on `select` and on `report` is of the sizes and the correlation that were measured in results/study. A seed may
collapse: it predicts one class and scores what that scores.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lora_bench.verdicts import looks
from lora_bench.verdicts.family import Declaration, Points, Wanted
from lora_bench.verdicts.scheme import Course, follow
from lora_bench.verdicts.settings import PLACEMENTS, REFERENCE_TARGETS

FLOOR_GAP = 0.20
"""How far below the level the head alone scores."""


@dataclass(frozen=True)
class Noise:
    """Sizes of what a study's scores vary by, as shares of 1; curvatures in score per squared decade of the rate.

    Attributes:
        select, report: sd over seeds at one rate.
        correlation: of select and report over seeds.
        shared: correlation of two placements over seeds.
        below, above: how the score falls below and above the best rate.
        jitter: best rates of placements lie within so many decades of the middle.
    """

    select: float
    report: float
    correlation: float
    shared: float
    below: float
    above: float
    jitter: float = 0.3


SST2 = Noise(select=0.006, report=0.0075, correlation=0.15, shared=0.06, below=0.05, above=0.25)
COLA = Noise(select=0.030, report=0.028, correlation=0.50, shared=0.10, below=0.30, above=0.50)


@dataclass(frozen=True)
class Truth:
    """What a simulated study would find with seeds without end: each placement's score at its best rate."""

    noise: Noise
    margin: float
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    level: float = 0.8
    effects: Mapping[str, float] = field(default_factory=dict)
    collapse: Mapping[str, float] = field(default_factory=dict)

    def declaration(self, *, seeds: Sequence[int] = (8, 16, 32)) -> Declaration:
        return Declaration(
            placements=PLACEMENTS,
            reference=REFERENCE_TARGETS,
            rates=self.rates,
            margin=self.margin,
            looks=tuple(seeds),
            floor="head_only",
        )

    def difference(self, first: str, second: str) -> float:
        return self.effects.get(first, 0.0) - self.effects.get(second, 0.0)

    def is_false(self, finding: looks.Finding) -> bool:
        """Whether a word says what is not so: a difference that is none or has the other sign, or a tie beyond the
        margin."""
        true = self.difference(*finding.pair)
        shares = [self.collapse.get(name, 0.0) for name in finding.pair]
        return {
            looks.BETTER: true <= 1e-12,
            looks.WORSE: true >= -1e-12,
            looks.TIED: abs(true) >= self.margin - 1e-12,
            looks.MORE_OFTEN: shares[0] >= shares[1],
            looks.LESS_OFTEN: shares[0] <= shares[1],
        }.get(finding.word, False)


class Simulated:
    """The results of one study: drawn by cell, seen as they are trained."""

    def __init__(self, truth: Truth, family: Declaration, seed: Sequence[int]):
        self._truth, self._family, self._seed = truth, family, tuple(seed)
        rng = np.random.default_rng(self._seed)
        middle = math.log10(truth.rates[len(truth.rates) // 2])
        jitter = truth.noise.jitter
        self._peaks = {name: middle + rng.uniform(-jitter, jitter) for name in family.placements}
        self._shared = math.sqrt(truth.noise.shared) * rng.normal(size=family.looks[-1])
        self._drawn: dict[tuple[str, float | None], Points] = {}

    def at(self, placement: str, rate: float | None, seeds: Sequence[int]) -> Points:
        points = self._points(placement, rate)
        first = self._family.first_seed
        asked = slice(seeds[0] - first, seeds[-1] - first + 1)
        has_ended = points.has_ended[asked]
        select, report = (np.where(has_ended, scores[asked], math.nan) for scores in (points.select, points.report))
        return Points(select, report, has_ended, points.learns[asked] & has_ended)

    def train(self, wanted: Sequence[Wanted]) -> None:
        """What a sweep does."""
        for cell in wanted:
            has_ended = self._points(cell.placement, cell.rate).has_ended
            has_ended[np.array(cell.seeds) - self._family.first_seed] = True

    @property
    def n_runs(self) -> int:
        """Runs that were trained, the floor's left out."""
        return sum(int(points.has_ended.sum()) for (_, rate), points in self._drawn.items() if rate is not None)

    def _points(self, placement: str, rate: float | None) -> Points:
        key = placement, rate
        if key not in self._drawn:
            self._drawn[key] = self._draw(placement, rate)
        return self._drawn[key]

    def _draw(self, placement: str, rate: float | None) -> Points:
        truth, noise = self._truth, self._truth.noise
        name = zlib.crc32(f"{placement} {rate}".encode())  # whatever else is asked for, and when
        rng = np.random.default_rng((*self._seed, name))
        n = self._family.looks[-1]
        if rate is None:
            mean = truth.level - FLOOR_GAP
        else:
            off = math.log10(rate) - self._peaks[placement]
            mean = truth.level + truth.effects.get(placement, 0.0)
            mean -= (noise.above if off > 0 else noise.below) * off**2
        common = math.sqrt(noise.correlation) * rng.normal(size=n)
        own = math.sqrt(1 - noise.correlation) * rng.normal(size=(2, n))
        select, report = (
            mean + sd * (self._shared + math.sqrt(1 - noise.shared) * (common + own[i]))
            for i, sd in enumerate((noise.select, noise.report))
        )
        learns = rng.random(n) >= (truth.collapse.get(placement, 0.0) if rate is not None else 0.0)
        collapsed = truth.level - FLOOR_GAP
        return Points(
            select=np.where(learns, select, collapsed),
            report=np.where(learns, report, collapsed),
            has_ended=np.zeros(n, dtype=bool),
            learns=learns,
        )


def carry_through(truth: Truth, seed: Sequence[int], *, seeds: Sequence[int] = (8, 16, 32)) -> tuple[Course, int]:
    """A study from its declaration to its end: the course, and the runs that it took (the floor's left out)."""
    family = truth.declaration(seeds=seeds)
    results = Simulated(truth, family, seed)
    course = follow(family, results)
    while course.step:
        results.train(course.step)
        course = follow(family, results)
    return course, results.n_runs
