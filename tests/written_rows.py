"""Rows as people write them, ways in which their files go wrong, and what an independent reader finds in them.

Files are written and read with the standard library and pyarrow; nothing here uses lora_bench or pandas.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import json
import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from hypothesis import strategies as st

DELIMITERS = {".csv": ",", ".tsv": "\t"}
ENCODINGS = (*["utf-8"] * 8, "utf-8-sig", "utf-16", "utf-32", "latin-1", "utf-16-le", "cp1252")
_BARE_QUOTE = re.compile(r'(?:^|[\t\r\n])[^"\t\r\n][^\t\r\n]*"')
"""A quote in a field that does not begin with one: RFC 4180 has none, so the file's quotes are letters."""
LINE_ENDS = ("\n", "\n", "\r\n", "\r")


@dataclass(frozen=True)
class File:
    """One file: its bytes, its ending, how it was written, and whether with backslashes, which are no escape to us."""

    suffix: str
    content: bytes
    how: str
    is_escaped: bool = False


# What is written

_PLAIN = (
    "a good film",
    "bad",
    "so so",
    "fine\u2028line",
    "Grüße",
    "naïve ☃",
    "null",
    "NA",
    "nan",
    "1",
    "0.5",
    " blanks ",
)
_NASTY = (
    'say "so"', '"quoted"', 'open " quote', '"', '""', "tab\there", "line\nbreak", "a\r\nb", "a\rb", "comma, here", ",",
    "semi;colon", "", " ", "\ufeffmark", "a\0b", "\x1a", "\u0085next", "'", "\\", '\\"', "#", "=1+1", "x,1\ny,0",
)  # fmt: skip
texts = st.one_of(*[st.sampled_from(_PLAIN)] * 8, st.sampled_from(_PLAIN + _NASTY), st.text(max_size=9))
_LABELS: tuple[tuple[Any, ...], ...] = (
    ("pos", "neg"), ("pos", "neg"), (0, 1), (0, 1), (1, 2, 3), (-1, 1), (True, False), ("0", "1"),
    ("yes", "no", "maybe"),
    (0.0, 1.0), (0.5, 1.5), ("01", "1"), ("1e3", "1000"), (2**53, 2**53 + 1), (2**24, 2**24 + 1),
    (16777217.0, 16777219.0),
    ("True", "false"), ("ü", "ß"), ("a,b", "c"), ('"q"', "p"), ("a\nb", "c"), (" x", "x"),
    (10**30, 10**30 + 1), ("-0", "0"),
    (Decimal("1.0"), Decimal("2.0")), (0, 1, "x"), ("٣", "3"), (None, 1, 0), (float("nan"), 1.0, 0.0), ("", "a", "b"),
    (1, 1.0, 2), (True, 1, 0), ("nan", "inf"), ([1], [2]), ({"a": 1}, 2), ("\u00a0a", "a", "b"), ("-1", "1"),
)  # fmt: skip
labels = st.sampled_from((("pos", "neg"), (0, 1), (1, 2, 3), ("yes", "no", "maybe"), (0.0, 1.0))) | st.sampled_from(
    _LABELS
)


@st.composite
def rows(draw: Any, *, is_pair: bool = False) -> list[dict[str, Any]]:
    """Rows of a split, as Python values."""
    names = ["text", "text_b"] if is_pair else ["text"]
    chosen = draw(labels)
    n_rows = draw(st.integers(3, 8))
    table = []
    for number in range(n_rows):
        row: dict[str, Any] = {name: draw(texts) for name in names}
        row["label"] = chosen[number % len(chosen)] if number < 6 else draw(st.sampled_from(chosen))
        table.append(row)
    return table


# Writing


def delimited(
    table: list[dict[str, Any]], suffix: str, *, quoting: int, end: str, encoding: str, escape: bool
) -> bytes:
    stream = io.StringIO(newline="")
    options: dict[str, Any] = {"quoting": quoting, "lineterminator": end, "delimiter": DELIMITERS[suffix]}
    if escape or quoting == csv.QUOTE_NONE:
        options |= {"escapechar": "\\", "doublequote": not escape}
    writer = csv.writer(stream, **options)
    writer.writerow(list(table[0]))
    for row in table:
        writer.writerow(["" if value is None else value for value in row.values()])
    return stream.getvalue().encode(encoding, "surrogatepass" if encoding.startswith("utf") else "strict")


