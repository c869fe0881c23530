"""The way of a family from the first rate tried to its last look.

    search:  every declared rate with one seed, and beyond an edge where the best sat; three around the best with two,
             and those of the first rates that are level with these
    alive:   a rate within two standard errors of its placement's best on `select`, from the second look on within one;
             one that fell behind stays out
    steadier: where seeds fail at all of these, the one within three at which most learn: for words on who learns alone
    look j:  every live rate of every open placement has n_j seeds; words are given (`looks`), and end the spending
    closer:  before a later look, where a peak between the best rate and the better of its neighbours may be worth more
             than a standard error of that look, the two are the best and the rate between (`between`)

Rates are compared on `select` alone. A word holds at every rate alive, so that it does not rest on which of them looked
best; and nothing is used that is joint over looks, so rates may drop out or be added between them.

`follow` is a function of the declaration and of the results alone: whoever has both gets the same looks and words.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lora_bench.verdicts import between, looks, tuning
from lora_bench.verdicts.family import Declaration, Points, Results, Wanted
from lora_bench.verdicts.looks import Finding, Look, Scores

ALIVE_ERRORS = 2.0
"""Standard errors of a difference by which a rate may lie behind its placement's best on `select`."""
MAX_ALIVE = 3
"""Rates of a placement that are alive at the first look, at most."""
LATER_ERRORS = 1.0
MAX_ALIVE_LATER = 2
"""The same from the second look on, whose seeds tell rates apart that the search's two do not."""
STEADIER_ERRORS = 3.0
"""The same for a rate at which more seeds learn than at any that is nearer; it is alive beside these."""
MAX_EXTENSIONS = 2
"""Rates tried beyond an edge of the declared ones, while the best sits there."""
FINE_SEEDS = 2
SECOND_CHANCE = 2
"""Seeds that a rate of the search gets beside its own where fewer than half of those learn: a rare collapse must not
decide where a placement is looked at."""

Rates = Mapping[str, tuple[float, ...]]
"""Placement -> rates, ascending."""
Steadier = Mapping[str, float]
"""Placement -> the rate that is alive for the share of its seeds that learn."""
Seen = dict[str, dict[float, int]]
"""Placement -> rates tried -> seeds that they had when they were last compared."""


