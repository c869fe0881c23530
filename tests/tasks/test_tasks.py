"""Tasks: what is loaded, how it is cut, and what is refused. No network: the Hub is a monkeypatched `load_dataset`."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lora_bench.config.errors import ConfigError
from lora_bench.config.schema import METRICS, TaskConfig
from lora_bench.tasks import glue, load
from lora_bench.tasks.generated import grammars
from lora_bench.tasks.load import EMBEDDED, load_task
from lora_bench.tasks.readers import read_columns
from user_files import NASTY, glue_rows, user_rows, write, write_glue

ROOT = Path(__file__).resolve().parents[2]
REAL_GLUE = Path(os.environ.get("LORA_BENCH_GLUE", ROOT.parent / "shared" / "glue"))
FORMATS = ("parquet", "csv", "tsv", "jsonl")


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(load, "_loaded", {})


def load_glue(folder: Path, name: str = "cola", **values):
    return load_task(TaskConfig(name=name, source="glue", data_dir=str(folder), **values))


def load_files(folder: Path, train: str = "train.csv", report: str = "report.csv", **values):
    given = {"kind": "classification", "text_columns": ["text"], "label_column": "label"} | values
    config = TaskConfig(
        name="mine", source="files", data_dir=str(folder), train_file=train, report_file=report, **given
    )
    return load_task(config)


# GLUE files


@pytest.mark.parametrize("name", glue.TASKS)
def test_glue_task_is_read_the_same_from_every_format(name, tmp_path):
    """The data fingerprint names rows, so it must not depend on how they were stored."""
    tasks = [load_glue(write_glue(tmp_path / suffix / name, name, suffix=suffix), name) for suffix in FORMATS]
    first = tasks[0]
    assert len({task.fingerprint for task in tasks}) == 1
    for task in tasks[1:]:
        for split, table in task.splits.items():
            pd.testing.assert_frame_equal(table, first.splits[split])
    assert first.metrics == glue.TASKS[name].metrics
    assert first.label_names == glue.TASKS[name].label_names
    assert first.n_labels == {"mnli": 3, "stsb": 1}.get(name, 2)
    assert ("text_b" in first.splits["train"]) == (len(glue.TASKS[name].columns) == 2)
    assert ("report_mismatched" in first.splits) == (name == "mnli")
    source = glue_rows(name, 40, seed=1)
    columns = [column for column in ("text_a", "text_b") if column in first.splits["report"]]
    for ours, theirs in zip(columns, glue.TASKS[name].columns, strict=True):
        assert first.splits["report"][ours].tolist() == source[theirs]
    np.testing.assert_array_equal(
        first.splits["report"]["label"], np.array(source["label"], dtype=first.splits["report"]["label"].dtype)
    )
    assert first.splits["report"]["label"].dtype == ("int64" if first.label_names else "float32")


def test_official_metrics_are_glues():
    """Wang et al. 2019, table 1."""
    assert {name: task.metrics for name, task in glue.TASKS.items()} == {
        "cola": ("matthews",),
        "sst2": ("accuracy",),
        "mrpc": ("accuracy", "f1"),
        "qqp": ("accuracy", "f1"),
        "stsb": ("pearson", "spearman"),
        "mnli": ("accuracy",),
        "qnli": ("accuracy",),
        "rte": ("accuracy",),
        "wnli": ("accuracy",),
    }


def test_hub_file_names_and_shards_are_read_in_order(tmp_path):
    rows = glue_rows("mnli", 40)
    plain = write_glue(tmp_path / "plain" / "mnli", "mnli")
    hub = tmp_path / "hub" / "mnli"
    for number, piece in enumerate((slice(0, 15), slice(15, 30), slice(30, 40))):
        write(hub / f"train-{number:05}-of-00003.parquet", {name: values[piece] for name, values in rows.items()})
    for split in ("validation_matched", "validation_mismatched"):
        (plain / f"{split}.parquet").rename(hub / f"{split}-00000-of-00001.parquet")
        write(plain / f"{split}.parquet", pd.read_parquet(hub / f"{split}-00000-of-00001.parquet").to_dict("list"))
    write(hub / "test_matched-00000-of-00001.parquet", rows | {"label": [-1] * 40})
    sharded = load_glue(hub, "mnli")
    assert sharded.fingerprint == load_glue(plain, "mnli").fingerprint
    assert sharded.facts["files"]["train"] == [f"train-{number:05}-of-00003.parquet" for number in range(3)]


def test_parent_folder_is_searched_for_the_tasks_name(tmp_path):
    write_glue(tmp_path / "cola", "cola")
    assert load_glue(tmp_path).fingerprint == load_glue(tmp_path / "cola").fingerprint


def test_unquoted_tsv_keeps_its_quotes(tmp_path):
    """GLUE's own TSV files use quotes as text; a CSV reader would join rows at them."""
    lines = ['"Hello," he said\t1', 'a "b" c\t0', '"open\t1', "plain\t0"] * 5
    for split in ("train", "validation"):
        (tmp_path / f"{split}.tsv").write_text("sentence\tlabel\n" + "\n".join(lines) + "\n", encoding="utf-8")
    task = load_glue(tmp_path)
    assert task.splits["report"]["text_a"].tolist()[:4] == ['"Hello," he said', 'a "b" c', '"open', "plain"]
    assert task.splits["report"]["label"].tolist()[:4] == [1, 0, 1, 0]


