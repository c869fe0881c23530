"""How a run was started, for lines that start others of its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lora_bench.config import overrides
from lora_bench.config.overrides import override
from lora_bench.questions import explicit
from lora_bench.reports import tables
from lora_bench.store import open_store
from lora_bench.store.errors import StoreError
from lora_bench.store.reader import is_archive
from lora_bench.verdicts import settings


@dataclass(frozen=True)
class Started:
    """What a run's command said, without what tells runs apart.

    Attributes:
        command: the words that name the sweep, or that it was a grid, and what all its runs share; where the sweep has
            no file any more, the settings that it had.
        placement: key -> value as the command line takes it: targets, rank, and the factors that the sweep varied.
        store: the word that names the store; empty for an archive, which takes no runs.
    """

    command: tuple[str, ...]
    placement: Mapping[str, str]
    store: tuple[str, ...]

    @classmethod
    def of(cls, run: pd.Series, store: Path, *, pinned: Mapping[str, Sequence[str]]) -> Started:
        """Read from the run's record.

        Args:
            run: a row of the store's frame.
            pinned: sweep -> the factors that it varies (`settings.varied_factors`).
        """
        try:
            record = open_store(store).record(run["run_id"])
        except StoreError:
            record = {}
        invocation = record.get("invocation") or {}
        sweep = invocation.get("sweep")
        is_gone = bool(sweep) and not explicit.has_file(sweep)
        usual = [override("model", settings.short_name(run["model"])), override("task", run["task"])]
        given = [str(word) for word in invocation.get("overrides") or usual]
        levels = {settings.FACTORS[by]: _level(run, by) for by in pinned.get(str(sweep or ""), ())}
        kept = [word for word in tables.settled_overrides(given) if word.partition("=")[0] not in levels]
        placement = {"adapter.targets": overrides.value(run["targets"])}
        if not any(word.startswith("adapter.budget=") for word in kept) and pd.notna(run["rank"]):
            # The sweep's file may set a budget.
            placement |= {"adapter.rank": str(int(run["rank"])), "adapter.budget": "null"}
        placement |= {key: level for key, level in levels.items() if level}
        if is_gone:
            placement = explicit.placement_words(run, record, given=kept) | placement
            taken = [*kept, *(f"{key}=" for key in placement)]
            kept += explicit.shared_words(run, record, given=taken)
        start = override("+sweeps", sweep) if sweep and not is_gone else "-m"
        where = () if is_archive(store) else (override("store", str(store)),)
        return cls(("lora-bench", start, *kept), placement, where)


def told_seeds(seeds: Sequence[int]) -> str:
    """Seeds, ascending, as an axis of a sweep."""
    first, last = seeds[0], seeds[-1]
    if len(seeds) > 1 and list(seeds) == list(range(first, last + 1)):
        return f"range({last + 1})" if first == 0 else f"range({first},{last + 1})"
    return ",".join(map(str, seeds))


def _level(run: pd.Series, by: str) -> str:
    """A factor's value as the command line takes it; empty where the run's method has no such setting."""
    value = settings.preset_of(run["method"], run["init"], run["alpha_policy"]) if by == "method" else run[by]
    if by == "head_rate" and value == "lr":
        return "null"
    if pd.isna(value):
        return "" if settings.FACTORS[by].startswith("adapter.") else "null"
    if isinstance(value, str) and by == "layers":
        return overrides.value(value) if ":" in value or value == "all" else f"[{value}]"
    return overrides.value(value) if isinstance(value, str) else f"{value:g}"
