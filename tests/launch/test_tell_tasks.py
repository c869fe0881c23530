"""Told, not guessed: labels and their counts, rows that occur twice, how the head begins."""

import json

import pandas as pd
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, PeftConfig
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from lora_bench.config.errors import ConfigError
from lora_bench.launch import tell_tasks
from lora_bench.models.blueprint import byte_tokenizer
from lora_bench.store.document import dumps, loads
from lora_bench.store.folder import Store
from lora_bench.training.resolve import resolve
from lora_bench.training.run import run_pack
from records import finished_record
from tiny import VALUES, tiny_config


def own_rows(folder, labels, *, texts=None, report=None, pairs=False, n_long=0, **changed):
    """A run on rows of the user's own: `text N` of every label in turn, and the first three of them as report.

    Args:
        texts: the first texts instead.
        n_long: rows, from the last, whose text is long.
    """
    texts = texts or [f"text {row}" + " goes on" * 10 * (row >= len(labels) - n_long) for row in range(len(labels))]
    rows = pd.DataFrame({"text": texts, "label": labels})
    if pairs:
        rows["other"] = [f"other {row}" if row else "" for row in range(len(labels))]
    rows.to_csv(folder / "train.csv", index=False)
    (report if report is not None else rows.head(3)).to_csv(folder / "report.csv", index=False)
    files = {"task__train_file": "train.csv", "task__report_file": "report.csv", "task__data_dir": str(folder)}
    columns = {"task__text_columns": ["text", "other"] if pairs else ["text"], "task__label_column": "label"}
    named = {"task__name": "mine", "task__source": "files", "task__train_rows": None, "task__report_rows": None}
    return resolve(tiny_config(**(files | columns | named | changed)))


def test_the_plan_names_labels_counts_and_repeated_rows(tmp_path):
    """Report rows that were trained on score too well, and labels in another order than one thinks read as errors."""
    run = own_rows(tmp_path, ["neg", "pos"] * 20)
    counted = [run.task.splits[split]["label"].tolist() for split in ("train", "select", "report")]
    told = list(tell_tasks.lines([run, run]))
    assert len(told) == 3
    counts = [", ".join(str(labels.count(label)) for labels in counted) for label in (0, 1)]
    assert told[0] == f"task mine: 2 labels (36 train, 4 select, 3 report): neg ({counts[0]}), pos ({counts[1]})"
    selected = set(run.task.splits["select"]["text_a"])
    n_select = sum(f"text {row}" in selected for row in range(3))
    parts = [f"{3 - n_select} of train"] * (n_select < 3) + [f"{n_select} of select"] * (n_select > 0)
    assert told[1].strip() == f"of 3 report rows {' and '.join(parts)} too; select is cut from train, before it"
    assert told[2].strip() == "all weights of tiny are random, as model.weights=random says: its scores mean nothing"


@pytest.mark.parametrize("n_long", [0, 20])
def test_rows_that_are_cut_are_told(n_long, tmp_path):
    """A preset's length may be that of another task: what stands behind it in one's own rows is never read."""
    run = own_rows(tmp_path, [0, 1] * 20, n_long=n_long, train__max_length=32, task__select_rows=4)
    shares = {split: (rows["text_a"].str.len() > 32).mean() for split, rows in run.task.splits.items()}
    parts = [f"{share:.0%} of {split}" for split, share in shares.items() if share]
    assert len(parts) == (2 if n_long else 0)  # train, and what of it is select
    told = f"rows that fill train.max_length=32 tokens of tiny, and are cut there if longer: {' and '.join(parts)}"
    lines = [line.strip() for line in tell_tasks.lines([run, run]) if "max_length" in line]
    assert lines == ([told] if n_long else [])


def test_a_pair_repeats_where_both_its_texts_do(tmp_path):
    texts = {"text": ["text 1", "text 2", "new"], "other": ["other 1", "other 1", ""]}
    report = pd.DataFrame(texts | {"label": ["a"] * 3})
    told = list(tell_tasks.lines([own_rows(tmp_path, ["a", "b"] * 20, report=report, pairs=True)]))
    assert told[1].strip().startswith("of 3 report rows 1 of ")
    assert "; 2 rows with one text empty; " in told[1]