@dataclass(frozen=True)
class Course:
    """How far a family is.

    Attributes:
        stage: the step that it is at, in words; `over` behind the last.
        looks: those that were held.
        step: all runs of the step that lacks some, those that are there already too: what is trained together must not
            depend on where an interruption fell. Empty when the family is over.
        tried: every rate so far.
        alive: rates that are still compared.
    """

    stage: str
    looks: tuple[Look, ...]
    step: tuple[Wanted, ...]
    tried: Rates
    alive: Rates

    @property
    def is_over(self) -> bool:
        return not self.step

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Those of the last look."""
        return self.looks[-1].findings if self.looks else ()


def follow(family: Declaration, results: Results) -> Course:
    """Follow a family through its search and looks, as far as the results go."""
    tried, step = _search(family, results)
    if step:
        return Course("search", (), step, tried, {})
    compared, step = _search_around(family, results, tried)
    seen: Seen = {name: dict.fromkeys(tried[name], 1) | dict.fromkeys(compared[name], FINE_SEEDS) for name in tried}
    if step:
        return Course("search around the best", (), step, _tried(seen), compared)
    alive, _ = _survivors(family, results, compared, FINE_SEEDS)
    past: list[Look] = []
    findings = tuple(Finding(*pair) for pair in family.pairs)
    for number, n_seeds in enumerate(family.looks):
        spending = {name: alive[name] for name in family.placements if name in _spending(findings)}
        if not spending:
            break
        if past:
            spending = _closer(family, results, spending, seen, past)
        alive |= spending
        step = (*_cells(spending, family.seeds(n_seeds)), *_floor_cell(family, past))
        if _is_lacking(results, step):
            tried = {name: {*seen[name], *alive[name]} for name in seen}
            return Course(f"look {number + 1} of {len(family.looks)}", tuple(past), step, _tried(tried), alive)
        for name, rates in spending.items():
            seen[name] |= dict.fromkeys(rates, n_seeds)
        spending, steadier = _survivors(family, results, spending, n_seeds)
        alive |= spending
        past.append(_hold(family, results, Live(spending, steadier), alive, seen, past))
        findings = past[-1].findings
    return Course("over", tuple(past), (), _tried(seen), alive)


def _spending(findings: Iterable[Finding]) -> set[str]:
    """Placements of contrasts that more seeds may settle."""
    return {name for finding in findings if finding.is_spending for name in finding.pair}


# ---------------------------------------------------------------- rates


def around(rate: float) -> tuple[float, float, float]:
    """The rate between its neighbours a quarter of a decade away, each 1, 2, 3 or 5 times a power of ten."""
    return tuning.beyond(rate, 10**-0.25), rate, tuning.beyond(rate, 10**0.25)


def _search(family: Declaration, results: Results) -> tuple[dict[str, tuple[float, ...]], tuple[Wanted, ...]]:
    """The rates that each placement tries with one seed, and the step that lacks some of them.

    All placements end a round before any goes on, so that a round's runs do not depend on where it was interrupted.
    """
    tried = {name: family.start(name) for name in family.placements}
    for _ in range(MAX_EXTENSIONS):
        if step := _step_of_search(family, results, tried, 1):
            return tried, step
        further = {}
        for name, rates in tried.items():
            best = _best_of_search(family, results, name, rates, 1)
            if best in (rates[0], rates[-1]):
                step_up = best == rates[-1]
                further[name] = tuple(sorted([*rates, tuning.beyond(best, 10**0.5 if step_up else 10**-0.5)]))
        if not further:
            return tried, ()
        tried = tried | further
    return tried, _step_of_search(family, results, tried, 1)


def _search_around(
    family: Declaration, results: Results, tried: Rates
) -> tuple[dict[str, tuple[float, ...]], tuple[Wanted, ...]]:
    """The rates of each placement that are compared with two seeds, and the step that lacks some of them.

    They are those around its best, and every rate tried that one seed does not show to lie behind these: one lucky seed
    must not lead the search away from where the placement learns.
    """
    compared: dict[str, tuple[float, ...]] = {
        name: around(_best_of_search(family, results, name, rates, 1)) for name, rates in tried.items()
    }
    if step := _step_of_search(family, results, compared, FINE_SEEDS):
        return compared, step
    room = ALIVE_ERRORS * math.sqrt(1 + 1 / FINE_SEEDS) * _spread(family, results, compared, FINE_SEEDS)
    for name, rates in compared.items():
        best = _best_of_search(family, results, name, rates, FINE_SEEDS)
        least = _seen(family, results, name, best, FINE_SEEDS).on_select - room
        of_search = {rate: _seen(family, results, name, rate, 1) for rate in tried[name]}
        level = [rate for rate, points in of_search.items() if points.mostly_learn and points.on_select > least]
        compared[name] = tuple(sorted({*rates, *level}))
    return compared, _step_of_search(family, results, compared, FINE_SEEDS)


def least_alive(best: float, spread: float, n_seeds: int, *, errors: float = ALIVE_ERRORS) -> float:
    """What a rate must score on `select` to stay alive beside the best one: so many standard errors of a difference of
    as many seeds below it.

    Args:
        spread: sd over seeds, pooled over the rates that are judged.
    """
    return best - errors * (math.sqrt(2 / n_seeds) * spread)


def _survivors(
    family: Declaration, results: Results, judged: Rates, n_seeds: int
) -> tuple[dict[str, tuple[float, ...]], dict[str, float]]:
    """The rates that stay alive, near enough to the placement's best and so many at most; and of these, where there is
    one, the rate that is further behind, at which more seeds learn.

    The spread is pooled over all rates that are judged.
    """
    is_late = n_seeds > family.looks[0]
    errors, n_most = (LATER_ERRORS, MAX_ALIVE_LATER) if is_late else (ALIVE_ERRORS, MAX_ALIVE)
    spread = _spread(family, results, judged, n_seeds)
    kept, steadier = {}, {}
    for name, rates in judged.items():
        points = {rate: _seen(family, results, name, rate, n_seeds) for rate in rates}
        best = max(of_rate.on_select for of_rate in points.values())
        ranked = sorted(rates, key=lambda rate: points[rate].on_select)  # of equals the higher rates
        least, least_steadier = (least_alive(best, spread, n_seeds, errors=n) for n in (errors, STEADIER_ERRORS))
        level = {rate for rate in ranked[-n_most:] if points[rate].on_select >= least - 1e-12}
        rate = _steadier(points, level, least=least_steadier)
        if rate is not None:
            steadier[name] = rate
        kept[name] = tuple(sorted({*level, *([] if rate is None else [rate])}))
    return kept, steadier


def _steadier(points: Mapping[float, Points], level: Collection[float], least: float) -> float | None:
    """Of the rates not far behind the one at which most seeds learn, if more do than at any that is level.

    That a placement fails more often than another must not be said while it has such a rate; where many seeds fail
    only above the best rate, it is otherwise said of 6.5 % of studies whose placements are alike.
    """
    most = max(points[rate].n_learning for rate in level)
    others = [rate for rate, seen in points.items() if seen.on_select >= least and seen.n_learning > most]
    return max(others, key=lambda rate: (points[rate].n_learning, points[rate].on_select), default=None)


def _closer(
    family: Declaration, results: Results, alive: Rates, seen: Seen, past: Sequence[Look]
) -> dict[str, tuple[float, ...]]:
    """The rates that a look from the second on is held at, by what `select` said before it.

    Where a peak between a placement's best rate and the better of the next ones tried may be worth more than a standard
    error of the look, these are the best, the one between, and those at which more seeds learn.
    """
    n_before, n_seeds = past[-1].n_seeds, family.looks[len(past)]
    error = math.sqrt(2 / n_seeds) * _spread(family, results, alive, n_before)
    curvature = _curvature(family, results, seen, past[-1].learning)
    closer = {}
    for name, rates in alive.items():
        best = _best_of_search(family, results, name, rates, n_before)
        sides = between.beside(best, seen[name])
        at_best = _seen(family, results, name, best, n_before).n_learning
        steady = [rate for rate in rates if _seen(family, results, name, rate, n_before).n_learning > at_best]
        other = _best(sides, [_seen(family, results, name, rate, seen[name][rate]) for rate in sides])
        is_wide = between.lost_between(best, other, curvature) > error
        closer[name] = tuple(sorted({best, between.middle(best, other), *steady})) if is_wide else rates
    return closer


def _curvature(family: Declaration, results: Results, seen: Seen, learning: Mapping[str, str]) -> float:
    """That of the rates that were compared, over the placements that learn."""
    return between.curvature_of(
        {rate: _seen(family, results, name, rate, n_seeds) for rate, n_seeds in rates.items() if n_seeds >= FINE_SEEDS}
        for name, rates in seen.items()
        if learning.get(name) == looks.LEARNS
    )


def _tried(seen: Mapping[str, Iterable[float]]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(sorted(rates)) for name, rates in seen.items()}


def _spread(family: Declaration, results: Results, judged: Rates, n_seeds: int) -> float:
    """Sd on `select` over seeds that learn, pooled over all rates that are judged; 0 where none has two."""
    squares = freedom = 0.0
    for name, rates in judged.items():
        for rate in rates:
            points = _seen(family, results, name, rate, n_seeds)
            squares += points.squares
            freedom += max(0, points.n_learning - 1)
    return math.sqrt(squares / freedom) if freedom else 0.0


def _seen(family: Declaration, results: Results, name: str, rate: float | None, n_seeds: int) -> Points:
    """What a step with so many seeds sees of a rate, whatever else is in the store."""
    return results.at(name, rate, _seeds_seen(family, results, name, rate, n_seeds))


def _seeds_seen(family: Declaration, results: Results, name: str, rate: float | None, n_seeds: int) -> range:
    seeds = family.seeds(n_seeds)
    is_search = n_seeds <= FINE_SEEDS
    has_chance = is_search and not results.at(name, rate, seeds).mostly_learn
    return family.seeds(n_seeds + SECOND_CHANCE) if has_chance else seeds


def _best_of_search(family: Declaration, results: Results, name: str, rates: Sequence[float], n_seeds: int) -> float:
    return _best(rates, [_seen(family, results, name, rate, n_seeds) for rate in rates])


def _best(rates: Sequence[float], points: Sequence[Points]) -> float:
    """The rate that does best on `select`; of equals the higher, which is where others learn."""
    scores = np.array([of_rate.on_select for of_rate in points])
    return rates[int(np.flatnonzero(scores >= scores.max() - 1e-12)[-1])]


# ---------------------------------------------------------------- what a step needs


def _step_of_search(family: Declaration, results: Results, rates_of: Rates, n_seeds: int) -> tuple[Wanted, ...]:
    """The runs of a step of the search, if some are lacking: its seeds, then those of rates that need a few more."""
    cells = _cells(rates_of, family.seeds(n_seeds))
    if _is_lacking(results, cells):
        return cells
    cells = tuple(
        Wanted(cell.placement, cell.rate, tuple(_seeds_seen(family, results, cell.placement, cell.rate, n_seeds)))
        for cell in cells
    )
    return cells if _is_lacking(results, cells) else ()


def _cells(rates_of: Rates, seeds: Sequence[int]) -> tuple[Wanted, ...]:
    return tuple(Wanted(name, rate, tuple(seeds)) for name, rates in rates_of.items() for rate in rates)


def _floor_cell(family: Declaration, past: Sequence[Look]) -> tuple[Wanted, ...]:
    return (Wanted(family.floor, None, tuple(_floor_seeds(family, past))),) if family.floor else ()


def _floor_seeds(family: Declaration, past: Sequence[Look]) -> Sequence[int]:
    """The floor is run with the first look's seeds, and with later ones while some placement may or may not learn."""
    number = len(past)
    while number and looks.UNPROVEN not in past[number - 1].learning.values():
        number -= 1
    return family.seeds(family.looks[number])


