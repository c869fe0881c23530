"""How a run was started, for lines that start others of its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lora_bench.config import overrides
from lora_bench.config.grammar import spell_rank_pattern
from lora_bench.config.overrides import override
from lora_bench.reports import explicit, tables
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
            record = {"invocation": {}, "manifest": []}
        invocation = record.get("invocation") or {}
        sweep = invocation.get("sweep")
        is_gone = bool(sweep) and not explicit.has_file(sweep)
        usual = [override("model", settings.short_name(run["model"])), override("task", run["task"])]
        given = [str(word) for word in invocation.get("overrides") or usual]
        levels = {settings.FACTORS[by]: _level(run, by) for by in pinned.get(str(sweep or ""), ())}
        kept = [word for word in tables.settled_overrides(given) if word.partition("=")[0] not in levels]
        placement = {"adapter.targets": overrides.value(run["targets"])}
        if ranks := _own_map(record["manifest"], given):
            kept = [word for word in kept if word.partition("=")[0] not in _OF_MAPS]
            placement |= {"adapter.rank_pattern": overrides.value(spell_rank_pattern(ranks)), "adapter.budget": "null"}
            if run["layers"] != "all":
                placement |= {"adapter.layers": _level(run, "layers")}
        elif not any(word.startswith("adapter.budget=") for word in kept) and pd.notna(run["rank"]):
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


_OF_MAPS = ("adapter.rank_pattern", "adapter.like", "adapter.budget", "adapter.layers")


def _own_map(manifest: Sequence[Mapping[str, Any]], given: Sequence[str]) -> dict[tuple[str, int], int]:
    """Ranks by role and layer of a run that a pattern or a published adapter placed, 0 where a role has none; empty
    where targets, layers and a rank or a budget say it all."""
    ranks = {(matrix["role"], matrix["layer"]): matrix["rank"] for matrix in manifest}
    places = {(role, layer) for role, _ in ranks for _, layer in ranks}
    is_named = any(word.lstrip("+").startswith(("adapter.rank_pattern=", "adapter.like=")) for word in given)
    is_uneven = bool(ranks) and (len(places) > len(ranks) or max(ranks.values()) - min(ranks.values()) > 1)
    return {place: ranks.get(place, 0) for place in sorted(places)} if ranks and (is_named or is_uneven) else {}


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
