"""The columns of a store's frame, and the row that one record makes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lora_bench.config.facts import ALWAYS, Key
from lora_bench.config.schema import KEYS

if TYPE_CHECKING:
    import pandas as pd  # a fifth of a second: imported where a table is made or read, after what may be refused


ROW_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What `row_of` raises for a record with a part of the wrong kind."""
TEXT = "text"
NUMBER = "number"
FLAG = "flag"


def kind_of(key: Key) -> str:
    """The kind of the column that mirrors a field."""
    if key.members & {int, float} and str not in key.members:
        return NUMBER
    return FLAG if bool in key.members else TEXT


MIRRORED = {part: [key for key in KEYS if key.fact.of == part] for part in ("adapter", "task", "train", "run")}
"""Part of a run's science -> its fields, each of which has a column."""

_KINDS = {part: {key.column: kind_of(key) for key in keys} for part, keys in MIRRORED.items()}
# The columns of `frame`, in order; scores by metric name (select_<metric> ...) follow them.
COLUMNS = {
    "run_id": TEXT,
    "cell_id": TEXT,
    "status": TEXT,
    "error_kind": TEXT,
    "error_message": TEXT,
    "model": TEXT,
    "task": TEXT,
    "method": TEXT,
    "targets": TEXT,
    "rank": NUMBER,
    "rank_min": NUMBER,
    "rank_max": NUMBER,
    "ranks": TEXT,
    "rank_map": TEXT,  # six digits that tell maps of ranks by matrix apart
    **_KINDS["adapter"],
    **_KINDS["task"],
    **{name: kind for name, kind in _KINDS["train"].items() if name != "precision"},
    "train_rows": NUMBER,
    "precision": TEXT,
    **_KINDS["run"],
    "protocol": NUMBER,
    "adapter_parameters": NUMBER,
    "low_rank_parameters": NUMBER,  # of A and B alone, and of failed runs too
    "head_parameters": NUMBER,
    "total_parameters": NUMBER,
    "metric": TEXT,
    "select": NUMBER,
    "report": NUMBER,
    "train": NUMBER,
    "pack_seconds": NUMBER,
    "pack_size": NUMBER,
    "attributed_seconds": NUMBER,
    "overhead_seconds": NUMBER,
    "tokens": NUMBER,
    "flops": NUMBER,
    "adapter_bytes": NUMBER,
    "peak_bytes": NUMBER,
    "environment": TEXT,
    "commit": TEXT,
    "dirty": FLAG,
    "model_fingerprint": TEXT,
    "task_fingerprint": TEXT,
    "sweep": TEXT,
    "started": TEXT,
    "finished": TEXT,
}


