"""Files as people have them: read rightly, or refused in one line that names file, row, column and what works."""

import codecs
import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from lora_bench.config.errors import ConfigError
from lora_bench.config.schema import TaskConfig
from lora_bench.tasks import load
from lora_bench.tasks.load import load_task
from lora_bench.tasks.readers import read_columns, require

ROWS = [("schön", "pos"), ("übel", "neg"), ("naja", "pos")]


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(load, "_loaded", {})


def delimited(end="\n", mark=",", header=("text", "label")) -> str:
    return "".join(mark.join(row) + end for row in (header, *ROWS))


def lines_of(end="\n") -> str:
    return "".join(json.dumps({"text": text, "label": label}, ensure_ascii=False) + end for text, label in ROWS)


def task_of(folder, train, suffix, **values):
    """The task whose train file holds these bytes."""
    (folder / f"train.{suffix}").write_bytes(train)
    (folder / "report.csv").write_text("text,label\na,pos\nb,neg\n", encoding="utf-8")
    given = {"text_columns": ["text"], "label_column": "label"} | values
    files = {"train_file": f"train.{suffix}", "report_file": "report.csv", "data_dir": str(folder)}
    return load_task(TaskConfig(name="mine", source="files", **files, **given))


@pytest.mark.parametrize(
    ("content", "suffix"),
    [
        (delimited("\r").encode(), "csv"),
        (delimited("\r\n").encode(), "csv"),
        (delimited("\r", "\t").encode(), "tsv"),
        (lines_of("\r").encode(), "jsonl"),
        (lines_of("\r\n").encode(), "jsonl"),
        (b"\n" + delimited().encode(), "csv"),
        (delimited("\r\n \r\n\r\n").encode(), "csv"),
        (delimited("\n  \n", "\t").encode(), "tsv"),
        (delimited("\r\r\n").encode(), "csv"),
        (b" \t\n\n" + delimited().encode(), "csv"),
        (b"\n" + delimited("\r").encode(), "csv"),
        (b"  \n" + delimited(mark="\t").encode(), "tsv"),
        (delimited().encode("utf-8-sig"), "csv"),
        (codecs.BOM_UTF8 + delimited().encode("utf-8-sig"), "csv"),
        (lines_of().encode("utf-8-sig"), "jsonl"),
        (delimited().encode("utf-16"), "csv"),
        (codecs.BOM_UTF16_BE + delimited(mark="\t").encode("utf-16-be"), "tsv"),
        (delimited().encode("utf-32"), "csv"),
        (lines_of().encode("utf-16"), "jsonl"),
        (delimited(header=("text ", " label\u00a0")).encode(), "csv"),
        (delimited(header=(" text", "label ")).encode(), "csv"),
        (delimited(",,,\n").encode(), "csv"),
        (delimited(",\n").encode(), "csv"),
        (delimited(", , \n").encode(), "csv"),
        (delimited("\t\t\n", "\t").encode(), "tsv"),
        (gzip.compress(delimited().encode(), mtime=0), "csv.gz"),
        (gzip.compress(delimited(mark="\t").encode("utf-16"), mtime=0), "tsv.gz"),
        (gzip.compress(lines_of().encode(), mtime=0), "jsonl.gz"),
    ],
)
def test_the_same_rows_are_read_from_every_form(content, suffix, tmp_path):
    """Line ends, marks, encodings, blanks in a header, empty columns and gzip are matters of a file, not its rows."""
    plain = tmp_path / "plain"
    plain.mkdir()
    assert task_of(tmp_path, content, suffix).fingerprint == task_of(plain, delimited().encode(), "csv").fingerprint


def test_a_column_may_be_asked_for_with_the_blanks_of_its_header(tmp_path):
    content = delimited(header=("text", "label ")).encode()
    assert task_of(tmp_path, content, "csv", label_column="label ").label_names == ("neg", "pos")


def test_binary_text_columns_are_read_as_utf8(tmp_path):
    """Writers without a text type leave bytes, in which no message pointed at the column."""
    texts, labels = ([value.encode() for value in values] for values in zip(*ROWS, strict=True))
    columns = {"text": texts, "label": labels}
    pa.parquet.write_table(pa.table(columns), tmp_path / "bytes.parquet")
    task = task_of(tmp_path, (tmp_path / "bytes.parquet").read_bytes(), "parquet")
    assert sorted([*task.splits["train"]["text_a"], *task.splits["select"]["text_a"]]) == ["naja", "schön", "übel"]