def test_label_names_and_number_text_are_read_as_labels(tmp_path):
    rows = glue_rows("cola", 20)
    write(
        tmp_path / "train.jsonl", rows | {"label": [("unacceptable", "acceptable")[label] for label in rows["label"]]}
    )
    write(tmp_path / "validation.jsonl", rows | {"label": [str(label) for label in rows["label"]]})
    task = load_glue(tmp_path)
    assert task.splits["report"]["label"].tolist() == rows["label"]
    train = pd.concat([task.splits["select"], task.splits["train"]]).sort_values("idx")
    assert train["label"].tolist() == rows["label"]


def test_absent_mismatched_split_is_listed_and_not_replaced(tmp_path):
    write_glue(tmp_path, "mnli")
    (tmp_path / "validation_mismatched.parquet").unlink()
    task = load_glue(tmp_path, "mnli")
    assert "report_mismatched" not in task.splits
    assert task.facts["absent"] == ["validation_mismatched"]


@pytest.mark.parametrize("split", ["train", "validation_matched"])
def test_absent_split_that_is_needed_is_refused_by_name(split, tmp_path):
    write_glue(tmp_path, "mnli")
    (tmp_path / f"{split}.parquet").rename(tmp_path / "validation.parquet")
    with pytest.raises(
        ConfigError, match=f"task.data_dir: no '{split}' split of mnli .*validation.parquet.*add {split}"
    ):
        load_glue(tmp_path, "mnli")


def test_completeness_follows_metadata_and_row_counts(tmp_path):
    """A score on part of a split must never pass as one on all of it."""
    official = glue.TASKS["wnli"].rows
    for split, n_rows in official.items():
        write(tmp_path / f"{split}.parquet", glue_rows("wnli", n_rows))
    facts = load_glue(tmp_path, "wnli").facts["splits"]
    assert facts["train"] == {
        "rows": 635 - 63,
        "source_rows": 635,
        "official_split": "train",
        "official_rows": 635,
        "source_complete": True,
        "complete": True,
    }
    assert facts["report"]["complete"] is True
    assert facts["select"] == {"rows": 63, "official_split": "train", "official_rows": None, "complete": None}

    cut = load_glue(tmp_path, "wnli", train_rows=100, report_rows=7).facts["splits"]
    for split in ("train", "report"):
        assert cut[split]["source_complete"] is True
        assert cut[split]["complete"] is False

    subset = {"task": "wnli", "split": "train", "rows": 635, "official_rows": 635, "complete": False}
    write(tmp_path / "train.parquet", glue_rows("wnli", 635), {"glue_subset": subset})
    assert load_glue(tmp_path, "wnli").facts["splits"]["train"]["complete"] is False
    write(tmp_path / "train.parquet", glue_rows("wnli", 600), {"glue_subset": subset | {"complete": True}})
    assert load_glue(tmp_path, "wnli").facts["splits"]["train"]["complete"] is False
    write(tmp_path / "train.parquet", glue_rows("wnli", 635), {"glue_subset": subset | {"complete": True}})
    task = load_glue(tmp_path, "wnli")
    assert task.facts["splits"]["train"]["complete"] is True
    json.dumps(task.facts, allow_nan=False)


def break_missing_column(folder):
    rows = glue_rows("cola", 20)
    rows["text"] = rows.pop("sentence")
    write(folder / "train.parquet", rows)


def break_missing_label(folder):
    rows = glue_rows("cola", 20)
    del rows["label"]
    write(folder / "train.parquet", rows)


