"""The archive: a finished study's store in a few small files, which are published with the code.

    ARCHIVE/records.jsonl.gz             every record, one a line, by run id
    ARCHIVE/predictions.parquet          run_id and predictions, in one table: of each arm's two best rates, and
                                         of what a study looked at
    ARCHIVE/adapters/<run_id>/adapter/   the adapters that were asked for, in PEFT format
    ARCHIVE/studies/<family>.json        the journals of its studies
    ARCHIVE/manifest.json                format version, counts, and the size and SHA-256 of every file above

`open_store(ARCHIVE)` reads it as it reads a folder of runs. Every file is checked against the manifest when the archive
is opened. `reports.publish` writes one.
"""

from __future__ import annotations

import functools
import json
import logging
import re
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_bench.store import unpack
from lora_bench.store.document import RUN_ID, loads
from lora_bench.store.errors import NewerRecord, StoreError
from lora_bench.store.files import sha256_of
from lora_bench.store.frame import ROW_ERRORS, frame_of, row_of
from lora_bench.store.predictions import logit_names
from lora_bench.store.reader import ADAPTER, MANIFEST, PREDICTIONS, RECORDS, checked_id, unknown_run

if TYPE_CHECKING:
    import pandas as pd  # a fifth of a second: imported where predictions are read

log = logging.getLogger(__name__)

FORMAT = 1
ADAPTERS = "adapters"
OLD = ".old-archive-"
"""How the folder of an archive that is being replaced begins; see `reports.replace`."""
# No such name leaves the folder, and no such file can run code when it is read.
_NAME = re.compile(
    r"records\.jsonl\.gz|predictions\.parquet|studies/\w[\w.-]*\.json"
    r"|adapters/[0-9a-f]{8,64}/adapter/(?:\w[\w.-]*/)*\w[\w.-]*\.(?:safetensors|json|md)",
    re.ASCII,
)
_COUNTS = ("runs", "finished", "chosen", "runs_with_predictions", "runs_with_adapter", "float16_rows", "float32_rows")


class Archive:
    """An archive, read as a read-only store.

    Raises:
        StoreError: on opening, naming the file that is missing, cut short, changed, or of an unknown format.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self._content = _open(self.root, _stamp(self.root))

    def __repr__(self) -> str:
        return f"Archive({str(self.root)!r})"

    def has(self, run_id: str) -> bool:
        """Whether this run is finished."""
        return self.status(run_id) == "finished"

    def status(self, run_id: str) -> str | None:
        """`finished`, `failed`, or None when there is no record of this run."""
        known = self._content.records.get(checked_id(run_id))
        return known[1]["status"] if known else None

    def statuses(self) -> dict[str, str]:
        """The status of every run."""
        return {run_id: row["status"] for run_id, (_, row) in self._content.records.items()}

    def written_at(self, run_id: str) -> int | None:
        """None: an archive does not keep when a record was written."""
        return None

    def path(self, run_id: str) -> Path:
        """The folder of the run's adapter, if the archive kept it."""
        return self.root / ADAPTERS / checked_id(run_id)

    def adapter(self, run_id: str) -> Path | None:
        """The folder of the run's adapter in PEFT format, or None when the archive kept none."""
        folder = self.path(run_id) / ADAPTER
        return folder if folder.is_dir() else None

    def record(self, run_id: str) -> dict[str, Any]:
        """The record of one run.

        Raises:
            StoreError: if there is none.
        """
        known = self._content.records.get(checked_id(run_id))
        if known is None:
            raise unknown_run(self.root, run_id, len(self._content.records))
        return loads(known[0], run_id=run_id)

    def records(self) -> Iterator[dict[str, Any]]:
        """Every record, by run id."""
        return (self.record(run_id) for run_id in sorted(self._content.records))

    def frame(self) -> pd.DataFrame:
        """One row per run, failed ones too, ordered by run id; see `frame.COLUMNS`. What a run lacks is NaN."""
        return frame_of({run_id: row for run_id, (_, row) in self._content.records.items()})

    def predictions(self, run_id: str) -> pd.DataFrame | None:
        """The predictions of a run; None when the archive kept none, as of rates that lost.

        Raises:
            StoreError: if there is no such run, or the table cannot be read.
        """
        self.record(run_id)
        rows = self._content.predictions_of(run_id)
        return None if rows is None else rows.copy()

    @property
    def quarantined(self) -> list[Path]:
        """None: an archive is whole, or it is not opened."""
        return []

    @property
    def unreadable(self) -> dict[str, str]:
        """The runs whose lines cannot be read, and why."""
        return self._content.unreadable

    def bytes_by_part(self) -> dict[str, tuple[int, int]]:
        """Runs that have the part and its bytes in the archive, for record, predictions and adapter."""
        manifest = self._content.manifest
        of_file = {name: about["bytes"] for name, about in manifest["files"].items()}
        return {
            "record": (manifest["runs"], of_file.pop(RECORDS)),
            "predictions": (manifest["runs_with_predictions"], of_file.pop(PREDICTIONS, 0)),
            "adapter": (manifest["runs_with_adapter"], sum(of_file.values())),
        }


