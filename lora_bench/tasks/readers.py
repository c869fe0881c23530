"""Data files as columns: parquet, CSV, TSV and JSONL, the last three also gzipped (`train.csv.gz`).

Text is UTF-8, or UTF-16 or UTF-32 with a byte order mark. CSV and TSV need a header line; lines end in LF, CRLF or CR.
Quotes follow RFC 4180; a TSV file whose quotes do not (GLUE's own format) is read with quotes as plain text. In JSONL
each line is an object. Blanks around a column's name do not count.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_bench.config.errors import ConfigError, did_you_mean

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".csv.gz", ".tsv.gz", ".jsonl.gz")
_DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
_MARKS = (  # UTF-32's mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_KINDS = (
    (b"version https://git-lfs", "a pointer of Git LFS", None, "run `git lfs pull` in its folder"),
    (b"\x1f\x8b", "a gzip file", ".gz", "name it with .gz at the end"),
    (b"PAR1", "a parquet file", ".parquet", "name it .parquet"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook (.xls)", None, "export the sheet as CSV in UTF-8"),
    (b"PK\x03\x04", "a zip archive or a workbook", None, "unpack it, or export the sheet as CSV in UTF-8"),
)
"""Files by how they begin: the words for each, the ending that is right for it, and what works with another."""
DOUBLE_BITS = 53
"""Of a whole number that a float of 64 bits holds exactly."""
_BLANKS = " \t\r\n\u00a0\ufeff"
_BETWEEN = " \t\r\n"
"""What may stand on a line that is no row: JSON's own blanks, and those that every reader of tables passes over."""
_LINE_END = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True)
class Columns:
    """A file's columns as Python values, and its parquet schema metadata.

    Attributes:
        float_bits: of columns whose numbers were stored as floats of less than 64 bits, the bits of a whole number that
            they hold exactly.
        delimiter: what stands between a row's fields; None where rows are no lines of text.
        quotes: of a TSV file with quotes, whether they are `letters` or `marks` around texts, as its rows say.
        n_unnamed: columns that stood behind these, without a name and empty, as spreadsheets write them.
    """

    values: dict[str, list[Any]]
    n_rows: int
    metadata: dict[str, str]
    float_bits: dict[str, int] = field(default_factory=dict)
    delimiter: str | None = None
    quotes: str | None = None
    n_unnamed: int = 0

    def of(self, name: str) -> list[Any]:
        """The values of a column, (n_rows,).

        Raises:
            KeyError: when there is none of this name, blanks around it aside.
        """
        return self.values[bare(name)]

    def bits_of(self, name: str) -> int:
        """Bits of a whole number that a column holds exactly where it holds floats."""
        return self.float_bits.get(bare(name), DOUBLE_BITS)


def bare(name: str) -> str:
    """A column's name without the blanks and marks around it, which do not count."""
    return name.strip(_BLANKS)


def suffix_of(path: Path) -> str:
    """The ending that tells the format, in small letters: `.csv`, or `.csv.gz`."""
    return "".join(path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:]).lower()


def read_columns(path: Path, *, key: str) -> Columns:
    """All columns of a CSV, TSV, JSONL or parquet file.

    Raises:
        ConfigError: under `key`, when the file is absent, of another kind, or unreadable.
    """
    suffix = suffix_of(path)
    if suffix not in SUFFIXES:
        raise ConfigError(f"{key}: cannot read {str(path)!r}; files end in {', '.join(SUFFIXES)}")
    if not path.is_file():
        beside = sorted(other.name for other in path.parent.glob("*") if suffix_of(other) in SUFFIXES)
        there = f"{str(path.parent)!r} holds {', '.join(beside[:10])}" if beside else f"{str(path.parent)!r} holds none"
        raise ConfigError(f"{key}: no file {str(path)!r}; {there}")
    _refuse_other_kind(path, suffix, key)
    if suffix == ".parquet":
        return _read_parquet(path, key)
    text = _decoded(_content(path, key), path, key)
    if suffix.startswith(".jsonl"):
        return _read_jsonl(text, path, key)
    return _read_delimited(text, path, key, delimiter="," if suffix.startswith(".csv") else "\t")


