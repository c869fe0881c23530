"""A journal that is gone, while the runs that it was kept of are there: whoever removes it may declare anew, with the
scores before his eyes.

A study writes its journal before its first run, and a look before it goes on, and each record says whether a study
trained it. So runs of a study that no journal of the store is about, or more of them than a journal without a look can
have, had one that said more.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from lora_bench.config.errors import ConfigError
from lora_bench.launch.families import Family
from lora_bench.launch.seen import anew, others
from lora_bench.store.errors import StoreError
from lora_bench.store.journal import plain
from lora_bench.verdicts.family import MIN_PAIRS
from lora_bench.wording import counted

OF_A_STUDY = "hydra.sweeper.as_study=true"
"""The word by which a record's overrides say that a study trained it."""


def require_looks(family: Family, written: Mapping[str, Any] | None, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Check a family whose journal has no look, or that has no journal, against the runs of the store.

    Args:
        written: its journal.

    Raises:
        ConfigError: when both sides of one of its contrasts have so many seeds, trained by a study, that a look was
            held or could be.
    """
    n_least = MIN_PAIRS if written is None else written["declaration"]["looks"][0] + 1
    n_seeds = _trained_by_studies(family, rows, n_least=n_least)
    for pair in family.declaration.pairs:
        if {*pair} <= n_seeds.keys():
            n_trained = min(n_seeds[name] for name in pair)
            lost = "that is gone" if written is None else "whose looks are gone"
            raise ConfigError(
                f"study: {' and '.join(pair)} of {family.title} have {counted(n_trained, 'seed')} that a study trained "
                f"and kept a journal of {lost}: put back {family.journal.path}, or {anew(family)}"
            )


def _trained_by_studies(family: Family, rows: Mapping[str, Mapping[str, Any]], *, n_least: int) -> dict[str, int]:
    """Placement -> its most seeds at one rate, of those that a study trained and that have so many of the family's."""
    by_cell: dict[str, list[str]] = {}
    seeds = family.declaration.seeds(family.declaration.looks[-1])
    for run_id, row in rows.items():
        if row["status"] == "finished" and row["seed"] in seeds and row["method"] != family.declaration.floor:
            by_cell.setdefault(row["cell_id"], []).append(run_id)
    by_cell = {cell: run_ids for cell, run_ids in by_cell.items() if len(run_ids) >= n_least}
    rates = sorted({rows[run_ids[0]]["lr"] for run_ids in by_cell.values()})
    known = [written for _, written in others(family)]
    trained: dict[str, int] = {}
    for placement in family.declaration.placements:
        if any(_is_about(written, family, placement) for written in known):
            continue
        cells = (family.cells.resolved(placement, rate, seeds[0]).cell_id for rate in rates if math.isfinite(rate))
        for run_ids in filter(None, map(by_cell.get, cells)):
            if _has_run_of_study(family, run_ids):
                trained[placement] = max(trained.get(placement, 0), len(run_ids))
    return trained


def _has_run_of_study(family: Family, run_ids: Collection[str]) -> bool:
    for run_id in run_ids:
        try:
            invocation = family.cells.store.record(run_id).get("invocation") or {}
        except StoreError:
            continue
        if OF_A_STUDY in (invocation.get("overrides") or ()):
            return True
    return False


def _is_about(written: Mapping[str, Any], family: Family, placement: str) -> bool:
    """Whether the journal of another family is about runs of this placement, too."""
    theirs, ours = written["setting"], plain(family.setting)
    shared = ours["adapter"].keys() & theirs["adapter"].keys()
    return (
        all(theirs.get(key) == ours.get(key) for key in ("model", "task", "train", "apart"))
        and all(theirs["adapter"][key] == ours["adapter"][key] for key in shared)
        and placement in written["declaration"]["placements"]
    )
