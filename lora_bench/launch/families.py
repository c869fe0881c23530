"""The families of a study: what its sweep file declares, over the placements of its grid.

Points of the grid that differ in the adapter are compared with each other; all else, such as the task or the backbone,
sets families apart, each with a journal of its own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lora_bench.config.errors import ConfigError, did_you_mean
from lora_bench.config.overrides import key_of
from lora_bench.launch import placements
from lora_bench.launch.plan import Candidate, varied_axes
from lora_bench.launch.precision import settler
from lora_bench.store import StoreReader
from lora_bench.store.journal import Journal
from lora_bench.store.predictions import answers
from lora_bench.tasks.rows import fingerprint
from lora_bench.verdicts import stats
from lora_bench.verdicts.collapse import has_collapsed
from lora_bench.verdicts.family import Declaration, Points, Wanted
from lora_bench.verdicts.settings import FLOOR, REFERENCE_TARGETS

KEYS = ("reference", "pairs", "rates", "rates_of", "apart", "looks", "margin", "first_seed")
EXAMPLES = {
    "rates": "[1e-3,3e-3,1e-2]",
    "rates_of": "[1e-4,3e-4,1e-3]",
    "looks": "[8,16,32]",
    "margin": "0.01",
    "first_seed": "1000",
}
SEARCHED = ("train.lr", "seed")
"""Axes that a study goes over by itself."""

Compose = Callable[[Sequence[str]], Candidate]


@dataclass(frozen=True)
class Declared:
    """The study section of a sweep file, not yet measured against a metric.

    Attributes:
        rates: where each placement's search starts, ascending.
        rates_of: a value of placements' overrides, such as `full` of adapter=full -> where the search of those starts.
        apart: keys of the adapter whose values set families apart, as those of all else do.
        reference: the placement that is compared with every other; None compares all pairs.
        margin: None takes the metric's own.
    """

    rates: tuple[float, ...]
    rates_of: Mapping[str, tuple[float, ...]]
    apart: tuple[str, ...]
    reference: str | None
    looks: tuple[int, ...]
    margin: float | None
    first_seed: int

    @classmethod
    def read(cls, section: Any, *, sweep: str | None) -> Declared:
        """Check the section.

        Raises:
            ConfigError: naming the key, its value and what would work.
        """
        if not isinstance(section, Mapping):
            raise ConfigError(
                f"study: sweeps/{sweep}.yaml declares none; add hydra.sweeper.study to it, or run it as +sweeps={sweep}"
            )
        unknown = [str(key) for key in section if key not in KEYS]
        if unknown:
            known = f"keys are {', '.join(KEYS)}{did_you_mean(unknown[0], KEYS)}"
            raise ConfigError(f"study.{unknown[0]}: no such key; {known}")
        pairs, reference, margin = (section.get(key) for key in ("pairs", "reference", "margin"))
        if pairs not in (None, "all"):
            raise ConfigError(f"study.pairs: no {pairs!r}; give all, or leave it out")
        if pairs and reference:
            raise ConfigError("study.pairs: all pairs have no reference; set study.reference=null beside it")
        return cls(
            rates=tuple(sorted(_numbers("rates", section.get("rates"), float))),
            rates_of=_rates_of(section.get("rates_of")),
            apart=_keys_apart(section.get("apart")),
            reference=None if pairs else str(reference or REFERENCE_TARGETS),
            looks=tuple(_numbers("looks", section.get("looks") or [8, 16, 32], int)),
            margin=None if margin is None else _numbers("margin", margin, float)[0],
            first_seed=_numbers("first_seed", section.get("first_seed", 0), int)[0],
        )

    def rates_at(self, value: str | None) -> tuple[float, ...]:
        """Where the search of a placement with this value starts."""
        return self.rates if value is None else self.rates_of[value]


def _numbers(key: str, given: Any, kind: type) -> list[Any]:
    values = given if isinstance(given, (list, tuple)) else str(given).split(",")
    try:
        return [kind(str(value)) for value in values]
    except ValueError:
        raise ConfigError(f"study.{key}: no {given!r}; give such as {EXAMPLES[key.partition('.')[0]]}") from None


def _rates_of(given: Any) -> dict[str, tuple[float, ...]]:
    if not isinstance(given, Mapping | None):
        raise ConfigError(f"study.rates_of: no {given!r}; give rates by value, such as full: [1e-4,3e-4,1e-3]")
    return {
        str(value): tuple(sorted(_numbers(f"rates_of.{value}", rates, float))) for value, rates in (given or {}).items()
    }


def _keys_apart(given: Any) -> tuple[str, ...]:
    keys = given if isinstance(given, (list, tuple)) else [given] if given else []
    wrong = [key for key in keys if not _is_of_adapter(f"{key}=")]
    if wrong:
        raise ConfigError(f"study.apart: no {wrong[0]!r}; give a key of the adapter, such as adapter.targets")
    return tuple(map(str, keys))


# ---------------------------------------------------------------- runs


@dataclass
class Cells:
    """Placements by name, and the runs that they are at a rate and a seed."""

    overrides: Mapping[str, tuple[str, ...]]
    compose: Compose
    store: StoreReader
    rate_of_floor: float
    _runs: dict[tuple[str, float | None, int], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._settle = settler(self.store)

    def candidate(self, placement: str, rate: float | None, seed: int) -> Candidate:
        """The point of the grid that a run is; head-only's rate is its head's, whatever the adapter's says."""
        shown = self.rate_of_floor if rate is None else rate
        return self.compose([*self.overrides[placement], f"train.lr={shown:g}", f"seed={seed}"])

    def run(self, placement: str, rate: float | None, seed: int) -> Any:
        """The resolved run of the family, each looked up once."""
        key = placement, rate, seed
        if key not in self._runs:
            self._runs[key] = self.resolved(*key)
        return self._runs[key]

    def resolved(self, placement: str, rate: float | None, seed: int) -> Any:
        """A run that need not become one of the family's."""
        from lora_bench.training.resolve import resolve

        return resolve(self._settle(self.candidate(placement, rate, seed).config))

    def asked(self) -> list[Candidate]:
        """Every run that was looked up."""
        return [self.candidate(*key) for key in self._runs]


