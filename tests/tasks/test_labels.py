"""What a label is: exact, one class in every file format, or refused with the two spellings and their rows."""

import datetime
import gzip
import json
from decimal import Decimal

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from lora_bench.config.errors import ConfigError
from lora_bench.config.schema import TaskConfig
from lora_bench.tasks import load
from lora_bench.tasks.load import load_task

BIG = 2**53
TEXT_FORMATS = ("csv", "tsv", "jsonl", "parquet", "csv.gz", "jsonl.gz")


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(load, "_loaded", {})


def write(folder, split, labels, suffix):
    """A file whose labels stand in it as they are: text as text, and typed values by a typed column."""
    path = folder / f"{split}.{suffix}"
    texts = [f"{split} text {row}" for row in range(len(labels))]
    if suffix == "parquet":
        pa.parquet.write_table(pa.table({"text": texts, "label": labels}), path)
        return path.name
    if suffix.startswith("jsonl"):
        content = "".join(
            json.dumps({"text": text, "label": label}) + "\n" for text, label in zip(texts, labels, strict=True)
        )
    else:
        mark = "," if suffix.startswith("csv") else "\t"
        rows = [("text", "label"), *zip(texts, labels, strict=True)]
        content = "".join(mark.join(map(str, row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(content.encode()) if suffix.endswith(".gz") else content.encode())
    return path.name


def read(folder, train, report, *, suffixes=("csv", "csv"), select=None, **values):
    named = {"train_file": write(folder, "train", train, suffixes[0])}
    named["report_file"] = write(folder, "report", report, suffixes[1])
    if select:
        named["select_file"] = write(folder, "select", select, suffixes[1])
    given = {"text_columns": ["text"], "label_column": "label"} | named | values
    return load_task(TaskConfig(name="mine", source="files", data_dir=str(folder), **given))


@pytest.mark.parametrize("suffix", TEXT_FORMATS)
@pytest.mark.parametrize(
    ("first", "second"),
    [
        *(("01", "1"), ("1", "001"), ("12e3", "12000"), ("1_000", "1000"), ("٣", "3"), ("３", "3"), ("+1", "1")),
        *((" 1", "1"), ("1 ", "1"), ("1.00", "1"), ("-0", "0"), ("1.", "1"), ("\N{MINUS SIGN}1", "-1")),
        *((f"{BIG + 1}", f"{BIG + 1}.00"), ("1e16", "10000000000000000")),
    ],
)
def test_two_spellings_of_one_number_are_refused_with_their_rows(first, second, suffix, tmp_path):
    """01 and 1 may be one class or two: only their owner knows, and a merged class looks like a sound result."""
    message = rf"^task.label_column: '.*' \(row 1 of .*train.{suffix}'\) and '.*' \(row 3 of .*two spellings"
    with pytest.raises(ConfigError, match=message) as told:
        read(tmp_path, [first, "7", second, "7"], ["7"], suffixes=(suffix, suffix))
    assert repr(first) in str(told.value) and repr(second) in str(told.value)
    with pytest.raises(ConfigError, match=r"row 1 of .*train.*row 2 of .*report"):
        read(tmp_path, [first, "7", first, "7"], ["7", second], suffixes=(suffix, suffix))


LOOK_ALIKES = {
    "accent behind": ("caf\u00e9", "cafe\u0301"),
    "no width": ("pos", "pos\u200b"),
    "mark": ("pos", "po\ufeffs"),
    "joiner": ("a\u200db", "ab"),
    "two blanks": ("so so", "so  so"),
    "no-break blank": ("so so", "so\u00a0so"),
    "soft hyphen": ("out\u00adside", "outside"),
    "tab": ("so so", "so\x0bso"),
    "case": ("pos", "Pos"),
    "ligature": ("fine", "\ufb01ne"),
    "wide": ("AB", "\uff21\uff22"),
    "power": ("m\u00b2", "m2"),
    "dots": ("so ...", "so \u2026"),
    "apostrophe": ("don't", "don\u2019t"),
    "dash": ("so-so", "so\u2013so"),
    "quoted": ("pos", "'pos'"),
    "curly": ("pos", "\u201cpos\u201d"),
    "number in a circle": ("1", "\u2460"),
}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(("first", "second"), LOOK_ALIKES.values(), ids=LOOK_ALIKES)
def test_two_labels_that_look_alike_are_refused_with_their_rows(first, second, suffix, tmp_path):
    """Two editors spell one word in two ways; the plan shows two classes of one name, and nobody sees why."""
    message = (
        r"^task.label_column: ['\"].*\(row 1 of .*train.*'\) and ['\"].*\(row 3 of .*train.*'\) look alike, .*; spell"
    )
    with pytest.raises(ConfigError, match=message) as refusal:
        read(tmp_path, [first, "other", second, "other"], ["other"], suffixes=(suffix, suffix))
    assert str(refusal.value).isascii(), "what is invisible is shown by its number"
    with pytest.raises(ConfigError, match=r"row 1 of .*train.*row 2 of .*report"):
        read(tmp_path, [first, "other"], ["other", second], suffixes=(suffix, suffix))


@pytest.mark.parametrize(("first", "second"), [("\u00e9", "e"), ("a-b", "a b"), ("Ma\u00dfe", "Masse"), ("'", "-")])
def test_labels_that_can_be_told_apart_are_two_classes(first, second, tmp_path):
    """Whoever reads the plan sees both names with their counts."""
    assert set(read(tmp_path, [first, second] * 2, [first]).label_names) == {first, second}


@pytest.mark.parametrize("others", [["7"], ["word"]])
def test_two_spellings_are_refused_beside_words_and_in_select_too(others, tmp_path):
    with pytest.raises(ConfigError, match=r"'01' .*select.csv.* and '1' .*report.csv|'1' .*'01'"):
        read(tmp_path, ["1", *others], ["1"], select=["01"])


def test_of_a_word_the_blanks_around_it_are_no_part(tmp_path):
    assert read(tmp_path, ["a ", "b", " a"], ["a"]).label_names == ("a", "b")


@pytest.mark.parametrize("suffix", TEXT_FORMATS)
def test_whole_numbers_beyond_a_float_stay_apart(suffix, tmp_path):
    """2^53 and 2^53 + 1 are one float: the merged class would train as if nothing had happened."""
    labels = [BIG, BIG + 1, BIG + 2, 10**30, 10**30 + 1] if suffix != "parquet" else [BIG, BIG + 1, 2**62, 2**62 + 1]
    task = read(tmp_path, labels * 2, labels, suffixes=(suffix, suffix))
    assert task.label_names == tuple(map(str, labels))
    assert task.splits["report"]["label"].tolist() == list(range(len(labels)))


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_codes_keep_their_spelling_and_the_order_of_their_numbers(suffix, tmp_path):
    task = read(tmp_path, ["10", "02", "007"], ["007"], suffixes=(suffix, suffix))
    assert task.label_names == ("02", "007", "10")


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ([0, 1, 0, 1], None),
        ([0.0, 1.0, 0.0, 1.0], None),
        ([0, 1, 0, 1], pa.uint64()),
        ([Decimal(0), Decimal(1), Decimal(0), Decimal(1)], pa.decimal128(5, 0)),
        ([Decimal("0.00"), Decimal("1.00"), Decimal(0), Decimal(1)], pa.decimal128(5, 2)),
        ([b"0", b"1", b"0", b"1"], pa.binary()),
        (["0", "1", "0", "1"], "dictionary"),
        ([0, 1, 0, 1], "dictionary"),
    ],
)
def test_every_typed_column_of_the_same_numbers_gives_the_same_classes(labels, kind, tmp_path):
    """The fingerprint names rows, not how they were stored: a run has one id whatever wrote its file."""
    column = pa.array(labels).dictionary_encode() if kind == "dictionary" else pa.array(labels, type=kind)
    task = read(tmp_path, column, ["0", "1"], suffixes=("parquet", "csv"))
    assert task.label_names == ("0", "1")
    assert task.splits["report"]["label"].tolist() == [0, 1]
    texts = read(tmp_path, ["0", "1.0", "0.0", "1"], ["0", "1"])
    assert texts.fingerprint == task.fingerprint


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_true_and_false_are_one_pair_of_classes_however_a_tool_writes_them(suffix, tmp_path):
    task = read(tmp_path, [True, False, True], ["TRUE", "false"], suffixes=("parquet", suffix))
    assert task.label_names == ("false", "true")
    assert task.splits["report"]["label"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("labels", "suffix", "message"),
    [
        ([datetime.date(2020, 1, 1), datetime.date(2020, 1, 2)], "parquet", "row 1 of .* a date"),
        ([datetime.datetime(2020, 1, 1), datetime.datetime(2020, 1, 2)], "parquet", "row 1 of .* a datetime"),
        ([[1], [2]], "parquet", "row 1 of .* a list"),
        ([[1], [2]], "jsonl", "row 1 of .* a list"),
        ([{"a": 1}, {"a": 2}], "jsonl", "row 1 of .* a dict"),
        ([1, None], "parquet", "row 2 of .* has no label"),
        ([1, None], "jsonl", "row 2 of .* has no label"),
        ([1.0, float("nan")], "jsonl", "row 2 of .* has no label"),
        ([1.0, float("nan")], "parquet", "row 2 of .* has no label"),
        (["a", " "], "csv", "row 2 of .* has no label"),
        ([1.0, float("inf")], "jsonl", "row 2 of .* the label inf, a float"),
        ([1.0, float(BIG)], "parquet", r"row 2 of .* a float beyond 2\^53"),
        ([1.0, float(BIG)], "jsonl", r"row 2 of .* a float beyond 2\^53"),
        ([b"a", b"\xff"], "parquet", "row 2 of .* no UTF-8"),
        (["a", "\ud800"], "jsonl", "row 2 of .* half a surrogate"),
        (["a", "b\0"], "jsonl", "row 2 of .* a NUL"),
        (["a", "b" * 1001], "csv", "row 2 of .* 1001 letters"),
        ([1, 10**1500], "jsonl", "row 2 of .* 1501 digits"),
    ],
)
def test_what_is_no_class_is_refused_with_its_row(labels, suffix, message, tmp_path):
    """Also what a record could not hold: it would make its whole store unreadable."""
    with pytest.raises(ConfigError, match=rf"^task.label_column: {message}") as told:
        read(tmp_path, labels, ["a"], suffixes=(suffix, "csv"))
    assert "\n" not in str(told.value) and len(str(told.value)) < 400