def break_empty_report(folder):
    write(folder / "validation.parquet", glue_rows("cola", 0) | {"sentence": pa.array([], pa.string())})


def break_hidden(folder):
    write(folder / "validation.parquet", glue_rows("cola", 20) | {"label": [-1] * 20})


def break_label(folder):
    write(folder / "validation.parquet", glue_rows("cola", 20) | {"label": [0, 1, 2, 0] * 5})


def break_label_null(folder):
    write(folder / "validation.parquet", glue_rows("cola", 4) | {"label": [0, None, 1, 0]})


def break_text_number(folder):
    write(folder / "train.parquet", glue_rows("cola", 20) | {"sentence": list(range(20))})


def break_text_null(folder):
    write(folder / "train.parquet", glue_rows("cola", 3) | {"sentence": ["a", None, "b"]})


def break_text_blank(folder):
    write(folder / "train.parquet", glue_rows("cola", 3) | {"sentence": ["a", " ", "b"]})


def break_duplicate(folder):
    write(folder / "train.csv", glue_rows("cola", 20))


def break_duplicate_hub(folder):
    write(folder / "train-00000-of-00001.parquet", glue_rows("cola", 20))


def break_shard(folder):
    (folder / "train.parquet").rename(folder / "train-00001-of-00002.parquet")


def break_split_metadata(folder):
    write(folder / "validation.parquet", glue_rows("cola", 20), {"glue_subset": {"task": "cola", "split": "heldout"}})


def break_task_metadata(folder):
    write(folder / "train.parquet", glue_rows("cola", 20), {"glue_subset": {"task": "sst2", "split": "train"}})


def break_label_names(folder):
    features = {"info": {"features": {"label": {"names": ["negative", "positive"], "_type": "ClassLabel"}}}}
    write(folder / "train.parquet", glue_rows("cola", 20), {"huggingface": features})


def break_parquet(folder):
    (folder / "train.parquet").write_bytes(b"PAR1 not really")


def break_suffix(folder):
    (folder / "train.parquet").rename(folder / "train.txt")


def break_one_row(folder):
    write(folder / "train.parquet", glue_rows("cola", 1))


def break_csv_fields(folder):
    (folder / "train.parquet").unlink()
    (folder / "train.csv").write_text("sentence,label\na,b,1\n", encoding="utf-8")


def break_csv_quote(folder):
    (folder / "train.parquet").unlink()
    (folder / "train.csv").write_text('sentence,label\n"open,1\nb,0\n', encoding="utf-8")


def break_csv_empty(folder):
    (folder / "train.parquet").unlink()
    (folder / "train.csv").write_text("", encoding="utf-8")


def break_csv_column_twice(folder):
    (folder / "train.parquet").unlink()
    (folder / "train.csv").write_text("sentence,label,label\na,0,1\n", encoding="utf-8")


def break_encoding(folder):
    (folder / "train.parquet").unlink()
    (folder / "train.csv").write_bytes("sentence,label\né,1\n".encode("latin-1"))


def break_jsonl(folder):
    (folder / "train.parquet").unlink()
    (folder / "train.jsonl").write_text('{"sentence": "a", "label": 1}\n{"sentence": \n', encoding="utf-8")


def break_jsonl_list(folder):
    (folder / "train.parquet").unlink()
    (folder / "train.jsonl").write_text('["a", 1]\n', encoding="utf-8")


