"""Simulated studies whose truth is known, followed from the first rate to the last look by the code of real ones.

    score[p, rate, seed] = level + effect[p] - curve(log10 rate - peak[p]) + shared[seed] + own[p, rate, seed]

Each placement peaks at a rate of its own, which lies between the rates tried, as a placement of a real backbone does;
noise on `select` and on `report` is of the sizes and the correlations that were measured in results/study. A seed may
collapse: it predicts one class and scores what that scores; beyond its cliff a placement always does.

`lora-bench calibration noise store=results/study` measures SST2 and COLA, and the differences beside them.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from lora_bench.verdicts import looks
from lora_bench.verdicts.family import Declaration, Points, Wanted
from lora_bench.verdicts.scheme import Course, follow
from lora_bench.verdicts.settings import PLACEMENTS, REFERENCE_TARGETS

LOOKS = (8, 16, 32)


@dataclass(frozen=True)
class Noise:
    """What a study's scores vary by, as shares of 1, and how they fall off the best rate.

    Attributes:
        select, report: sd over seeds at one rate.
        correlation: of select and report over seeds.
        shared: correlation of two placements over seeds.
        below, above: score lost below and above the best rate, per squared decade.
        middle, spread: mean and sd of placements' best rates, in decades from the middle of the rates tried.
        floor: how far below the level the head alone scores, and a seed that collapsed.
        cliffs: how many decades above its best rate a placement collapses, of which each draws one.
        failing: share of the seeds that collapse a decade above the best rate; in proportion nearer to it.
        tails: normal, or those of t with 3 degrees of freedom.
        step: scores are multiples of it; 0 leaves them as they are.
    """

    select: float
    report: float
    correlation: float
    shared: float
    below: float
    above: float
    middle: float
    spread: float
    floor: float
    cliffs: tuple[float, ...] = (math.inf,)
    failing: float = 0.0
    tails: Literal["normal", "heavy"] = "normal"
    step: float = 0.0


_NEVER = math.inf
SST2 = Noise(
    select=0.0078,
    report=0.0086,
    correlation=0.29,
    shared=0.06,
    below=0.022,
    above=0.29,
    middle=-0.13,
    spread=0.155,
    floor=0.30,
    cliffs=(0.31, 0.39, 0.64, _NEVER, _NEVER, _NEVER, _NEVER),
)
COLA = Noise(
    select=0.047,
    report=0.033,
    correlation=0.43,
    shared=0.25,
    below=0.86,
    above=0.86,
    middle=-0.19,
    spread=0.115,
    floor=0.20,
    cliffs=(0.36, 0.45, 0.57, 0.65),
)
SST2_EFFECTS = {"q": -0.035, "k": -0.042, "v": -0.001, "o": -0.005, "qk": -0.041, "qkvo": -0.004}
COLA_EFFECTS = {"q": -0.181, "k": -0.131, "v": -0.033, "o": -0.001, "qk": -0.137, "qkvo": 0.037}
"""Of seeds that learn, where some do; of q, none of whose seeds did, what it scored."""
COLA_COLLAPSE = {"q": 1.0, "k": 0.75, "qk": 0.75}


@dataclass(frozen=True)
class Truth:
    """What a simulated study would find with seeds without end.

    Attributes:
        margin: the largest difference that counts as none.
        rates: where each placement's search starts.
        effects: what a placement scores above the level at its best rate.
        collapse: share of a placement's seeds that collapse at any rate.
    """

    noise: Noise
    margin: float
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    level: float = 0.8
    effects: Mapping[str, float] = field(default_factory=dict)
    collapse: Mapping[str, float] = field(default_factory=dict)

    def declaration(self, *, seeds: Sequence[int] = LOOKS) -> Declaration:
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
        return self.is_false_difference(finding) or self.is_false_tie(finding)

    def is_false_difference(self, finding: looks.Finding) -> bool:
        """Whether a word tells apart what is alike or the other way round, or says of two that learn, most seeds more
        than a margin above the floor, that one did not."""
        true = self.difference(*finding.pair)
        shares = [self.collapse.get(name, 0.0) for name in finding.pair]
        above = [self.noise.floor + self.effects.get(name, 0.0) for name in finding.pair]
        return {
            looks.BETTER: true <= 1e-12,
            looks.WORSE: true >= -1e-12,
            looks.MORE_OFTEN: shares[0] >= shares[1],
            looks.LESS_OFTEN: shares[0] <= shares[1],
            looks.NOT_LEARNED: finding.is_final and max(shares) < 0.5 and min(above) > self.margin,
        }.get(finding.word, False)

    def is_false_tie(self, finding: looks.Finding) -> bool:
        """Whether a word ties what differs by the margin or more."""
        return finding.word == looks.TIED and abs(self.difference(*finding.pair)) >= self.margin - 1e-12


class Simulated:
    """The results of one study: drawn by cell, seen as they are trained."""

    def __init__(self, truth: Truth, family: Declaration, seed: Sequence[int]):
        self._truth, self._family, self._seed = truth, family, tuple(seed)
        noise, rng = truth.noise, np.random.default_rng(self._seed)
        middle = math.log10(truth.rates[len(truth.rates) // 2]) + noise.middle
        self._peaks = {name: rng.normal(middle, noise.spread) for name in family.placements}
        self._cliffs = {name: float(rng.choice(noise.cliffs)) for name in family.placements}
        self._shared = math.sqrt(noise.shared) * _standard(rng, (family.looks[-1],), noise)
        self._drawn: dict[tuple[str, float | None], Points] = {}

    def at(self, placement: str, rate: float | None, seeds: Sequence[int]) -> Points:
        points = self._points(placement, rate)
        first = self._family.first_seed
        asked = slice(seeds[0] - first, seeds[-1] - first + 1)
        select, report, has_ended, learns = (
            values[asked] for values in (points.select, points.report, points.has_ended, points.learns)
        )
        if has_ended.all():
            return Points(select, report, has_ended, learns)
        select, report = (np.where(has_ended, scores, math.nan) for scores in (select, report))
        return Points(select, report, has_ended, learns & has_ended)

    def train(self, wanted: Sequence[Wanted]) -> None:
        """What a sweep does."""
        for cell in wanted:
            has_ended = self._points(cell.placement, cell.rate).has_ended
            first = self._family.first_seed
            has_ended[cell.seeds[0] - first : cell.seeds[-1] - first + 1] = True

    @property
    def trained(self) -> Mapping[tuple[str, float], Points]:
        """Placement and rate -> points of all its seeds, the trained ones marked as ended; no floor."""
        return {
            (name, rate): points
            for (name, rate), points in self._drawn.items()
            if rate is not None and points.has_ended.any()
        }

    @property
    def n_runs(self) -> int:
        """Runs that were trained, the floor's left out."""
        return sum(int(points.has_ended.sum()) for points in self.trained.values())

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
        mean = floor = truth.level - noise.floor
        share = 0.0
        if rate is not None:
            off = math.log10(rate) - self._peaks[placement]
            lost = (noise.above if off > 0 else noise.below) * off**2
            mean = max(floor, truth.level + truth.effects.get(placement, 0.0) - lost)
            share = 1.0 if off >= self._cliffs[placement] else truth.collapse.get(placement, 0.0)
            share = max(share, noise.failing * off)
        common = math.sqrt(noise.correlation) * _standard(rng, (n,), noise)
        own = math.sqrt(1 - noise.correlation) * _standard(rng, (2, n), noise)
        learns = rng.random(n) >= share
        select, report = (
            _in_steps(
                np.where(learns, mean + sd * (self._shared + math.sqrt(1 - noise.shared) * (common + own[i])), floor),
                noise.step,
            )
            for i, sd in enumerate((noise.select, noise.report))
        )
        return Points(select, report, has_ended=np.zeros(n, dtype=bool), learns=learns)


