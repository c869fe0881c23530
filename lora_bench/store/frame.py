"""The columns of a store's frame, and the row that one record makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd  # a fifth of a second: imported where a table is made or read, behind what is refused


TEXT = "text"
NUMBER = "number"
FLAG = "flag"
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
    "alpha": NUMBER,
    "alpha_policy": TEXT,
    "adapter_dropout": NUMBER,
    "init": TEXT,
    "layers": TEXT,
    "replicate": NUMBER,
    "b_lr_ratio": NUMBER,
    "lr": NUMBER,
    "head_lr": NUMBER,
    "epochs": NUMBER,
    "batch_size": NUMBER,
    "grad_accumulation": NUMBER,
    "max_length": NUMBER,
    "schedule": TEXT,
    "warmup_ratio": NUMBER,
    "weight_decay": NUMBER,
    "max_grad_norm": NUMBER,
    "train_dropout": NUMBER,
    "checkpoint": TEXT,
    "train_rows": NUMBER,
    "precision": TEXT,
    "seed": NUMBER,
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
_OF_ADAPTER = ("method", "targets", "alpha", "alpha_policy", "init", "replicate", "b_lr_ratio")
_OF_TRAIN = (
    *("lr", "head_lr", "epochs", "batch_size", "grad_accumulation", "max_length", "schedule", "warmup_ratio"),
    *("weight_decay", "max_grad_norm", "checkpoint", "precision"),
)


def row_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of `Store.frame` that one record fills, its scores by metric under `by_metric`.

    Raises:
        AttributeError, KeyError, TypeError: if a part of the record is not of the kind that it must be.
    """
    config, scores, parameters = record["config"], record["scores"], record["parameters"]
    model, task, adapter, train = (config.get(part) or {} for part in ("model", "task", "adapter", "train"))
    metric = record["metrics"][0] if record["metrics"] else None
    error, where = record.get("error") or {}, record["environment"]
    layers = adapter.get("layers")
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
        **{name: adapter.get(name) for name in _OF_ADAPTER},
        **_ranks(record["manifest"], adapter.get("rank")),
        "adapter_dropout": adapter.get("dropout"),
        "layers": ",".join(map(str, layers)) if isinstance(layers, list) else layers,
        **{name: train.get(name) for name in _OF_TRAIN},
        "train_dropout": train.get("dropout"),
        "seed": config.get("seed"),
        "protocol": config.get("protocol"),
        **{f"{part}_parameters": parameters.get(part) for part in ("adapter", "head", "total")},
        "low_rank_parameters": sum(one["rank"] * (one["d_in"] + one["d_out"]) for one in record["manifest"]),
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
        if value is not None and not isinstance(value, (int, float)):
            raise TypeError(f"{name} is no number: {value!r}")
    return {name: value for name, value in row.items() if value is not None} | {"by_metric": by_metric}


def frame_of(rows: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The frame of rows from `row_of`, by run id; see `Store.frame`."""
    import pandas as pd

    ordered = [rows[run_id] for run_id in sorted(rows)]
    scored = sorted({name for row in ordered for name in row["by_metric"]}, key=_split_order)
    data = {name: _column([row.get(name) for row in ordered], kind) for name, kind in COLUMNS.items()}
    data |= {name: _column([row["by_metric"].get(name) for row in ordered], NUMBER) for name in scored}
    return pd.DataFrame(data)


def _ranks(manifest: list[dict[str, Any]], configured: Any) -> dict[str, Any]:
    """The rank of a run: one number when all its matrices share it, and in words by role when they do not."""
    by_role: dict[str, set[int]] = {}
    for matrix in manifest:
        by_role.setdefault(matrix["role"], set()).add(matrix["rank"])
    ranks = set().union(*by_role.values())
    if not ranks and isinstance(configured, int):
        ranks = {configured}
    if not ranks:
        return {}
    low, high = min(ranks), max(ranks)
    if low == high:
        return {"rank": low, "rank_min": low, "rank_max": high, "ranks": str(low)}
    words = {role: f"{min(own)}-{max(own)}" if len(own) > 1 else str(min(own)) for role, own in by_role.items()}
    return {"rank_min": low, "rank_max": high, "ranks": " ".join(f"{role}:{text}" for role, text in words.items())}


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