def break_surrogate(folder):
    (folder / "train.parquet").unlink()
    (folder / "train.jsonl").write_text(
        '{"sentence": "a", "label": 1}\n{"sentence": "\\ud800", "label": 1}\n', encoding="utf-8"
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_missing_column, "no column 'sentence' in .*train.parquet'; it has label, idx, text"),
        (break_missing_label, "no column 'label' in .*train.parquet'; it has sentence, idx"),
        (break_empty_report, "the 'validation' split of 'cola' is empty"),
        (break_hidden, "row 1 of .*validation.parquet' has the label -1; .*hidden test labels"),
        (break_label, r"row 3 of .* has the label 2; labels are 0 \(unacceptable\), 1 \(acceptable\)"),
        (break_label_null, "row 2 of .* has the label None"),
        (break_text_number, "row 1 of .* holds 0, a int in 'sentence'"),
        (break_text_null, "row 2 of .* holds nothing in 'sentence'"),
        (break_text_blank, "row 2 of .* has no text in sentence"),
        (break_duplicate, r"several sources of 'train' .*\(train.csv, train.parquet\); keep one"),
        (break_duplicate_hub, "several sources of 'train'"),
        (break_shard, r"'train' in .* lacks shard 0 of 2 \(train-00001-of-00002.parquet\)"),
        (break_split_metadata, "holds split 'heldout', not 'validation'; a split is never replaced"),
        (break_task_metadata, "holds task 'sst2', not 'cola'"),
        (break_label_names, "has the labels negative, positive, but cola has unacceptable, acceptable"),
        (break_parquet, "no readable parquet file"),
        (break_suffix, "no 'train' split of cola .*train.txt.*add train.parquet"),
        (break_one_row, "'cola' has 1 train row; at least 2"),
        (break_csv_fields, "line 2 of .*train.csv' has 3 fields, its header 2"),
        (break_csv_quote, "train.csv' is malformed"),
        (break_csv_empty, "train.csv' is empty"),
        (break_csv_column_twice, "two columns 'label'"),
        (break_encoding, "is not UTF-8"),
        (break_jsonl, "line 2 of .*train.jsonl' is no JSON"),
        (break_jsonl_list, "line 1 of .*train.jsonl' is a list"),
        (break_surrogate, "row 2 of .* holds half a surrogate pair"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_broken_glue_files_are_refused(damage, message, tmp_path):
    write_glue(tmp_path, "cola", rows=20)
    damage(tmp_path)
    with pytest.raises(ConfigError, match=rf"^task\.(data_dir|name): .*{message}"):
        load_glue(tmp_path)


@pytest.mark.parametrize("label", [-1.0, 5.5, float("nan"), "high", True])
def test_wrong_similarity_labels_are_refused(label, tmp_path):
    write_glue(tmp_path, "stsb", suffix="jsonl", rows=3)
    rows = [{"sentence1": "a", "sentence2": "b", "label": 2.0}, {"sentence1": "a", "sentence2": "b", "label": label}]
    (tmp_path / "validation.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"task.data_dir: row 2 of .* has the label"):
        load_glue(tmp_path, "stsb")


def test_folder_of_another_task_is_refused(tmp_path):
    """SST-2 and CoLA share their columns, so only the name tells them apart."""
    write_glue(tmp_path / "sst2", "sst2")
    with pytest.raises(ConfigError, match="is the folder of sst2, not of cola"):
        load_glue(tmp_path / "sst2")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "colla", "source": "glue"}, "task.name: no GLUE task 'colla'; tasks are cola, sst2"),
        ({"name": "cola", "source": "glue", "data_dir": "nowhere"}, "task.data_dir: no folder 'nowhere'"),
        ({"name": "cola", "source": "glue", "data_dir": ".", "revision": "v1"}, "task.revision: 'v1' .* drop one"),
        (
            {"name": "moods", "source": "generated"},
            "task.name: no embedded task 'moods'; embedded tasks are acceptability",
        ),
        ({"name": "known", "source": "planted"}, "task.source: 'planted'"),
    ],
)
def test_unknown_tasks_and_folders_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        load_task(TaskConfig(**values))


# Splits


def test_select_is_cut_first_and_train_rows_are_nested(tmp_path):
    """Runs on fewer rows choose on the same rows, and train on a prefix of the same order."""
    write_glue(tmp_path, "cola", rows=200)
    whole, less = load_glue(tmp_path), load_glue(tmp_path, train_rows=50)
    assert [len(whole.splits[split]) for split in ("train", "select", "report")] == [180, 20, 200]
    pd.testing.assert_frame_equal(less.splits["select"], whole.splits["select"])
    pd.testing.assert_frame_equal(less.splits["train"], whole.splits["train"][:50])
    together = [*whole.splits["select"]["idx"], *whole.splits["train"]["idx"]]
    assert sorted(together) == list(range(200))
    assert together == np.random.Generator(np.random.PCG64(0)).permutation(200).tolist()
    assert less.fingerprint != whole.fingerprint


def test_select_has_a_tenth_of_train_and_at_most_1000_rows(tmp_path):
    write(tmp_path / "validation.parquet", glue_rows("cola", 2))
    for n_train, n_select in ((2, 1), (19, 1), (20, 2), (10_011, 1_000)):
        write(tmp_path / "train.parquet", glue_rows("cola", n_train))
        assert len(load_glue(tmp_path).splits["select"]) == n_select