def row_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of `Store.frame` that one record fills, with its scores by metric under `by_metric`.

    Raises:
        AttributeError, KeyError, TypeError, ValueError (`ROW_ERRORS`): if a part of the record is of the wrong kind,
            such as a number that no column can hold.
    """
    config, scores, parameters = record["config"], record["scores"], record["parameters"]
    model, task, adapter = (config.get(part) or {} for part in ("model", "task", "adapter"))
    metric = record["metrics"][0] if record["metrics"] else None
    error, where = record.get("error") or {}, record["environment"]
    row = {
        "run_id": record["run_id"],
        "cell_id": record["cell_id"],
        "status": record["status"],
        "error_kind": error.get("kind"),
        "error_message": (error.get("message") or "").partition("\n")[0][:200] or None,
        "model": model.get("name"),
        "model_fingerprint": model.get("fingerprint"),
        "task": task.get("name"),
        "task_fingerprint": task.get("fingerprint"),
        "train_rows": task.get("train_rows"),
        **_mirrored(config, adapter.get("method")),
        **_ranks(record["manifest"], adapter.get("rank")),
        "protocol": config.get("protocol"),
        **{f"{part}_parameters": parameters.get(part) for part in ("adapter", "head", "total")},
        "low_rank_parameters": sum(
            matrix["rank"] * (matrix["d_in"] + matrix["d_out"]) for matrix in record["manifest"]
        ),
        "metric": metric,
        **{split: (scores.get(split) or {}).get(metric) for split in ("select", "report", "train")},
        **{name: value for name, value in record["cost"].items() if name in COLUMNS},
        "environment": where.get("id"),
        "commit": where.get("commit"),
        "dirty": where.get("dirty"),
        "sweep": (record.get("invocation") or {}).get("sweep"),
        "started": record.get("started"),
        "finished": record.get("finished"),
    }
    by_metric = {f"{split}_{name}": value for split, values in scores.items() for name, value in (values or {}).items()}
    numbers = by_metric | {name: row.get(name) for name, kind in COLUMNS.items() if kind == NUMBER}
    for name, value in numbers.items():
        if value is not None and not _is_finite(value):
            raise TypeError(f"{name} is no number that a table can hold: {shortened(value)}")
    for name, value in row.items():
        if isinstance(value, (dict, list)):
            raise TypeError(f"{name} is neither text nor a number: {shortened(value)}")
    return {name: value for name, value in row.items() if value is not None} | {"by_metric": by_metric}


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, (int, float)) and math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def shortened(value: Any) -> str:
    """A value as a message shows it, even an integer of thousands of digits."""
    try:
        text = repr(value)
    except ValueError:  # more digits than Python writes
        return "an integer of thousands of digits"
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"


def frame_of(rows: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The frame of rows from `row_of`, by run id; see `Store.frame`."""
    import pandas as pd

    ordered = [rows[run_id] for run_id in sorted(rows)]
    scored = sorted({name for row in ordered for name in row["by_metric"]}, key=_split_order)
    data = {name: _column([row.get(name) for row in ordered], kind) for name, kind in COLUMNS.items()}
    data |= {name: _column([row["by_metric"].get(name) for row in ordered], NUMBER) for name in scored}
    return pd.DataFrame(data)


def _mirrored(config: Mapping[str, Any], method: object) -> dict[str, Any]:
    """The columns of the scientific fields; a record older than a field gets what its absence amounted to."""
    row = {}
    for part, keys in MIRRORED.items():
        values = config if part == "run" else config.get(part) or {}
        for key, column in zip(keys, _KINDS[part], strict=True):
            has_earlier = key.fact.later is not ALWAYS and key.counts(method)
            value = values.get(key.name, key.fact.later if has_earlier else None)
            row[column] = ",".join(map(str, value)) if isinstance(value, list) else value
    return row | {"rank": None}  # `_ranks` reads it off the manifest


def _ranks(manifest: list[dict[str, Any]], configured: Any) -> dict[str, Any]:
    """The rank of a run: one number when it is that of every matrix of its roles, else words by role and a mark."""
    by_role: dict[str, set[int]] = {}
    for matrix in manifest:
        by_role.setdefault(matrix["role"], set()).add(matrix["rank"])
    ranks = set().union(*by_role.values())
    if not ranks and isinstance(configured, int):
        ranks = {configured}
    if not ranks:
        return {}
    low, high = min(ranks), max(ranks)
    mark = {"rank_map": _mark(configured)} if isinstance(configured, dict) and configured else {}
    if low == high:
        rank = {} if mark else {"rank": low}
        return {**rank, "rank_min": low, "rank_max": high, "ranks": str(low), **mark}
    words = {role: f"{min(own)}-{max(own)}" if len(own) > 1 else str(min(own)) for role, own in by_role.items()}
    said = " ".join(f"{role}:{text}" for role, text in words.items())
    return {"rank_min": low, "rank_max": high, "ranks": said, **mark}


def _mark(ranks: Mapping[str, int]) -> str:
    """Six hexadecimal digits of a map from matrices to ranks."""
    return hashlib.sha256(json.dumps(ranks, sort_keys=True).encode()).hexdigest()[:6]


def _column(values: list[Any], kind: str) -> pd.Series:
    import pandas as pd

    if kind == NUMBER:
        is_whole = bool(values) and all(isinstance(value, int) and abs(value) < 2**63 for value in values)
        return pd.Series(values, dtype="int64" if is_whole else "float64")
    is_text = kind == TEXT and any(value is not None for value in values)
    return pd.Series(values, dtype=None if is_text else "object")


def _split_order(column: str) -> tuple[int, str]:
    """Select before report before train, then by name: the order of the columns by metric."""
    prefixes = ("select_", "report_", "train_")
    return next((place for place, prefix in enumerate(prefixes) if column.startswith(prefix)), len(prefixes)), column
