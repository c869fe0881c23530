"""The store: the folder of records that every table and figure reads.

    STORE/<run_id>/record.json, predictions.parquet, adapter/     one folder per run
    STORE/quarantine/<run_id>-<n>/                                what could not be read, and why
    STORE/index.jsonl, .claims/, .tmp-*/                          disposable

A run's folder is filled under a temporary name and appears in one rename, so it is whole or it is not there. The index
spares a scan: one line per run with the columns of `frame`. A line counts only while the record's file still has the
time, size and inode that it had when the line was made, so a missing, old or garbled index costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from filelock import FileLock, Timeout

from lora_bench.record import (
    RUN_ID,
    NewerRecord,
    RecordError,
    UnreadableRecord,
    canonical,
    check_record,
    dumps,
    loads,
    utc_now,
)

if TYPE_CHECKING:
    import pandas as pd  # a fifth of a second: imported where a table is made or read, behind what is refused

log = logging.getLogger(__name__)

RECORD = "record.json"
PREDICTIONS = "predictions.parquet"
ADAPTER = "adapter"
INDEX_VERSION = 4
# What a results pack holds in place of run folders; see `lora_bench.results`.
MANIFEST = "manifest.json"
RECORDS = "records.jsonl.gz"

TEXT = "text"
NUMBER = "number"
FLAG = "flag"
# The columns of `frame`, in order; scores by metric name (select_<metric> ...) follow them.
COLUMNS = {
    "run_id": TEXT,
    "cell_id": TEXT,
    "status": TEXT,
    "error_kind": TEXT,
    "error_message": TEXT,
    "model": TEXT,
    "task": TEXT,
    "method": TEXT,
    "targets": TEXT,
    "rank": NUMBER,
    "rank_min": NUMBER,
    "rank_max": NUMBER,
    "ranks": TEXT,
    "alpha": NUMBER,
    "alpha_policy": TEXT,
    "adapter_dropout": NUMBER,
    "init": TEXT,
    "layers": TEXT,
    "replicate": NUMBER,
    "b_lr_ratio": NUMBER,
    "lr": NUMBER,
    "head_lr": NUMBER,
    "epochs": NUMBER,
    "batch_size": NUMBER,
    "grad_accumulation": NUMBER,
    "max_length": NUMBER,
    "schedule": TEXT,
    "warmup_ratio": NUMBER,
    "weight_decay": NUMBER,
    "max_grad_norm": NUMBER,
    "train_dropout": NUMBER,
    "checkpoint": TEXT,
    "train_rows": NUMBER,
    "precision": TEXT,
    "seed": NUMBER,
    "protocol": NUMBER,
    "adapter_parameters": NUMBER,
    "low_rank_parameters": NUMBER,  # of A and B alone, and of failed runs too
    "head_parameters": NUMBER,
    "total_parameters": NUMBER,
    "metric": TEXT,
    "select": NUMBER,
    "report": NUMBER,
    "train": NUMBER,
    "pack_seconds": NUMBER,
    "pack_size": NUMBER,
    "attributed_seconds": NUMBER,
    "overhead_seconds": NUMBER,
    "tokens": NUMBER,
    "flops": NUMBER,
    "adapter_bytes": NUMBER,
    "peak_bytes": NUMBER,
    "environment": TEXT,
    "commit": TEXT,
    "dirty": FLAG,
    "model_fingerprint": TEXT,
    "task_fingerprint": TEXT,
    "sweep": TEXT,
    "started": TEXT,
    "finished": TEXT,
}
_OF_ADAPTER = ("method", "targets", "alpha", "alpha_policy", "init", "replicate", "b_lr_ratio")
_OF_TRAIN = (
    *("lr", "head_lr", "epochs", "batch_size", "grad_accumulation", "max_length", "schedule", "warmup_ratio"),
    *("weight_decay", "max_grad_norm", "checkpoint", "precision"),
)


class StoreError(RuntimeError):
    """The store cannot do what was asked: the message says why and what would help."""


class AlreadyFinished(StoreError):
    """A finished record is never replaced."""


class Store:
    """The records under one folder, which appears with the first write. Safe for many processes at once.

    The folder of a results pack opens as a `PackedStore`, which can be read alone.
    """

    def __new__(cls, root: str | Path) -> Store:
        # As pathlib does it: whoever reads a store, scripts and sweeps alike, need not know that there are packs.
        if cls is Store and is_pack(root):
            from lora_bench.results import PackedStore

            return object.__new__(PackedStore)
        return super().__new__(cls)

    def __init__(self, root: str | Path):
        self.root = Path(root)
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"store: {self.root} is a file; give a folder")
        # The index as read so far, by run: the stamp of the record's file and its row.
        self._known: dict[str, tuple[list[int], dict[str, Any]]] = {}
        self._index_inode = 0
        self._index_offset = 0
        self._index_lines = 0
        self._is_cleaned = False

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    # Reading

    def has(self, run_id: str) -> bool:
        """Whether this run is finished."""
        return self.status(run_id) == "finished"

    def status(self, run_id: str) -> str | None:
        """`finished`, `failed`, or None when there is no sound record of this run."""
        row = self._row(_checked(run_id))
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
        return self.root / _checked(run_id)

    def record(self, run_id: str) -> dict[str, Any]:
        """The record of one run.

        Raises:
            StoreError: if there is none, or it is unreadable and was set aside.
        """
        record = self._read(_checked(run_id))
        if record is None:
            raise StoreError(f"store: {self.root} has no run {run_id!r}; it holds {len(self._names())} runs")
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
                n_bytes = _bytes_of(self.root / run_id / name)
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
                _to_disk(temporary, *temporary.rglob("*"))
                (temporary / RECORD).write_bytes(dumps(document))
                _to_disk(temporary / RECORD, temporary)
                self._put(temporary, document)
            _to_disk(self.root)
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
            n_bytes = _bytes_of(adapter)
            if n_bytes is None:
                return 0
            if "adapter_dropped" not in record:
                record["adapter_dropped"] = adapter_dropped(why)
                with self._owned(f".tmp-{run_id}-{uuid4().hex[:12]}") as temporary:
                    (temporary / RECORD).write_bytes(dumps(record))
                    _to_disk(temporary / RECORD)
                    os.replace(temporary / RECORD, self.root / run_id / RECORD)
                    _to_disk(self.root / run_id)
            shutil.rmtree(adapter)
        self._remember(run_id)
        return n_bytes

    @contextlib.contextmanager
    def claim(self, run_id: str) -> Iterator[bool]:
        """Hold a run against other processes: yields False at once when another one, or this one, holds it already.

        The claim is a lock of the operating system, so that of a process that died is free again.
        """
        lock = FileLock(self.root / ".claims" / f"{_checked(run_id)}.lock")
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
        if _rename(temporary, final):
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
            if not _rename(temporary, final):
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
            raise StoreError(f"store: cannot list {self.root} ({_reason(error)})") from error

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
            raise StoreError(f"store: cannot read run {run_id} in {self.root} ({_reason(error)})") from error
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
            log.warning("store: run %s is not counted: %s; it stays in %s (%s)", run_id, why, folder, _reason(error))
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

    # The index

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


@contextlib.contextmanager
def explained(action: str, root: Path) -> Iterator[None]:
    """Turn what the operating system refuses into a StoreError that says what would help."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        # safetensors and shutil report a full disk in exceptions of their own.
        is_full = "No space left on device" in str(error)
        if not is_full and not isinstance(error, OSError):
            raise
        told = OSError(errno.ENOSPC, "No space left on device") if is_full else error
        raise StoreError(f"store: cannot {action} in {root} ({_reason(told)}); {_remedy(told)}") from error