def test_report_rows_are_the_first_ones(tmp_path):
    write_glue(tmp_path, "mnli")
    whole, quick = load_glue(tmp_path, "mnli"), load_glue(tmp_path, "mnli", report_rows=7)
    for split in ("report", "report_mismatched"):
        pd.testing.assert_frame_equal(quick.splits[split], whole.splits[split][:7])


def test_more_train_rows_than_there_are_is_refused(tmp_path):
    write_glue(tmp_path, "cola", rows=40)
    assert len(load_glue(tmp_path, train_rows=36).splits["train"]) == 36
    with pytest.raises(ConfigError, match=r"task.train_rows: 37 asked, but 'cola' has 36 .* at most 36"):
        load_glue(tmp_path, train_rows=37)


def test_any_changed_row_changes_the_fingerprint(tmp_path):
    rows = glue_rows("rte", 40)
    write(tmp_path / "train.parquet", rows)
    prints = set()
    for column, value in ((None, None), ("sentence1", "other"), ("sentence2", "other"), ("label", 1)):
        changed = {name: list(values) for name, values in rows.items()}
        if column:
            changed[column][0] = value
        write(tmp_path / "validation.parquet", changed)
        prints.add(load_glue(tmp_path, "rte").fingerprint)
    assert len(prints) == 4
    write(tmp_path / "validation.parquet", rows | {"idx": list(range(100, 140))})
    assert load_glue(tmp_path, "rte").fingerprint in prints


def test_task_is_loaded_once_until_its_files_change(tmp_path):
    write_glue(tmp_path / "cola", "cola")
    first = load_glue(tmp_path)
    assert load_glue(tmp_path) is first
    write(tmp_path / "cola" / "train.parquet", glue_rows("cola", 50, seed=9))
    assert load_glue(tmp_path).fingerprint != first.fingerprint


def test_named_metrics_replace_the_official_ones_where_they_fit(tmp_path):
    write_glue(tmp_path / "mrpc", "mrpc")
    write_glue(tmp_path / "mnli", "mnli")
    assert load_glue(tmp_path, "mrpc", metrics=["f1", "accuracy"]).metrics == ("f1", "accuracy")
    for name, metric in (("mrpc", "pearson"), ("mnli", "f1")):
        with pytest.raises(ConfigError, match=f"task.metrics: '{metric}' does not score '{name}'"):
            load_glue(tmp_path, name, metrics=[metric])


# The Hub


def hub_dataset(name: str, n_rows: int = 40) -> datasets.DatasetDict:
    task = glue.TASKS[name]
    label = datasets.ClassLabel(names=list(task.label_names)) if task.label_names else datasets.Value("float32")
    features = {column: datasets.Value("string") for column in task.columns}
    features = datasets.Features(features | {"label": label, "idx": datasets.Value("int32")})
    splits = {
        split: datasets.Dataset.from_dict(glue_rows(name, n_rows, seed), features=features)
        for seed, split in enumerate(task.rows)
    }
    hidden = glue_rows(name, 5) | {"label": [-1] * 5}
    return datasets.DatasetDict(splits | {"test": datasets.Dataset.from_dict(hidden, features=features)})


@pytest.mark.parametrize("name", glue.TASKS)
def test_hub_rows_equal_the_same_rows_in_files(name, tmp_path, monkeypatch):
    """The same science has the same id with and without the Hub."""
    asked = []

    def load_dataset(*args, **options):
        asked.append((*args, options))
        return hub_dataset(name)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = load_task(TaskConfig(name=name, source="glue", revision="abc"))
    assert asked == [("nyu-mll/glue", name, {"revision": "abc"})]
    assert task.facts["source"] == "hub:nyu-mll/glue@abc"
    assert task.facts["splits"]["report"]["complete"] is False
    assert task.fingerprint == load_glue(write_glue(tmp_path, name, suffix="csv"), name).fingerprint


def test_hub_that_cannot_be_reached_says_what_works(monkeypatch):
    def load_dataset(*args, **options):
        raise ConnectionError("no route to huggingface.co")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        ConfigError, match=r"task.name: cannot load 'cola' .*no route.*set task.data_dir .* task=acceptability"
    ):
        load_task(TaskConfig(name="cola", source="glue"))
    with pytest.raises(ConfigError, match=r"task.revision: cannot load 'cola' .* at 'v9'"):
        load_task(TaskConfig(name="cola", source="glue", revision="v9"))


