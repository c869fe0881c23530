"""The results pack: a finished study's store in a few small files, which are published with the code.

    PACK/records.jsonl.gz              every record, one a line, by run id
    PACK/predictions.parquet           run_id and the predictions of every run at its arm's chosen rate, in one table
    PACK/adapters/<run_id>/adapter/    the adapters that were asked for, in PEFT format
    PACK/manifest.json                 format version, counts, and the size and SHA-256 of every file above

Records are kept whole, but for the folders of the machine in the command that started a run, and for the digits of the
training curves that float32 does not hold, which are half of a record. `Store(PACK)` reads the pack as it reads a
folder of runs, and refuses to write. Every file is checked against the manifest when the pack is opened. The same runs
and command give the same bytes, with the same pyarrow.

Logits are rounded to float16 row by row: a row keeps its float32 where rounding would move the largest one, and so does
every row of a regression task, whose correlations any rounding moves. So each stored score can be computed again to the
last digit. They are float32 columns, split by byte: the bits that rounding cleared take no space.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lora_bench import __version__, cells, tuning
from lora_bench.record import CURVES, RUN_ID, RecordError, loads, without_folders
from lora_bench.store import (
    ADAPTER,
    MANIFEST,
    PREDICTIONS,
    RECORDS,
    Store,
    StoreError,
    explained,
    frame_of,
    is_pack,
    row_of,
)

FORMAT = 1
LARGEST_BYTES = 20_000_000  # what a repository carries without regret
ADAPTERS = "adapters"
CELL = re.compile(r"(?:([^/]*)/)?(.*?)(?::(\d+))?", flags=re.DOTALL)  # a task, a cell, a number of seeds
# No name here leaves the folder, and none is of a kind that runs code when it is read.
_NAME = re.compile(
    r"records\.jsonl\.gz|predictions\.parquet"
    r"|adapters/[0-9a-f]{8,64}/adapter/(?:\w[\w.-]*/)*\w[\w.-]*\.(?:safetensors|json|md)",
    re.ASCII,
)
_COUNTS = ("runs", "finished", "chosen", "runs_with_predictions", "runs_with_adapter", "float16_rows", "float32_rows")


@dataclass(frozen=True)
class ResultsPack:
    """A pack that was written, or found to be there already."""

    root: Path
    manifest: dict[str, Any]
    is_new: bool

    @property
    def n_bytes(self) -> int:
        """Bytes of the files that the manifest lists."""
        return sum(about["bytes"] for about in self.manifest["files"].values())


# Writing


def write_pack(
    stores: Sequence[Store],
    out: Path,
    *,
    task: str | None = None,
    adapters: Sequence[str] = (),
    command: str = "",
    overwrite: bool = False,
) -> ResultsPack:
    """Pack the runs of some stores, failed ones too, into the folder `out`.

    A run that several stores hold counts once; a finished one stands for one that failed elsewhere.

    Args:
        task: only the runs of this task.
        adapters: cells whose LoRA adapters at their chosen rate are kept: `qv r=4`, of one task `sst2/qv r=4`, of its
            first two seeds `qv r=4:2`; or `all`; empty for none.
        command: what the manifest says of how it was made.
        overwrite: replace a pack that differs; files that belong to no pack stay.

    Raises:
        NothingToShow: if no run is left, or there is no such cell.
        StoreError: if `out` holds something else, stores hold different finished records of a run, or the disk refuses.
    """
    with explained("write the pack", out):
        if out.exists() and not (out.is_dir() and (is_pack(out) or not any(out.iterdir()))):
            raise StoreError(f"results: {out} holds something that is no pack; give a folder that is new or empty")
        lines, homes, frame = _gather(stores, task)
        best = chosen_runs(frame)
        folder = out.parent / f".tmp-{out.name}-{uuid4().hex[:12]}"
        folder.mkdir(parents=True)
        try:
            _write_records(folder / RECORDS, [lines[run_id] for run_id in sorted(frame["run_id"])])
            wanted = _of_cells(best, adapters)["run_id"]
            n_adapters = sum(_copy_adapter(homes[run_id], run_id, folder) for run_id in wanted)
            manifest = {
                "format": FORMAT,
                "lora_bench": __version__,
                "command": command,
                "runs": len(frame),
                "finished": int((frame["status"] == "finished").sum()),
                "chosen": len(best),
                **_write_predictions(
                    folder / PREDICTIONS, {run_id: homes[run_id] for run_id in sorted(best["run_id"])}
                ),
                "runs_with_adapter": n_adapters,
                "files": {
                    path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
                    for path in sorted(folder.rglob("*"))
                    if path.is_file()
                },
            }
            _check_names(manifest["files"], out)
            is_new = _put(folder, out, manifest, overwrite=overwrite)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return ResultsPack(out, manifest, is_new)


def chosen_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """The scored runs of every arm at the rate that `select` chose for it: those that tables and section 7 read.

    Arms compete within what may be compared (`cells.comparable`).
    """
    groups = cells.comparable(cells.prepare(frame))
    return pd.concat([tuning.at_chosen_rates(cells.name_arms(group)) for group in groups])


def _without_folders(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record, its command and error without the folders of the machine: an absolute path keeps its last part."""
    invocation = dict(record.get("invocation") or {})
    told = []
    for override in invocation.get("overrides") or []:
        name, is_set, value = str(override).partition("=")
        path = value.strip("'\"")
        told.append(f"{name}={Path(path).name}" if is_set and Path(path).is_absolute() else override)
    error = record.get("error")
    if error:
        error = {key: without_folders(value) if isinstance(value, str) else value for key, value in error.items()}
    return {**record, "error": error, "invocation": {**invocation, "overrides": told}}


