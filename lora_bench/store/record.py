"""The record: the one JSON document that a run ends in, and the rules that keep it honest.

A record is built by `finished` or `failed` and checked by `check_record`. What was not measured is null.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
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


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The run that a record is about, and where and how it was started. `started` is ISO 8601.

    `task` sums up the rows: `labels`, their names by output (null for regression), `label_counts`, `repeats`. Older
    records lack it.
    """

    run_id: str
    cell_id: str
    config: Mapping[str, Any]
    metrics: Iterable[str]
    manifest: Iterable[Mapping[str, Any]]
    environment: Mapping[str, Any]
    started: str
    data: Mapping[str, Any] = field(default_factory=dict)
    task: Mapping[str, Any] = field(default_factory=dict)
    invocation: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was counted and measured of a run, as far as it got."""

    parameters: Mapping[str, int | None]
    history: Mapping[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a run that finished."""

    scores: Mapping[str, Any]
    guards: Mapping[str, Any] = field(default_factory=dict)
    norms: Iterable[Mapping[str, Any]] = ()


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a run has no result; `kind` is one of ERROR_KINDS."""

    kind: str
    type: str
    message: str
    traceback: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """An exception: its kind, type, message and traceback, without secrets."""
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        name = type(error).__name__
        return cls(kind=_kind(error), type=name, message=scrub(str(error)) or name, traceback=scrub(text))

    @classmethod
    def died(cls, message: str) -> Failure:
        """A process that ended without a word; there is no traceback to keep."""
        return cls(kind="died", type="ProcessDied", message=scrub(message), traceback="")


def finished(subject: Subject, measured: Measured, outcome: Outcome) -> dict[str, Any]:
    """The checked record, in canonical form, of a run that ends now with a result.

    Raises:
        RecordError: if the parts do not make a record, such as a score that is not finite.
    """
    return _record("finished", None, subject, measured, outcome)


def failed(subject: Subject, measured: Measured, failure: Failure) -> dict[str, Any]:
    """The checked record, in canonical form, of a run that ends now without a result.

    Raises:
        RecordError: if the parts do not make a record.
    """
    return _record("failed", failure, subject, measured, Outcome(scores={}))


def _record(
    status: str, failure: Failure | None, subject: Subject, measured: Measured, outcome: Outcome
) -> dict[str, Any]:
    record = canonical(
        {
            "format": FORMAT,
            "run_id": subject.run_id,
            "cell_id": subject.cell_id,
            "status": status,
            "error": asdict(failure) if failure else None,
            "config": subject.config,
            "metrics": subject.metrics,
            "manifest": subject.manifest,
            "parameters": {"adapter": None, "head": None, "total": None} | dict(measured.parameters),
            "scores": {"train": None, "select": None, "report": None} | dict(outcome.scores),
            "history": {name: [] for name in (*CURVES, "epochs")} | dict(measured.history),
            "cost": dict.fromkeys(COSTS) | measured.cost,
            "norms": outcome.norms,
            "guards": outcome.guards,
            "data": subject.data,
            **({"task": subject.task} if subject.task else {}),
            "environment": subject.environment,
            "invocation": {"overrides": [], "sweep": None} | dict(subject.invocation),
            "started": subject.started,
            "finished": utc_now(),
        }
    )
    check_record(record)
    return record


def require_guards(guards: Mapping[str, Any]) -> None:
    """Raise GuardError naming every guard that is false or not finite, with what was measured."""
    broken = [name for name, value in guards.items() if value is False or not math.isfinite(value or 0)]
    if broken:
        gaps = {name: value for name, value in guards.items() if name not in broken and not isinstance(value, bool)}
        measured = f"; {', '.join(f'{name} {value:.3g}' for name, value in gaps.items())}" if gaps else ""
        raise GuardError(
            f"guards that did not hold: {', '.join(f'{name} ({guards[name]})' for name in broken)}{measured}"
        )


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
    message = str(error).lower()
    is_memory = bool(names & {"MemoryError", "OutOfMemoryError"}) or any(sign in message for sign in _NO_MEMORY)
    return "out_of_memory" if is_memory else "exception"


_NO_MEMORY = (
    *("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc"),
    *("could not create a memory object", "could not create a primitive"),  # oneDNN's
)


# Checking


def check_record(record: Any) -> None:
    """Check a record as strictly as a writer must.

    Raises:
        RecordError: with every problem found.
    """
    reasons = problems(record)
    if reasons:
        raise RecordError(reasons)


def problems(record: Any) -> list[str]:
    """Everything that keeps `record` from being written; empty when it is sound."""
    if not isinstance(record, dict):
        return [f"expected an object, got {type(record).__name__}"]
    reasons = []
    for key, kind in REQUIRED_KEYS.items():
        if key not in record:
            reasons.append(f"no '{key}'")
        elif not isinstance(record[key], kind) or isinstance(record[key], bool):
            reasons.append(f"'{key}' has the wrong type: {type(record[key]).__name__}")
    if reasons:
        return reasons
    return [
        *_identity_problems(record),
        *_status_problems(record),
        *_config_problems(record["config"]),
        *_task_problems(record.get("task", {})),
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


def _task_problems(task: Any) -> Iterable[str]:
    labels = task.get("labels") if isinstance(task, dict) else task
    if not isinstance(task, dict) or not (
        labels is None or (isinstance(labels, list) and all(isinstance(label, str) for label in labels))
    ):
        yield "task.labels must be null or names"


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