@pytest.mark.parametrize("fault", [OSError("no route"), TimeoutError("timed out"), RuntimeError("a proxy")])
def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch, fault):
    """Its client asks six times, and says so in twelve lines before ours says what would work."""
    import huggingface_hub
    from huggingface_hub import constants

    asked = []

    class Session:
        def head(self, url, timeout):
            asked.append(timeout)
            raise fault

    def load_dataset(*args, **options):
        assert constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE
        raise ConnectionError("offline mode is enabled")

    for module in (constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ConfigError, match=f"does not answer .{type(fault).__name__}.*set task.data_dir"):
        load_task(TaskConfig(name="cola", source="glue"))
    assert asked == [5.0]
    assert not constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE


def test_hub_without_a_split_is_refused_or_lists_it(monkeypatch):
    found = hub_dataset("mnli")
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: found)
    del found["validation_mismatched"]
    assert load_task(TaskConfig(name="mnli", source="glue")).facts["absent"] == ["validation_mismatched"]
    del found["validation_matched"]
    with pytest.raises(
        ConfigError, match=r"task.revision: .*no 'validation_matched' split of mnli; it has train, test"
    ):
        load_task(TaskConfig(name="mnli", source="glue", revision="x"))


def test_hub_with_other_label_names_is_refused(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: hub_dataset("sst2"))
    with pytest.raises(ConfigError, match=r"labels \['negative', 'positive'\], but cola has"):
        load_task(TaskConfig(name="cola", source="glue"))


# The user's own files


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["ham", "spam", "eggs"], ("eggs", "ham", "spam")),
        ([10, 9, 2], ("2", "9", "10")),
        ([1.0, 0.0, 1.0], ("0", "1")),
        ([True, False, True], ("false", "true")),
    ],
    ids=["text", "numbers", "floats", "switches"],
)
def test_labels_are_learnt_from_train_in_every_format(labels, names, tmp_path):
    tasks = []
    for suffix in FORMATS:
        write(tmp_path / f"train.{suffix}", user_rows(labels * 10))
        write(tmp_path / f"report.{suffix}", user_rows(labels[:2] * 3))
        tasks.append(load_files(tmp_path, f"train.{suffix}", f"report.{suffix}"))
    assert {task.label_names for task in tasks} == {names}
    assert len({task.fingerprint for task in tasks}) == 1
    assert tasks[0].metrics == ("accuracy",)
    assert tasks[0].splits["report"]["label"].tolist()[:2] == [
        names.index(str(label if isinstance(label, str) else int(label) if type(label) is float else label).lower())
        for label in labels[:2]
    ]
    facts = tasks[0].facts
    assert facts["source"] == "files"
    assert facts["splits"]["train"]["complete"] is None
    assert facts["files"] == {"train": ["train.parquet"], "report": ["report.parquet"]}


def test_pairs_with_numbers_and_an_own_select_file(tmp_path):
    for split, n_rows in (("train", 30), ("select", 5), ("report", 8)):
        scores = [row / 7 for row in range(n_rows)]
        write(tmp_path / f"{split}.csv", {"b": ["y"] * n_rows, "a": ["x"] * n_rows, "s": scores})
    task = load_files(tmp_path, select_file="select.csv", kind="regression", text_columns=["a", "b"], label_column="s")
    assert {split: len(table) for split, table in task.splits.items()} == {"train": 30, "select": 5, "report": 8}
    assert (task.kind, task.label_names, task.n_labels, task.metrics) == ("regression", (), 1, ("pearson", "spearman"))
    assert task.splits["select"]["label"].tolist() == [np.float32(row / 7) for row in range(5)]
    assert task.splits["train"].loc[0, ["text_a", "text_b"]].tolist() == ["x", "y"]
    assert task.facts["cut"]["select"] == "own split"


def test_texts_survive_every_format(tmp_path):
    rows = {"text": list(NASTY), "label": list("ab" * 5)}
    for suffix in FORMATS:
        path = write(tmp_path / f"train.{suffix}", rows)
        assert read_columns(path, key="k").values["text"] == list(NASTY)