def _with_short_curves(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record, the numbers of its curves with as few digits as tell a float32 from its neighbours."""
    history = record.get("history") or {}
    short = {name: [_shortest(one) for one in history[name]] for name in CURVES if name in history}
    return {**record, "history": {**history, **short}}


def _shortest(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    with np.errstate(over="ignore"):  # beyond float32's range: infinite, so not kept
        single = np.float32(value)
    return float(str(single)) if np.isfinite(single) else value


def _gather(stores: Sequence[Store], task: str | None) -> tuple[dict[str, bytes], dict[str, Store], pd.DataFrame]:
    """By run id: its record as a line, and the store that it lies in; and the frame of the runs that are wanted."""
    lines: dict[str, bytes] = {}
    rows: dict[str, dict[str, Any]] = {}
    homes: dict[str, Store] = {}
    for store in stores:
        for record in store.records():
            run_id, status = record["run_id"], record["status"]
            kept = _with_short_curves(_without_folders(record))
            line = json.dumps(kept, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
            if run_id in lines and lines[run_id] != line:
                if status == rows[run_id]["status"] == "finished":
                    raise StoreError(
                        f"results: {homes[run_id].root} and {store.root} hold different finished records of run "
                        f"{run_id}; remove one of the two"
                    )
                if status == "failed":
                    continue
            elif run_id in lines:
                continue
            lines[run_id], rows[run_id], homes[run_id] = line, row_of(record), store
    frame = frame_of(rows)
    if frame.empty:
        raise cells.NothingToShow(f"no run in {', '.join(str(store.root) for store in stores) or 'no store'}")
    return lines, homes, cells.filter_runs(frame, "task", task)


def _write_records(path: Path, lines: Sequence[bytes]) -> None:
    # Neither time nor name in the header: the same records are the same bytes.
    with path.open("wb") as file, gzip.GzipFile("", "wb", compresslevel=9, fileobj=file, mtime=0) as packed:
        for line in lines:
            packed.write(line + b"\n")


def _write_predictions(path: Path, homes: Mapping[str, Store]) -> dict[str, int]:
    """Write the table, if any of these runs kept its predictions. Returns the counts for the manifest."""
    tables, counts = [], {"float16_rows": 0, "float32_rows": 0}
    for run_id, store in homes.items():
        predictions = store.predictions(run_id)
        if predictions is None:
            continue
        names = _logit_names(predictions)
        rounded, is_rounded = _rounded(predictions[names].to_numpy())
        predictions[names] = rounded
        predictions.insert(0, "run_id", run_id)
        tables.append(predictions)
        counts["float16_rows"] += int(is_rounded.sum())
        counts["float32_rows"] += int((~is_rounded).sum())
    if tables:
        table = pd.concat(tables, ignore_index=True)
        logits = _logit_names(table)
        others = [name for name in map(str, table) if name not in logits]
        pq.write_table(
            pa.Table.from_pandas(table[[*others, *logits]], preserve_index=False).replace_schema_metadata(None),
            path,
            compression="zstd",
            compression_level=19,
            use_dictionary=others,
            column_encoding=dict.fromkeys(logits, "BYTE_STREAM_SPLIT"),
        )
    return {"runs_with_predictions": len(tables), **counts}


def _logit_names(table: pd.DataFrame) -> list[str]:
    names = [name for name in map(str, table) if name.startswith("logit_")]
    return sorted(names, key=lambda name: int(name.removeprefix("logit_")))


def _rounded(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n, n_labels) at float16's precision where no score can tell, and which rows (n,) those are."""
    if logits.shape[1] < 2:
        return logits, np.zeros(len(logits), dtype=bool)
    with np.errstate(over="ignore"):  # beyond float16's range: infinite, so not kept
        half = logits.astype(np.float16).astype(logits.dtype)
    is_safe = np.isfinite(half).all(axis=1) & (half.argmax(axis=1) == logits.argmax(axis=1))
    return np.where(is_safe[:, None], half, logits), is_safe


def _of_cells(best: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The LoRA runs of these cells. What other methods trained may be a whole backbone: it never fits."""
    lora = best[best["targets"] != ""]
    kept = [lora.iloc[:0]]
    for name in names:
        task, cell, n_seeds = CELL.fullmatch(name).groups()  # type: ignore[union-attr]  # it matches any text
        mine = lora[((lora["arm"] == cell) | (name == "all")) & ((lora["task"] == task) | (task is None))]
        if mine.empty:
            held = ", ".join(dict.fromkeys(lora["arm"]))
            raise cells.NothingToShow(f"--adapters: no cell {name} at its chosen rate; there are {held}")
        seeds = sorted(mine["seed"].unique())
        kept.append(mine[mine["seed"].isin(seeds[: int(n_seeds)] if n_seeds else seeds)])
    return pd.concat(kept).drop_duplicates("run_id")


def _copy_adapter(store: Store, run_id: str, folder: Path) -> bool:
    source, target = store.path(run_id) / ADAPTER, folder / ADAPTERS / run_id / ADAPTER
    if not source.is_dir():
        return False
    if any(path.is_symlink() for path in (source, *source.rglob("*"))):
        raise StoreError(f"results: {source} holds a link; a pack holds files alone")
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    return True


def _put(folder: Path, out: Path, manifest: Mapping[str, Any], *, overwrite: bool) -> bool:
    """Move the pack from `folder` to `out`; False when the same files are there already."""
    if is_pack(out):
        try:
            is_same = _Content(out).manifest["files"] == manifest["files"]
        except StoreError:
            is_same = False
        if is_same:
            return False
        if not overwrite:
            raise StoreError(f"results: {out} holds another pack; give --overwrite to replace it, or another folder")
    out.mkdir(parents=True, exist_ok=True)
    # The manifest goes first and comes last, so that a pack that was half replaced is never taken for a whole one.
    for name in (MANIFEST, PREDICTIONS):
        (out / name).unlink(missing_ok=True)
    if (out / ADAPTERS).exists():
        shutil.rmtree(out / ADAPTERS)
    for path in sorted(folder.iterdir()):
        os.replace(path, out / path.name)
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    os.replace(folder / MANIFEST, out / MANIFEST)
    return True


# Reading


class PackedStore(Store):
    """A results pack, read as a store. Writing is refused.

    Raises:
        StoreError: on opening, naming the file that is missing, cut short, changed, or of an unknown format.
    """

    def __init__(self, root: str | Path):
        super().__init__(root)
        self._content = _open(self.root, _stamp(self.root))

    def __repr__(self) -> str:
        return f"PackedStore({str(self.root)!r})"

    def path(self, run_id: str) -> Path:
        """The folder that holds the run's adapter, if the pack kept it."""
        return self.root / ADAPTERS / super().path(run_id).name

    def predictions(self, run_id: str) -> pd.DataFrame | None:
        """The predictions of a run at its arm's chosen rate; None when the pack holds none of it.

        Raises:
            StoreError: if there is no such run, or the table cannot be read.
        """
        self.record(run_id)
        mine = self._content.predictions.get(run_id)
        if mine is None:
            return None
        mine = mine.drop(columns="run_id").reset_index(drop=True)
        # Tasks of more labels have more columns, and a regression task beside others turns all labels into floats.
        mine = mine.drop(columns=[name for name in mine if mine[name].isna().all()])
        return mine.astype({"label": "int64"}) if len(_logit_names(mine)) > 1 else mine

    def bytes_by_part(self) -> dict[str, tuple[int, int]]:
        """Runs that have the part and its bytes in the pack, for record, predictions and adapter."""
        manifest = self._content.manifest
        of_file = {name: about["bytes"] for name, about in manifest["files"].items()}
        return {
            "record": (manifest["runs"], of_file.pop(RECORDS)),
            "predictions": (manifest["runs_with_predictions"], of_file.pop(PREDICTIONS, 0)),
            "adapter": (manifest["runs_with_adapter"], sum(of_file.values())),
        }

    # What `Store` asks of the disk

    def _names(self) -> list[str]:
        return list(self._content.records)

    def _load(self, run_id: str) -> dict[str, Any] | None:
        known = self._content.records.get(run_id)
        return None if known is None else loads(known[0], run_id=run_id)

    def _row(self, run_id: str) -> dict[str, Any] | None:
        known = self._content.records.get(run_id)
        return None if known is None else known[1]

    def _rows(self) -> dict[str, dict[str, Any]]:
        return {run_id: row for run_id, (_, row) in self._content.records.items()}

    def _make_root(self) -> None:
        raise StoreError(f"store: {self.root} is a results pack, which is read alone; give another store=FOLDER")


class _Content:
    """The files of a pack, found to be what the manifest says; records and predictions are parsed when asked for."""

    def __init__(self, root: Path):
        self.root = root
        self.manifest = _read_manifest(root)
        for name, about in self.manifest["files"].items():
            _verify(root, name, about)
        found = {path.relative_to(root).as_posix() for path in (root / ADAPTERS).rglob("*") if not path.is_dir()}
        extra = sorted(found - set(self.manifest["files"]))
        if extra:
            raise StoreError(f"results: {root / extra[0]} is not in {MANIFEST}; remove it")

    @functools.cached_property
    def records(self) -> dict[str, tuple[bytes, dict[str, Any]]]:
        """By run id: the record's line, and its row of the frame."""
        path = self.root / RECORDS
        try:
            lines = gzip.decompress(path.read_bytes()).split(b"\n")[:-1]
        except (OSError, EOFError, zlib.error) as error:
            raise StoreError(f"results: cannot read {path} ({error})") from error
        found: dict[str, tuple[bytes, dict[str, Any]]] = {}
        for number, line in enumerate(lines, 1):
            try:
                record = loads(line)
                row = row_of(record)
            except (RecordError, AttributeError, KeyError, TypeError) as error:
                raise StoreError(f"results: line {number} of {path} cannot be read ({error})") from error
            if not RUN_ID.fullmatch(record["run_id"]):
                raise StoreError(f"results: line {number} of {path}: {record['run_id']!r} is no run id")
            found[record["run_id"]] = (line, row)
        if not len(found) == len(lines) == self.manifest["runs"]:
            told = f"{len(lines)} records of {len(found)} runs"
            raise StoreError(f"results: {path} has {told}; {MANIFEST} says {self.manifest['runs']}")
        return found

    @functools.cached_property
    def predictions(self) -> dict[str, pd.DataFrame]:
        """By run id: its part of the table."""
        path = self.root / PREDICTIONS
        if PREDICTIONS not in self.manifest["files"]:
            return {}
        try:
            table = pd.read_parquet(path)
            return {str(run_id): mine for run_id, mine in table.groupby("run_id", sort=False)}
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(f"results: cannot read {path} ({error})") from error


@functools.lru_cache(maxsize=2)
def _open(root: Path, stamp: tuple) -> _Content:
    """A script opens its store many times; what was checked and parsed holds for as long as no file has changed."""
    return _Content(root)


def _stamp(root: Path) -> tuple:
    # With the current folder, since the root may be relative to it.
    facts = [(path, path.lstat()) for path in sorted(root.rglob("*"))]
    return (Path.cwd(), *((path, one.st_ctime_ns, one.st_mtime_ns, one.st_size, one.st_ino) for path, one in facts))


def _read_manifest(root: Path) -> dict[str, Any]:
    path = root / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise StoreError(f"results: {path} is missing; fetch the pack again") from None
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
        raise StoreError(f"results: {path} is no manifest of a pack; fetch the pack again")
    _check_names(files, root)
    return manifest


def _check_names(names: Collection[str], root: Path) -> None:
    for name in names:
        if not _NAME.fullmatch(name):
            raise StoreError(f"results: {root}: {name!r} is no file of a pack")


def _verify(root: Path, name: str, about: Mapping[str, Any]) -> None:
    path = root / name
    if path.resolve() != root.resolve() / name:
        raise StoreError(f"results: {path} is a link; a pack holds files alone")
    if not path.is_file():
        raise StoreError(f"results: {path} is missing; fetch the pack again")
    n_bytes = path.stat().st_size
    if n_bytes < about["bytes"]:
        raise StoreError(f"results: {path} is cut short: {n_bytes:,} of {about['bytes']:,} bytes; fetch the pack again")
    if _sha256(path) != about["sha256"]:
        raise StoreError(f"results: {path} does not match its checksum in {MANIFEST}; fetch the pack again")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
