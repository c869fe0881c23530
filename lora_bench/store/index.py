"""The index of a store's folder, which saves a scan: one line per run with the columns of `frame`.

A line counts only while the record's file still has the time, size and inode that it had when the line was made, so a
missing, old or garbled index costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from pathlib import Path
from typing import Any, Protocol

from lora_bench.store.errors import StoreError
from lora_bench.store.frame import row_of
from lora_bench.store.own import CLAIMS, is_index

INDEX_VERSION = 5


class Records(Protocol):
    """The records that are indexed."""

    root: Path

    def names(self) -> list[str]:
        """The folders that are named like a run's."""
        ...

    def stamp(self, run_id: str) -> list[int] | None:
        """Time, size and inode of a record's file; None without one."""
        ...

    def read(self, run_id: str) -> dict[str, Any] | None:
        """The record of a run, or None when there is none that can be read."""
        ...


class Lock(Protocol):
    """The store's own lock."""

    def __call__(self, *, timeout: float) -> contextlib.AbstractContextManager[None]: ...


class Index:
    """A store's rows by run, in memory and in the index."""

    def __init__(self, records: Records, lock: Lock) -> None:
        self._records, self._lock = records, lock
        self._path = records.root / "index.jsonl"
        # The index as read so far, by run: the stamp of the record's file and its row.
        self._known: dict[str, tuple[list[int], dict[str, Any]]] = {}
        self._inode = 0
        self._offset = 0
        self._n_lines = 0

    def row(self, run_id: str) -> dict[str, Any] | None:
        """The row of a run, or None when there is no record that can be read."""
        if not self._inode:
            self._take_in()
        return self._fresh_row(run_id)

    def _fresh_row(self, run_id: str) -> dict[str, Any] | None:
        """The row of a run, from memory when its file has not changed since, else from the file."""
        stamp = self._records.stamp(run_id)
        known = self._known.get(run_id)
        if stamp is not None and known is not None and known[0] == stamp:
            return known[1]
        record = self._records.read(run_id)
        if record is None:
            self._known.pop(run_id, None)
            return None
        row = row_of(record)
        # The stamp was taken before the read: if the file was replaced in between, the next look reads it again.
        if stamp is not None:
            self._known[run_id] = (stamp, row)
        return row

    def rows(self) -> dict[str, dict[str, Any]]:
        """The row of every run."""
        self._take_in()
        before = dict(self._known)
        rows = {run_id: row for run_id in self._records.names() if (row := self._fresh_row(run_id)) is not None}
        self._known = {run_id: self._known[run_id] for run_id in rows if run_id in self._known}
        self._save([run_id for run_id, known in self._known.items() if known is not before.get(run_id)])
        return rows

    def _take_in(self) -> None:
        """Take in the lines added since the last look; the whole file when it was rewritten."""
        try:
            with open(self._path, "rb") as file:
                facts = os.fstat(file.fileno())
                if facts.st_ino != self._inode or facts.st_size < self._offset:
                    self._inode, self._offset, self._n_lines = facts.st_ino, 0, 0
                file.seek(self._offset)
                content = file.read()
        except OSError:
            return
        # A line that is still being written ends without a newline, and is left for the next look.
        content = content[: content.rfind(b"\n") + 1]
        self._offset += len(content)
        for line in content.splitlines():
            self._n_lines += bool(line)
            entry = _parse_line(line)
            if entry is not None:
                self._known[entry["run_id"]] = (entry["stamp"], entry["row"])

    def remember(self, run_id: str) -> None:
        """Add a run just written to the index; a failure costs the next reader some time and nothing else."""
        self._known.pop(run_id, None)
        self._fresh_row(run_id)
        self._save([run_id] if run_id in self._known else [])

    def _save(self, run_ids: list[str]) -> None:
        """Append these runs' lines; rewrite the file when most of its lines are stale."""
        is_mostly_stale = self._n_lines > 2 * len(self._known) + 1000
        if not run_ids and not is_mostly_stale:
            return
        if not is_index(self._path):  # a file of the user's
            return
        with contextlib.suppress(OSError, StoreError), self._lock(timeout=5.0):
            if is_mostly_stale:
                self._take_in()
                temporary = self._records.root / CLAIMS / self._path.name
                temporary.write_bytes(b"".join(_line(run_id, *known) for run_id, known in self._known.items()))
                os.replace(temporary, self._path)
                return
            # The newline in front ends whatever a killed writer left unfinished.
            with open(self._path, "ab", buffering=0) as file:
                file.write(b"\n" + b"".join(_line(run_id, *self._known[run_id]) for run_id in run_ids))


def _line(run_id: str, stamp: list[int], row: dict[str, Any]) -> bytes:
    entry = {"v": INDEX_VERSION, "run_id": run_id, "stamp": stamp, "row": row}
    text = json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parse_line(line: bytes) -> dict[str, Any] | None:
    """An index line, or None when it is cut short, garbled or of another version."""
    text = line[9:]
    try:
        if int(line[:8], 16) != zlib.crc32(text):
            return None
        entry = json.loads(text)
        return entry if entry["v"] == INDEX_VERSION else None
    except (ValueError, KeyError, TypeError):
        return None
