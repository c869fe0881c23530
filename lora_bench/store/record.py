"""The record: the one JSON document that a run ends in, and the rules that keep it honest.

A record is built by `new_record` and checked by `check_record`. What was not measured is null.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from lora_bench.store.document import FORMAT, REQUIRED_KEYS, RUN_ID, STATUSES, canonical
from lora_bench.store.errors import GuardError, NonFiniteError, RecordError
from lora_bench.store.secrets import scrub

ERROR_KINDS = ("exception", "nonfinite", "out_of_memory", "guard", "died")
CURVES = ("step", "loss", "lr", "grad_norm")
COSTS = (
    "pack_seconds",
    "pack_size",
    "attributed_seconds",
    "tokens",
    "flops",
    "adapter_bytes",
    "peak_bytes",
    "overhead_seconds",
)


# Building


def new_record(
    *,
    run_id: str,
    cell_id: str,
    config: Mapping[str, Any],
    metrics: Iterable[str],
    manifest: Iterable[Mapping[str, Any]],
    parameters: Mapping[str, int | None],
    environment: Mapping[str, Any],
    started: str,
    finished: str | None = None,
    error: Mapping[str, Any] | None = None,
    scores: Mapping[str, Any] | None = None,
    history: Mapping[str, Any] | None = None,
    cost: Mapping[str, Any] | None = None,
    norms: Iterable[Mapping[str, Any]] = (),
    guards: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    invocation: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A checked record in canonical form; it is `failed` when there is an `error`, else `finished`.

    Args:
        error: from `failure` or `died`.
        started, finished: ISO 8601; `finished` is now by default.

    Raises:
        RecordError: if the parts do not make a record, such as a score that is not finite in a finished run.
    """
    record = canonical(
        {
            "format": FORMAT,
            "run_id": run_id,
            "cell_id": cell_id,
            "status": "failed" if error else "finished",
            "error": error,
            "config": config,
            "metrics": metrics,
            "manifest": manifest,
            "parameters": {"adapter": None, "head": None, "total": None} | dict(parameters),
            "scores": {"train": None, "select": None, "report": None} | dict(scores or {}),
            "history": {name: [] for name in (*CURVES, "epochs")} | dict(history or {}),
            "cost": dict.fromkeys(COSTS) | dict(cost or {}),
            "norms": norms,
            "guards": guards or {},
            "data": data or {},
            "environment": environment,
            "invocation": {"overrides": [], "sweep": None} | dict(invocation or {}),
            "started": started,
            "finished": finished or utc_now(),
        }
    )
    check_record(record)
    return record


def failure(error: BaseException) -> dict[str, str]:
    """What a failed record says about an exception: its kind, type, message and traceback, without secrets."""
    message = scrub(str(error)) or type(error).__name__
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return {"kind": _kind(error), "type": type(error).__name__, "message": message, "traceback": scrub(text)}


def died(message: str) -> dict[str, str]:
    """What a failed record says about a process that ended without a word; there is no traceback to keep."""
    return {"kind": "died", "type": "ProcessDied", "message": scrub(message), "traceback": ""}


def require_guards(guards: Mapping[str, Any]) -> None:
    """Raise GuardError naming every guard that is false or not finite."""
    broken = [name for name, value in guards.items() if value is False or not math.isfinite(value or 0)]
    if broken:
        raise GuardError(f"guards that did not hold: {', '.join(f'{name} ({guards[name]})' for name in broken)}")


