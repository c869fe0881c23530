"""Write a report anew: the new one takes the place of the old when it is whole, and what only the old one had goes.

    OUT/.new-report-<token>/   the new one, until it is whole
    OUT/written.json           every file of the report that is there: {"files": {name: SHA-256}}

A file goes only if that list has it and its content is still what was written: tables of other commands, and what a
user put or changed there, stay.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

LIST = "written.json"


@contextlib.contextmanager
def anew(out: Path) -> Iterator[Path]:
    """A folder to write a report into; where the block ends well, its files replace those of the report in `out`.

    Raises:
        OSError: when it cannot be written.
    """
    is_made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".new-report-", dir=out))
    try:
        yield folder
        _replace(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if is_made:
            with contextlib.suppress(OSError):  # it is not empty: the report is there
                out.rmdir()


def _replace(folder: Path, out: Path) -> None:
    new = {path.relative_to(folder).as_posix(): _checksum(path) for path in folder.rglob("*") if path.is_file()}
    old = _read(out)
    _write(out, old | new)  # first: what a process that is killed here leaves is the next report's to remove
    for name in sorted(new, key=lambda name: name.endswith(".html")):  # the page last, which links to the others
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder / name, out / name)
    for name in old.keys() - new.keys():
        _remove(out / name, old[name])
    _write(out, new)


def _remove(path: Path, checksum: str) -> None:
    with contextlib.suppress(OSError):
        if not path.is_symlink() and path.is_file() and _checksum(path) == checksum:
            path.unlink()


def _read(out: Path) -> dict[str, str]:
    """What the report in `out` wrote; nothing where no list can be read. Names that lead out of it do not count."""
    try:
        files = json.loads((out / LIST).read_text(encoding="utf-8"))["files"]
        return {name: str(files[name]) for name in files if _is_below(name)}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _is_below(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name


def _write(out: Path, files: Mapping[str, str]) -> None:
    text = json.dumps({"files": dict(sorted(files.items()))}, indent=1) + "\n"
    new = out / f".{LIST}.{os.getpid()}"
    new.write_text(text, encoding="utf-8")
    os.replace(new, out / LIST)


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
