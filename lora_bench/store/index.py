"""The index of a store's folder, which spares a scan: one line per run with the columns of `frame`.

A line counts only while the record's file still has the time, size and inode that it had when the line was made, so a
missing, old or garbled index costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import zlib
from pathlib import Path
from typing import Any

from lora_bench.store.errors import StoreError
from lora_bench.store.frame import row_of

RECORD = "record.json"
INDEX_VERSION = 4


class Indexed:
    """What a store remembers of its records: rows by run, in memory and in the index. `Store` reads and locks."""

    root: Path

    def __init__(self) -> None:
        # The index as read so far, by run: the stamp of the record's file and its row.
        self._known: dict[str, tuple[list[int], dict[str, Any]]] = {}
        self._index_inode = 0
        self._index_offset = 0
        self._index_lines = 0

    def _read(self, run_id: str) -> dict[str, Any] | None:
        raise NotImplementedError

    def _names(self) -> list[str]:
        raise NotImplementedError

    def _lock(self, *, timeout: float) -> contextlib.AbstractContextManager:
        raise NotImplementedError

    def _row(self, run_id: str) -> dict[str, Any] | None:
        if not self._index_inode:
            self._read_index()
        return self._fresh_row(run_id)

    def _fresh_row(self, run_id: str) -> dict[str, Any] | None:
        """The row of a run, from memory when its file has not changed since, else from the file."""
        stamp = self._stamp(run_id)
        known = self._known.get(run_id)
        if stamp is not None and known is not None and known[0] == stamp:
            return known[1]
        record = self._read(run_id)
        if record is None:
            self._known.pop(run_id, None)
            return None
        row = row_of(record)
        # The stamp was taken before the read: if the file was replaced in between, the next look reads it again.
        if stamp is not None:
            self._known[run_id] = (stamp, row)
        return row

    def _stamp(self, run_id: str) -> list[int] | None:
        try:
            facts = os.stat(f"{self.root}/{run_id}/{RECORD}")
        except OSError:
            return None
        return [facts.st_mtime_ns, facts.st_size, facts.st_ino] if stat.S_ISREG(facts.st_mode) else None

    def _rows(self) -> dict[str, dict[str, Any]]:
        self._read_index()
        before = dict(self._known)
        rows = {run_id: row for run_id in self._names() if (row := self._fresh_row(run_id)) is not None}
        self._known = {run_id: self._known[run_id] for run_id in rows if run_id in self._known}
        self._save_index([run_id for run_id, known in self._known.items() if known is not before.get(run_id)])
        return rows

    def _read_index(self) -> None:
        """Take in the lines added since the last look; the whole file when it was rewritten."""
        try:
            with open(self.root / "index.jsonl", "rb") as file:
                facts = os.fstat(file.fileno())
                if facts.st_ino != self._index_inode or facts.st_size < self._index_offset:
                    self._index_inode, self._index_offset, self._index_lines = facts.st_ino, 0, 0
                file.seek(self._index_offset)
                content = file.read()
        except OSError:
            return
        # A line that is still being written ends without a newline, and is left for the next look.
        content = content[: content.rfind(b"\n") + 1]
        self._index_offset += len(content)
        for line in content.splitlines():
            self._index_lines += bool(line)
            entry = _parse_line(line)
            if entry is not None:
                self._known[entry["run_id"]] = (entry["stamp"], entry["row"])

    def _remember(self, run_id: str) -> None:
        """Add a run just written to the index; a failure costs the next reader some time, and nothing else."""
        self._known.pop(run_id, None)
        self._fresh_row(run_id)
        self._save_index([run_id] if run_id in self._known else [])

    def _save_index(self, run_ids: list[str]) -> None:
        """Append these runs' lines; rewrite the file when most of its lines are stale."""
        is_mostly_stale = self._index_lines > 2 * len(self._known) + 1000
        if not run_ids and not is_mostly_stale:
            return
        path = self.root / "index.jsonl"
        with contextlib.suppress(OSError, StoreError), self._lock(timeout=5.0):
            if is_mostly_stale:
                self._read_index()
                temporary = self.root / ".claims" / "index.jsonl"
                temporary.write_bytes(b"".join(_line(run_id, *known) for run_id, known in self._known.items()))
                os.replace(temporary, path)
                return
            # The newline in front ends whatever a killed writer left unfinished.
            with open(path, "ab", buffering=0) as file:
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