def adapter_dropped(why: str) -> dict[str, str]:
    """What a record says, under the key of this name, of an adapter that was not kept."""
    return {"at": utc_now(), "why": why}


def row_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of `Store.frame` that one record fills, its scores by metric under `by_metric`.

    Raises:
        AttributeError, KeyError, TypeError: if a part of the record is not of the kind that it must be.
    """
    config, scores, parameters = record["config"], record["scores"], record["parameters"]
    model, task, adapter, train = (config.get(part) or {} for part in ("model", "task", "adapter", "train"))
    metric = record["metrics"][0] if record["metrics"] else None
    error, where = record.get("error") or {}, record["environment"]
    layers = adapter.get("layers")
    row = {
        "run_id": record["run_id"],
        "cell_id": record["cell_id"],
        "status": record["status"],
        "error_kind": error.get("kind"),
        "error_message": (error.get("message") or "").partition("\n")[0][:200] or None,
        "model": model.get("name"),
        "model_fingerprint": model.get("fingerprint"),
        "task": task.get("name"),
        "task_fingerprint": task.get("fingerprint"),
        "train_rows": task.get("train_rows"),
        **{name: adapter.get(name) for name in _OF_ADAPTER},
        **_ranks(record["manifest"], adapter.get("rank")),
        "adapter_dropout": adapter.get("dropout"),
        "layers": ",".join(map(str, layers)) if isinstance(layers, list) else layers,
        **{name: train.get(name) for name in _OF_TRAIN},
        "train_dropout": train.get("dropout"),
        "seed": config.get("seed"),
        "protocol": config.get("protocol"),
        **{f"{part}_parameters": parameters.get(part) for part in ("adapter", "head", "total")},
        "low_rank_parameters": sum(one["rank"] * (one["d_in"] + one["d_out"]) for one in record["manifest"]),
        "metric": metric,
        **{split: (scores.get(split) or {}).get(metric) for split in ("select", "report", "train")},
        **{name: value for name, value in record["cost"].items() if name in COLUMNS},
        "environment": where.get("id"),
        "commit": where.get("commit"),
        "dirty": where.get("dirty"),
        "sweep": (record.get("invocation") or {}).get("sweep"),
        "started": record.get("started"),
        "finished": record.get("finished"),
    }
    by_metric = {f"{split}_{name}": value for split, values in scores.items() for name, value in (values or {}).items()}
    numbers = by_metric | {name: row.get(name) for name, kind in COLUMNS.items() if kind == NUMBER}
    for name, value in numbers.items():
        if value is not None and not isinstance(value, (int, float)):
            raise TypeError(f"{name} is no number: {value!r}")
    return {name: value for name, value in row.items() if value is not None} | {"by_metric": by_metric}


def frame_of(rows: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The frame of rows from `row_of`, by run id; see `Store.frame`."""
    import pandas as pd

    ordered = [rows[run_id] for run_id in sorted(rows)]
    scored = sorted({name for row in ordered for name in row["by_metric"]}, key=_split_order)
    data = {name: _column([row.get(name) for row in ordered], kind) for name, kind in COLUMNS.items()}
    data |= {name: _column([row["by_metric"].get(name) for row in ordered], NUMBER) for name in scored}
    return pd.DataFrame(data)


