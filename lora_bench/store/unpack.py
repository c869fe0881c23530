"""Open compressed files of an archive or a run within bounds: a small file may open to more than a machine holds.

What a file may open to is `MOST_TIMES` its size, and `SMALLEST` in any case. Records of our own open to about ten times
their size, and predictions to about four.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from lora_bench.store.errors import StoreError
from lora_bench.wording import size

if TYPE_CHECKING:
    import pandas as pd

MOST_TIMES = 200
SMALLEST = 200_000_000
_TEXT_BYTES = 64
"""About what a cell of text takes in memory."""


def most_bytes(path: Path) -> int:
    """How many bytes a file may open to."""
    return max(SMALLEST, MOST_TIMES * path.stat().st_size)


def unzipped(path: Path) -> bytes:
    """The content of a gzip file.

    Raises:
        StoreError: if it opens to more than it may.
        OSError, EOFError, zlib.error: if it is no gzip file, or cut short.
    """
    left, pieces = most_bytes(path), []
    content = path.read_bytes()
    while content:
        stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        pieces.append(stream.decompress(content, left))
        left -= len(pieces[-1])
        if left <= 0:
            raise _too_large(path)
        if not stream.eof:
            raise EOFError("it ends before its end is marked")
        content = stream.unused_data.lstrip(b"\0")
    return b"".join(pieces)


def table(path: Path) -> pd.DataFrame:
    """The content of a parquet file.

    Raises:
        StoreError: if it opens to more than it may.
        OSError, ValueError: if it cannot be read.
    """
    import pandas as pd
    import pyarrow.parquet as pq

    with path.open("rb") as stream:  # Arrow takes a path such as `exp:1/...` for an address
        with pq.ParquetFile(stream) as file:
            facts, names = file.metadata, file.schema_arrow
        n_texts = sum(str(field.type) in ("string", "large_string", "binary", "large_binary") for field in names)
        cells = facts.num_rows * (8 * (len(names) - n_texts) + _TEXT_BYTES * n_texts)
        pages = sum(facts.row_group(number).total_byte_size for number in range(facts.num_row_groups))
        if max(cells, pages) > most_bytes(path):
            raise _too_large(path)
        stream.seek(0)
        return pd.read_parquet(stream)


def _too_large(path: Path) -> StoreError:
    opened, on_disk = size(most_bytes(path)), size(path.stat().st_size)
    return StoreError(
        f"store: {path}, {on_disk}, opens to more than {opened}, as no file of ours does; it was not opened"
    )
