"""The store as a folder of runs: the one kind that is written to.

    STORE/<run_id>/record.json, predictions.parquet, adapter/     one folder per run
    STORE/quarantine/<run_id>-<n>/                                what could not be read, with the reason
    STORE/index.jsonl, .claims/, .tmp-<run_id>-<token>/           disposable

A run's folder is filled under a temporary name and appears in one rename, so it is whole or absent. Reading moves and
deletes nothing; writing touches only what `own` calls ours, and everything else in the folder stays. The index saves a
scan: one line per run with the columns of `frame`. A line counts only while the record's file still has the
time, size and inode that it had when the line was made, so a missing, old or garbled index costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_bench.store import files, own, unpack
from lora_bench.store.disk import bytes_of, rename, to_disk
from lora_bench.store.document import canonical, dumps, loads
from lora_bench.store.errors import (
    AlreadyFinished,
    RecordError,
    StoreError,
    UnreadableRecord,
    explained,
)
from lora_bench.store.frame import frame_of
from lora_bench.store.index import Index
from lora_bench.store.locks import Lock, holding, owner_of, remedy
from lora_bench.store.own import CLAIMS, QUARANTINE, RECORD, REPLACED
from lora_bench.store.reader import ADAPTER, PREDICTIONS, checked_id, is_archive, unknown_run
from lora_bench.store.record import check_record, utc_now
from lora_bench.store.shelf import Shelf

if TYPE_CHECKING:
    import pandas as pd  # a fifth of a second: imported where a table is made or read, after what may be refused


log = logging.getLogger(__name__)


class Store:
    """The records under one folder, which appears with the first write. Safe for many processes at once.

    Raises:
        StoreError: on opening a file, or an archive, which `open_store` reads.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        if is_archive(self.root):
            raise StoreError(f"store: {self.root} is an archive, which is read-only; give another store=FOLDER")
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"store: {self.root} is a file; give a folder")
        self._shelf = Shelf(self.root)
        self._index = Index(self._shelf, self._lock)
        self._is_cleaned = False

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    # Reading

    def has(self, run_id: str) -> bool:
        """Whether this run is finished."""
        return self.status(run_id) == "finished"

    def status(self, run_id: str) -> str | None:
        """`finished`, `failed`, or None when there is no sound record of this run."""
        row = self._index.row(checked_id(run_id))
        return row["status"] if row else None

    def statuses(self) -> dict[str, str]:
        """The status of every run."""
        return {run_id: row["status"] for run_id, row in self._index.rows().items()}

    def written_at(self, run_id: str) -> int | None:
        """When the run's record was written, in nanoseconds; None without one."""
        try:
            return (self.path(run_id) / RECORD).stat().st_mtime_ns
        except OSError:
            return None

    def path(self, run_id: str) -> Path:
        """The folder of a run, whether or not it exists."""
        return self.root / checked_id(run_id)

    def adapter(self, run_id: str) -> Path | None:
        """The folder of the run's adapter in PEFT format, or None when none was kept.

        Raises:
            StoreError: if a file of it is not what was written.
        """
        folder = self.path(run_id) / ADAPTER
        if not folder.is_dir():
            return None
        files.check(folder.parent, self._shelf.read(run_id) or {}, ADAPTER)
        return folder

    def record(self, run_id: str) -> dict[str, Any]:
        """The record of one run.

        Raises:
            StoreError: if there is none, or it is unreadable.
        """
        record = self._shelf.read(checked_id(run_id))
        if record is None:
            raise unknown_run(self.root, run_id, len(self._shelf.names()))
        return record

    def records(self) -> Iterator[dict[str, Any]]:
        """Every sound record, by run id; what cannot be read is left out with a warning."""
        for run_id in sorted(self._shelf.names()):
            record = self._shelf.read(run_id)
            if record is not None:
                yield record

    def frame(self) -> pd.DataFrame:
        """One row per run, failed ones too, ordered by run id; see `COLUMNS`. What a run lacks is NaN."""
        return frame_of(self._index.rows())

    def predictions(self, run_id: str) -> pd.DataFrame | None:
        """The predictions that a run kept, or None when it kept none.

        Raises:
            StoreError: if there is no such run, or the file cannot be read.
        """
        path = self.path(run_id) / PREDICTIONS
        record = self.record(run_id)
        if PREDICTIONS in record.get(files.FILES, {}):
            files.check(path.parent, record, PREDICTIONS)
        elif not path.exists():
            return None
        try:
            return unpack.table(path)
        except (OSError, ValueError) as error:
            raise StoreError(f"store: cannot read the predictions of run {run_id} ({error})") from error

    @property
    def quarantined(self) -> list[Path]:
        """The folders that a writer set aside because their record could not be read."""
        try:
            return sorted(path for path in (self.root / QUARANTINE).iterdir() if own.is_set_aside(path))
        except OSError:
            return []

    def bytes_by_part(self) -> dict[str, tuple[int, int]]:
        """What the disk holds: runs that have the part, and its bytes, for record, predictions and adapter.

        Looks at every run's folder.
        """
        parts = {"record": RECORD, "predictions": PREDICTIONS, "adapter": ADAPTER}
        counts: dict[str, tuple[int, int]] = dict.fromkeys(parts, (0, 0))
        for run_id in self._shelf.names():
            for part, name in parts.items():
                n_bytes = bytes_of(self.root / run_id / name)
                if n_bytes is not None:
                    counts[part] = (counts[part][0] + 1, counts[part][1] + n_bytes)
        return counts

    @property
    def unreadable(self) -> dict[str, str]:
        """The runs that are not counted because their record could not be read at the last look, and why."""
        return self._shelf.unreadable

    # Writing

    def recover(self) -> None:
        """Put into place the runs that were complete when their writers died, and clear away the others.

        Call it before looking up runs that may be trained. It does nothing where the store cannot be written.
        """
        with contextlib.suppress(StoreError), self._errors("recover runs"):
            self._clean()

    def require_writable(self) -> None:
        """Check, before the first run trains, that runs can be added.

        Raises:
            StoreError: if they cannot.
        """
        with self._errors("make the store"):
            self._make_root()

    def write(
        self,
        record: Mapping[str, Any],
        *,
        predictions: pd.DataFrame | None = None,
        adapter: Callable[[Path], object] | None = None,
    ) -> Path:
        """Add a run: its record, its predictions, and whatever `adapter` puts into the folder that it is given.

        The folder appears whole, in one rename, with its content on the disk. A failed record is replaced; a finished
        one never is.

        Returns:
            The run's folder.

        Raises:
            AlreadyFinished: if the run has a finished record; that record stays as it is.
            RecordError: if `record` is not fit to be written.
            StoreError: if the disk is full, the folder read-only, and the like; nothing is left behind.
        """
        document = canonical(record)
        check_record(document)
        run_id = document["run_id"]
        final = self.path(run_id)
        with self._errors(f"write run {run_id}"):
            self._make_root()
            if not self._is_cleaned:
                self._clean()
            with self._owned(own.temporary_name(run_id)) as temporary:
                if adapter is not None:
                    adapter(temporary)
                if predictions is not None:
                    predictions.to_parquet(temporary / PREDICTIONS, engine="pyarrow", compression="zstd", index=False)
                if stored := files.checksums(temporary):
                    document[files.FILES] = stored
                # The record comes last: a folder with a sound record is complete, whenever its writer dies.
                to_disk(temporary, *temporary.rglob("*"))
                (temporary / RECORD).write_bytes(dumps(document))
                to_disk(temporary / RECORD, temporary)
                self._put(temporary, document)
            to_disk(self.root)
        self._index.remember(run_id)
        return final

    def drop_adapter(self, run_id: str, why: str) -> int:
        """Delete the adapter of a run, whose record then says when and why. Returns the bytes freed.

        The record is changed before the first file goes, so that it never promises an adapter that is half deleted.

        Raises:
            StoreError: if there is no such run, or the store cannot be written.
        """
        adapter = self.path(run_id) / ADAPTER
        with self._errors(f"drop the adapter of run {run_id}"), self._lock():
            record = self._shelf.read(run_id)
            if record is None:
                raise StoreError(f"store: {self.root} has no run {run_id!r}")
            n_bytes = bytes_of(adapter)
            if n_bytes is None:
                return 0
            if "adapter_dropped" not in record:
                record = files.without(record, ADAPTER) | {"adapter_dropped": adapter_dropped(why)}
                with self._owned(own.temporary_name(run_id)) as temporary:
                    (temporary / RECORD).write_bytes(dumps(record))
                    to_disk(temporary / RECORD)
                    os.replace(temporary / RECORD, self.root / run_id / RECORD)
                    to_disk(self.root / run_id)
            shutil.rmtree(adapter)
        self._index.remember(run_id)
        return n_bytes

    @contextlib.contextmanager
    def claim(self, run_id: str) -> Iterator[bool]:
        """Claim a run against other processes: yields False at once when this or another process has claimed it.

        The claim is a lock of the operating system, so a process that dies frees it.

        Raises:
            StoreError: if the store cannot be written, or the run's folder is something else.
        """
        lock = Lock(self.claim_file(run_id), beats=True)
        with self._errors(f"claim run {run_id}"):
            self._make_root()
            is_held = lock.acquire()
        try:
            if is_held:
                self._require_ours(run_id)
            yield is_held
        finally:
            lock.release()

    def claim_file(self, run_id: str) -> Path:
        """The lock file of a run, which names its owner (`locks.owner_of`)."""
        return self.root / CLAIMS / f"{checked_id(run_id)}.lock"

    def _require_ours(self, run_id: str) -> None:
        folder = self.root / run_id
        if (folder.exists() or folder.is_symlink()) and not own.is_run(folder) and not _is_empty(folder):
            raise StoreError(f"store: {folder} is in the way and holds no record; move it elsewhere")

    def _put(self, temporary: Path, document: dict[str, Any]) -> None:
        """Rename the filled folder into place, after moving a failed or unreadable predecessor out of the way."""
        run_id = document["run_id"]
        final = self.root / run_id
        if rename(temporary, final):
            return
        with self._lock():
            self._require_ours(run_id)
            present = self._present(run_id)
            if present is not None and present["status"] == "finished":
                raise AlreadyFinished(
                    f"store: run {run_id} is finished already and stays as it is ({final}); "
                    "remove its folder to train it again"
                )
            replaced = temporary.with_name(f"{temporary.name}{REPLACED}")
            if present is not None:
                os.rename(final, replaced)
            if not rename(temporary, final):
                raise StoreError(f"store: {final} is in the way and holds no record; move it elsewhere")
            shutil.rmtree(replaced, ignore_errors=True)

    @contextlib.contextmanager
    def _owned(self, name: str) -> Iterator[Path]:
        """A temporary folder, locked so that others can tell it from one whose owner died, and removed at the end."""
        temporary = self.root / name
        lock = Lock(own.lock_of(temporary))
        if not lock.acquire():
            raise StoreError(f"store: the temporary name {name} is taken")
        try:
            temporary.mkdir()
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            lock.release(remove=True)

    def _clean(self) -> None:
        """Clear away temporary folders whose owner died, and put into place those that lacked only their rename."""
        self._is_cleaned = True
        for folder in sorted(self.root.glob(".tmp-*")):
            if not own.is_temporary(folder):
                continue
            self._make_root()
            lock = Lock(own.lock_of(folder))
            if lock.acquire():
                with contextlib.suppress(OSError, StoreError):
                    self._salvage(folder)
                shutil.rmtree(folder, ignore_errors=True)
                lock.release(remove=True)
            elif (owner := owner_of(lock.path)) and not owner.is_here:
                log.info("store: %s is being written by %s; %s", folder, owner, remedy(lock.path))

    def _salvage(self, folder: Path) -> None:
        """Put the folder of a dead writer into place if it lacked only the rename; never over a finished run."""
        run_id = own.run_of(folder)
        try:
            record = loads((folder / RECORD).read_bytes(), run_id=run_id)
        except (FileNotFoundError, RecordError):
            return
        for part in (PREDICTIONS, ADAPTER):
            files.check(folder, record, part)
        if not folder.name.endswith(REPLACED) or not (self.root / run_id).exists():
            self._put(folder, record)
            self._index.remember(run_id)
            log.info("store: run %s was complete when its writer died, and is kept", run_id)

    def _make_root(self) -> None:
        (self.root / CLAIMS).mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def _lock(self, *, timeout: float = 120.0) -> Iterator[None]:
        """The store's own lock: for the index, replacing a record, and setting one aside. Held for milliseconds."""
        self._make_root()
        with holding(self.root / CLAIMS / "store.lock", timeout=timeout):
            yield

    def _errors(self, action: str) -> contextlib.AbstractContextManager[None]:
        return explained(action, self.root)

    def _present(self, run_id: str) -> dict[str, Any] | None:
        """Under the lock, the record in the way of a run being written; one that cannot be read is set aside."""
        try:
            return self._shelf.load(run_id)
        except UnreadableRecord as error:
            self._set_aside(run_id, "; ".join(error.problems))
            return None

    def _set_aside(self, run_id: str, why: str) -> None:
        folder, quarantine = self.root / run_id, self.root / QUARANTINE
        try:
            quarantine.mkdir(exist_ok=True)
            place = next(place for n in range(1, 1_000_000) if not (place := quarantine / f"{run_id}-{n}").exists())
            os.rename(folder, place)
        except FileNotFoundError:
            return
        with contextlib.suppress(OSError):
            (place / "WHY.txt").write_text(f"{why}\n", encoding="utf-8")
        log.warning("store: run %s is not counted: %s; set aside as %s, and trained again", run_id, why, place)


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())


def adapter_dropped(why: str) -> dict[str, str]:
    """What a record says under `adapter_dropped` of an adapter that was not kept."""
    return {"at": utc_now(), "why": why}