def require(columns: Columns, names: Sequence[str], *, where: Path | str, key: str) -> None:
    """Refuse a file that lacks a column."""
    for name in names:
        if bare(name) in columns.values:
            continue
        there = [_short(other) for other in columns.values]
        hint = did_you_mean(name, there)
        if isinstance(where, Path) and suffix_of(where) not in (".parquet", ".jsonl", ".jsonl.gz") and not hint:
            hint = "; the file's first line must name its columns"
        raise ConfigError(f"{key}: no column {name!r} in {str(where)!r}; it has {', '.join(there) or 'none'}{hint}")


def _short(text: str) -> str:
    """A name in a message of one line."""
    plain = text if text.isprintable() else repr(text)
    return plain if len(plain) <= 60 else f"{plain[:57]}..."


def _refuse_other_kind(path: Path, suffix: str, key: str) -> None:
    """Refuse a file that begins as another kind does than the one that its name says."""
    try:
        with path.open("rb") as stream:
            beginning = stream.read(32)
    except OSError:  # told when it is read
        return
    for mark, kind, ending, works in _KINDS:
        if beginning.startswith(mark) and (ending is None or not suffix.endswith(ending)):
            raise ConfigError(f"{key}: {str(path)!r} is {kind}, and is read as {suffix}; {works}")


def _content(path: Path, key: str) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix.lower() == ".gz" else content
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ConfigError(f"{key}: {str(path)!r} is no whole gzip file ({error}); compress it again") from None
    except OSError as error:
        raise ConfigError(f"{key}: cannot read {str(path)!r} ({error.strerror or error}); check its rights") from None


def _decoded(content: bytes, path: Path, key: str) -> str:
    """A file's text, without its byte order mark."""
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8-sig")
    nul = content.find(b"\0") if encoding == "utf-8-sig" else -1
    if nul >= 0:
        works = (
            "it looks like UTF-16 without a byte order mark; save it as UTF-8"
            if content.count(b"\0") > len(content) / 4
            else "remove it, as tr -d '\\000' does"
        )
        line = content.count(b"\n", 0, nul) + 1
        raise ConfigError(f"{key}: line {line} of {str(path)!r} holds a NUL byte; {works}")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8-sig":
            raise ConfigError(f"{key}: {str(path)!r} is no whole {encoding.upper()}; save it as UTF-8") from None
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{key}: line {line} of {str(path)!r} is not UTF-8 (byte {error.start}, 0x{content[error.start]:02x}); "
            "save it as UTF-8: iconv -f LATIN1 -t UTF-8 does, if it is Latin-1"
        ) from None
    return text.removeprefix("\ufeff")


def _named(names: Sequence[str], columns: Sequence[list[Any]], path: Path, key: str) -> dict[str, list[Any]]:
    """Columns by name, without the blanks and marks around it.

    Raises:
        ConfigError: when two columns have one name.
    """
    plain = [bare(name) for name in names]
    repeated = [name for name in dict.fromkeys(plain) if plain.count(name) > 1]
    if repeated:
        what = f"{repeated[0]!r}; name each once" if repeated[0] else "without a name; name each, or take them out"
        raise ConfigError(f"{key}: {str(path)!r} has two columns {what}")
    return dict(zip(plain, columns, strict=True))


def _read_parquet(path: Path, key: str) -> Columns:
    import pyarrow
    import pyarrow.parquet

    try:
        with path.open("rb") as stream:  # Arrow takes a path such as `exp:1/...` for an address
            table = pyarrow.parquet.ParquetFile(stream).read()
        names = [name for name in table.column_names if name != "__index_level_0__"]
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: a name that is no UTF-8
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"{key}: {str(path)!r} is no readable parquet file ({reason}); write it again") from None
    _named(names, [[] for _ in names], path, key)
    values = []
    for name in names:
        try:
            values.append(table.column(name).to_pylist())
        except (pyarrow.ArrowException, ValueError, OverflowError) as error:
            raise ConfigError(
                f"{key}: column {name!r} of {str(path)!r} cannot be read ({str(error).strip()}); "
                "write it as text, or leave it out"
            ) from None
    given = (table.schema.metadata or {}).items()
    metadata = {name.decode(errors="replace"): value.decode(errors="replace") for name, value in given}
    bits = {pyarrow.float32(): 24, pyarrow.float16(): 11}
    types = {bare(entry.name): getattr(entry.type, "value_type", entry.type) for entry in table.schema}
    narrow = {name: bits[kind] for name, kind in types.items() if kind in bits}
    return Columns(_named(names, values, path, key), table.num_rows, metadata, narrow)