def jsonl(table: list[dict[str, Any]], *, ascii_only: bool, end: str, encoding: str) -> bytes:
    def plain(value: Any) -> Any:
        return float(value) if isinstance(value, Decimal) else value

    lines = [json.dumps({k: plain(v) for k, v in row.items()}, ensure_ascii=ascii_only) for row in table]
    return "".join(line + end for line in lines).encode(encoding, "surrogatepass" if "utf" in encoding else "strict")


def parquet(table: list[dict[str, Any]], kind: str) -> bytes:
    """A parquet file whose label column has this arrow type, or the one that arrow takes."""
    columns = {name: [row[name] for row in table] for name in table[0]}
    arrays = {name: pa.array(values) for name, values in columns.items() if name != "label"}
    types = {
        "float32": pa.float32(),
        "float64": pa.float64(),
        "int8": pa.int8(),
        "int64": pa.int64(),
        "text": pa.string(),
    }
    values = columns["label"]
    if kind in ("float32", "float64", "int8", "int64", "decimal") and any(isinstance(value, bool) for value in values):
        raise TypeError("a column of numbers keeps no true and no false")
    if kind == "dictionary":
        arrays["label"] = pa.array(values).dictionary_encode()
    elif kind == "bytes":
        arrays["label"] = pa.array([str(value).encode() for value in values])
    elif kind == "decimal":
        arrays["label"] = pa.array([Decimal(value) for value in values], pa.decimal128(38, 1))
    elif kind == "large text":
        arrays["text"] = arrays["text"].cast(pa.large_string())
        arrays["label"] = pa.array(values)
    elif kind == "text":
        arrays["label"] = pa.array([str(value) for value in values])
    elif kind in types:
        arrays["label"] = pa.array(values, types[kind])
    else:
        arrays["label"] = pa.array(values)
    stream = io.BytesIO()
    pa.parquet.write_table(pa.table(arrays), stream)
    return stream.getvalue()


@st.composite
def files(draw: Any, table: list[dict[str, Any]]) -> File | None:
    """A file of these rows; None where this writer cannot write them."""
    suffix = draw(st.sampled_from((".csv", ".csv", ".csv", ".tsv", ".jsonl", ".jsonl", ".parquet", ".parquet")))
    encoding = draw(st.sampled_from(ENCODINGS))
    is_escaped = False
    end = draw(st.sampled_from(LINE_ENDS))
    try:
        if suffix == ".parquet":
            kinds = (
                "",
                "",
                "float32",
                "float64",
                "int8",
                "int64",
                "text",
                "dictionary",
                "bytes",
                "decimal",
                "large text",
            )
            how = draw(st.sampled_from(kinds))
            content = parquet(table, how)
        elif suffix == ".jsonl":
            ascii_only = draw(st.booleans())
            how = f"{encoding}, {end!r}, ascii {ascii_only}"
            content = jsonl(table, ascii_only=ascii_only, end=end, encoding=encoding)
        else:
            quoting = draw(st.sampled_from((csv.QUOTE_MINIMAL, csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONE)))
            escape = draw(st.sampled_from((False, False, False, True)))
            is_escaped = escape or quoting == csv.QUOTE_NONE
            how = f"{encoding}, {end!r}, quoting {quoting}, escape {escape}"
            content = delimited(table, suffix, quoting=quoting, end=end, encoding=encoding, escape=escape)
    except (UnicodeError, csv.Error, pa.ArrowException, TypeError, ValueError, OverflowError, ArithmeticError):
        return None
    if suffix != ".parquet" and draw(st.sampled_from((False,) * 9 + (True,))):
        suffix, content = f"{suffix}.gz", gzip.compress(content)
    return File(suffix, content, how, is_escaped)


# Damage

