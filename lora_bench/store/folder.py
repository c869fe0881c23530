"""The store as a folder of runs: the one kind that is written to.

    STORE/<run_id>/record.json, predictions.parquet, adapter/     one folder per run
    STORE/quarantine/<run_id>-<n>/                                what could not be read, and why
    STORE/index.jsonl, .claims/, .tmp-*/                          disposable

A run's folder is filled under a temporary name and appears in one rename, so it is whole or it is not there. The index
spares a scan: one line per run with the columns of `frame`. A line counts only while the record's file still has the
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
from uuid import uuid4

from filelock import FileLock, Timeout

from lora_bench.store.disk import bytes_of, rename, to_disk
from lora_bench.store.document import RUN_ID, canonical, dumps, loads
from lora_bench.store.errors import (
    AlreadyFinished,
    NewerRecord,
    RecordError,
    StoreError,
    UnreadableRecord,
    explained,
    reason,
)
from lora_bench.store.frame import frame_of, row_of
from lora_bench.store.index import RECORD, Indexed
from lora_bench.store.reader import ADAPTER, PREDICTIONS, checked_id, is_archive, unknown_run
from lora_bench.store.record import check_record, utc_now

if TYPE_CHECKING:
    import pandas as pd  # a fifth of a second: imported where a table is made or read, behind what is refused


log = logging.getLogger(__name__)


class Store(Indexed):
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
        super().__init__()
        self._is_cleaned = False

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    # Reading

    def has(self, run_id: str) -> bool:
        """Whether this run is finished."""
        return self.status(run_id) == "finished"

    def status(self, run_id: str) -> str | None:
        """`finished`, `failed`, or None when there is no sound record of this run."""
        row = self._row(checked_id(run_id))
        return row["status"] if row else None

    def statuses(self) -> dict[str, str]:
        """The status of every run."""
        return {run_id: row["status"] for run_id, row in self._rows().items()}

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
        """The folder of the run's adapter in PEFT format, or None when none was kept."""
        folder = self.path(run_id) / ADAPTER
        return folder if folder.is_dir() else None

    def record(self, run_id: str) -> dict[str, Any]:
        """The record of one run.

        Raises:
            StoreError: if there is none, or it is unreadable and was set aside.
        """
        record = self._read(checked_id(run_id))
        if record is None:
            raise unknown_run(self.root, run_id, len(self._names()))
        return record

    def records(self) -> Iterator[dict[str, Any]]:
        """Every sound record, by run id; what cannot be read is set aside with a warning."""
        for run_id in sorted(self._names()):
            record = self._read(run_id)
            if record is not None:
                yield record

    def frame(self) -> pd.DataFrame:
        """One row per run, failed ones too, ordered by run id; see `COLUMNS`. What a run has not is NaN."""
        return frame_of(self._rows())

    def predictions(self, run_id: str) -> pd.DataFrame | None:
        """The predictions that a run kept, or None when it kept none.

        Raises:
            StoreError: if there is no such run, or the file cannot be read.
        """
        path = self.path(run_id) / PREDICTIONS
        if not path.exists():
            self.record(run_id)
            return None
        import pandas as pd

        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise StoreError(f"store: cannot read the predictions of run {run_id} ({error})") from error

    @property
    def quarantined(self) -> list[Path]:
        """The folders that were set aside because their record could not be read."""
        try:
            return sorted(path for path in (self.root / "quarantine").iterdir() if path.is_dir())
        except OSError:
            return []

    def bytes_by_part(self) -> dict[str, tuple[int, int]]:
        """What lies on the disk: runs that have the part and its bytes, for record, predictions and adapter.

        Looks at every run's folder.
        """
        parts = {"record": RECORD, "predictions": PREDICTIONS, "adapter": ADAPTER}
        counts: dict[str, tuple[int, int]] = dict.fromkeys(parts, (0, 0))
        for run_id in self._names():
            for part, name in parts.items():
                n_bytes = bytes_of(self.root / run_id / name)
                if n_bytes is not None:
                    counts[part] = (counts[part][0] + 1, counts[part][1] + n_bytes)
        return counts

    # Writing

    def require_writable(self) -> None:
        """Find out before the first run trains whether runs can be added.

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
            self._clean()
            name = f".tmp-{run_id}-{uuid4().hex[:12]}"
            with self._owned(name) as temporary:
                if adapter is not None:
                    adapter(temporary)
                if predictions is not None:
                    predictions.to_parquet(temporary / PREDICTIONS, engine="pyarrow", compression="zstd", index=False)
                # The record comes last: a folder with a sound record is complete, whenever its writer dies.
                to_disk(temporary, *temporary.rglob("*"))
                (temporary / RECORD).write_bytes(dumps(document))
                to_disk(temporary / RECORD, temporary)
                self._put(temporary, document)
            to_disk(self.root)
        self._remember(run_id)
        return final

    def drop_adapter(self, run_id: str, why: str) -> int:
        """Delete the adapter of a run, whose record then says when and why. Returns the bytes that are free again.

        The record says so before the first file goes, so that it never promises an adapter that is half there.

        Raises:
            StoreError: if there is no such run, or the store cannot be written.
        """
        adapter = self.path(run_id) / ADAPTER
        with self._errors(f"drop the adapter of run {run_id}"), self._lock():
            record = self._read(run_id, is_locked=True)
            if record is None:
                raise StoreError(f"store: {self.root} has no run {run_id!r}")
            n_bytes = bytes_of(adapter)
            if n_bytes is None:
                return 0
            if "adapter_dropped" not in record:
                record["adapter_dropped"] = adapter_dropped(why)
                with self._owned(f".tmp-{run_id}-{uuid4().hex[:12]}") as temporary:
                    (temporary / RECORD).write_bytes(dumps(record))
                    to_disk(temporary / RECORD)
                    os.replace(temporary / RECORD, self.root / run_id / RECORD)
                    to_disk(self.root / run_id)
            shutil.rmtree(adapter)
        self._remember(run_id)
        return n_bytes

    @contextlib.contextmanager
    def claim(self, run_id: str) -> Iterator[bool]:
        """Hold a run against other processes: yields False at once when another one, or this one, holds it already.

        The claim is a lock of the operating system, so that of a process that died is free again.
        """
        lock = FileLock(self.root / ".claims" / f"{checked_id(run_id)}.lock")
        with self._errors(f"claim run {run_id}"):
            self._make_root()
            is_held = _acquire(lock, timeout=0)
        try:
            yield is_held
        finally:
            if is_held:
                lock.release()

    def _put(self, temporary: Path, document: dict[str, Any]) -> None:
        """Rename the filled folder into place, moving a failed or unreadable predecessor out of the way."""
        run_id = document["run_id"]
        final = self.root / run_id
        if rename(temporary, final):
            return
        with self._lock():
            present = self._read(run_id, is_locked=True)
            if present is not None and present["status"] == "finished":
                raise AlreadyFinished(
                    f"store: run {run_id} is finished already and stays as it is ({final}); "
                    "remove its folder to train it again"
                )
            replaced = temporary.with_name(f"{temporary.name}-replaced")
            if present is not None:
                os.rename(final, replaced)
            if not rename(temporary, final):
                raise StoreError(f"store: {final} is in the way and holds no record; move it elsewhere")
            shutil.rmtree(replaced, ignore_errors=True)

    @contextlib.contextmanager
    def _owned(self, name: str) -> Iterator[Path]:
        """A temporary folder, locked so that others can tell it from one whose owner died; gone at the end."""
        lock = FileLock(self.root / ".claims" / f"{name}.lock")
        if not _acquire(lock, timeout=0):
            raise StoreError(f"store: the temporary name {name} is taken")
        temporary = self.root / name
        try:
            temporary.mkdir()
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.unlink(lock.lock_file)
            lock.release()

    def _clean(self) -> None:
        """Clear away temporary folders whose owner died; once per store and process, before its first write."""
        if self._is_cleaned:
            return
        self._is_cleaned = True
        for folder in sorted(self.root.glob(".tmp-*")):
            lock = FileLock(self.root / ".claims" / f"{folder.name.removesuffix('-replaced')}.lock")
            if _acquire(lock, timeout=0):
                with contextlib.suppress(OSError, StoreError):
                    self._salvage(folder)
                shutil.rmtree(folder, ignore_errors=True)
                with contextlib.suppress(OSError):
                    os.unlink(lock.lock_file)
                lock.release()

    def _salvage(self, folder: Path) -> None:
        """Put the folder of a dead writer into place if it lacked only the rename; never over a finished run."""
        run_id = folder.name.split("-")[1]
        try:
            record = loads((folder / RECORD).read_bytes(), run_id=run_id)
        except (FileNotFoundError, RecordError):
            return
        if not folder.name.endswith("-replaced") or not (self.root / run_id).exists():
            self._put(folder, record)
            log.info("store: run %s was complete when its writer died, and is kept", run_id)

    def _make_root(self) -> None:
        (self.root / ".claims").mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def _lock(self, *, timeout: float = 120.0) -> Iterator[None]:
        """The store's own lock: for the index, replacing a record, and setting one aside. Held for milliseconds."""
        self._make_root()
        lock = FileLock(self.root / ".claims" / "store.lock")
        if not _acquire(lock, timeout=timeout):
            raise StoreError(f"store: {lock.lock_file} was held for {timeout:g} s; is a process of this store stopped?")
        try:
            yield
        finally:
            lock.release()

    def _errors(self, action: str) -> contextlib.AbstractContextManager[None]:
        return explained(action, self.root)

    # Records

    def _names(self) -> list[str]:
        try:
            with os.scandir(self.root) as entries:
                return [entry.name for entry in entries if RUN_ID.fullmatch(entry.name) and entry.is_dir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"store: cannot list {self.root} ({reason(error)})") from error

    def _read(self, run_id: str, *, is_locked: bool = False) -> dict[str, Any] | None:
        """The record of a run, or None when there is none; one that is unreadable is set aside first."""
        with contextlib.suppress(UnreadableRecord):
            return self._load(run_id)
        # Only a second look under the lock decides: a writer may have put a sound record there in between.
        with contextlib.nullcontext() if is_locked else self._lock_if_writable():
            try:
                return self._load(run_id)
            except UnreadableRecord as error:
                self._set_aside(run_id, "; ".join(error.problems))
                return None

    def _load(self, run_id: str) -> dict[str, Any] | None:
        folder = self.root / run_id
        try:
            content = (folder / RECORD).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            if not folder.is_dir():
                return None
            raise UnreadableRecord([f"the folder holds no {RECORD}"]) from None
        except OSError as error:
            raise StoreError(f"store: cannot read run {run_id} in {self.root} ({reason(error)})") from error
        try:
            record = loads(content, run_id=run_id)
            row_of(record)
        except NewerRecord as error:
            raise StoreError(f"store: run {run_id} in {self.root}: {'; '.join(error.problems)}") from error
        except (AttributeError, KeyError, TypeError) as error:
            raise UnreadableRecord([f"its parts do not fit ({type(error).__name__}: {error})"]) from error
        return record

    def _set_aside(self, run_id: str, why: str) -> None:
        folder, quarantine = self.root / run_id, self.root / "quarantine"
        try:
            quarantine.mkdir(exist_ok=True)
            place = next(place for n in range(1, 1_000_000) if not (place := quarantine / f"{run_id}-{n}").exists())
            os.rename(folder, place)
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("store: run %s is not counted: %s; it stays in %s (%s)", run_id, why, folder, reason(error))
            return
        self._known.pop(run_id, None)
        with contextlib.suppress(OSError):
            (place / "WHY.txt").write_text(f"{why}\n", encoding="utf-8")
        log.warning("store: run %s is not counted: %s; set aside as %s, and will be trained again", run_id, why, place)

    @contextlib.contextmanager
    def _lock_if_writable(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                stack.enter_context(self._lock())
            yield


def adapter_dropped(why: str) -> dict[str, str]:
    """What a record says, under the key of this name, of an adapter that was not kept."""
    return {"at": utc_now(), "why": why}


def _acquire(lock: FileLock, *, timeout: float) -> bool:
    try:
        lock.acquire(timeout=timeout, poll_interval=0.01)
    except Timeout:
        return False
    return True
