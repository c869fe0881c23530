"""Rows that an open quote has swallowed, texts of several lines that are texts, and quotes by two rules."""

import csv

import pytest

from lora_bench.config.errors import ConfigError
from lora_bench.config.schema import TaskConfig
from lora_bench.tasks.load import load_task
from tiny import tiny_config

ROWS = [["a good film", "1"], ["a bad film", "0"], ["so so", "1"], ["fine", "0"], ["dull", "0"], ["great", "1"]]


def config(folder, content: str, suffix: str, kind: str, names: list[str]) -> TaskConfig:
    for split in ("train", "report"):
        (folder / f"{split}{suffix}").write_text(content, encoding="utf-8", newline="")
    values = {
        "name": "mine", "source": "files", "kind": kind, "data_dir": str(folder), "train_file": f"train{suffix}",
        "report_file": f"report{suffix}", "text_columns": names, "label_column": "label", "train_rows": None,
        "report_rows": None,
    }  # fmt: skip
    return tiny_config(task=values).task


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize(
    ("suffix", "header", "row", "kind"),
    [
        (".csv", "text,label", "{text},{label}", "classification"),
        (".csv", "label,text", "{label},{text}", "classification"),
        (".csv", "id,text,label,note", "7,{text},{label},x", "classification"),
        (".csv", "text,label,,", "{text},{label},,", "classification"),
        (".csv", "text,label", "{text},{label}.5", "regression"),
    ],
)
@pytest.mark.parametrize("last", [1, 2, 3])
def test_rows_between_two_stray_quotes_are_refused(tmp_path, suffix, header, row, kind, end, last):
    """CSV takes them for one text: rows and their labels are gone, and nothing else of the file looks wrong."""
    texts = [[text, label] for text, label in ROWS]
    texts[0][0] = f'"{texts[0][0]}'
    texts[last][0] += '"'
    lines = [header, *(row.format(text=text, label=label) for text, label in texts)]
    with pytest.raises(ConfigError, match=rf"^task\.train_file: row 1 of .* are {last + 1} rows"):
        load_task(config(tmp_path, end.join(lines) + end, suffix, kind, ["text"]))


@pytest.mark.parametrize(
    "text",
    ["Hi, you\nBye, me", "one\ntwo", "a,b\nc", "\n", "1,2\n3,4\n5,6", "trailing,\n,leading", "q,9\nr,8"],
)
def test_a_text_of_several_lines_is_read_as_it_is(tmp_path, text):
    """Addresses, dialogues and code have commas and line breaks; rows also have a label that is known."""
    rows = [*ROWS, [f"{text}.", "1"]]
    path = tmp_path / "written.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([["text", "label"], *rows])
    content = path.read_bytes().decode()
    task = load_task(config(tmp_path, content, ".csv", "classification", ["text"]))
    assert task.splits["report"]["text_a"].tolist() == [row[0] for row in rows]


MARKS = 'text\tlabel\n"a good film"\t1\n"so ""so"""\t0\n'
LETTERS = 'text\tlabel\na "good" film\t1\nso so\t0\n'
NEITHER = "text\tlabel\na good film\t1\nso so\t0\n"


@pytest.mark.parametrize("source", ["files", "glue"])
@pytest.mark.parametrize(
    ("train", "report"), [(MARKS, LETTERS), (LETTERS, MARKS)], ids=["marks_first", "letters_first"]
)
def test_tsv_splits_have_one_rule_for_quotes(source, train, report, tmp_path):
    """A split without a quote inside a text was read without any, and the other kept its own: two kinds of text."""
    given = config(tmp_path, NEITHER, ".tsv", "classification", ["text"])
    if source == "glue":
        given = tiny_config(task__name="cola", task__source="glue", task__data_dir=str(tmp_path)).task
        given.train_rows = given.report_rows = None
        given.select_rows = 1
    splits = ("train", "report") if source == "files" else ("train", "validation")

    def load(*contents):
        for split, content in zip(splits, contents, strict=True):
            named = content.replace("text", "sentence", 1) if source == "glue" else content
            (tmp_path / f"{split}.tsv").write_text(named, encoding="utf-8")
        return load_task(given)

    for quoted in (train, report):
        assert len({load(*pair).fingerprint for pair in ((quoted, NEITHER), (NEITHER, quoted), (quoted, quoted))}) == 3
    key = "task.train_file" if source == "files" else "task.data_dir"
    letters, marks = (r"train", splits[1]) if train == LETTERS else (splits[1], "train")
    with pytest.raises(
        ConfigError, match=rf"^{key}: in .*{letters}.tsv' quotes are letters, .*{marks}.tsv' they stand"
    ):
        load(train, report)
