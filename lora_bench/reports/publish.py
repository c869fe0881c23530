"""Publish a finished study: the runs of some stores as an archive, which `store.archive` reads.

Records are kept whole, but for the folders of the machine in the command that started a run, and for the digits of the
training curves that float32 does not hold, which are half of a record. The same runs and command give the same bytes,
with the same pyarrow.

Logits are rounded to float16 row by row: a row keeps its float32 where rounding would move the largest one, and so does
every row of a regression task, whose correlations any rounding moves. So each stored score can be computed again to the
last digit. They are float32 columns, split by byte: the bits that rounding cleared take no space.
"""

from __future__ import annotations

import gzip
import json
import logging
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lora_bench import __version__
from lora_bench.config.overrides import override
from lora_bench.reports.replace import replace, scratch
from lora_bench.store import holds_no_run
from lora_bench.store.archive import ADAPTERS, FORMAT, Content, check_names
from lora_bench.store.disk import to_disk
from lora_bench.store.errors import StoreError, explained
from lora_bench.store.files import checksums
from lora_bench.store.frame import frame_of, row_of
from lora_bench.store.journal import Journal, journals
from lora_bench.store.predictions import logit_names
from lora_bench.store.reader import ADAPTER, MANIFEST, PREDICTIONS, RECORDS, StoreReader, is_archive
from lora_bench.store.record import CURVES
from lora_bench.store.secrets import scrub_override, without_folders
from lora_bench.verdicts import settings
from lora_bench.verdicts.arms import chosen_runs, leading_runs
from lora_bench.wording import counted, listed

log = logging.getLogger(__name__)

LARGEST_BYTES = 20_000_000  # what a repository carries without regret
CELL = re.compile(r"(?:([^/]*)/)?(.*?)(?::(\d+))?", flags=re.DOTALL)  # a task, a cell, a number of seeds


@dataclass(frozen=True)
class Published:
    """An archive that was written, or found to be there already."""

    root: Path
    manifest: dict[str, Any]
    is_new: bool

    @property
    def n_bytes(self) -> int:
        """Bytes of the files that the manifest lists."""
        return sum(about["bytes"] for about in self.manifest["files"].values())


def write_archive(
    stores: Sequence[StoreReader],
    out: Path,
    *,
    task: str | None = None,
    adapters: Sequence[str] | None = (),
    command: str = "",
    overwrite: bool = False,
    keep_first: bool = False,
) -> Published:
    """Archive the runs of some stores, failed ones too, into the folder `out`.

    A run that several stores hold counts once: a finished one stands for one that failed elsewhere, and of several that
    finished all must have measured the same, as copies of one record have. Those that did not are refused by their ids,
    or with `keep_first` that of the first store stands for the others.

    Args:
        task: only the runs of this task.
        adapters: cells whose LoRA adapters at their chosen rate are kept: `qv r=4`, of one task `sst2/qv r=4`, of its
            first two seeds `qv r=4:2`; or `all`; empty for none. None keeps all that those runs kept, whole
            weights of full fine-tuning too.
        command: what the manifest says of how it was made.
        overwrite: replace an archive that differs; files that belong to no archive stay.
        keep_first: of runs and studies that stores hold with different results, keep those of the first store.

    Raises:
        NothingToShow: if no run is left, or there is no such cell.
        StoreError: if `out` holds something else, stores hold different finished records of a run or different looks of
            a study, or the disk refuses.
    """
    with explained("write the archive", out, key="out"):
        if out.exists() and not out.is_dir():
            raise StoreError(f"results: {out} is a file; give a folder that is new or empty")
        with scratch(out) as folder:
            lines, homes, frame = _gather(stores, task, keep_first=keep_first)
            best = chosen_runs(frame)
            studies = _whole_studies(stores, set(frame["run_id"]), keep_first=keep_first)
            read = sorted({*leading_runs(frame)["run_id"], *(run_id for study in studies for run_id in study.looked)})
            _write_records(folder / RECORDS, [lines[run_id] for run_id in sorted(frame["run_id"])])
            wanted = best["run_id"] if adapters is None else _of_cells(best, adapters)["run_id"]
            n_adapters = sum(_copy_adapter(homes[run_id], run_id, folder) for run_id in wanted)
            manifest = {
                "format": FORMAT,
                "lora_bench": __version__,
                "command": command,
                "runs": len(frame),
                "finished": int((frame["status"] == "finished").sum()),
                "chosen": len(best),
                **_write_predictions(folder / PREDICTIONS, {run_id: homes[run_id] for run_id in read}),
                "runs_with_adapter": n_adapters,
                "studies": _copy_journals(studies, folder),
                "files": checksums(folder),
            }
            check_names(manifest["files"], out)
            is_new = _put(folder, out, manifest, overwrite=overwrite)
    return Published(out, manifest, is_new)


