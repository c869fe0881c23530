"""The checksums of a run's files beside its record: kept in the record under `files`, checked when a file is read.

    "files": {"predictions.parquet": {"bytes": 5120, "sha256": "..."}, "adapter/adapter_model.safetensors": {...}}

Records of earlier versions lack them; the files of such runs are read unchecked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_bench.store.errors import StoreError

FILES = "files"


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file below a folder, by its path from there."""
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def check(folder: Path, record: Mapping[str, Any], part: str) -> None:
    """Check a file, or every file below a folder of that name, against the record.

    Raises:
        StoreError: naming the file that is missing or was changed.
    """
    files = record.get(FILES)
    if not isinstance(files, Mapping):
        return
    listed = {name: about for name, about in files.items() if name == part or name.startswith(f"{part}/")}
    for name, about in listed.items():
        path = folder / name
        if not path.is_file():
            problem = "is missing"
        elif not isinstance(about, Mapping) or sha256_of(path) != about.get("sha256"):
            problem = "does not match its checksum in the record"
        else:
            continue
        raise StoreError(f"store: {path} {problem}; restore the file, or remove {folder} and train the run again")


def without(record: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The record of a run of which one part is no longer kept."""
    if FILES not in record:
        return dict(record)
    left = {name: about for name, about in record[FILES].items() if name != part and not name.startswith(f"{part}/")}
    return {**record, FILES: left}