@pytest.mark.parametrize(
    ("labels", "report", "values", "message"),
    [
        (
            ["a", "b"],
            ["a", "c"],
            {},
            "task.label_column: row 2 of .*report.csv' has the label 'c', which train lacks; .* a, b",
        ),
        (["a", "a"], ["a"], {}, "task.label_column: train holds one label, 'a'"),
        (["a", "", "b"], ["a"], {}, "task.label_column: row 2 of .*train.csv' has no label"),
        ([0.5, 1.5], [0.5], {}, "task.label_column: '0.5' is no class; set task.kind=regression"),
        ([-1, 1], [-1], {}, "task.label_column: every label of .*report.csv' is -1, which marks hidden"),
        (list(range(1001)), [1], {}, "task.label_column: train holds 1001 labels"),
        (["a", "b"], ["a"], {"kind": "regression"}, "task.label_column: row 1 .* has the label 'a'; regression needs"),
        ([1, 2], [1], {"label_column": "y"}, "task.label_column: no column 'y' in .*train.csv'; it has text, label"),
        ([1, 2], [1], {"label_column": "text"}, "task.label_column: 'text' is one of task.text_columns"),
        ([1, 2], [1], {"text_columns": ["t"]}, "task.text_columns: no column 't' in"),
        ([1, 2], [1], {"text_columns": []}, "task.text_columns: 0 given"),
        ([1, 2], [1], {"report": "train.csv"}, "task.report_file: 'train.csv' is task.train_file too"),
        ([1, 2], [1], {"report": "none.csv"}, "task.report_file: no file .* holds report.csv, train.csv"),
        ([1, 2], [1], {"report": "report.xlsx"}, "task.report_file: cannot read .* files end in .parquet, .csv"),
        ([1, 2], [1], {"report": ""}, "task.report_file: no file given"),
        ([1, 2], [], {}, "task.report_file: .* has no rows"),
        ([1, 2] * 9, [1], {"train_rows": 20}, "task.train_rows: 20 asked"),
        ([1, 2, 3], [1], {"metrics": ["f1"]}, "task.metrics: 'f1' does not score 'mine'"),
    ],
)
def test_broken_own_files_are_refused(labels, report, values, message, tmp_path):
    write(tmp_path / "train.csv", user_rows(labels))
    write(tmp_path / "report.csv", user_rows(report))
    with pytest.raises(ConfigError, match=message):
        load_files(tmp_path, **values)


@pytest.mark.parametrize("name", ["part-00001-of-00003", "part-00001-of-00003-6d3ac2f51cbab2e7", "1-of-3"])
def test_a_shard_is_no_split(name, tmp_path):
    """Its rows look sound: nobody sees that those of the other shards were never read."""
    stem = name if name[0] == "p" else f"part-{name}"
    for suffix in FORMATS:
        write(tmp_path / f"{stem}.{suffix}", user_rows(["a", "b"] * 4))
        write(tmp_path / f"report.{suffix}", user_rows(["a", "b"]))
        message = (
            rf"^task.train_file: .*{stem}.{suffix}' is shard 1 of 3, .* rows of shard 0, 2 would be missing; write all"
        )
        with pytest.raises(ConfigError, match=message):
            load_files(tmp_path, f"{stem}.{suffix}", f"report.{suffix}")
    write(tmp_path / "train-00000-of-00001.csv", user_rows(["a", "b"] * 4))
    assert load_files(tmp_path, "train-00000-of-00001.csv", "report.csv").label_names == ("a", "b")


# Embedded tasks


@pytest.fixture
def made_up_grammar(monkeypatch):
    """Stands in for the grammars, which have tests of their own."""

    class Module:
        @staticmethod
        def generate(name, split, n_rows, phenomena):
            labels = [row % 2 for row in range(n_rows)]
            return pd.DataFrame(
                {"text_a": [f"{split} {row}" for row in range(n_rows)], "label": labels, "idx": range(n_rows)}
            )

    monkeypatch.setattr(grammars, "generate", Module.generate)


def load_embedded(**values):
    return load_task(TaskConfig(name="acceptability", source="generated", **values))


def test_embedded_rows_beyond_the_default_leave_the_rest_in_place(made_up_grammar):
    """A larger training set must not move `select`, nor reorder the smaller one."""
    usual, more = load_embedded(), load_embedded(train_rows=9_000)
    assert {split: len(table) for split, table in usual.splits.items()} == {
        "train": 7_200,
        "select": 800,
        "report": 1_000,
    }
    pd.testing.assert_frame_equal(more.splits["select"], usual.splits["select"])
    pd.testing.assert_frame_equal(more.splits["train"][:7_200], usual.splits["train"])
    assert len(more.splits["train"]) == 9_000
    assert more.splits["train"]["text_a"].is_unique
    assert not set(more.splits["train"]["text_a"]) & set(more.splits["select"]["text_a"])
    assert len(load_embedded(report_rows=1_500).splits["report"]) == 1_500


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_tasks_agree_with_their_grammars(name):
    task = load_task(TaskConfig(name=name, source="generated"))
    assert task.facts["source"] == "generated"
    assert len(task.splits["train"]) == 7_200
    for table in task.splits.values():
        assert list(table) == ["text_a", *(["text_b"] if name in ("entailment", "similarity") else []), "label", "idx"]
        if task.label_names:
            assert set(table["label"]) == set(range(task.n_labels))
            assert table["label"].dtype == "int64"
        else:
            assert table["label"].between(0, 5).all()
            assert table["label"].dtype == "float32"