def _is_lacking(results: Results, cells: Iterable[Wanted]) -> bool:
    return not all(results.at(cell.placement, cell.rate, cell.seeds).have_all_ended for cell in cells)


# ---------------------------------------------------------------- one look


@dataclass(frozen=True)
class Live:
    """The rates of the placements that a look judges.

    Attributes:
        rates: all that are alive.
        steadier: those of them that are alive for the share of their seeds that learn.
    """

    rates: Rates
    steadier: Steadier

    def compared(self, name: str) -> tuple[float, ...]:
        """Those at which scores are compared."""
        return tuple(rate for rate in self.rates[name] if rate != self.steadier.get(name))


def _hold(family: Declaration, results: Results, live: Live, alive: Rates, seen: Seen, past: Sequence[Look]) -> Look:
    """Judge what is open with the look's seeds."""
    number = len(past)
    before, seeds = past[-1] if past else None, family.seeds(family.looks[number])
    compared = {name: live.compared(name) for name in live.rates}
    points = {name: [results.at(name, rate, seeds) for rate in rates] for name, rates in compared.items()}
    steadier = {name: results.at(name, rate, seeds) for name, rate in live.steadier.items()}
    chosen = {name: _best(rates, points[name]) for name, rates in compared.items()}
    learning = _learning(family, results, live.rates, seen, past)
    positions = {name: compared[name].index(rate) for name, rate in chosen.items()}
    scores = Scores(points, positions, learning, steadier)
    findings = before.findings if before else tuple(Finding(*pair) for pair in family.pairs)
    return Look(
        number=number,
        n_seeds=family.looks[number],
        level=family.level(number),
        spent=sum(family.level(earlier) for earlier in range(number + 1)),
        alive=dict(alive),
        chosen={**(before.chosen if before else {}), **chosen},
        steadier={**(before.steadier if before else {}), **dict.fromkeys(live.rates), **live.steadier},
        learning=learning,
        findings=looks.judge(family, number, findings, scores),
    )


def _learning(
    family: Declaration, results: Results, spending: Rates, seen: Seen, past: Sequence[Look]
) -> dict[str, str]:
    """Whether each placement learns; one that does, does so for good.

    That one is flat is shown at every live rate, and at a peak between a live rate and the next one tried too, at a
    level that the placements share.
    """
    learning = dict(past[-1].learning) if past else {}
    unknown = [name for name in spending if learning.get(name) != looks.LEARNS]
    seeds = _floor_seeds(family, past)
    points = {name: [results.at(name, rate, seeds) for rate in spending[name]] for name in unknown}
    floor = results.at(family.floor, None, seeds) if family.floor else None
    learning |= {name: looks.LEARNS if looks.is_above(points[name], floor) else looks.UNPROVEN for name in unknown}
    curvature = _curvature(family, results, seen, learning)
    level = family.level(len(past)) / len(family.placements)
    for name in unknown:
        pairs = [(rate, other) for rate in spending[name] for other in between.beside(rate, seen[name])]
        room = family.margin - max((between.lost_between(*pair, curvature) for pair in pairs), default=0.0)
        if floor is not None and learning[name] != looks.LEARNS and looks.is_flat(points[name], floor, room, level):
            learning[name] = looks.FLAT
    return learning
