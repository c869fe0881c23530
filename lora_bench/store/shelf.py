"""Read the records in a store's folder; nothing here writes, moves or deletes."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from pathlib import Path
from typing import Any

from lora_bench.store import own
from lora_bench.store.document import RUN_ID, loads
from lora_bench.store.errors import NewerRecord, StoreError, UnreadableRecord, reason
from lora_bench.store.frame import ROW_ERRORS, row_of
from lora_bench.store.own import RECORD

log = logging.getLogger(__name__)

_warned: set[tuple] = set()
"""Damaged records that this process has warned of; a script opens its store many times."""


class Shelf:
    """Reads records by run id, and remembers those that cannot be read and why."""

    def __init__(self, root: Path):
        self.root = root
        self._unreadable: dict[str, tuple[list[int] | None, str]] = {}  # by run: its file's stamp, and why

    @property
    def unreadable(self) -> dict[str, str]:
        return {run_id: why for run_id, (_, why) in self._unreadable.items()}

    def names(self) -> list[str]:
        """The folders that are named like a run's."""
        try:
            with os.scandir(self.root) as entries:
                return [entry.name for entry in entries if RUN_ID.fullmatch(entry.name) and entry.is_dir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"store: cannot list {self.root} ({reason(error)})") from error

    def stamp(self, run_id: str) -> list[int] | None:
        """Time, size and inode of a record's file; None without one."""
        try:
            facts = os.stat(f"{self.root}/{run_id}/{RECORD}")
        except OSError:
            return None
        return [facts.st_mtime_ns, facts.st_size, facts.st_ino] if stat.S_ISREG(facts.st_mode) else None

    def read(self, run_id: str) -> dict[str, Any] | None:
        """The record of a run, or None when there is none, or it cannot be read, of which a warning tells once."""
        stamp = self.stamp(run_id)
        known = self._unreadable.get(run_id)
        if known is not None and stamp is not None and known[0] == stamp:
            return None
        try:
            with contextlib.suppress(UnreadableRecord):
                return self._sound(run_id)
            return self._sound(run_id)  # a second look: a writer may have been replacing it
        except UnreadableRecord as error:
            why = "; ".join(error.problems)
        self._unreadable[run_id] = (stamp, why)
        mark = (str(self.root.absolute()), run_id, *(stamp or ()))
        if mark not in _warned:
            _warned.add(mark)
            log.warning("store: run %s is not counted: %s (%s)", run_id, why, self.root / run_id)
        return None

    def _sound(self, run_id: str) -> dict[str, Any] | None:
        record = self.load(run_id)
        self._unreadable.pop(run_id, None)
        return record

    def load(self, run_id: str) -> dict[str, Any] | None:
        """The record of a run, or None when there is no folder of ours.

        Raises:
            UnreadableRecord: if there is one that cannot be read.
            StoreError: if the disk refuses, or a newer lora_bench wrote it.
        """
        folder = self.root / run_id
        try:
            content = (folder / RECORD).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            if not own.is_run(folder):
                return None
            raise UnreadableRecord([f"the folder holds no {RECORD}"]) from None
        except OSError as error:
            raise StoreError(f"store: cannot read run {run_id} in {self.root} ({reason(error)})") from error
        try:
            record = loads(content, run_id=run_id)
            row_of(record)
        except NewerRecord as error:
            raise StoreError(f"store: run {run_id} in {self.root}: {'; '.join(error.problems)}") from error
        except UnreadableRecord:
            raise
        except ROW_ERRORS as error:
            raise UnreadableRecord([f"its parts do not fit ({type(error).__name__}: {error})"]) from error
        return record