def is_pack(root: str | Path) -> bool:
    """Whether a folder is a results pack, be it one that lost a file."""
    return any((Path(root) / name).is_file() for name in (MANIFEST, RECORDS))


def _ranks(manifest: list[dict[str, Any]], configured: Any) -> dict[str, Any]:
    """The rank of a run: one number when all its matrices share it, and in words by role when they do not."""
    by_role: dict[str, set[int]] = {}
    for matrix in manifest:
        by_role.setdefault(matrix["role"], set()).add(matrix["rank"])
    ranks = set().union(*by_role.values())
    if not ranks and isinstance(configured, int):
        ranks = {configured}
    if not ranks:
        return {}
    low, high = min(ranks), max(ranks)
    if low == high:
        return {"rank": low, "rank_min": low, "rank_max": high, "ranks": str(low)}
    words = {role: f"{min(own)}-{max(own)}" if len(own) > 1 else str(min(own)) for role, own in by_role.items()}
    return {"rank_min": low, "rank_max": high, "ranks": " ".join(f"{role}:{text}" for role, text in words.items())}


def _column(values: list[Any], kind: str) -> pd.Series:
    import pandas as pd

    if kind == NUMBER:
        is_whole = bool(values) and all(isinstance(value, int) and abs(value) < 2**63 for value in values)
        return pd.Series(values, dtype="int64" if is_whole else "float64")
    is_text = kind == TEXT and any(value is not None for value in values)
    return pd.Series(values, dtype=None if is_text else "object")


def _split_order(column: str) -> tuple[int, str]:
    """Select before report before train, then by name: the order of the columns by metric."""
    prefixes = ("select_", "report_", "train_")
    return next((place for place, prefix in enumerate(prefixes) if column.startswith(prefix)), len(prefixes)), column


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


def _checked(run_id: str) -> str:
    if not isinstance(run_id, str) or not RUN_ID.fullmatch(run_id):
        raise StoreError(f"store: {run_id!r} is no run id; one is 8 to 64 of 0-9a-f")
    return run_id


def _acquire(lock: FileLock, *, timeout: float) -> bool:
    try:
        lock.acquire(timeout=timeout, poll_interval=0.01)
    except Timeout:
        return False
    return True


def _rename(source: Path, target: Path) -> bool:
    """Rename a folder; False when a folder that is not empty is in the way."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            return False
        raise
    return True


def _bytes_of(place: Path) -> int | None:
    """Bytes of a file, or of all files below a folder; None when there is nothing."""
    try:
        facts = place.stat()
        if not stat.S_ISDIR(facts.st_mode):
            return facts.st_size
        return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    except OSError:
        return None


def _to_disk(*places: Path) -> None:
    """Wait until these files and folders are on the disk."""
    for place in places:
        handle = os.open(place, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            # Some file systems cannot sync a folder; that they say so is no reason to lose the run.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP) or place.is_file():
                raise
        finally:
            os.close(handle)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _remedy(error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "free some space and run the same command again: what is finished is kept"
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "give a folder that can be written, with store=FOLDER"
    return "what is finished is kept"