ABSENT = ("nan", "NaN", "None", "none", "<NA>", "null", "NULL", "N/A", "n/a", "NA", "#N/A")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("word", ABSENT)
@pytest.mark.parametrize("others", [["0", "1"], ["0.0", "1.0"], ["true", "False"]], ids=str)
def test_a_word_for_no_label_among_numbers_is_refused_with_its_row(others, word, suffix, tmp_path):
    """A column of numbers that pandas writes with its gaps: they would be a class of their own, trained and scored."""
    with pytest.raises(
        ConfigError, match=rf"^task.label_column: row 3 of .*train.{suffix}' has no label \('{word}', as"
    ):
        read(tmp_path, [*others, word, *others], others, suffixes=(suffix, suffix))
    with pytest.raises(ConfigError, match=rf"row 2 of .*report.{suffix}' has no label \('{word}', as"):
        read(tmp_path, others * 2, [others[0], word], suffixes=(suffix, suffix))


@pytest.mark.parametrize("word", [word for word in ABSENT if word != "none"])
def test_a_word_for_no_label_among_words_is_refused_where_it_is_not_written_as_they_are(word, tmp_path):
    with pytest.raises(ConfigError, match=rf"^task.label_column: row 3 of .* has no label \('{word}', .* another name"):
        read(tmp_path, ["favor", "against", word] * 2, ["favor"])