def test_select_rows_says_how_many_rows_are_chosen_on():
    task = load_embedded(select_rows=120, train_rows=50)
    assert {split: len(rows) for split, rows in task.splits.items()} == {"train": 50, "select": 120, "report": 1000}
    assert task.splits["select"].equals(load_embedded().splits["select"].head(120))


def test_select_takes_no_more_than_there_is():
    with pytest.raises(ConfigError, match=r"task.select_rows: 8000 asked, .* give at most 7999"):
        load_embedded(select_rows=8000)


# Configuration files


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "task").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_task_file_fits_the_schema(path):
    with initialize_config_dir(str(path.parent), version_base="1.3"):
        composed = compose(path.stem)
    name = path.stem.removesuffix("_quick").removesuffix("_calibration")  # presets of an embedded task
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TaskConfig), composed))
    assert isinstance(config, TaskConfig)
    if config.source == "glue":
        assert config.name == path.stem
        assert config.kind == ("classification" if glue.TASKS[config.name].label_names else "regression")
    elif config.source == "generated":
        assert config.name == name
        assert config.kind == EMBEDDED[config.name].kind
    missing = set(asdict(config)) - set(composed)
    assert not missing & {"train_rows", "report_rows", "metrics"}, "every value that a user may set stands in the file"


def test_every_task_has_a_file_and_every_official_metric_is_known():
    files = {path.stem for path in (ROOT / "conf" / "task").glob("*.yaml")}
    assert {*glue.TASKS, *EMBEDDED, "files"} <= files
    assert {metric for task in [*glue.TASKS.values(), *EMBEDDED.values()] for metric in task.metrics} <= set(METRICS)


# Real GLUE rows, where they are at hand

needs_glue = pytest.mark.skipif(not REAL_GLUE.is_dir(), reason="no GLUE files: set LORA_BENCH_GLUE to their folder")


@needs_glue
@pytest.mark.parametrize("name", ["cola", "sst2", "mrpc", "rte", "qnli", "mnli"])
def test_real_glue_files_say_how_complete_they_are(name):
    task = load_glue(REAL_GLUE, name)
    facts = task.facts["splits"]
    assert facts["train"]["complete"] is (name not in ("qnli", "mnli"))
    assert facts["report"]["complete"] is True
    assert facts["train"]["official_rows"] == glue.TASKS[name].rows["train"]
    assert task.facts["absent"] == (["validation_mismatched"] if name == "mnli" else [])
    assert set(task.splits["report"]["label"]) == set(range(task.n_labels))


@needs_glue
def test_real_qqp_without_validation_is_refused_by_name():
    """Its held-out rows are from train: they must not stand in for validation."""
    with pytest.raises(ConfigError, match=r"no 'validation' split of qqp .*heldout_from_train.parquet"):
        load_glue(REAL_GLUE, "qqp")


@needs_glue
def test_renamed_held_out_rows_are_not_taken_for_validation(tmp_path):
    for name, source in (("train", "train"), ("validation", "heldout_from_train")):
        (tmp_path / f"{name}.parquet").write_bytes((REAL_GLUE / "qqp" / f"{source}.parquet").read_bytes())
    with pytest.raises(ConfigError, match="holds split 'heldout_from_train', not 'validation'"):
        load_glue(tmp_path, "qqp")


@needs_glue
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_real_rows_have_one_fingerprint_in_every_format(suffix, tmp_path):
    for split in ("train", "validation"):
        rows = pa.parquet.read_table(REAL_GLUE / "mrpc" / f"{split}.parquet").to_pydict()
        write(tmp_path / f"{split}.{suffix}", rows)
    assert load_glue(tmp_path, "mrpc").fingerprint == load_glue(REAL_GLUE, "mrpc").fingerprint
