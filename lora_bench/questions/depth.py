"""Which layers a run adapts, as a sweep would name them: records hold their numbers, which say what was trained."""

from __future__ import annotations

import itertools
from pathlib import Path

import pandas as pd

from lora_bench.store import StoreReader, open_store
from lora_bench.store.errors import StoreError


def layer_levels(runs: pd.DataFrame, store: Path) -> pd.Series:
    """`all`, `first:3`, `last:3`, or spans of numbers such as `1-2,4`; `none` of runs that adapt no layer.

    What `last` means is known of a backbone of which some run adapts all layers; elsewhere the numbers stand.
    """
    reader = open_store(store)
    levels = pd.Series("none", index=runs.index, dtype=object)
    for _, of_model in runs.groupby("model", sort=False):
        n_layers = _n_layers(of_model, reader)
        for layers, alike in of_model["layers"].dropna().groupby(of_model["layers"]):
            levels[alike.index] = layer_name(str(layers), n_layers)
    return levels


def layer_name(layers: str, n_layers: int | None) -> str:
    """`0,1,2` is `first:3`, `3,4,5` is `last:3` of six layers, `0,2,3` is `0,2-3`; other words stay.

    Args:
        layers: the numbers of adapted layers, lowest first, as a store's frame has them.
        n_layers: how many the backbone has; None where that is not known.
    """
    try:
        numbers = [int(word) for word in layers.strip("[]").split(",")]
    except ValueError:
        return layers
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        if numbers[0] == 0:
            return f"first:{len(numbers)}"
        if n_layers is not None and numbers[-1] == n_layers - 1:
            return f"last:{len(numbers)}"
    runs_of = itertools.groupby(enumerate(numbers), key=lambda placed: placed[1] - placed[0])
    spans = [[number for _, number in span] for _, span in runs_of]
    return ",".join(f"{span[0]}-{span[-1]}" if len(span) > 1 else str(span[0]) for span in spans)


def _n_layers(runs: pd.DataFrame, store: StoreReader) -> int | None:
    whole = runs.loc[runs["layers"] == "all", "run_id"].astype(str)
    for run_id in whole.iloc[:1]:
        try:
            manifest = store.record(run_id)["manifest"]
        except StoreError:
            return None
        return max((matrix["layer"] for matrix in manifest), default=-1) + 1 or None
    return None
