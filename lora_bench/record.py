"""The record: the one JSON document that a run ends in, and the rules that keep it honest.

A record is built by `new_record`, checked by `check_record`, turned into bytes by `dumps` and back by `loads`.
What was not measured is null. A number that is not finite never reaches the file: in a score of a finished run it is
an error, elsewhere (the loss of a run that diverged) it becomes null and the record's `not_finite` lists where.
The first line of the file carries the SHA-256 of everything below it, so a flipped digit is found, not read.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import platform
import re
import subprocess
import sys
import traceback
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from lora_bench import __version__
from lora_bench.paths import home

FORMAT = 1
RUN_ID = re.compile(r"[0-9a-f]{8,64}")
STATUSES = ("finished", "failed")
ERROR_KINDS = ("exception", "nonfinite", "out_of_memory", "guard", "died")

# Every record has these keys; the readers of old records rely on the core ones only.
REQUIRED_KEYS: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "run_id": str,
    "cell_id": str,
    "status": str,
    "error": (dict, type(None)),
    "config": dict,
    "metrics": list,
    "manifest": list,
    "parameters": dict,
    "scores": dict,
    "history": dict,
    "cost": dict,
    "norms": list,
    "guards": dict,
    "data": dict,
    "environment": dict,
    "invocation": dict,
    "started": str,
    "finished": str,
}
CORE_KEYS = (
    *("run_id", "cell_id", "status", "config", "metrics"),
    *("manifest", "parameters", "scores", "cost", "environment"),
)
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
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "safetensors",
    "numpy",
    "scipy",
    "pandas",
    "scikit-learn",
    "datasets",
    "hydra-core",
    "wandb",
)
SOURCES = ("lora_bench", "hydra_plugins", "conf", "sweeps", "analysis", "pyproject.toml")
SOFTWARE_KEYS = ("python", "torch", "transformers", "peft", "numpy")
ENVIRONMENT_KEYS = ("device", "cpu", "threads", *SOFTWARE_KEYS)


class RecordError(ValueError):
    """A document that is not a record: `problems` says what is wrong with it."""

    def __init__(self, problems: Iterable[str]):
        self.problems = list(problems)
        super().__init__("record: " + "; ".join(self.problems))


class UnreadableRecord(RecordError):
    """Bytes that are no record: cut short, garbled, or belonging to another run."""


class NewerRecord(RecordError):
    """A record written by a newer lora_bench, which this one must not judge."""


class NonFiniteError(ArithmeticError):
    """A loss, gradient, logit or score that is not a finite number."""


class GuardError(RuntimeError):
    """A guard that did not hold: the run must fail rather than report its scores."""


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


# Canonical JSON


def canonical(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document as plain JSON types, without secrets, the folders of home, project and Python, or numbers that
    are not finite.

    Numpy scalars and arrays become numbers and lists, tuples and iterators become lists. A number that is not finite
    becomes null, and its place is added to the document's `not_finite`.

    Raises:
        RecordError: for a value that JSON has no form for.
    """
    places: list[str] = []
    plain = _plain(document, "", places, _scrubber())
    if places:
        plain["not_finite"] = sorted({*plain.get("not_finite", []), *places})
    return plain


def _plain(value: Any, path: str, not_finite: list[str], scrubbed: Any) -> Any:
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return scrubbed(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        not_finite.append(path)
        return None
    if isinstance(value, Mapping):
        keys = [key if isinstance(key, str) else str(key) for key in value]
        if len(set(keys)) != len(keys):
            raise RecordError([f"{path or 'record'} has two keys of one name"])
        return {
            key: _plain(item, f"{path}.{key}" if path else key, not_finite, scrubbed)
            for key, item in zip(keys, value.values(), strict=True)
        }
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        return _plain(value.tolist(), path, not_finite, scrubbed)
    if isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray)):
        return [_plain(item, f"{path}[{place}]", not_finite, scrubbed) for place, item in enumerate(value)]
    raise RecordError([f"{path} is a {type(value).__name__}, which JSON cannot hold"])


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


def dumps(record: Mapping[str, Any]) -> bytes:
    """The record's file: its checksum on the first line, then one top-level key a line."""
    lines = [
        f"{json.dumps(key)}: {json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(', ', ': '))}"
        for key, value in record.items()
    ]
    body = (",\n".join(lines) + "\n}\n").encode()
    return _CHECKSUM_LINE % hashlib.sha256(body).hexdigest().encode() + body


