"""Which placements a sweep at one budget was to run: what is missing is what was declared and did not come, not what a
design leaves out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lora_bench.questions.next_stage import StageError, axis_values, read_sweep
from lora_bench.store import open_store
from lora_bench.store.errors import StoreError
from lora_bench.verdicts.arms import same_targets
from lora_bench.verdicts.settings import FLOOR, PLACEMENTS

TARGETS, BUDGET = "adapter.targets", "adapter.budget"


def placements(runs: pd.DataFrame, store: Path) -> list[str]:
    """The placements of these runs, and those that their sweeps declared beside them, in the paper's order.

    A sweep's are those of the command line, else of its file, where that still exists. One that fixes ranks in place of
    a budget, or is a grid without a file, declares what it ran.

    Args:
        runs: of one budget, with the column `arm`.
        store: theirs.
    """
    adapted = runs[runs["arm"] != FLOOR]
    ran = [str(arm) for arm in adapted["arm"].unique()]
    absent = [word for word in _declared(adapted, store) if not any(same_targets(word, arm) for arm in ran)]
    known = list(dict.fromkeys([*ran, *absent]))
    return sorted(known, key=lambda arm: PLACEMENTS.index(arm) if arm in PLACEMENTS else len(PLACEMENTS))


def _declared(runs: pd.DataFrame, store: Path) -> Iterable[str]:
    reader = open_store(store)
    words: dict[str, None] = {}
    for run_id in runs.drop_duplicates(["sweep", "arm"])["run_id"] if "sweep" in runs else ():
        try:
            invocation = reader.record(str(run_id)).get("invocation") or {}
        except StoreError:
            continue
        words |= dict.fromkeys(_of_sweep(invocation))
    return words


def _of_sweep(invocation: Mapping[str, Any]) -> Sequence[str]:
    given = [str(word).partition("=") for word in invocation.get("overrides") or []]
    typed = {key.lstrip("+"): value for key, _, value in given}
    try:
        sweep = read_sweep(str(invocation.get("sweep") or ""))
    except StageError:
        sweep = {}
    of_file = [(sweep.get("adapter") or {}).get("budget"), *axis_values(sweep, BUDGET)]
    if set([typed[BUDGET]] if BUDGET in typed else of_file) <= {None, "null"}:
        return ()
    if TARGETS in typed:
        return re.findall(r"[\w+]+", typed[TARGETS].removeprefix("choice"))
    return axis_values(sweep, TARGETS)
