"""The store: the records that every table and figure reads, in a folder of runs or in an archive.

`open_store` reads either; to write, use `store.folder.Store`.
"""

from pathlib import Path

from lora_bench.store.archive import Archive
from lora_bench.store.folder import Store
from lora_bench.store.reader import StoreReader, is_archive

__all__ = ["StoreReader", "open_store", "recover"]


def open_store(root: str | Path) -> StoreReader:
    """The records under a folder, for reading: a folder of runs, which need not exist yet, or an archive.

    Raises:
        StoreError: if `root` is a file, or an archive that is not what its manifest says.
    """
    return Archive(root) if is_archive(root) else Store(root)


def recover(store: StoreReader) -> None:
    """Keep the runs that were complete when their writer died; call it before looking up runs that may be trained."""
    if isinstance(store, Store) and store.root.is_dir():
        store.recover()