@dataclass
class Family:
    """One declared family, with its runs, their results as the store last had them, and its journal.

    Attributes:
        title: backbone and task, for people.
        metric: that of all scores.
    """

    declaration: Declaration
    cells: Cells
    journal: Journal
    title: str
    metric: str
    setting: Mapping[str, Any]
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    _learned: dict[str, bool] = field(default_factory=dict)

    @functools.cached_property
    def train_rows(self) -> str:
        """Names the rows that its runs are trained on, or drawn from, whatever they are scored on."""
        first = self.declaration.placements[0]
        run = self.cells.run(first, self.declaration.start(first)[0], self.declaration.first_seed)
        name = fingerprint(run.task.kind, run.task.label_names, {"train": run.task.splits["train"]})
        return f"{run.n_train} by seed of {name}" if run.config.task.is_drawn_by_seed else name

    def run_ids(self, step: Sequence[Wanted]) -> list[str]:
        return [self.cells.run(cell.placement, cell.rate, seed).run_id for cell in step for seed in cell.seeds]

    def candidates(self, step: Sequence[Wanted]) -> list[Candidate]:
        return [self.cells.candidate(cell.placement, cell.rate, seed) for cell in step for seed in cell.seeds]

    def at(self, placement: str, rate: float | None, seeds: Sequence[int]) -> Points:
        """What the runs came to; see `verdicts.family.Results`."""
        run_ids = [self.cells.run(placement, rate, seed).run_id for seed in seeds]
        rows = [self.rows.get(run_id, {}) for run_id in run_ids]
        select, report = (np.array([_score(row, split) for row in rows]) for split in ("select", "report"))
        is_scored = np.isfinite(select) & np.isfinite(report)
        learns = [has_score and self._learns(run_id) for run_id, has_score in zip(run_ids, is_scored, strict=True)]
        has_ended = [has_score or _diverged(row) for row, has_score in zip(rows, is_scored, strict=True)]
        return Points(select, report, np.array(has_ended, dtype=bool), np.array(learns, dtype=bool))

    def _learns(self, run_id: str) -> bool:
        if run_id not in self._learned:
            predictions = self.cells.store.predictions(run_id)
            self._learned[run_id] = predictions is None or not has_collapsed(*answers(predictions))
        return self._learned[run_id]


def _score(row: Mapping[str, Any], split: str) -> float:
    value = row.get(split) if row.get("status") == "finished" else None
    return math.nan if value is None else float(value)


def _diverged(row: Mapping[str, Any]) -> bool:
    return row.get("status") == "finished" or row.get("error_kind") == "nonfinite"


# ---------------------------------------------------------------- from the grid


def families(
    study: str, declared: Declared, points: Sequence[Sequence[str]], compose: Compose, store: StoreReader
) -> list[Family]:
    """Group the points of a grid into families.

    Args:
        study: the name of its sweep file.
        points: overrides of each placement, without rate and seed.

    Raises:
        ConfigError: when a point cannot run, or the declaration does not fit the placements.
    """
    groups: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for overrides in points:
        apart = tuple(word for word in overrides if not _is_of_adapter(word) or key_of(word) in declared.apart)
        groups.setdefault(apart, []).append(tuple(overrides))
    made = [_family(study, declared, apart, group, compose, store) for apart, group in groups.items()]
    titles = [family.title for family in made]
    shared = set.intersection(*map(set, groups)) if groups else set()
    for family, apart in zip(made, groups, strict=True):
        if titles.count(family.title) > 1:  # of one task and backbone: they differ in rows, or in training
            own = (word for word in apart if word not in shared)
            family.title = " · ".join([family.title, *(word.rpartition(".")[2] for word in own)])
    return made


