"""The user's own rows (`task=files`: one or two text columns and a label column), and the readers of every file format.

CSV and TSV need a header line. Quotes follow RFC 4180; a TSV file whose quotes do not (GLUE's own format) is read with
quotes as plain text. In JSONL each line is an object. Label names are learnt from train, so an unseen label elsewhere
is an error; number labels are sorted as numbers, text labels as text.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_bench.config.errors import ConfigError
from lora_bench.config.schema import TaskConfig
from lora_bench.tasks.rows import Rows, Source

if TYPE_CHECKING:
    import pandas as pd


SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl")
MOST_LABELS = 1_000
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Columns:
    """A file's columns as Python values, and its parquet schema metadata."""

    values: dict[str, list[Any]]
    n_rows: int
    metadata: dict[str, str]


def read(config: TaskConfig) -> Source:
    """Rows of `task.train_file`, `task.report_file` and, where given, `task.select_file`."""
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
        paths[split] = path
    if not 1 <= len(config.text_columns) <= 2:
        raise ConfigError(f"task.text_columns: {len(config.text_columns)} given; name one or two columns")
    if not config.label_column:
        raise ConfigError("task.label_column: no column given; name the column that holds the labels")
    if config.label_column in config.text_columns:
        raise ConfigError(
            f"task.label_column: {config.label_column!r} is one of task.text_columns; name another column"
        )

    read_in = {split: read_columns(path, key=f"task.{split}_file") for split, path in paths.items()}
    for split, columns in read_in.items():
        if columns.n_rows == 0:
            raise ConfigError(f"task.{split}_file: {str(paths[split])!r} has no rows; give at least one")
        require(columns, config.text_columns, where=paths[split], key="task.text_columns")
        require(columns, [config.label_column], where=paths[split], key="task.label_column")

    import pandas as pd

    names: tuple[str, ...] = ()
    raw = {split: columns.values[config.label_column] for split, columns in read_in.items()}
    if config.kind == "regression":
        labels = {split: regression_labels(values, where=paths[split]) for split, values in raw.items()}
    else:
        names, labels = _classes(raw, paths)
    splits = {}
    for split, columns in read_in.items():
        table = text_table(columns, config.text_columns, where=paths[split], key="task.text_columns")
        table["label"] = pd.Series(labels[split], dtype="float32" if config.kind == "regression" else "int64")
        table["idx"] = range(columns.n_rows)
        splits[split] = Rows(table, split, files=(paths[split].name,))
    default = ("pearson", "spearman") if config.kind == "regression" else ("accuracy",)
    return Source("files", config.kind, names, default, splits)


def read_columns(path: Path, *, key: str) -> Columns:
    """All columns of a CSV, TSV, JSONL or parquet file.

    Raises:
        ConfigError: under `key`, when the file is absent, of another kind, or unreadable.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(f"{key}: cannot read {str(path)!r}; files end in {', '.join(SUFFIXES)}")
    if not path.is_file():
        beside = sorted(found.name for found in path.parent.glob("*") if found.suffix.lower() in SUFFIXES)
        there = f"{str(path.parent)!r} holds {', '.join(beside[:10])}" if beside else f"{str(path.parent)!r} holds none"
        raise ConfigError(f"{key}: no file {str(path)!r}; {there}")
    if suffix == ".parquet":
        return _read_parquet(path, key)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{key}: {str(path)!r} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    if suffix == ".jsonl":
        return _read_jsonl(text, path, key)
    return _read_delimited(text, path, key, delimiter="," if suffix == ".csv" else "\t")


def require(columns: Columns, names: Sequence[str], *, where: Path | str, key: str) -> None:
    """Refuse a file that lacks a column."""
    for name in names:
        if name not in columns.values:
            raise ConfigError(
                f"{key}: no column {name!r} in {str(where)!r}; it has {', '.join(columns.values) or 'none'}"
            )


def text_table(columns: Columns, names: Sequence[str], *, where: Path | str, key: str) -> pd.DataFrame:
    """The text columns as text_a and text_b.

    Raises:
        ConfigError: on a text that is absent, no string or no valid Unicode, and on a row without any text.
    """
    texts = [columns.values[name] for name in names]
    for name, values in zip(names, texts, strict=True):
        for row, value in enumerate(values, start=1):
            if not isinstance(value, str):
                found = "nothing" if _is_missing(value) else f"{value!r}, a {type(value).__name__}"
                raise ConfigError(
                    f"{key}: row {row} of {str(where)!r} holds {found} in {name!r}; every text must be a string"
                )
            if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
                raise ConfigError(
                    f"{key}: row {row} of {str(where)!r} holds half a surrogate pair in {name!r}; use valid text"
                )
    for row, cells in enumerate(zip(*texts, strict=True), start=1):
        if not any(cell.strip() for cell in cells):
            raise ConfigError(f"{key}: row {row} of {str(where)!r} has no text in {', '.join(names)}; drop the row")
    import pandas as pd

    return pd.DataFrame({f"text_{letter}": values for letter, values in zip("ab", texts, strict=False)})


def regression_labels(values: Sequence[Any], *, where: Path | str, key: str = "task.label_column") -> list[float]:
    """Labels as finite numbers; text such as '3.8' is read as one."""
    labels = []
    for row, value in enumerate(values, start=1):
        if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ConfigError(
                f"{key}: row {row} of {str(where)!r} has the label {value!r}; regression needs finite numbers"
            )
        labels.append(float(value))
    return labels


def _classes(raw: dict[str, list[Any]], paths: dict[str, Path]) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """Label names, learnt from train, and every split's labels as their positions."""
    key = "task.label_column"
    texts = {}
    for split, values in raw.items():
        texts[split] = []
        for row, value in enumerate(values, start=1):
            text = _label_text(value) if isinstance(value, (str, int, float)) else ""
            if not text:
                raise ConfigError(
                    f"{key}: row {row} of {str(paths[split])!r} has no label ({value!r}); every row needs one"
                )
            texts[split].append(text)
    names = set(texts["train"])
    if all(_NUMBER.fullmatch(name) for name in names):
        if not all(float(name).is_integer() for name in names):
            broken = next(name for name in texts["train"] if not float(name).is_integer())
            raise ConfigError(f"{key}: {broken!r} is no class; set task.kind=regression, or give whole numbers or text")
        texts = {split: [_whole(text) for text in found] for split, found in texts.items()}
        ordered = sorted(set(texts["train"]), key=int)
    else:
        ordered = sorted(names)
    if len(ordered) < 2:
        raise ConfigError(f"{key}: train holds one label, {ordered[0]!r}; classification needs at least two")
    if len(ordered) > MOST_LABELS:
        raise ConfigError(
            f"{key}: train holds {len(ordered)} labels; at most {MOST_LABELS}, or set task.kind=regression"
        )
    if ordered[0] == "-1":
        raise ConfigError(f"{key}: -1 marks hidden test labels; use splits whose labels are known")
    number = {name: position for position, name in enumerate(ordered)}
    labels = {}
    for split, found in texts.items():
        for row, text in enumerate(found, start=1):
            if text not in number:
                shown = ", ".join(ordered[:10]) + (", ..." if len(ordered) > 10 else "")
                raise ConfigError(
                    f"{key}: row {row} of {str(paths[split])!r} has the label {text!r}, "
                    f"which train lacks; train has {shown}"
                )
        labels[split] = [number[text] for text in found]
    return tuple(ordered), labels


