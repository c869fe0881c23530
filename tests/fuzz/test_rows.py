"""A file of rows is refused in one line, or the task holds its rows, their order and their classes.

pytest tests/fuzz                             the mutations of the suite, the same each time
FUZZ_EXAMPLES=20000 pytest -n0 -s tests/fuzz  as many, drawn anew; all that is wrong is listed at the end
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import written_rows as written
from fuzz_ledger import Ledger
from lora_bench.config.errors import ConfigError
from lora_bench.config.schema import TaskConfig
from lora_bench.tasks.load import load_task
from lora_bench.tasks.rows import Task
from tiny import tiny_config


def task_config(train: Path, report: Path, names: list[str], kind: str) -> TaskConfig:
    values = {
        "name": "mine", "source": "files", "kind": kind, "train_file": str(train), "report_file": str(report),
        "select_file": None, "text_columns": names, "label_column": "label", "train_rows": None, "report_rows": None,
        "select_rows": 2 if kind == "regression" else 1, "data_dir": None,
    }  # fmt: skip
    return tiny_config(task=values).task


@pytest.mark.parametrize("n_suite", [190, pytest.param(380, marks=pytest.mark.slow)])
def test_a_file_of_rows_is_refused_or_read_exactly(n_suite, tmp_path, capsys):
    """A row that is lost, merged with another or has another's label makes a score that looks sound."""
    ledger = Ledger("rows")

    @settings(**ledger.settings(n_suite=n_suite, share=1))
    @given(st.data())
    def mutate(data: Any) -> None:
        is_pair = data.draw(st.sampled_from((False, False, True)))
        kind = data.draw(st.sampled_from(("classification", "classification", "classification", "regression")))
        table = data.draw(written.rows(is_pair=is_pair))
        file = data.draw(written.files(table))
        assume(file is not None)
        wound, content = data.draw(written.damaged(file.content))
        with ledger.example(f"{file.suffix}, {file.how}, {wound}, {kind}: {content[:300]!r}") as example:
            folder = tmp_path / str(ledger.n_examples)
            folder.mkdir()
            path = folder / f"train{file.suffix}"
            report = folder / f"report{file.suffix}"
            path.write_bytes(content)
            report.write_bytes(content)
            names = ["text", "text_b"] if is_pair else ["text"]
            try:
                task = load_task(task_config(path, report, names, kind))
            except ConfigError as error:
                example.refused(str(error))
                assert not (wound == "whole" and _is_plain(table, file, kind)), f"refused without need: {error}"
                return
            finally:
                path.unlink()
                report.unlink()
                folder.rmdir()
            example.accepted()
            _require_same(task, written.read(file.suffix, content), names)
            if wound == "whole" and not file.is_escaped:
                _require_written(task, table, names)

    ledger.play(mutate, capsys)


def _is_plain(table: list[dict[str, Any]], file: written.File, kind: str) -> bool:
    """Whether nothing at all is odd about these rows and the way in which they were written."""
    if not file.how.startswith(("utf-8,", "utf-8-sig,", "utf-16,", "utf-32,")) or "escape True" in file.how:
        return False
    if "quoting 3" in file.how or kind == "regression":
        return False
    labels = {row["label"] if isinstance(row["label"], str) else "?" for row in table}
    texts = [row[name] for row in table for name in row if name != "label"]
    return labels <= {"pos", "neg"} and all(text.strip() and text.isprintable() and text.isascii() for text in texts)


def _require_same(task: Task, rows: list[dict[str, Any]], names: list[str]) -> None:
    """The report split is the file, row by row; train and select are all of its rows, each once."""
    rows = [{(key or "").strip(" \t\r\n\u00a0\ufeff"): value for key, value in row.items()} for row in rows]
    report = task.splits["report"]
    assert len(report) == len(rows), f"{len(report)} rows, the file has {len(rows)}"
    cut = np.concatenate([task.splits["select"]["idx"], task.splits["train"]["idx"]])
    assert sorted(cut) == list(range(len(rows))), "train and select are not the file"
    for split in task.splits.values():
        for letter, name in zip("ab", names, strict=False):
            ours = split[f"text_{letter}"].tolist()
            theirs = [written.text_of(rows[row].get(name)) for row in split["idx"]]
            assert ours == theirs, f"{name}: {ours} is {theirs} in the file"
        given = [rows[row]["label"] for row in split["idx"]]
        if task.kind == "regression":
            numbers = [float(value.decode() if isinstance(value, bytes) else value) for value in given]
            assert split["label"].tolist() == np.float32(numbers).tolist(), "labels"
        else:
            ours = [task.label_names[label] for label in split["label"]]
            theirs = [written.name_of(value) for value in given]
            assert ours == theirs, f"labels {ours} are {theirs} in the file"


def _require_written(task: Task, table: list[dict[str, Any]], names: list[str]) -> None:
    """Of a file that nobody damaged: the rows that it was written from."""
    report = task.splits["report"]
    assert len(report) == len(table), f"{len(report)} rows, {len(table)} were written"
    for letter, name in zip("ab", names, strict=False):
        assert report[f"text_{letter}"].tolist() == [row[name] for row in table], f"{name} is not what was written"
    if task.kind == "classification":
        names = {written.name_of(row["label"]) for row in table}
        assert set(task.label_names) == names, f"{task.label_names}, the classes {names} were written"
