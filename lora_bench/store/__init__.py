"""The store: the records that every table and figure reads, in a folder of runs or in an archive.

`open_store` reads either; to write, use `store.folder.Store`.
"""

from pathlib import Path

from lora_bench.store.archive import Archive
from lora_bench.store.errors import StoreError
from lora_bench.store.folder import Store
from lora_bench.store.reader import StoreReader, is_archive

__all__ = ["StoreReader", "existing", "holds_no_run", "open_store", "recover"]


def open_store(root: str | Path) -> StoreReader:
    """The records under a folder, for reading: a folder of runs, which need not exist yet, or an archive.

    Raises:
        StoreError: if `root` is a file, or an archive that is not what its manifest says.
    """
    return Archive(root) if is_archive(root) else Store(root)


def existing(root: str | Path, *, key: str = "store") -> StoreReader:
    """The records under a folder that must be there: what a command reads; `key` names it.

    Raises:
        StoreError: if there is none, or as `open_store` does.
    """
    works = f"give the folder that a sweep wrote, or an archive, with {key}=FOLDER"
    if not Path(root).exists():
        raise StoreError(f"{key}: no folder {str(root)!r}; {works}")
    if not Path(root).is_dir():
        raise StoreError(f"{key}: {str(root)!r} is a file; {works}")
    return open_store(root)


def holds_no_run(root: str | Path) -> StoreError:
    """What to say of a store without a run."""
    return StoreError(f"store: {str(root)!r} holds no run; start with: lora-bench +sweeps=quick")


def recover(store: StoreReader) -> None:
    """Keep the runs that were complete when their writer died; call it before looking up runs that may be trained."""
    if isinstance(store, Store) and store.root.is_dir():
        store.recover()