def _label_text(value: Any) -> str:
    """One spelling per label, whatever the file format: 1, 1.0 and '1' are '1', True and 'True' are 'true'."""
    if _is_missing(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    return text.lower() if text.lower() in ("true", "false") else text


def _whole(text: str) -> str:
    return str(int(float(text))) if _NUMBER.fullmatch(text) and float(text).is_integer() else text


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _read_parquet(path: Path, key: str) -> Columns:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path).read()
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"{key}: {str(path)!r} is no readable parquet file ({reason}); write it again") from None
    _refuse_repeats(table.column_names, path, key)
    values = {name: table.column(name).to_pylist() for name in table.column_names if name != "__index_level_0__"}
    metadata = {name.decode(): value.decode(errors="replace") for name, value in (table.schema.metadata or {}).items()}
    return Columns(values, table.num_rows, metadata)


def _read_jsonl(text: str, path: Path, key: str) -> Columns:
    rows = []
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"{key}: line {line} of {str(path)!r} is no JSON ({error.msg}); give one object a line"
            ) from None
        if not isinstance(row, dict):
            raise ConfigError(
                f"{key}: line {line} of {str(path)!r} is a {type(row).__name__}; give one JSON object a line"
            )
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return Columns({name: [row.get(name) for row in rows] for name in names}, len(rows), {})


def _read_delimited(text: str, path: Path, key: str, *, delimiter: str) -> Columns:
    is_plain = delimiter == "\t" and _has_plain_quotes(text)
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if is_plain else csv.QUOTE_MINIMAL,
        strict=not is_plain,
    )
    limit = csv.field_size_limit(2**31 - 1)
    try:
        rows = []
        header = next(reader, None)
        if header is None:
            raise ConfigError(f"{key}: {str(path)!r} is empty; give a header line and rows")
        _refuse_repeats(header, path, key)
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise ConfigError(
                    f"{key}: line {reader.line_num} of {str(path)!r} has {len(row)} fields, its header {len(header)}; "
                    "quote texts that hold the delimiter"
                )
            rows.append(row)
    except csv.Error as error:
        raise ConfigError(
            f"{key}: line {reader.line_num} of {str(path)!r} is malformed ({error}); quote as RFC 4180 does"
        ) from None
    finally:
        csv.field_size_limit(limit)
    columns = zip(*rows, strict=True) if rows else [()] * len(header)
    return Columns({name: list(values) for name, values in zip(header, columns, strict=True)}, len(rows), {})


def _has_plain_quotes(text: str) -> bool:
    """Whether a TSV file uses quotes as text: every line has all fields, and some field breaks RFC 4180."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    lines = [line for line in lines if line]
    n_tabs = lines[0].count("\t") if lines else 0
    if any(line.count("\t") != n_tabs for line in lines):
        return False
    quoted = re.compile(r'"(?:[^"]|"")*"')
    return any(not quoted.fullmatch(cell) for line in lines if '"' in line for cell in line.split("\t") if '"' in cell)


def _refuse_repeats(names: Sequence[str], path: Path, key: str) -> None:
    repeated = [name for name in dict.fromkeys(names) if list(names).count(name) > 1]
    if repeated:
        raise ConfigError(f"{key}: {str(path)!r} has two columns {repeated[0]!r}; name each once")
