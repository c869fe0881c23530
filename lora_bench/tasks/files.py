"""The user's own rows (`task=files`): one or two text columns and a label column, in files of any format.

A text of a pair may be empty or absent (null in JSONL and parquet) and is then read as empty, in every format alike; a
row without any text is refused. What a label is, `labels.py` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_bench.config.errors import ConfigError
from lora_bench.config.schema import TaskConfig
from lora_bench.tasks.labels import (
    LabelColumn,
    class_label,
    classes,
    is_missing,
    refuse_hidden,
    refuse_rounded,
    regression_labels,
)
from lora_bench.tasks.quotes import refuse_swallowed, refuse_two_rules
from lora_bench.tasks.readers import Columns, bare, read_columns, require
from lora_bench.tasks.rows import Rows, Source
from lora_bench.tasks.shards import refuse_part

if TYPE_CHECKING:
    import pandas as pd


def read(config: TaskConfig) -> Source:
    """Rows of `task.train_file`, `task.report_file` and, where given, `task.select_file`."""
    paths = _paths(config)
    if not 1 <= len(config.text_columns) <= 2:
        raise ConfigError(f"task.text_columns: {len(config.text_columns)} given; name one or two columns")
    if not config.label_column:
        raise ConfigError("task.label_column: no column given; name the column that holds the labels")
    texts = [bare(name) for name in config.text_columns]
    if len(set(texts)) < len(texts):
        raise ConfigError(f"task.text_columns: {config.text_columns[0]!r} is named twice; name one column, or two")
    if bare(config.label_column) in texts:
        raise ConfigError(
            f"task.label_column: {config.label_column!r} is one of task.text_columns; name another column"
        )

    read_in = {split: read_columns(path, key=f"task.{split}_file") for split, path in paths.items()}
    for split, columns in read_in.items():
        if columns.n_rows == 0:
            raise ConfigError(f"task.{split}_file: {str(paths[split])!r} has no rows; give at least one")
        require(columns, config.text_columns, where=paths[split], key="task.text_columns")
        require(columns, [config.label_column], where=paths[split], key="task.label_column")
        refuse_swallowed(columns, config.label_column, where=paths[split], key=f"task.{split}_file")
    refuse_two_rules({paths[split]: columns for split, columns in read_in.items()}, key="task.train_file")

    import pandas as pd

    names: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    column = config.label_column
    raw = {
        split: LabelColumn(
            columns.of(column), paths[split], class_label(columns.metadata, column), columns.bits_of(column)
        )
        for split, columns in read_in.items()
    }
    if config.kind == "regression":
        labels = {split: regression_labels(given.values, where=given.path) for split, given in raw.items()}
        for split, numbers in labels.items():
            refuse_hidden(numbers, where=paths[split])
            refuse_rounded(numbers, where=paths[split])
    else:
        learnt = classes(raw)
        names, keys, labels = learnt.names, learnt.keys, learnt.labels
    splits = {}
    for split, columns in read_in.items():
        table = text_table(columns, config.text_columns, where=paths[split], key="task.text_columns")
        table["label"] = pd.Series(labels[split], dtype="float32" if config.kind == "regression" else "int64")
        table["idx"] = range(columns.n_rows)
        splits[split] = Rows(table, split, files=(paths[split].name,))
    default = ("pearson", "spearman") if config.kind == "regression" else ("accuracy",)
    return Source("files", config.kind, names, default, splits, label_keys=keys)


def _paths(config: TaskConfig) -> dict[str, Path]:
    """The file of each split."""
    folder = Path(config.data_dir or ".")
    given = {"train": config.train_file, "select": config.select_file, "report": config.report_file}
    paths: dict[str, Path] = {}
    for split, name in given.items():
        if not name:
            if split != "select":
                raise ConfigError(f"task.{split}_file: no file given; task=files needs train_file and report_file")
            continue
        path = folder / name
        for other, taken in paths.items():
            if path.resolve() == taken.resolve():
                raise ConfigError(f"task.{split}_file: {name!r} is task.{other}_file too; give each split its own file")
        refuse_part(path, key=f"task.{split}_file")
        paths[split] = path
    return paths


def text_table(columns: Columns, names: Sequence[str], *, where: Path | str, key: str) -> pd.DataFrame:
    """The text columns as text_a and text_b. In a pair, a text that is absent is empty.

    Raises:
        ConfigError: on a text that is no string or no valid Unicode, and on a row without any text.
    """
    texts = [
        [_text(value, row, name, is_pair=len(names) > 1, where=where, key=key) for row, value in enumerate(values, 1)]
        for name, values in ((name, columns.of(name)) for name in names)
    ]
    for row, cells in enumerate(zip(*texts, strict=True), start=1):
        if not any(cell.strip() for cell in cells):
            raise ConfigError(f"{key}: row {row} of {str(where)!r} has no text in {', '.join(names)}; drop the row")
    import pandas as pd

    return pd.DataFrame({f"text_{letter}": values for letter, values in zip("ab", texts, strict=False)})


def _text(value: Any, row: int, name: str, *, is_pair: bool, where: Path | str, key: str) -> str:
    if isinstance(value, bytes):  # parquet from writers without a text type
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise ConfigError(
                f"{key}: row {row} of {str(where)!r} holds bytes in {name!r} that are no UTF-8; write text"
            ) from None
    if not isinstance(value, str):
        if is_missing(value):
            if is_pair:
                return ""
            raise ConfigError(
                f"{key}: row {row} of {str(where)!r} holds nothing in {name!r}; every text must be a string"
            )
        shown = repr(value) if not isinstance(value, int) or value.bit_length() < 200 else "a number"
        raise ConfigError(
            f"{key}: row {row} of {str(where)!r} holds {shown[:60]}, a {type(value).__name__} in {name!r}; "
            "every text must be a string"
        )
    if "\0" in value:
        raise ConfigError(f"{key}: row {row} of {str(where)!r} holds a NUL in {name!r}; remove it")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ConfigError(f"{key}: row {row} of {str(where)!r} holds half a surrogate pair in {name!r}; use valid text")
    return value
