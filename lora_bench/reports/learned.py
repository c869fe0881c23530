"""Which runs learned: read from the predictions that a store kept, of the runs that verdicts rest on."""

from __future__ import annotations

import functools
from pathlib import Path

import pandas as pd

from lora_bench.store import open_store
from lora_bench.store.errors import StoreError
from lora_bench.store.predictions import answers
from lora_bench.verdicts import settings, tuning
from lora_bench.verdicts.arms import name_arms
from lora_bench.verdicts.collapse import has_collapsed


def with_learning(runs: pd.DataFrame, store: Path) -> pd.DataFrame:
    """Prepared runs with a column `learns`: false where a run's model predicts one class on `report`.

    Predictions are read of the two best rates of every arm alone, since each takes its time; what is not read, or was
    not kept, counts as learning. A head without an adapter is what the others must beat, and counts so too.
    """
    read = pd.Index([])
    for group in settings.comparable(runs):
        named = name_arms(group[group["scored"] & (group["method"] != settings.FLOOR)])
        if len(named):
            read = read.append(tuning.at_leading_rates(named).index)
    asked = (
        runs.loc[read, ["run_id", "finished"]] if "finished" in runs else runs.loc[read, ["run_id"]].assign(finished="")
    )
    stuck = [_is_stuck(store, str(run_id), str(finished)) for run_id, finished in asked.itertuples(index=False)]
    return runs.assign(learns=~runs.index.isin(asked.index[stuck]))


@functools.lru_cache(maxsize=65536)  # a process may read a store for several questions
def _is_stuck(store: Path, run_id: str, finished: str) -> bool:
    """Whether a run's model predicts one class; a run that is trained again has another time."""
    try:
        predictions = open_store(store).predictions(run_id)
    except StoreError:
        return False
    return predictions is not None and has_collapsed(*answers(predictions))