@pytest.mark.parametrize(
    ("content", "suffix", "message"),
    [
        (b"text,label\na\r more,pos\nb,neg\n", "csv", "line 2 of .* lone carriage return in a text; quote"),
        (b"text,label\na,pos\nb,neg\nc,x\r y\n", "csv", "line 4 of .* lone carriage return"),
        (delimited(mark=";").encode(), "csv", "header of .*train.csv' holds semicolons and no commas; .* write it"),
        (delimited(mark="|").encode(), "csv", "header of .* holds vertical bars and no commas"),
        (delimited(mark="\t").encode(), "csv", "holds tabs and no commas; .* name it .tsv"),
        (delimited(mark=",").encode(), "tsv", "holds commas and no tabs"),
        (b"text;label\na, b;pos\n", "csv", "holds semicolons and no commas"),
        (b'text,label\na,pos\nb "b,neg\n"open,pos\nc,neg\n', "csv", "line 4 of .* is malformed .* quote as RFC 4180"),
        (b'text,label\n"a" b,pos\n', "csv", "line 2 of .* is malformed"),
        (b"text,label\na,pos\nb\n", "csv", "line 3 of .* has 1 fields, its header 2: 'label' is missing"),
        (b"text,label\na,b,pos\n", "csv", "line 2 of .* has 3 fields, its header 2; quote"),
        (b"text,label\na,pos\nb\0,neg\n", "csv", "line 3 of .* holds a NUL byte; remove it"),
        (delimited().encode("utf-16-le"), "csv", "line 1 of .* NUL byte; it looks like UTF-16 without"),
        (delimited().encode("utf-16")[:-1], "csv", "is no whole UTF-16; save it as UTF-8"),
        (delimited().encode("latin-1"), "csv", "line 2 of .* is not UTF-8 .byte 14, 0xf6.; save it as UTF-8: iconv"),
        (lines_of().encode("latin-1"), "jsonl", "line 1 of .* is not UTF-8"),
        (b"text,label,label \na,pos,pos\n", "csv", "two columns 'label'"),
        (b'{"text": "a", "label": "x", "label": "y"}\n', "jsonl", "line 1 of .*the key 'label' is there twice"),
        (b'{"text": "a", "label": "x"}\n{"text": "b"}\n', "jsonl", "row 2 of .* has no label"),
        (b'{"text": "a", "x": ' + b"[" * 100_000 + b"\n", "jsonl", "line 1 of .* is nested too deep"),
        (b'{"text": "a", "label": ' + b"1" * 5000 + b"}\n", "jsonl", "line 1 of .* is no JSON .*digits"),
        (b"a film,pos\nb film,neg\n", "csv", "no column 'text' in .* it has a film, pos; the file's first line must"),
        (b"Text,label\na,pos\n", "csv", "no column 'text' .* it has Text, label .did you mean 'Text'"),
        (gzip.compress(delimited().encode(), mtime=0)[:-9], "csv.gz", "is no whole gzip file"),
        (delimited().encode(), "csv.gz", "is no whole gzip file"),
        (b"sep=,\n" + delimited().encode(), "csv", "the first line of .* is 'sep=,', which spreadsheets .* remove it"),
        (b"sep=;\n" + delimited(mark=";").encode(), "csv", "the first line of .* is 'sep=;', which spreadsheets"),
        (
            b"# mine\n" + delimited().encode(),
            "csv",
            "line 2 of .* header 1; the file's first line must name its columns",
        ),
        ((delimited() * 2).encode(), "csv", "line 5 of .*train.csv' is the header again, .* remove it"),
        (delimited().encode() + delimited().encode("utf-8-sig"), "csv", "line 5 of .* is the header again"),
        (b'text,label\n"a\nb",pos\n\nText,label\n text,label \nb,neg\n', "csv", "line 6 of .* is the header again"),
        ((delimited(mark="\t") * 2).encode(), "tsv", "line 5 of .* is the header again"),
        (b"text,label,,\na,pos,,\nb,neg,,x\n", "csv", "has two columns without a name; name each, or take them out"),
        (b"text,label,,\na,pos\n", "csv", "line 2 of .* has 2 fields, its header 4"),
        (
            b'label,text\npos,a\nneg, "b, c"\n',
            "csv",
            "line 3 of .* blanks before the quote in ' \"b'.* remove blanks behind",
        ),
        (b'label,text\npos,a\nneg,  "b"\n', "csv", "line 3 of .* blanks before the quote in '  \"b\"'"),
        (b'text,label\n "a",pos\n', "csv", "line 2 of .* blanks before the quote in ' \"a\"'"),
        (b'text, label\n"a, b", "pos"\n"c, d", "neg"\n', "csv", "line 2 of .* blanks before the quote in ' \"pos\"'"),
        (b"", "csv", "is empty"),
        (b"\n\n", "tsv", "is empty"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(content, suffix, message, tmp_path):
    with pytest.raises(ConfigError, match=rf"^task\.\w+: .*{message}") as told:
        task_of(tmp_path, content, suffix)
    assert "\n" not in str(told.value) and len(str(told.value)) < 500 + len(str(tmp_path))


@pytest.mark.parametrize("value", ["", " ", None])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_missing_text_has_one_rule_in_every_format(value, suffix, tmp_path):
    """Empty in CSV is null in parquet: the same rows are the same task. Of a pair one text may be empty."""
    rows = {"a": ["x", "y", "z"], "b": ["p", value, "q"], "label": ["0", "1", "0"]}
    path = tmp_path / f"written.{suffix}"
    if suffix == "parquet":
        pa.parquet.write_table(pa.table(rows), path)
    elif suffix == "jsonl":
        cells = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
        cells[1] = {name: cell for name, cell in cells[1].items() if cell is not None}  # an absent key is a null
        path.write_text("".join(json.dumps(row) + "\n" for row in cells), encoding="utf-8")
    else:
        mark = "," if suffix == "csv" else "\t"
        lines = [rows, *(["" if cell is None else cell for cell in row] for row in zip(*rows.values(), strict=True))]
        path.write_text("".join(mark.join(line) + "\n" for line in lines), encoding="utf-8")
    (tmp_path / "report.csv").write_text("a,b,label\nx,y,0\n", encoding="utf-8")
    files = {"train_file": path.name, "report_file": "report.csv", "data_dir": str(tmp_path)}
    config = {"name": "mine", "source": "files", "label_column": "label"} | files
    splits = load_task(TaskConfig(text_columns=["a", "b"], **config)).splits
    texts = [*splits["train"]["text_b"], *splits["select"]["text_b"]]
    assert sorted(texts) == sorted(["p", value or "", "q"])
    message = "row 2 of .* holds nothing" if value is None and suffix in ("jsonl", "parquet") else "row 2 of .* no text"
    with pytest.raises(ConfigError, match=f"task.text_columns: {message}"):
        load_task(TaskConfig(text_columns=["b"], **config))


BLANK = ["", " ", " \t "]
VALUES = ['""', '" "', "\u00a0", "\u2028", "\x1f", "''"]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("line", BLANK + VALUES, ids=ascii)
def test_a_line_is_blank_by_one_rule_in_every_format(line, suffix, tmp_path):
    """What one reader drops as blank and another keeps as a value would be a row fewer: it is refused."""
    train = tmp_path / f"train.{suffix}"
    mark = {"csv": ",", "tsv": "\t"}.get(suffix)
    rows = lines_of() if mark is None else delimited(mark=mark)
    train.write_text(f"{rows}{line}\n{rows.splitlines()[-1]}\n", encoding="utf-8")
    is_row = mark is not None and mark in line
    if line in BLANK and not is_row:
        assert read_columns(train, key="k").n_rows == 4
        return
    with pytest.raises(ConfigError, match=rf"^task\.\w+: (line {4 if mark is None else 5}|row 4) of .*train"):
        task_of(tmp_path, train.read_bytes(), suffix)


@pytest.mark.parametrize("line", ["", "   "], ids=ascii)
def test_a_blank_line_does_not_turn_plain_quotes_into_quoting(line, tmp_path):
    """GLUE's own TSV files use quotes as letters; a line of blanks at the end must not make them malformed."""
    content = f'text\tlabel\n"so" so\tpos\n{line}\nna"ja\tneg\n{line}'
    (tmp_path / "a.tsv").write_text(content, encoding="utf-8")
    assert read_columns(tmp_path / "a.tsv", key="k").of("text") == ['"so" so', 'na"ja']


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n"
OTHER_KINDS = {
    "a pointer of Git LFS": (POINTER, ("csv", "tsv", "jsonl", "parquet", "csv.gz"), "run `git lfs pull`"),
    "a gzip file": (
        gzip.compress(delimited().encode(), mtime=0),
        ("csv", "tsv", "jsonl", "parquet"),
        "name it with .gz",
    ),
    "a parquet file": (b"PAR1" + b"\0\1" * 50 + b"PAR1", ("csv", "jsonl", "tsv.gz"), "name it .parquet"),
    r"an Excel workbook \(.xls\)": (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0\1" * 50,
        ("csv", "tsv", "parquet"),
        "export the sheet as CSV",
    ),
    "a zip archive or a workbook": (b"PK\x03\x04" + b"\0\1" * 50, ("csv", "tsv", "parquet"), "unpack it, or export"),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_a_file_of_another_kind_than_its_name_says_is_told_as_what_it_is(kind, tmp_path):
    """Its bytes read as text point at a NUL or at a missing column, and the advice would spoil the file."""
    content, suffixes, works = OTHER_KINDS[kind]
    for suffix in suffixes:
        with pytest.raises(ConfigError, match=rf"^task\.train_file: .*train\.{suffix}' is {kind}, .*{works}"):
            task_of(tmp_path, content, suffix)


@pytest.mark.parametrize("place", ["metadata", "column"])
def test_names_in_a_parquet_file_that_are_no_utf8_do_not_end_in_a_traceback(place, tmp_path):
    """One flipped byte in the footer: the rows are whole, so they are read, or the file is refused."""
    table = pa.table({"text": ["a", "b"], "label": ["x", "y"]})
    name = "keykey" if place == "metadata" else "textual"
    table = table.append_column("textual", [["c", "d"]]).replace_schema_metadata({"keykey": "value"})
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(table, path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(name.encode(), name[:3].encode() + b"\xe4" + name[4:].encode()))
    if place == "metadata":
        assert read_columns(path, key="k").of("label") == ["x", "y"]
    else:
        with pytest.raises(ConfigError, match=r"^k: .*a\.parquet' is no readable parquet file"):
            read_columns(path, key="k")


def test_texts_with_quotes_and_line_breaks_are_one_field(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'text,label\r\n"a\rb\nc ""d"", e",x\r\n')
    assert read_columns(tmp_path / "a.csv", key="k").values == {"text": ['a\rb\nc "d", e'], "label": ["x"]}


@pytest.mark.parametrize("text", [' "b"', ' "b" she said', ' "', 'said "b"', '"b" ', 'a, "b"', '\n "b"', " b"])
def test_texts_with_blanks_before_a_quote_are_read_where_they_are_quoted(text, tmp_path):
    """A reader that skips blanks, or looks for them anywhere in a line, takes quotes from texts that have them."""
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([["text", "label"], [text, "x"]])
    assert read_columns(tmp_path / "a.csv", key="k").values == {"text": [text], "label": ["x"]}


@pytest.mark.parametrize("name", ["te\nxt", "te\rxt", "te\u2028xt", "te\x1bxt"])
def test_a_column_name_of_several_lines_is_told_in_one(name, tmp_path):
    """A header with an open quote: the refusal lists the columns, and must stay one line that a terminal shows."""
    (tmp_path / "a.csv").write_bytes(f'"{name}",label\nx,1\n'.encode())
    columns = read_columns(tmp_path / "a.csv", key="task.train_file")
    with pytest.raises(ConfigError) as error:
        require(columns, ["text"], where=tmp_path / "a.csv", key="task.text_columns")
    assert str(error.value).isprintable()


def test_a_parquet_file_in_a_folder_that_looks_like_an_address_is_read(monkeypatch, tmp_path):
    """Arrow takes `data:1/train.parquet` for the address of a file system that it does not know."""
    monkeypatch.chdir(tmp_path)
    folder = Path("data:1")
    folder.mkdir()
    with (folder / "train.parquet").open("wb") as stream:
        pa.parquet.write_table(pa.table({"text": ["a"], "label": ["pos"]}), stream)
    assert read_columns(folder / "train.parquet", key="task.train_file").values == {"text": ["a"], "label": ["pos"]}
