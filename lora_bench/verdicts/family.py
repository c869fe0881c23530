"""A family of contrasts as it is declared, and where its scores come from.

    level of look j = error (n_j - n_(j-1)) / N          n: seeds, 0 before the first look; N: those of the last

What is declared cannot change once the family was looked at: its words are right in so many of a hundred families only
because reference, rates, margin and looks were chosen before a score of the look was seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from lora_bench.wording import listed

RULE = 3
"""By which a family goes from its declaration to its words. A journal that names none is of the first, which tried no
rate between two others and left three alive to the end; the second asked of a rate only how its seeds that learn
score."""
MIN_PAIRS = 4
"""Pairs of seeds that learn, below which scores give no word: three of two kinds (learn, stuck) err in up to 14 %."""


@dataclass(frozen=True)
class Declaration:
    """A family of contrasts, fixed before its first look.

    Attributes:
        placements: what is compared, by name.
        reference: compared with every other placement; None compares all pairs.
        rates: where each placement's search starts, ascending.
        margin: the largest difference that counts as none, in the metric's unit.
        looks: seeds at each look, ascending.
        error: chance of any false difference over all looks, and of any false tie.
        first_seed: seeds are this one and those after it.
        floor: the placement that learns nothing but the head, which the others must beat on `select`; None without.
        rates_of: placement -> where its own search starts, of those that do not start at `rates`.
        rule: RULE, since words of one family under two rules would keep no promise.
    """

    placements: tuple[str, ...]
    reference: str | None
    rates: tuple[float, ...]
    margin: float
    looks: tuple[int, ...] = (8, 16, 32)
    error: float = 0.05
    first_seed: int = 0
    floor: str | None = None
    rule: int = RULE
    rates_of: Mapping[str, tuple[float, ...]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if len(self.placements) < 2 or len(set(self.placements)) < len(self.placements):
            raise ValueError(f"placements: two or more, each once; got {', '.join(self.placements) or 'none'}")
        if self.reference is not None and self.reference not in self.placements:
            raise ValueError(f"reference: {self.reference!r} is none of {', '.join(self.placements)}")
        for rates in (self.rates, *self.rates_of.values()):
            if not rates or list(rates) != sorted(set(rates)) or rates[0] <= 0:
                raise ValueError(f"rates: ascending and above 0; got {', '.join(f'{rate:g}' for rate in rates)}")
        if not self.looks or list(self.looks) != sorted(set(self.looks)) or self.looks[0] < MIN_PAIRS:
            raise ValueError(f"looks: ascending, {MIN_PAIRS} seeds at least; got {', '.join(map(str, self.looks))}")
        if not self.margin > 0:
            raise ValueError(f"margin: above 0; got {self.margin:g}")
        if not 0 < self.error < 1:
            raise ValueError(f"error: between 0 and 1; got {self.error:g}")

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The contrasts, first minus second."""
        if self.reference is None:
            return tuple(itertools.combinations(self.placements, 2))
        return tuple((self.reference, other) for other in self.placements if other != self.reference)

    def start(self, placement: str) -> tuple[float, ...]:
        """The rates at which a placement's search starts."""
        return tuple(self.rates_of.get(placement, self.rates))

    def level(self, look: int) -> float:
        """The share of the error that a look may spend, by its position from 0."""
        before = self.looks[look - 1] if look else 0
        return self.error * (self.looks[look] - before) / self.looks[-1]

    def seeds(self, n: int) -> range:
        return range(self.first_seed, self.first_seed + n)


def starts_in_words(declared: Mapping[str, Any]) -> str:
    """Where searches start: `0.001, 0.003, 0.01; LoRA+ from 0.0001, 0.0003, 0.001`.

    Args:
        declared: a declaration's fields, as a journal keeps them.
    """
    shared = ", ".join(f"{rate:g}" for rate in declared["rates"])
    own: dict[str, list[str]] = {}
    for name, rates in declared.get("rates_of", {}).items():
        own.setdefault(", ".join(f"{rate:g}" for rate in rates), []).append(name)
    return "; ".join([shared, *(f"{listed(names)} from {rates}" for rates, names in own.items())])


@dataclass(frozen=True)
class Points:
    """What some seeds of a placement came to at a rate; arrays along the seeds.

    Attributes:
        select, report: scores; nan where there is none.
        has_ended: whether the run has a result: a score, or that it diverged.
        learns: whether it has a score and predicts more than one class.
    """

    select: np.ndarray
    report: np.ndarray
    has_ended: np.ndarray
    learns: np.ndarray

    @cached_property
    def have_all_ended(self) -> bool:
        return bool(self.has_ended.all())

    @cached_property
    def n_learning(self) -> int:
        return int(np.count_nonzero(self.learns))

    @cached_property
    def mostly_learn(self) -> bool:
        """Whether half of the seeds that have ended, or more, learn."""
        return 0 < int(np.count_nonzero(self.has_ended)) <= 2 * self.n_learning

    @cached_property
    def on_select(self) -> float:
        """Mean score on `select` of the seeds that learn, which a rare collapse must not move; far below that where
        fewer than half do, and least where none has a score."""
        if self.mostly_learn:
            return float(self.select[self.learns].mean())
        return self.n_learning - 1e6 if np.isfinite(self.select).any() else -1e9

    @cached_property
    def squares(self) -> float:
        """Sum of the squared deviations on `select` of the seeds that learn; 0 below two."""
        scores = self.select[self.learns]
        return float(scores.var() * scores.size) if scores.size > 1 else 0.0


class Results(Protocol):
    """Where the scores come from: a store, or a simulation."""

    def at(self, placement: str, rate: float | None, seeds: Sequence[int]) -> Points:
        """Results of a placement; the floor has no rate."""
        ...


@dataclass(frozen=True, order=True)
class Wanted:
    """Seeds of a placement that must be trained at a rate; None for the floor."""

    placement: str
    rate: float | None
    seeds: tuple[int, ...]