@pytest.mark.parametrize(("first", "n_copies"), [(0, 10), (35, 5), (40, 0)])
def test_select_rows_that_are_train_rows_are_told(first, n_copies, tmp_path):
    """On rows that were trained on the largest rank is best, and nothing else of the choice looks wrong."""
    texts = [f"text {row}" for row in range(first, first + 10)]
    pd.DataFrame({"text": texts, "label": ["a", "b"] * 5}).to_csv(tmp_path / "select.csv", index=False)
    run = own_rows(tmp_path, ["a", "b"] * 20, task__select_file="select.csv", task__select_rows=None)
    told = list(tell_tasks.lines([run]))[1].split("; ")
    assert [part for part in told if "select rows" in part] == (
        [f"of 10 select rows {n_copies} of train too"] if n_copies else []
    )
    assert told[-1] == "select has rows of its own"


def test_select_rows_that_train_has_twice_are_told(tmp_path):
    """Cut from train, select still has rows of train where the file has them twice."""
    report = pd.DataFrame({"text": ["new"], "label": ["a"]})
    run = own_rows(tmp_path, ["a", "b"] * 20, report=report)
    rows = pd.read_csv(tmp_path / "train.csv")
    pd.concat([rows] * 2).to_csv(tmp_path / "train.csv", index=False)
    again = resolve(run.config)
    train, select = again.task.splits["train"], again.task.splits["select"]
    n_copies = int(select["text_a"].isin(train["text_a"]).sum())
    assert n_copies
    assert f"; of {len(select)} select rows {n_copies} of train too; " in list(tell_tasks.lines([again]))[1]