@pytest.mark.parametrize(
    "names",
    [
        ("against", "favor", "none"),
        ("Against", "Favor", "None"),
        ("AGAINST", "FAVOR", "NONE"),
        ("de", "en", "na"),
        ("DE", "NA", "US"),
        ("A", "B", "None"),
        ("1", "favor", "none"),
        ("no_label", "yes"),
        ("nano", "nullify"),
    ],
    ids=str,
)
def test_a_class_none_that_is_written_as_the_others_is_a_class(names, tmp_path):
    """Stances, countries and languages have it; only their owner could name it otherwise."""
    assert read(tmp_path, list(names) * 2, list(names)).label_names == names


def test_a_class_label_may_call_a_class_null(tmp_path):
    for split in ("train", "report"):
        class_labels(tmp_path, split, [0, 1, 0], ["null", "nan"])
    assert read_parquet(tmp_path).label_names == ("null", "nan")


def test_a_number_of_400_digits_is_a_class_like_any_other(tmp_path):
    long = 10**400
    assert read(tmp_path, [1, long], [long], suffixes=("jsonl", "csv")).label_names == ("1", str(long))


def test_minus_one_beside_other_labels_is_a_class(tmp_path):
    """Sentiment as -1 and 1 is usual; only a split of nothing else hides its labels."""
    task = read(tmp_path, ["1", "-1", "0", "-1"], ["-1", "1"])
    assert task.label_names == ("-1", "0", "1")
    assert task.splits["report"]["label"].tolist() == [0, 2]


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("hidden", ["-1", "-1.0"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_split_of_nothing_but_minus_one_is_hidden(kind, hidden, suffix, tmp_path):
    with pytest.raises(ConfigError, match=r"every label of .*report.* is -1, which marks hidden .* known"):
        read(tmp_path, ["1", "-1", "0"], [hidden, hidden], suffixes=("csv", suffix), kind=kind)


def test_a_label_minus_one_that_train_lacks_says_what_it_often_is(tmp_path):
    with pytest.raises(ConfigError, match=r"row 2 of .*report.csv' has the label '-1', which train lacks; .* hidden"):
        read(tmp_path, ["1", "0"], ["0", "-1"])


# ClassLabel


def class_labels(folder, split, labels, names):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    rows = {"text": [f"{split} {row}" for row in range(len(labels))], "label": labels}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")


def read_parquet(folder, report="report.parquet"):
    files = {"train_file": "train.parquet", "report_file": report, "data_dir": str(folder)}
    return load_task(TaskConfig(name="mine", source="files", text_columns=["text"], label_column="label", **files))


@pytest.mark.parametrize("names", [["neg", "pos", "mid"], ["zeta", "alpha", "beta"], ["1", "2", "3"]])
def test_a_class_label_names_its_numbers_in_its_own_order(names, tmp_path):
    """Numbers alone leave a reader of the adapter to guess; sorted names would be another head."""
    for split, labels in (("train", [2, 0, 1, 0]), ("report", [0, 1, 2])):
        class_labels(tmp_path, split, labels, names)
    task = read_parquet(tmp_path)
    assert task.label_names == tuple(names)
    assert task.splits["report"]["label"].tolist() == [0, 1, 2]
    plain = read(tmp_path, [2, 0, 1, 0], [0, 1, 2])
    assert plain.label_names == ("0", "1", "2")
    renamed = task.splits["train"].assign(text_a=lambda table: table["text_a"].str.replace(" ", " text "))
    assert renamed["label"].tolist() == plain.splits["train"]["label"].tolist()


def test_class_labels_are_read_by_name_or_number_elsewhere_and_never_by_two_lists(tmp_path):
    class_labels(tmp_path, "train", [0, 1, 0], ["pos", "neg"])
    for labels in (["pos", "neg"], ["0", "1"]):
        write(tmp_path, "report", labels, "csv")
        assert read_parquet(tmp_path, "report.csv").splits["report"]["label"].tolist() == [0, 1]
    class_labels(tmp_path, "report", [0, 1], ["neg", "pos"])
    with pytest.raises(ConfigError, match=r"numbers its classes pos, neg, .*report.parquet' neg, pos; give both one"):
        read_parquet(tmp_path)
    class_labels(tmp_path, "report", [0, -1], ["pos", "neg"])
    with pytest.raises(ConfigError, match=r"row 2 of .* '-1', which is none .* 0 \(pos\), 1 \(neg\); -1 marks hidden"):
        read_parquet(tmp_path)


def test_a_class_label_that_lists_two_letters_says_that_they_are_two_classes(tmp_path):
    """Its labels are numbers, in which nobody can mistype a name."""
    for split in ("train", "report"):
        class_labels(tmp_path, split, [0, 1, 0], ["a", "A"])
    assert read_parquet(tmp_path).label_names == ("a", "A")


# Regression


@pytest.mark.parametrize(
    ("value", "suffix"),
    [
        *(("nan", "csv"), ("inf", "csv"), ("1e400", "csv"), ("", "csv"), ("1,5", "tsv"), (float("nan"), "jsonl")),
        *((None, "jsonl"), (10**400, "jsonl"), (True, "jsonl"), ("x", "parquet"), (None, "parquet"), (1e39, "parquet")),
    ],
)
def test_a_number_that_is_none_is_refused_with_its_row(value, suffix, tmp_path):
    values = [str(1.5) if isinstance(value, str) else 1.5, value]
    with pytest.raises(ConfigError, match=r"^task.label_column: row 2 of .*train"):
        read(tmp_path, values, ["1.5"], suffixes=(suffix, "csv"), kind="regression")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": [1.5] * 40}, r"^task.name: every label of 'mine' in train \(40\) is 1.5, .* correlates; give rows"),
        ({"select": [2, 2]}, r"^task.name: every label of 'mine' in select \(2\) is 2"),
        ({"report": [3]}, r"^task.name: every label of 'mine' in report \(1\) is 3"),
        (
            {"report_rows": 1},
            r"^task.report_rows: every label of 'mine' in report \(1\) is 1, .* by task.report_rows, or",
        ),
        ({"train_rows": 1}, r"^task.train_rows: every label of 'mine' in train \(1\)"),
        ({"select": None, "select_rows": 1}, r"^task.select_rows: every label of 'mine' in select \(1\)"),
    ],
)
def test_numbers_that_do_not_vary_are_refused_before_training(values, message, tmp_path):
    """No prediction correlates with them: every run would train to its end and have no score."""
    numbers = {"train": list(range(40)), "select": [1, 2], "report": [1, 2]}
    read(tmp_path, **numbers, kind="regression")
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, **(numbers | values), kind="regression")