class Content:
    """An archive's files, checked against the manifest; records and predictions are parsed when they are asked for."""

    def __init__(self, root: Path):
        self.root = root
        self.unreadable: dict[str, str] = {}
        self._by_run: dict[str, pd.DataFrame | None] = {}
        self.manifest = _read_manifest(root)
        for name, about in self.manifest["files"].items():
            _verify(root, name, about)
        names = {path.relative_to(root).as_posix() for path in (root / ADAPTERS).rglob("*") if not path.is_dir()}
        extra = sorted(names - set(self.manifest["files"]))
        if extra:
            raise StoreError(f"results: {root / extra[0]} is not in {MANIFEST}; remove it")

    @functools.cached_property
    def records(self) -> dict[str, tuple[bytes, dict[str, Any]]]:
        """By run id: the record's line, and its row of the frame."""
        path = self.root / RECORDS
        try:
            lines = unpack.unzipped(path).split(b"\n")[:-1]
        except (OSError, EOFError, zlib.error) as error:
            raise StoreError(f"results: cannot read {path} ({error})") from error
        by_run: dict[str, tuple[bytes, dict[str, Any]]] = {}
        for number, line in enumerate(lines, 1):
            try:
                record = loads(line)
                row = row_of(record)
            except NewerRecord as error:
                raise StoreError(f"results: line {number} of {path} cannot be read ({error})") from error
            except ROW_ERRORS as error:  # RecordError among them
                self.unreadable[f"line {number}"] = str(error)
                continue
            if not RUN_ID.fullmatch(record["run_id"]):
                raise StoreError(f"results: line {number} of {path}: {record['run_id']!r} is no run id")
            by_run[record["run_id"]] = (line, row)
        for line, why in self.unreadable.items():
            if not by_run:
                raise StoreError(f"results: {line} of {path} cannot be read ({why})")
            log.warning("results: %s of %s is not counted: %s", line, path, why)
        n_runs = len(by_run) + len(self.unreadable)
        if not n_runs == len(lines) == self.manifest["runs"]:
            content = f"{len(lines)} records of {n_runs} runs"
            raise StoreError(f"results: {path} has {content}; {MANIFEST} says {self.manifest['runs']}")
        return by_run

    def predictions_of(self, run_id: str) -> pd.DataFrame | None:
        """A run's part of the table, as the run itself kept it. A page asks for each several times."""
        if run_id not in self._by_run:
            rows = self.predictions.get(run_id)
            self._by_run[run_id] = None if rows is None else _as_kept(rows)
        return self._by_run[run_id]

    @functools.cached_property
    def predictions(self) -> dict[str, pd.DataFrame]:
        """By run id: its part of the table."""
        path = self.root / PREDICTIONS
        if PREDICTIONS not in self.manifest["files"]:
            return {}
        try:
            table = unpack.table(path)
            return {str(run_id): rows for run_id, rows in table.groupby("run_id", sort=False)}
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(f"results: cannot read {path} ({error})") from error


def _as_kept(rows: pd.DataFrame) -> pd.DataFrame:
    """Without what the table has for others: tasks of more labels have more columns, and a regression task beside them
    turns all labels into floats."""
    rows = rows.drop(columns="run_id").reset_index(drop=True)
    rows = rows.drop(columns=[name for name in rows if rows[name].isna().all()])
    return rows.astype({"label": "int64"}) if len(logit_names(rows)) > 1 else rows


@functools.lru_cache(maxsize=2)
def _open(root: Path, stamp: tuple) -> Content:
    """An archive's content, checked and parsed once for as long as no file changes: a script opens its store often."""
    try:
        return Content(root)
    except StoreError as error:
        if (old := old_archive(root)) is None:
            raise
        raise StoreError(f"{error}; it was being replaced, and the old archive is whole in {old}") from error


def old_archive(root: Path) -> Path | None:
    """The folder of the old archive, whole, that a process was replacing when it was killed; None without one."""
    return next((place for place in sorted(root.glob(OLD + "[0-9a-f]" * 12)) if (place / MANIFEST).is_file()), None)


def _stamp(root: Path) -> tuple:
    # With the current folder, since the root may be relative to it.
    files = [(path, path.lstat()) for path in sorted(root.rglob("*"))]
    return (
        Path.cwd(),
        *((path, file.st_ctime_ns, file.st_mtime_ns, file.st_size, file.st_ino) for path, file in files),
    )


def _read_manifest(root: Path) -> dict[str, Any]:
    path = root / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise StoreError(f"results: {path} is missing; fetch the archive again") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"results: cannot read {path} ({error})") from error
    manifest = manifest if isinstance(manifest, dict) else {}
    version, files = manifest.get("format"), manifest.get("files", {})
    if version != FORMAT:
        raise StoreError(f"results: {path} has format {version!r}, and this lora_bench reads format {FORMAT}")
    is_sound = isinstance(files, dict) and all(
        isinstance(about, dict) and isinstance(about.get("bytes"), int) and isinstance(about.get("sha256"), str)
        for about in files.values()
    )
    if not is_sound or RECORDS not in files or not all(isinstance(manifest.get(name), int) for name in _COUNTS):
        raise StoreError(f"results: {path} is no manifest of an archive; fetch the archive again")
    check_names(files, root)
    return manifest


def is_name(name: str) -> bool:
    """Whether a file of this name, relative to its archive, is one of an archive's."""
    return name == MANIFEST or bool(_NAME.fullmatch(name))


def check_names(names: Collection[str], root: Path) -> None:
    for name in names:
        if not _NAME.fullmatch(name):
            raise StoreError(f"results: {root}: {name!r} is no file of an archive")


def _verify(root: Path, name: str, about: Mapping[str, Any]) -> None:
    path = root / name
    if path.resolve() != root.resolve() / name:
        raise StoreError(f"results: {path} is a link; an archive holds files alone")
    if not path.is_file():
        raise StoreError(f"results: {path} is missing; fetch the archive again")
    n_bytes = path.stat().st_size
    if n_bytes < about["bytes"]:
        raise StoreError(
            f"results: {path} is cut short: {n_bytes:,} of {about['bytes']:,} bytes; fetch the archive again"
        )
    if sha256_of(path) != about["sha256"]:
        raise StoreError(f"results: {path} does not match its checksum in {MANIFEST}; fetch the archive again")
