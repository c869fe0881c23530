"""The leading direction of each update: of the record where it has it, else of the saved adapter and the backbone.

Runs keep |u^T W v| and s_1 beside their other norms. Records from before keep neither, and there both take the weights
of the backbone, which are read where they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lora_bench.config.errors import ConfigError
from lora_bench.store import StoreReader
from lora_bench.verdicts import subspace

KEYS = ("update_leading", "weight_in_leading")  # of an entry of a record's norms
SAME_WEIGHT = 1e-3  # relative difference of two norms of one weight, which half precision rounds

Weights = Callable[[Mapping[str, Any]], Mapping[str, np.ndarray]]
"""A record -> module -> the backbone's (d_out, d_in) weight; raises ConfigError where it is not at hand."""


def with_leading(
    record: Mapping[str, Any], norms: Sequence[Mapping[str, Any]], store: StoreReader, weights: Weights | None
) -> tuple[list[dict[str, Any]], str]:
    """The entries of a record's norms, each with KEYS where they can be known, and why they cannot, else empty.

    Args:
        norms: of the record, those to complete.
        weights: None leaves what the record lacks.
    """
    entries = [_of_one_direction(entry) if entry["rank"] == 1 else dict(entry) for entry in norms]
    if all(entry.get(key) is not None for entry in entries for key in KEYS):
        return entries, ""
    if weights is None:
        return entries, "leading=true reads it, from the adapters that were kept and the backbone"
    try:
        pairs = subspace.read_adapter(store.path(str(record["run_id"])), record["manifest"])
    except (FileNotFoundError, ValueError):
        return entries, "no readable adapter was kept"
    try:
        of_backbone = weights(record)
    except ConfigError as error:
        return entries, str(error)
    for entry in entries:
        weight = of_backbone[entry["module"]]
        if not np.isclose(np.linalg.norm(weight), entry["weight"], rtol=SAME_WEIGHT):
            return entries, f"model: the weights of {record['config']['model']['name']} at hand are not the run's"
    for entry in entries:
        pair = pairs[entry["module"]]
        of_update, of_weight = subspace.leading(pair.A, pair.B, of_backbone[entry["module"]])
        entry |= dict(zip(KEYS, (entry["scale"] * of_update, of_weight), strict=True))
    return entries, ""


def _of_one_direction(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An update of rank 1 is its leading direction."""
    return {**entry, **dict(zip(KEYS, (entry["update"], entry["weight_in_update"]), strict=True))}