def _read_jsonl(text: str, path: Path, key: str) -> Columns:
    rows = []
    for line, content in enumerate(_LINE_END.split(text), start=1):
        if not content.strip(_BETWEEN):
            continue
        try:
            row = json.loads(content, object_pairs_hook=_object)
        except RecursionError:
            raise ConfigError(
                f"{key}: line {line} of {str(path)!r} is nested too deep; give one flat JSON object a line"
            ) from None
        except ValueError as error:
            reason = getattr(error, "msg", None) or str(error)
            raise ConfigError(
                f"{key}: line {line} of {str(path)!r} is no JSON ({reason}); give one object a line"
            ) from None
        if not isinstance(row, dict):
            raise ConfigError(
                f"{key}: line {line} of {str(path)!r} is a {type(row).__name__}; give one JSON object a line"
            )
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [[row.get(name) for row in rows] for name in names]
    return Columns(_named(names, columns, path, key), len(rows), {})


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are each there once: a reader that keeps the last of two would choose a label."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return values


class _Lines:
    """The physical lines of a delimited file, counted as an editor counts them.

    Attributes:
        n: lines that the reader has begun to read.
        last: the piece that the reader took last, as it stands in the file.
        is_cut: whether the last piece begins or ends at a lone carriage return although lines of this file end in LF.
    """

    def __init__(self, text: str):
        self._stream, self._has_lf = io.StringIO(text, newline=""), "\n" in text
        self.n, self.last, self.is_cut, self._is_open = 0, "", False, False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.last = next(self._stream)
        was_open, self._is_open = self._is_open, self._has_lf and line.endswith("\r")
        self.n += not was_open
        self.is_cut = was_open or self._is_open
        return line


def _read_delimited(text: str, path: Path, key: str, *, delimiter: str) -> Columns:
    is_plain = delimiter == "\t" and _has_plain_quotes(text)
    lines = _Lines(text)
    reader = csv.reader(
        lines,
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if is_plain else csv.QUOTE_MINIMAL,
        strict=not is_plain,
    )
    limit = csv.field_size_limit(2**31 - 1)
    begin = 1
    rows = []
    try:
        header = next((row for row in reader if not _is_blank(row, lines.last)), None)
        if header is None:
            raise ConfigError(f"{key}: {str(path)!r} is empty; give a header line and rows")
        _require_delimiter(header, delimiter, path, key)
        names = [bare(name) for name in header]
        begin = lines.n + 1
        for row in reader:
            if _is_blank(row, lines.last):
                begin = lines.n + 1
                continue
            late = None if is_plain else _late_quote(row, lines.last, delimiter, is_ragged=len(row) != len(header))
            if late is not None:
                raise ConfigError(
                    f"{key}: line {begin} of {str(path)!r} has blanks before the quote in {_short(late)!r}, so the "
                    f"quote counts as a letter; remove blanks behind {_DELIMITERS[delimiter]} that stand before a quote"
                )
            if len(row) != len(header):
                raise ConfigError(f"{key}: {_ragged(row, header, begin, lines, repr(str(path)))}")
            if row[0].strip(_BLANKS) == names[0] and [cell.strip(_BLANKS) for cell in row] == names:
                raise ConfigError(
                    f"{key}: line {begin} of {str(path)!r} is the header again, as where files are put together; "
                    "remove it: read as a row, it would be a text and a label"
                )
            rows.append(row)
            begin = lines.n + 1
    except csv.Error as error:
        raise ConfigError(
            f"{key}: line {begin} of {str(path)!r} is malformed ({error}); quote as RFC 4180 does: "
            'texts with quotes, delimiters or line breaks stand in quotes, and a quote in them is doubled, ""'
        ) from None
    finally:
        csv.field_size_limit(limit)
    columns = [list(values) for values in zip(*rows, strict=True)] if rows else [[] for _ in header]
    n_named = len(columns)
    while n_named > 1 and not names[n_named - 1] and not any(cell.strip(_BLANKS) for cell in columns[n_named - 1]):
        n_named -= 1
    kept = _named(header[:n_named], columns[:n_named], path, key)
    quotes = ("letters" if is_plain else "marks") if delimiter == "\t" and '"' in text else None
    return Columns(kept, len(rows), {}, delimiter=delimiter, quotes=quotes, n_unnamed=len(columns) - n_named)