LEAKS = {  # what the text is in row i, of which the label is a or b in turn, or the number i / 2
    "name": (lambda row: "ab"[row % 2], "classification", ["100%"]),
    "other name": (lambda row: ("positive", "negative")[row % 2], "classification", ["100%"]),
    "nearly": (lambda row: "ab"[row % 2] if row else "text", "classification", ["97%", "100%"]),
    "half": (lambda row: "ab"[row % 2] if row % 4 < 2 else f"text {row}", "classification", []),
    "text": (lambda row: f"text {row}", "classification", []),
    "one text": (lambda row: "ab", "classification", []),
    "two texts of any label": (lambda row: "ab"[row // 2 % 2], "classification", []),
    "number": (lambda row: f"{row / 2:.1f}", "regression", ["100%"]),
    "other number": (lambda row: f"{row / 3:.1f}", "regression", []),
}


@pytest.mark.parametrize(("text_of", "kind", "shares"), LEAKS.values(), ids=LEAKS)
@pytest.mark.parametrize("pairs", [False, True])
def test_a_text_that_gives_the_label_away_is_told(text_of, kind, shares, pairs, tmp_path):
    """The label's column, or a copy of it, given as a text: every score is near 1, and nothing else looks wrong."""
    labels = ["a", "b"] * 20 if kind == "classification" else [row / 2 for row in range(40)]
    texts = [text_of(row) for row in range(40)]
    run = own_rows(tmp_path, labels, texts=texts, pairs=pairs, task__kind=kind, task__select_rows=4)
    told = [line for line in tell_tasks.lines([run]) if "gives away" in line]
    name = "the first text" if pairs else "the text"
    line = f"  WARNING: {name} gives away the label of {{}} of train rows; is its column one of the labels?"
    assert len(told) == bool(shares)
    assert set(told) <= set(map(line.format, shares))


def test_a_pair_of_one_text_is_told_or_refused(tmp_path):
    """A pair whose texts are one has nothing to compare."""
    run = own_rows(tmp_path, ["a", "b"] * 20, pairs=True)
    assert not [line for line in tell_tasks.lines([run]) if "WARNING" in line]
    rows = pd.read_csv(tmp_path / "train.csv")
    rows.assign(other=rows["text"]).to_csv(tmp_path / "train.csv", index=False)
    told = [line for line in tell_tasks.lines([resolve(run.config)]) if "WARNING" in line]
    assert told == ["  WARNING: both texts are the same in 100% of train rows; are their columns the two meant?"]
    for columns, key in ((["text", "text "], "text_columns: 'text' is named twice"), (["label "], "label_column: ")):
        with pytest.raises(ConfigError, match=rf"^task\.{key}"):
            own_rows(tmp_path, ["a", "b"] * 20, task__text_columns=columns)


def test_rows_that_occur_once_are_told_too_and_numbers_have_no_labels(tmp_path):
    report = pd.DataFrame({"text": ["new", "newer"], "label": [1.5, 2.5]})
    labels = [row / 2 for row in range(30)]
    told = list(tell_tasks.lines([own_rows(tmp_path, labels, report=report, task__kind="regression")]))
    assert told[0] == "task mine: numbers (27 train, 3 select, 2 report)"
    assert "of 2 report rows none of train or select;" in told[1]


def test_many_and_hostile_labels_take_one_line(tmp_path):
    """A name may be a sentence, or move the cursor."""
    labels = [f"label {number:03}" for number in range(60)] + ["a\x1b[2J" + "b" * 200] * 2
    told = list(tell_tasks.lines([own_rows(tmp_path, labels * 4)]))
    assert len(told[0]) < 200 and told[0].isprintable() and "61 labels" in told[0] and ", ..., " in told[0]


def checkpoint(folder, labels=None, kind=AutoModelForSequenceClassification):
    """A folder with weights and a tokenizer; with `labels` the names of the outputs of its head."""
    architecture = AutoConfig.for_model(**VALUES["model"]["architecture"])
    if labels:
        architecture.id2label = dict(enumerate(labels))
        architecture.label2id = {label: output for output, label in enumerate(labels)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind.from_config(architecture).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return {"model__name": str(folder), "model__weights": "pretrained", "model__architecture": {}}


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (["neg", "pos"], "begins as the checkpoint's, whose outputs are neg, pos, as the task's"),
        (["NEG", "POS"], "whose outputs are NEG, POS, as the task's"),
        (
            ["pos", "neg"],
            "are pos, neg: NOT the order of the task, neg, pos; it begins with labels exchanged",
        ),
        (["LABEL_0", "LABEL_1"], "whose outputs have no names; the task takes them for neg, pos, in this order"),
        (["ham", "spam"], "whose outputs are ham, spam; the task takes them for neg, pos, in this order"),
        (["a", "b", "c"], "begins fresh"),
        (None, "begins fresh"),
    ],
)
def test_the_plan_says_how_the_head_begins(labels, told, tmp_path):
    """A head that a checkpoint brings is kept; in another order of labels it begins below chance."""
    kind = AutoModelForSequenceClassification if labels else AutoModel
    model = checkpoint(tmp_path / "model", labels, kind)
    assert list(tell_tasks.lines([own_rows(tmp_path, ["neg", "pos"] * 10, **model)]))[2].endswith(told)


# What is kept


@pytest.mark.parametrize("method", ["lora", "head_only", "bitfit"])
def test_stock_tools_read_the_label_names_beside_the_saved_weights(method, tmp_path, recwarn):
    """An adapter that is published without them says LABEL_0."""
    model = checkpoint(tmp_path / "model")
    run = own_rows(tmp_path, ["pos", "neg"] * 20, adapter__method=method, **model)
    store = Store(tmp_path / "runs")
    (record,) = run_pack([run], store)
    assert record["status"] == "finished", record["error"]
    assert record["task"]["labels"] == ["neg", "pos"]
    assert sum(record["task"]["label_counts"]["report"]) == 3
    folder = store.path(run.run_id) / "adapter"
    if method != "lora":
        assert AutoConfig.from_pretrained(folder).id2label == {0: "neg", 1: "pos"}
        assert AutoConfig.from_pretrained(folder).label2id == {"neg": 0, "pos": 1}
        assert str(tmp_path) not in (folder / "config.json").read_text(encoding="utf-8")
        return
    recwarn.clear()
    config = PeftConfig.from_pretrained(folder)
    assert config.auto_mapping == {"id2label": {"0": "neg", "1": "pos"}, "label2id": {"neg": 0, "pos": 1}}
    document = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    document["base_model_name_or_path"] = str(tmp_path / "model")
    (folder / "adapter_config.json").write_text(json.dumps(document), encoding="utf-8")
    AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    assert not [warning for warning in recwarn if "auto_mapping" in str(warning.message)]


def test_a_record_holds_its_labels_and_an_old_one_has_none(tmp_path):
    """Optional when read: every record that exists stays valid."""
    old = finished_record(1)
    assert "task" not in loads(dumps(old))
    new = finished_record(1, task={"labels": ["neg", "pos"], "label_counts": {"train": [1, 2]}, "repeats": {}})
    assert loads(dumps(new))["task"]["labels"] == ["neg", "pos"]
