"""Seeds that another family was looked at with: nobody may look at them again under a name or a margin of its own.

A family is known by its sweep and its setting, so a renamed sweep, a further axis or a first seed one higher is another
family. Its words would be chosen with the scores of the first before one's eyes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lora_bench.config.errors import ConfigError
from lora_bench.launch.families import Family
from lora_bench.store.errors import StoreError
from lora_bench.store.journal import journals, plain
from lora_bench.wording import counted


def require_unseen(family: Family) -> None:
    """Check a family that has no look yet.

    Raises:
        ConfigError: when another family of the store has looked at both sides of one of its contrasts, with some of the
            seeds that it would use.
    """
    for name, written in others(family):
        if not written["looks"]:
            continue
        first, n_seen = written["declaration"]["first_seed"], written["looks"][-1]["n_seeds"]
        declared = family.declaration
        shared = range(max(first, declared.first_seed), min(first + n_seen, declared.first_seed + declared.looks[-1]))
        if not shared:
            continue
        judged = {run_id for look in written["looks"] for run_id in look["runs"]}
        rates = {rate for look in written["looks"] for of_placement in look["alive"].values() for rate in of_placement}
        seen = {
            placement
            for placement in declared.placements
            if any(family.cells.resolved(placement, rate, shared[0]).run_id in judged for rate in sorted(rates))
        }
        again = "" if seen else ", on other rows or by another metric"
        seen = seen or _trained_alike(family, written)
        for pair in declared.pairs:
            if {*pair} <= seen:
                raise ConfigError(
                    f"study: {' and '.join(pair)} were looked at with {counted(len(shared), 'seed')} of this family, "
                    f"from {shared[0]} on, in {name}{again}; run that study as it was declared, or {anew(family)}"
                )


def _trained_alike(family: Family, written: Mapping[str, Any]) -> set[str]:
    """The placements of another family, where its runs were trained as this one's would be, on the same rows.

    Other rows of select or report, or another metric, make another task, and other runs. They are the same models all
    the same, and their scores on most rows were seen.
    """
    theirs, ours = ({**setting, "task": None, "first_seed": None} for setting in (written["setting"], family.setting))
    is_alike = written.get("train_rows") == family.train_rows and theirs == plain(ours)
    return set(written["declaration"]["placements"]) if is_alike else set()


def anew(family: Family) -> str:
    """What declares a family whose seeds nobody has seen."""
    first = 1000 * (family.declaration.first_seed // 1000 + 1)
    return f"declare a new family, with seeds of its own: study.first_seed={first}"


def others(family: Family) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The journals of the other families of the store, by their names."""
    for journal in journals(family.cells.store.root):
        if journal.path == family.journal.path:
            continue
        try:
            written = journal.read()
        except StoreError:  # said where its own study is run
            continue
        if written:
            yield journal.path.parent.name, written