def _without_folders(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record, its command and error without the folders of the machine: an absolute path keeps its last part."""
    invocation = dict(record.get("invocation") or {})
    published = []
    for words in invocation.get("overrides") or []:
        given = scrub_override(str(words))
        name, is_set, value = given.partition("=")
        path = value.strip("'\"")
        published.append(override(name, Path(path).name) if is_set and Path(path).is_absolute() else given)
    error = record.get("error")
    if error:
        error = {key: without_folders(value) if isinstance(value, str) else value for key, value in error.items()}
    return {**record, "error": error, "invocation": {**invocation, "overrides": published}}


def _with_short_curves(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record, the numbers of its curves with as few digits as tell a float32 from its neighbours."""
    history = record.get("history") or {}
    short = {name: [_shortest(value) for value in history[name]] for name in CURVES if name in history}
    return {**record, "history": {**history, **short}}


def _shortest(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    with np.errstate(over="ignore"):  # beyond float32's range: infinite, so not kept
        single = np.float32(value)
    return float(str(single)) if np.isfinite(single) else value


def _gather(
    stores: Sequence[StoreReader], task: str | None, *, keep_first: bool
) -> tuple[dict[str, bytes], dict[str, StoreReader], pd.DataFrame]:
    """By run id: its record as a line, and the store that it lies in; and the frame of the runs that are wanted."""
    lines: dict[str, bytes] = {}
    rows: dict[str, dict[str, Any]] = {}
    homes: dict[str, StoreReader] = {}
    differing: dict[str, str] = {}
    for store in stores:
        for record in store.records():
            run_id, status = record["run_id"], record["status"]
            kept = _with_short_curves(_without_folders(record))
            line = json.dumps(kept, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
            if run_id in lines and lines[run_id] != line:
                if status == rows[run_id]["status"] == "finished":
                    differing.setdefault(run_id, f"{homes[run_id].root} and {store.root}")
                    continue
                if status == "failed":
                    continue
            elif run_id in lines:
                continue
            lines[run_id], rows[run_id], homes[run_id] = line, row_of(record), store
    if differing:
        run_id, places = next(iter(differing.items()))
        clash = f"{places} hold different finished records of run {listed(list(differing)) if keep_first else run_id}"
        if not keep_first:
            others = f" and of {counted(len(differing) - 1, 'other run')}" if len(differing) > 1 else ""
            works = "remove one of the two, or keep those of the first store with --keep-first"
            raise StoreError(f"results: {clash}{others}; {works}")
        log.warning("results: %s; that of the first store is kept", clash)
    frame = frame_of(rows)
    if frame.empty:
        raise holds_no_run(", ".join(str(store.root) for store in stores))
    return lines, homes, settings.filter_runs(frame, "task", task)


def _write_records(path: Path, lines: Sequence[bytes]) -> None:
    # Neither time nor name in the header: the same records are the same bytes.
    with path.open("wb") as file, gzip.GzipFile("", "wb", compresslevel=9, fileobj=file, mtime=0) as zipped:
        for line in lines:
            zipped.write(line + b"\n")


def _write_predictions(path: Path, homes: Mapping[str, StoreReader]) -> dict[str, int]:
    """Write the table, if any of these runs kept its predictions. Returns the counts for the manifest."""
    tables, counts = [], {"float16_rows": 0, "float32_rows": 0}
    for run_id, store in homes.items():
        predictions = store.predictions(run_id)
        if predictions is None:
            continue
        names = logit_names(predictions)
        rounded, is_rounded = _rounded(predictions[names].to_numpy())
        predictions[names] = rounded
        predictions.insert(0, "run_id", run_id)
        tables.append(predictions)
        counts["float16_rows"] += int(is_rounded.sum())
        counts["float32_rows"] += int((~is_rounded).sum())
    if tables:
        table = pd.concat(tables, ignore_index=True)
        logits = logit_names(table)
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
        of_cell = lora[((lora["arm"] == cell) | (name == "all")) & ((lora["task"] == task) | (task is None))]
        if of_cell.empty:
            cells_there = ", ".join(dict.fromkeys(lora["arm"]))
            raise settings.NothingToShow(f"--adapters: no cell {name} at its chosen rate; there are {cells_there}")
        seeds = sorted(of_cell["seed"].unique())
        kept.append(of_cell[of_cell["seed"].isin(seeds[: int(n_seeds)] if n_seeds else seeds)])
    return pd.concat(kept).drop_duplicates("run_id")


@dataclass(frozen=True)
class _Study:
    """A study's journal, and its looks."""

    journal: Journal
    looks: Sequence[Mapping[str, Any]]

    @property
    def looked(self) -> set[str]:
        """The runs that the looks rest on."""
        return {run_id for look in self.looks for run_id in look["runs"]}

    def goes_on_from(self, other: _Study) -> bool:
        """Whether its first looks are all that the other had, whenever they were held."""
        before = self.looks[: len(other.looks)]
        return [_without_time(look) for look in before] == [_without_time(look) for look in other.looks]


def _whole_studies(stores: Sequence[StoreReader], run_ids: Collection[str], *, keep_first: bool) -> list[_Study]:
    """Those whose looks rest on runs of the archive alone, each once: where several stores hold one, as far as the one
    that went on took it.

    Raises:
        StoreError: where stores hold different looks of a study; with `keep_first` those of the first store stand.
    """
    whole: dict[str, _Study] = {}
    for journal in (journal for store in stores for journal in journals(store.root)):
        study = _Study(journal, (journal.read() or {"looks": []})["looks"])
        if not study.looks or not study.looked <= set(run_ids):
            continue
        before = whole.setdefault(journal.archived_as, study)
        if before.goes_on_from(study):
            continue
        if study.goes_on_from(before):
            whole[journal.archived_as] = study
        elif not keep_first:
            raise StoreError(f"results: stores hold different looks of the study {Path(journal.archived_as).stem}")
    return list(whole.values())


def _without_time(look: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in look.items() if key != "held"}


def _copy_journals(studies: Sequence[_Study], folder: Path) -> int:
    """Put them into the archive; how many there are."""
    for study in studies:
        target = folder / study.journal.archived_as
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(study.journal.path, target)
    return len(studies)


def _copy_adapter(store: StoreReader, run_id: str, folder: Path) -> bool:
    source, target = store.adapter(run_id), folder / ADAPTERS / run_id / ADAPTER
    if source is None:
        return False
    if any(path.is_symlink() for path in (source, *source.rglob("*"))):
        raise StoreError(f"results: {source} holds a link; an archive holds files alone")
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    return True


def _put(folder: Path, out: Path, manifest: Mapping[str, Any], *, overwrite: bool) -> bool:
    """Move the archive from `folder` to `out`; False when the same files are there already."""
    if is_archive(out):
        try:
            is_same = Content(out).manifest["files"] == manifest["files"]
        except StoreError:
            is_same = False
        if is_same:
            return False
        if not overwrite:
            raise StoreError(f"results: {out} holds another archive; give --overwrite to replace it, or another folder")
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    to_disk(folder, *folder.rglob("*"))
    replace(folder, out)
    return True