_PIECES = (
    b'"',
    b'""',
    b",",
    b"\n",
    b"\r",
    b"\t",
    b"\0",
    b"\xff",
    b"\xe4",
    codecs.BOM_UTF8,
    b" ",
    b"{",
    b"null",
    b"\\",
    b"1",
)


@st.composite
def damaged(draw: Any, content: bytes) -> tuple[str, bytes]:
    """A file with one wound, and its name."""
    what = draw(
        st.sampled_from(("whole", "whole", "cut", "insert", "delete", "replace", "line twice", "no line", "swap"))
    )
    place = int(draw(st.floats(0, 1)) * len(content))
    piece = draw(st.sampled_from(_PIECES))
    if what == "cut":
        return f"cut at {place}", content[:place]
    if what == "insert":
        return f"{piece!r} at {place}", content[:place] + piece + content[place:]
    if what == "delete":
        return f"byte {place} gone", content[:place] + content[place + 1 :]
    if what == "replace":
        return f"{piece!r} for byte {place}", content[:place] + piece + content[place + 1 :]
    lines = content.split(b"\n")
    number = place % len(lines)
    if what == "line twice":
        return f"line {number} twice", b"\n".join([*lines[: number + 1], *lines[number:]])
    if what == "no line":
        return f"line {number} gone", b"\n".join([*lines[:number], *lines[number + 1 :]])
    if what == "swap":
        other = (number + 1) % len(lines)
        lines[number], lines[other] = lines[other], lines[number]
        return f"lines {number} and {other} swapped", b"\n".join(lines)
    return "whole", content


# Reading


def read(suffix: str, content: bytes) -> list[dict[str, Any]]:
    """The rows of a file that we take, as the standard library or pyarrow reads them."""
    if suffix == ".parquet":
        return pa.parquet.read_table(pa.BufferReader(content)).to_pylist()
    if suffix.endswith(".gz"):
        content, suffix = gzip.decompress(content), suffix.removesuffix(".gz")
    marked = {
        codecs.BOM_UTF32_LE: "utf-32",
        codecs.BOM_UTF32_BE: "utf-32",
        codecs.BOM_UTF16_LE: "utf-16",
        codecs.BOM_UTF16_BE: "utf-16",
    }
    encoding = next((name for mark, name in marked.items() if content.startswith(mark)), "utf-8-sig")
    text = content.decode(encoding)
    if suffix == ".jsonl":
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        return [json.loads(line) for line in lines if line.strip()]
    try:
        rows = _read_delimited(text, DELIMITERS[suffix], quoting=csv.QUOTE_MINIMAL, strict=True)
    except (csv.Error, ValueError):  # malformed, or rows of other widths
        if suffix != ".tsv":
            raise
        return _read_delimited(text, DELIMITERS[suffix], quoting=csv.QUOTE_NONE)
    if suffix == ".tsv" and _BARE_QUOTE.search(text):  # the csv module passes over it even where it is strict
        with contextlib.suppress(ValueError):  # rows of other widths: the quotes do hold tabs and line breaks
            return _read_delimited(text, DELIMITERS[suffix], quoting=csv.QUOTE_NONE)
    return rows


def _read_delimited(text: str, delimiter: str, **options: Any) -> list[dict[str, Any]]:
    """Rows under the first line that is not blank; a line of blanks and tabs is no row, one of two quotes is."""
    lines = list(io.StringIO(text, newline=""))
    reader = csv.reader(lines, delimiter=delimiter, **options)
    rows = [row for row in reader if len(row) > 1 or lines[reader.line_num - 1].strip(" \t\r\n")]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def name_of(value: Any) -> str:
    """What a class is called: 1 and 1.0 are one, all else is as it is written."""
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (float, Decimal)):
        return str(int(value)) if math.isfinite(value) and value == int(value) else str(value)
    text = str(value).strip()
    if text.lower() in ("true", "false"):
        return text.lower()
    whole, dot, zero = text.partition(".")
    if dot and zero == "0" and whole.removeprefix("-").isdecimal() and whole.isascii():
        return whole
    return text


def text_of(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return value.decode() if isinstance(value, bytes) else value