def _standard(rng: np.random.Generator, shape: tuple[int, ...], noise: Noise) -> np.ndarray:
    """Draws with mean 0 and variance 1."""
    return rng.standard_t(3, shape) / math.sqrt(3) if noise.tails == "heavy" else rng.normal(size=shape)


def _in_steps(scores: np.ndarray, step: float) -> np.ndarray:
    return np.round(scores / step) * step if step else scores


class TrainedWhenAsked:
    """Results of which none is lacking: runs are trained as they are asked for.

    `follow` asks for a step's runs before it uses one, so one pass comes to what a pass per step comes to.
    """

    def __init__(self, results: Simulated):
        self.results = results
        self._seen: dict[tuple[str, float | None, int, int], Points] = {}

    def at(self, placement: str, rate: float | None, seeds: Sequence[int]) -> Points:
        key = placement, rate, seeds[0], seeds[-1]
        if key not in self._seen:
            self.results.train([Wanted(placement, rate, tuple(seeds))])
            self._seen[key] = self.results.at(placement, rate, seeds)
        return self._seen[key]


def carry_through(truth: Truth, seed: Sequence[int], *, seeds: Sequence[int] = LOOKS) -> tuple[Course, int]:
    """A study from its declaration to its end: the course, and the runs that it took (the floor's left out)."""
    family = truth.declaration(seeds=seeds)
    results = TrainedWhenAsked(Simulated(truth, family, seed))
    return follow(family, results), results.results.n_runs