def loads(content: bytes, *, run_id: str | None = None) -> dict[str, Any]:
    """Read a record's file back, refusing what is not the record that was written.

    A document without the checksum line, such as one made by another tool, is judged by its keys alone.

    Args:
        run_id: the name it was found under; a record of another run is refused.

    Raises:
        UnreadableRecord: it is cut short, garbled, or lacks what every reader needs.
        NewerRecord: its format is newer than this code.
    """
    match = _CHECKSUM.match(content)
    if match and hashlib.sha256(content[match.end() :]).hexdigest().encode() != match[1]:
        raise UnreadableRecord(["its content does not match its checksum"])
    try:
        record = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UnreadableRecord([f"not JSON ({error})" if content.strip() else "empty"]) from None
    if not isinstance(record, dict):
        raise UnreadableRecord([f"expected an object, got {type(record).__name__}"])
    record.pop("checksum", None)
    version = record.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise NewerRecord([f"format {version} was written by a newer lora_bench, which reads up to {FORMAT} here"])
    found = [f"no '{key}'" for key in CORE_KEYS if key not in record]
    found += [
        f"'{key}' has the wrong type: {type(record[key]).__name__}"
        for key in CORE_KEYS
        if key in record and not isinstance(record[key], REQUIRED_KEYS[key])
    ]
    if not found and record["status"] not in STATUSES:
        found.append(f"status {record['status']!r}")
    if not found and run_id is not None and record["run_id"] != run_id:
        found.append(f"it is the record of run {record['run_id']!r}")
    if found:
        raise UnreadableRecord(found)
    return record


_CHECKSUM_LINE = b'{"checksum": "%s",\n'
_CHECKSUM = re.compile(rb'\{"checksum": "([0-9a-f]{64})",\n')


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


# Secrets and machine paths

_SECRET_NAME = re.compile(r"secret|passw|apikey|credential|(^|_)(key|token|pass|pwd|pat)s?(_|$)", re.IGNORECASE)
_SECRET_SHAPES = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bwandb_v\d_[A-Za-z0-9_]{20,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)|(?<=[Bb]earer )[\w.~+/=-]{12,}"
)
_HIDDEN = "***"


def scrub(text: str) -> str:
    """The text without secrets, and with the paths of this machine made relative.

    Secrets are the values of environment variables named like a key, token, secret or password, and strings shaped
    like one of the services' tokens. Values below 8 characters stay: they hide nothing, and occur in honest text.
    """
    return _scrubber()(text)


_FOLDERS = re.compile(r"(?<![\w./<])~?/(?:[^\s/'\":,;()\[\]{}]+/)*(?=[^\s/'\"])")


def without_folders(text: str) -> str:
    """The text, each absolute path in it cut to its last part: for what leaves the machine."""
    return _FOLDERS.sub("", text)


def _scrubber() -> Any:
    secrets = {value for name, value in os.environ.items() if len(value) >= 8 and _SECRET_NAME.search(name)}
    prefixes = _machine_prefixes(tuple(sys.path), os.getcwd(), str(home() or ""))
    # Longest first, so that a secret or folder that begins with another is replaced whole.
    known = dict.fromkeys(sorted(secrets, key=len, reverse=True), _HIDDEN) | prefixes
    pattern = re.compile("|".join(re.escape(text) for text in known)) if known else None

    def scrubbed(text: str) -> str:
        if pattern is not None:
            text = pattern.sub(lambda match: known[match[0]], text)
        return _SECRET_SHAPES.sub(_HIDDEN, text)

    return scrubbed


@functools.lru_cache(maxsize=8)
def _machine_prefixes(search_path: tuple[str, ...], folder: str, home: str) -> dict[str, str]:
    """Absolute folders, longest first, and what stands for them in a record."""
    replacements = {f"{home.rstrip('/')}/": "~/", f"{folder.rstrip('/')}/": "", f"{Path(__file__).parents[1]}/": ""}
    replacements |= {f"{place.rstrip('/')}/": "" for place in search_path if os.path.isabs(place)}
    return {place: replacements[place] for place in sorted(replacements, key=len, reverse=True) if len(place) > 1}


# Environment


def environment(*, device: str, threads: int) -> dict[str, Any]:
    """What a result may depend on beside its configuration; `id` names what must agree for two to be comparable.

    Versions come from the installed packages' metadata, so nothing is imported. A package that is absent is null, and
    so are `commit` and `dirty` outside a git checkout of this project.

    Args:
        device: what trained the run: `cpu`, or the accelerator's name.
        threads: CPU threads that the training process used.
    """
    facts: dict[str, Any] = {"device": device, "threads": threads, **_machine()}
    identity = json.dumps([facts[key] for key in ENVIRONMENT_KEYS])
    return {"id": hashlib.sha256(identity.encode()).hexdigest()[:12], **facts, **_source()}


@functools.cache
def _machine() -> dict[str, Any]:
    versions = {name.replace("-", "_"): _version(name) for name in PACKAGES}
    machine = {"cpu": _cpu_model(), "platform": platform.platform(), "python": platform.python_version()}
    return {**machine, "lora_bench": __version__, **versions}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@functools.cache
def _source() -> dict[str, Any]:
    """Commit and dirty flag of the checkout that this file lies in; only changes to the source make it dirty."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--", *SOURCES)
    return {"commit": commit or None, "dirty": None if changes is None else bool(changes)}


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