def _is_blank(row: Sequence[str], line: str) -> bool:
    """Whether a row is a line of nothing, or of blanks and tabs. One of quotes with nothing between holds a value."""
    return len(row) <= 1 and not line.strip(_BETWEEN)


def _require_delimiter(header: list[str], delimiter: str, path: Path, key: str) -> None:
    """Refuse a file of another delimiter by its header: rows would fail later, on words that do not say why."""
    others = [other for other in _DELIMITERS if other != delimiter and other in header[0]]
    if header[0].lower().startswith("sep=") and len(header) <= 2:
        raise ConfigError(
            f"{key}: the first line of {str(path)!r} is {delimiter.join(header)!r}, which spreadsheets alone read; "
            "remove it, so that the column names come first"
        )
    if len(header) == 1 and others:
        suffix = ".tsv" if delimiter == "\t" else ".csv"
        raise ConfigError(
            f"{key}: the header of {str(path)!r} holds {_DELIMITERS[others[0]]} and no {_DELIMITERS[delimiter]}; "
            f"a {suffix} file is read with {_DELIMITERS[delimiter]}: write it with them"
            + (", or name it .tsv" if others[0] == "\t" else "")
        )


def _ragged(row: Sequence[str], header: Sequence[str], begin: int, lines: _Lines, file: str) -> str:
    """What is wrong with a row of other fields than its header has, and begins on this line."""
    if lines.is_cut:
        return (
            f"line {lines.n} of {file} holds a lone carriage return in a text; quote the text, or remove the "
            "carriage return"
        )
    fields = f"line {begin} of {file} has {len(row)} fields, its header {len(header)}"
    if len(header) == 1:
        return f"{fields}; the file's first line must name its columns"
    if len(row) < len(header):
        return f"{fields}: {header[len(row)].strip(_BLANKS)!r} is missing; give every row all fields, and quote texts"
    return f"{fields}; quote texts that hold the delimiter"


def _late_quote(row: Sequence[str], line: str, delimiter: str, *, is_ragged: bool) -> str | None:
    """A field of which blanks keep the quote from being one (`a, "b, c"`); None without one.

    In a row of too many fields it may be the piece of a text, elsewhere it is a whole one. A text that begins so and is
    quoted rightly is none: as it is read, it does not stand in the line.
    """
    for number, cell in enumerate(row):
        plain = cell.strip(" \t")
        if cell[:1] == '"' or plain[:1] != '"' or not (is_ragged or (len(plain) > 1 and plain[-1] == '"')):
            continue
        if line.startswith(cell) if number == 0 else delimiter + cell in line:
            return cell
    return None


def _has_plain_quotes(text: str) -> bool:
    """Whether a TSV file uses quotes as text: every line has all fields, and some field breaks RFC 4180."""
    lines = [line for line in _LINE_END.split(text) if "\t" in line or line.strip(_BETWEEN)]
    n_tabs = lines[0].count("\t") if lines else 0
    if any(line.count("\t") != n_tabs for line in lines):
        return False
    quoted = re.compile(r'"(?:[^"]|"")*"')
    return any(not quoted.fullmatch(cell) for line in lines if '"' in line for cell in line.split("\t") if '"' in cell)