@pytest.mark.parametrize("split", ["train", "report"])
def test_numbers_that_single_precision_merges_are_refused(split, tmp_path):
    """Of 1e9 to 1e9 + 39 it keeps two: a score on them would be that of other labels, and look sound."""
    numbers = {"train": list(range(40)), "report": list(range(40))}
    far = {name: [1e7 + label for label in labels] for name, labels in numbers.items()}
    assert read(tmp_path, **far, kind="regression").splits["report"]["label"].tolist() == far["report"]
    message = r"^task.label_column: the labels of .*\.csv' go from 1000000000.0 to 1000000039.0, so close .* subtract"
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, **(numbers | {split: [1e9 + label for label in range(40)]}), kind="regression")


def test_decimals_and_bytes_are_numbers_too(tmp_path):
    labels = [Decimal("1.25"), Decimal("-2.50")] * 20
    task = read(tmp_path, labels, [b"1.5", b"2"], suffixes=("parquet",) * 2, kind="regression")
    assert pd.concat([task.splits["train"], task.splits["select"]]).sort_values("idx")["label"].tolist() == labels
    assert task.splits["report"]["label"].tolist() == [1.5, 2]


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        (pa.float32(), 2**24),
        (pa.float32(), -(2**24)),
        (pa.float16(), 2**11),
        (pa.dictionary(pa.int32(), pa.float32()), 2**24),
    ],
    ids=str,
)
def test_whole_numbers_beyond_a_narrow_float_are_refused(kind, first, tmp_path):
    """float32 holds 16777216 and 16777217 as one number: what was written as two classes is one in the file."""
    near = int(first / 2) + 1
    for split, labels in (("train", [1, first]), ("near", [1, near]), ("report", [1, near])):
        column = pa.array([float(label) for label in labels * 4], getattr(kind, "value_type", kind))
        column = column.dictionary_encode() if pa.types.is_dictionary(kind) else column
        pa.parquet.write_table(pa.table({"text": ["a", "b"] * 4, "label": column}), tmp_path / f"{split}.parquet")
    bits = 11 if kind == pa.float16() else 24
    with pytest.raises(ConfigError, match=rf"row 2 of .* a float beyond 2\^{bits}"):
        read_parquet(tmp_path)
    (tmp_path / "near.parquet").replace(tmp_path / "train.parquet")
    assert set(read_parquet(tmp_path).label_names) == {"1", str(near)}
