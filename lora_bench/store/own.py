"""What in a store's folder is ours: the folder may hold anything else, and a user's files are never touched.

A name alone does not make a thing ours. A run's folder is named by its run id and holds a record, or only parts of a
run. A temporary one has a name from `temporary_name`, and a lock file or a record that says that a writer of ours made
it. Links are never ours.
"""

from __future__ import annotations

import re
from pathlib import Path
from uuid import uuid4

from lora_bench.store.document import RUN_ID, loads
from lora_bench.store.errors import RecordError
from lora_bench.store.reader import ADAPTER, PREDICTIONS

RECORD = "record.json"
CLAIMS = ".claims"
QUARANTINE = "quarantine"
REPLACED = "-replaced"
_TEMPORARY = re.compile(rf"\.tmp-([0-9a-f]{{8,64}})-[0-9a-f]{{12}}(?:{REPLACED})?")
_SET_ASIDE = re.compile(r"[0-9a-f]{8,64}-[0-9]+")
_INDEX_LINE = re.compile(rb'^[0-9a-f]{8} \{"v":', re.MULTILINE)


def temporary_name(run_id: str) -> str:
    """A name for the folder in which a run is made."""
    return f".tmp-{run_id}-{uuid4().hex[:12]}"


def lock_of(temporary: Path) -> Path:
    """The lock file of a temporary folder, or of the one that it replaced."""
    return temporary.parent / CLAIMS / f"{temporary.name.removesuffix(REPLACED)}.lock"


def run_of(temporary: Path) -> str:
    """The run whose temporary folder this is."""
    match = _TEMPORARY.fullmatch(temporary.name)
    assert match is not None, f"{temporary.name} is no temporary folder of ours"
    return match[1]


def is_temporary(folder: Path) -> bool:
    """Whether a writer of ours made this temporary folder."""
    if not _TEMPORARY.fullmatch(folder.name) or not _is_real_folder(folder):
        return False
    return lock_of(folder).is_file() or _has_record_of(folder, run_of(folder))


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, even with an unreadable record, or none."""
    if not RUN_ID.fullmatch(folder.name) or not _is_real_folder(folder):
        return False
    names = {path.name for path in folder.iterdir()}
    return RECORD in names or (bool(names) and names <= {PREDICTIONS, ADAPTER})


def is_set_aside(folder: Path) -> bool:
    """Whether a folder of the quarantine was put there by us."""
    return bool(_SET_ASIDE.fullmatch(folder.name)) and _is_real_folder(folder)


def is_index(path: Path) -> bool:
    """Whether the index can be written: it does not exist yet, is empty, or begins with a line of ours."""
    if path.is_symlink():
        return False
    try:
        with path.open("rb") as file:
            start = file.read(1 << 20)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return not start.strip() or bool(_INDEX_LINE.search(start))


def _is_real_folder(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink()


def _has_record_of(folder: Path, run_id: str) -> bool:
    try:
        loads((folder / RECORD).read_bytes(), run_id=run_id)
    except (OSError, RecordError):
        return False
    return True