def utc_now() -> str:
    """The time now in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _kind(error: BaseException) -> str:
    if isinstance(error, GuardError):
        return "guard"
    if isinstance(error, (NonFiniteError, FloatingPointError)):
        return "nonfinite"
    # By name, because this module does not import torch: torch.OutOfMemoryError, and the CPU allocator's RuntimeError.
    names = {kind.__name__ for kind in type(error).__mro__}
    is_memory = bool(names & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(error)
    return "out_of_memory" if is_memory or "out of memory" in str(error).lower() else "exception"


# Checking


def check_record(record: Any) -> None:
    """Check a record as strictly as a writer must.

    Raises:
        RecordError: with every problem found.
    """
    found = problems(record)
    if found:
        raise RecordError(found)


def problems(record: Any) -> list[str]:
    """Everything that keeps `record` from being written; empty when it is sound."""
    if not isinstance(record, dict):
        return [f"expected an object, got {type(record).__name__}"]
    found = []
    for key, kind in REQUIRED_KEYS.items():
        if key not in record:
            found.append(f"no '{key}'")
        elif not isinstance(record[key], kind) or isinstance(record[key], bool):
            found.append(f"'{key}' has the wrong type: {type(record[key]).__name__}")
    if found:
        return found
    return [
        *_identity_problems(record),
        *_status_problems(record),
        *_config_problems(record["config"]),
        *_manifest_problems(record["manifest"]),
        *_score_problems(record),
        *_history_problems(record["history"]),
        *(f"{path} is not finite" for path in _not_finite(record)),
    ]


def _identity_problems(record: dict) -> Iterable[str]:
    if record["format"] != FORMAT:
        yield f"format {record['format']}, expected {FORMAT}"
    for key in ("run_id", "cell_id"):
        if not RUN_ID.fullmatch(record[key]):
            yield f"'{key}' must be 8 to 64 of 0-9a-f, got {record[key]!r}"
    if not isinstance(record["environment"].get("id"), str):
        yield "environment has no 'id'"


def _status_problems(record: dict) -> Iterable[str]:
    status, error = record["status"], record["error"]
    if status not in STATUSES:
        yield f"status {status!r}, expected one of {', '.join(STATUSES)}"
    if (status == "failed") != (error is not None):
        yield f"a {status} record with error {error!r}"
    if error is not None:
        if error.get("kind") not in ERROR_KINDS:
            yield f"error kind {error.get('kind')!r}, expected one of {', '.join(ERROR_KINDS)}"
        texts = ("type", "message", "traceback")
        yield from (f"error '{key}' is no text" for key in texts if not isinstance(error.get(key), str))
    if status == "finished":
        yield from (f"guard '{name}' did not hold" for name, value in record["guards"].items() if value is False)


def _config_problems(config: dict) -> Iterable[str]:
    parts = ("model", "task", "adapter", "train")
    yield from (f"config has no '{part}'" for part in parts if not isinstance(config.get(part), dict))
    if not isinstance(config.get("seed"), int):
        yield "config has no 'seed'"


def _manifest_problems(manifest: list) -> Iterable[str]:
    keys = {"role", "layer", "module", "d_in", "d_out", "rank"}
    for place, matrix in enumerate(manifest):
        missing = keys - set(matrix) if isinstance(matrix, dict) else keys
        if missing:
            yield f"manifest[{place}] lacks {', '.join(sorted(missing))}"


def _score_problems(record: dict) -> Iterable[str]:
    metrics, scores = record["metrics"], record["scores"]
    if not metrics or not all(isinstance(name, str) for name in metrics):
        yield "metrics must be names, the primary one first"
        return
    for split, values in scores.items():
        if values is not None and not (
            isinstance(values, dict) and all(value is None or _is_number(value) for value in values.values())
        ):
            yield f"scores.{split} must be null or numbers by metric"
    if record["status"] != "finished":
        return
    scored = {split: values for split, values in scores.items() if isinstance(values, dict)}
    if not any(split in scored for split in ("select", "report")):
        yield "a finished record needs scores on select or report"
    yield from (f"scores.{split} lacks {metrics[0]}" for split, values in scored.items() if metrics[0] not in values)
    lost = [path for path in record.get("not_finite", []) if path.startswith("scores.")]
    yield from (f"{path} is not finite" for path in lost)


def _history_problems(history: dict) -> Iterable[str]:
    curves = {name: history.get(name) for name in CURVES}
    if not all(isinstance(values, list) for values in curves.values()) or not isinstance(history.get("epochs"), list):
        yield f"history must hold the lists {', '.join(CURVES)} and epochs"
    elif len({len(values) for values in curves.values() if values is not None}) != 1:
        yield f"history curves differ in length: { {name: len(values or []) for name, values in curves.items()} }"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _not_finite(value: Any, path: str = "") -> Iterable[str]:
    if isinstance(value, float):
        if not math.isfinite(value):
            yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _not_finite(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from _not_finite(item, f"{path}[{place}]")
