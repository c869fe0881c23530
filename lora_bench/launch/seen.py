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
from lora_bench.store.journal import journals
from lora_bench.wording import counted


def require_unseen(family: Family) -> None:
    """Check a family that has no look yet.

    Raises:
        ConfigError: when another family of the store has looked at both sides of one of its contrasts, with some of the
            seeds that it would use.
    """
    for name, written in _others(family):
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
        for pair in declared.pairs:
            if {*pair} <= seen:
                raise ConfigError(
                    f"study: {' and '.join(pair)} were looked at with {counted(len(shared), 'seed')} of this family, "
                    f"from {shared[0]} on, in {name}; run that study as it was declared, or {anew(family)}"
                )


def anew(family: Family) -> str:
    """What declares a family whose seeds nobody has seen."""
    first = 1000 * (family.declaration.first_seed // 1000 + 1)
    return f"declare a new family, with seeds of its own: study.first_seed={first}"


def _others(family: Family) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The other families of the store that were looked at, by the names of their journals."""
    for journal in journals(family.cells.store.root):
        if journal.path == family.journal.path:
            continue
        try:
            written = journal.read()
        except StoreError:  # said where its own study is run
            continue
        if written and written["looks"]:
            yield journal.path.parent.name, written
