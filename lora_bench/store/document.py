"""A record as bytes, and back.

A number that is not finite never reaches the file: in the score of a finished run it is an error; elsewhere, as in the
loss of a run that diverged, it becomes null, and the record's `not_finite` lists where. The first line of the file
carries the SHA-256 of everything below it, so a flipped digit is detected, not read.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lora_bench.store.errors import NewerRecord, RecordError, UnreadableRecord
from lora_bench.store.secrets import FACTS, TEXTS, override_scrubber, scrubber

FORMAT = 1
RUN_ID = re.compile(r"[0-9a-f]{8,64}")
STATUSES = ("finished", "failed")

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


def canonical(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document as plain JSON types: without secrets, without the paths of home, project and Python, and with finite
    numbers alone.

    Numpy scalars and arrays become numbers and lists, tuples and iterators become lists. A number that is not finite
    becomes null, and its place is added to the document's `not_finite`.

    Raises:
        RecordError: for a value that JSON has no form for.
    """
    places: list[str] = []
    kinds: dict[str, Callable[[str], str]] = dict.fromkeys(TEXTS, scrubber("all"))
    kinds |= dict.fromkeys(FACTS, scrubber("none"))
    others = scrubber("sure")
    plain: dict[str, Any] = {}
    for key, value in _text_keys(document, "record").items():
        plain[key] = _plain(value, key, places, kinds.get(key, others))
    if overrides := (plain.get("invocation") or {}).get("overrides"):
        plain["invocation"]["overrides"] = [*map(override_scrubber(), map(str, overrides))]
    if places:
        plain["not_finite"] = sorted({*plain.get("not_finite", []), *places})
    return plain


def _text_keys(value: Mapping[Any, Any], path: str) -> dict[str, Any]:
    named = {_encodable(str(key)): item for key, item in value.items()}
    if len(named) != len(value):
        raise RecordError([f"{path} has two keys of one name"])
    return named


def _plain(value: Any, path: str, not_finite: list[str], scrubbed: Any) -> Any:
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return scrubbed(_encodable(value))
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        not_finite.append(path)
        return None
    if isinstance(value, Mapping):
        items = _text_keys(value, path).items()
        return {key: _plain(item, f"{path}.{key}", not_finite, scrubbed) for key, item in items}
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        return _plain(value.tolist(), path, not_finite, scrubbed)
    if isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray)):
        return [_plain(item, f"{path}[{place}]", not_finite, scrubbed) for place, item in enumerate(value)]
    raise RecordError([f"{path} is a {type(value).__name__}, which JSON cannot hold"])


def _encodable(text: str) -> str:
    """The text, with lone surrogates (of an argument in another encoding) as escapes: no file can hold them."""
    return text.encode("utf-8", "backslashreplace").decode()


def dumps(record: Mapping[str, Any]) -> bytes:
    """The record's file: its checksum on the first line, then one top-level key a line."""
    lines = [
        f"{json.dumps(key)}: {json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(', ', ': '))}"
        for key, value in record.items()
    ]
    body = (",\n".join(lines) + "\n}\n").encode()
    return _CHECKSUM_LINE % hashlib.sha256(body).hexdigest().encode() + body


def loads(content: bytes, *, run_id: str | None = None) -> dict[str, Any]:
    """Read a record's file back; refuse anything but the record that was written.

    A document without the checksum line, such as one made by another tool, is judged by its keys alone.

    Args:
        run_id: the name of its folder; the record of another run is refused.

    Raises:
        UnreadableRecord: it is cut short, garbled, or lacks what every reader needs.
        NewerRecord: its format is newer than this code.
    """
    match = _CHECKSUM.match(content)
    if match and hashlib.sha256(content[match.end() :]).hexdigest().encode() != match[1]:
        raise UnreadableRecord(["its content does not match its checksum"])
    try:
        # Decoded here, since json.loads lets lone surrogates pass, which no index or table can hold.
        record = json.loads(content.decode("utf-8-sig"), parse_constant=_refuse_constant)
        if b"\\ud" in content.lower():
            json.dumps(record, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise UnreadableRecord([f"not JSON ({error})" if content.strip() else "empty"]) from None
    if not isinstance(record, dict):
        raise UnreadableRecord([f"expected an object, got {type(record).__name__}"])
    record.pop("checksum", None)
    version = record.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise NewerRecord([f"format {version} was written by a newer lora_bench, which reads up to {FORMAT} here"])
    problems = [f"no '{key}'" for key in CORE_KEYS if key not in record]
    problems += [
        f"'{key}' has the wrong type: {type(record[key]).__name__}"
        for key in CORE_KEYS
        if key in record and not isinstance(record[key], REQUIRED_KEYS[key])
    ]
    if not problems and record["status"] not in STATUSES:
        problems.append(f"status {record['status']!r}")
    if not problems and run_id is not None and record["run_id"] != run_id:
        problems.append(f"it is the record of run {record['run_id']!r}")
    if problems:
        raise UnreadableRecord(problems)
    return record


_CHECKSUM_LINE = b'{"checksum": "%s",\n'
_CHECKSUM = re.compile(rb'\{"checksum": "([0-9a-f]{64})",\n')


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