def _family(
    study: str,
    declared: Declared,
    apart: tuple[str, ...],
    points: Sequence[tuple[str, ...]],
    compose: Compose,
    store: StoreReader,
) -> Family:
    start = (f"train.lr={declared.rates[0]:g}", f"seed={declared.first_seed}")
    composed = [(compose([*overrides, *start]), overrides) for overrides in points]
    composed = [(candidate, overrides) for candidate, overrides in composed if candidate.config.adapter.method != FLOOR]
    if not composed:
        raise ConfigError(f"study: {study} has no placement; give its grid adapter.targets")
    candidates, points = zip(*composed, strict=True)
    axes = [axis for axis in varied_axes(candidates) if axis not in SEARCHED]
    spelled = placements.names(candidates, axes), placements.written_out(candidates, axes)
    rates = [declared.rates_at(own) for own in placements.own_values(declared.rates_of, points)]
    rate_of_floor = declared.rates[len(declared.rates) // 2]

    def cells_of(names: Sequence[str]) -> Cells:
        overrides = {FLOOR: (*apart, f"adapter={FLOOR}")} | dict(zip(names, points, strict=True))
        return Cells(overrides, compose, store, rate_of_floor)

    cells = cells_of(spelled[0])
    runs = [cells.run(name, of[0], declared.first_seed) for name, of in zip(spelled[0], rates, strict=True)]
    setting = _setting(runs) | {"first_seed": declared.first_seed}
    if declared.apart:
        setting["apart"] = [word for word in apart if key_of(word) in declared.apart]
    journal = Journal.of(store.root, study, setting)
    names = _as_written(journal, spelled)
    metric = runs[0].task.metrics[0]
    declaration = _declaration(declared, names, spelled, rates, margin=declared.margin or stats.margin_of(metric))
    title = f"{runs[0].blueprint.name.rpartition('/')[2]} · {runs[0].task.name}"
    title = " · ".join([title, *(word.partition("=")[2] for word in setting.get("apart", ()))])
    return Family(declaration, cells_of(names), journal, title, metric, setting)


def _as_written(journal: Journal, spelled: Sequence[Sequence[str]]) -> Sequence[str]:
    """The names that the journal of a family has, once it was looked at, if they are one of these; else the first."""
    written = journal.read()
    known = written["declaration"]["placements"] if written and written["looks"] else None
    return next((names for names in spelled if list(names) == known), spelled[0])


def _declaration(
    declared: Declared,
    names: Sequence[str],
    spelled: Sequence[Sequence[str]],
    rates: Sequence[tuple[float, ...]],
    *,
    margin: float,
) -> Declaration:
    """What is declared of the placements that a family has.

    Args:
        spelled: all lists of names by which the reference may be called.
        rates: where the search of each placement starts.

    Raises:
        ConfigError: when the declaration does not fit the placements.
    """
    place = None if declared.reference is None else placements.named_reference(declared.reference, spelled)
    try:
        return Declaration(
            placements=tuple(names),
            reference=declared.reference if place is None else names[place],
            rates=declared.rates,
            margin=margin,
            looks=declared.looks,
            first_seed=declared.first_seed,
            floor=FLOOR,
            rates_of={name: of for name, of in zip(names, rates, strict=True) if of != declared.rates},
        )
    except ValueError as error:
        raise ConfigError(f"study.{error}") from None


def _setting(runs: Sequence[Any]) -> dict[str, Any]:
    """What all placements share, from the backbone to the training: another one is another family."""
    science = runs[0].science
    adapters = [run.science["adapter"] | {"budget": run.config.adapter.budget} for run in runs]
    shared = {
        key: value
        for key, value in adapters[0].items()
        if key not in ("targets", "rank") and all(adapter.get(key) == value for adapter in adapters)
    }
    train = {key: value for key, value in science["train"].items() if key != "lr"}
    if runs[0].config.train.head_lr is None:
        train["head_lr"] = "lr"  # the head follows the adapter's rate
    return {"model": science["model"]["fingerprint"], "task": science["task"], "adapter": shared, "train": train}


def _is_of_adapter(override: str) -> bool:
    key = key_of(override)
    return key == "adapter" or key.startswith("adapter.")
