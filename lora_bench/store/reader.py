"""A store as its readers see it, whether a folder of runs or an archive, and the names of its parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lora_bench.store.document import RUN_ID
from lora_bench.store.errors import StoreError

if TYPE_CHECKING:
    import pandas as pd

PREDICTIONS = "predictions.parquet"
ADAPTER = "adapter"
# What an archive holds in place of run folders.
MANIFEST = "manifest.json"
RECORDS = "records.jsonl.gz"


class StoreReader(Protocol):
    """The records of runs, by run id. `open_store` gives one."""

    root: Path

    def has(self, run_id: str) -> bool:
        """Whether this run is finished."""
        ...

    def status(self, run_id: str) -> str | None:
        """`finished`, `failed`, or None when there is no sound record of this run."""
        ...

    def statuses(self) -> dict[str, str]:
        """The status of every run."""
        ...

    def written_at(self, run_id: str) -> int | None:
        """When the run's record was written, in nanoseconds; None without one, and in an archive."""
        ...

    def path(self, run_id: str) -> Path:
        """The folder of a run, whether or not it exists."""
        ...

    def adapter(self, run_id: str) -> Path | None:
        """The folder of the run's adapter in PEFT format, or None when none was kept."""
        ...

    def record(self, run_id: str) -> dict[str, Any]:
        """The record of one run.

        Raises:
            StoreError: if there is none, or it is unreadable.
        """
        ...

    def records(self) -> Iterator[dict[str, Any]]:
        """Every sound record, by run id."""
        ...

    def frame(self) -> pd.DataFrame:
        """One row per run, failed ones too, ordered by run id; see `frame.COLUMNS`. What a run lacks is NaN."""
        ...

    def predictions(self, run_id: str) -> pd.DataFrame | None:
        """The predictions that were kept of a run, or None when there are none.

        Raises:
            StoreError: if there is no such run, or they cannot be read.
        """
        ...

    @property
    def quarantined(self) -> list[Path]:
        """The folders that were set aside because their record could not be read."""
        ...

    @property
    def unreadable(self) -> dict[str, str]:
        """The runs that are not counted because their record could not be read at the last look, and why."""
        ...

    def bytes_by_part(self) -> dict[str, tuple[int, int]]:
        """What the disk holds: runs that have the part, and its bytes, for record, predictions and adapter."""
        ...


def is_archive(root: str | Path) -> bool:
    """Whether a folder is an archive, even one that lost a file; a manifest.json of another program is not enough."""
    if (Path(root) / RECORDS).is_file():
        return True
    try:
        return RECORDS.encode() in (Path(root) / MANIFEST).read_bytes()
    except OSError:
        return False


def checked_id(run_id: str) -> str:
    """The run id, checked, so that it names a folder in the store and nothing outside it."""
    if not isinstance(run_id, str) or not RUN_ID.fullmatch(run_id):
        raise StoreError(f"store: {run_id!r} is no run id; one is 8 to 64 of 0-9a-f")
    return run_id


def unknown_run(root: Path, run_id: str, n_runs: int) -> StoreError:
    return StoreError(f"store: {root} has no run {run_id!r}; it holds {n_runs} runs")
