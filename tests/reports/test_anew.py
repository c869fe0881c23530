"""A report in the place of an earlier one: nothing of that stays beside it, and nothing of anyone else's goes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fake_store import fake_record, write_store
from lora_bench.reports.anew import LIST, anew


def write(out: Path, **files: str) -> None:
    with anew(out) as folder:
        for name, text in files.items():
            path = folder / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def files_in(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} - {LIST}


def test_what_only_the_earlier_report_wrote_goes(tmp_path):
    write(tmp_path, page="1", tables__cola="1", tables__rte="1")
    write(tmp_path, page="2", tables__rte="2")
    assert files_in(tmp_path) == {"page", "tables/rte"}
    assert (tmp_path / "tables" / "rte").read_text(encoding="utf-8") == "2"
    write(tmp_path, page="3")
    assert files_in(tmp_path) == {"page"}


def test_files_of_others_stay_and_so_does_what_a_user_has_changed(tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "mine.csv").write_text("mine", encoding="utf-8")
    write(tmp_path, page="1", tables__notes="ours", tables__cola="ours")
    (tmp_path / "tables" / "notes").write_text("ours, and a remark", encoding="utf-8")
    write(tmp_path, page="2")
    assert files_in(tmp_path) == {"page", "tables/mine.csv", "tables/notes"}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": 3}', '{"files": {"a": null}}'])
def test_a_list_that_cannot_be_read_removes_nothing(tmp_path, content):
    write(tmp_path, page="1", tables__cola="1")
    (tmp_path / LIST).write_text(content, encoding="utf-8")
    write(tmp_path, page="2")
    assert files_in(tmp_path) == {"page", "tables/cola"}


def test_a_list_from_elsewhere_reaches_nothing_outside_of_the_report(tmp_path):
    """A report may have been downloaded, list and all."""
    out, outside = tmp_path / "report", tmp_path / "thesis.tex"
    write(out, page="1")
    outside.write_text("1", encoding="utf-8")
    checksum = json.loads((out / LIST).read_text(encoding="utf-8"))["files"]["page"]  # of the same content
    names = ["../thesis.tex", str(outside), "tables/../../thesis.tex"]
    (out / LIST).write_text(json.dumps({"files": dict.fromkeys(names, checksum)}), encoding="utf-8")
    write(out, page="2")
    assert outside.exists()


def test_a_report_that_fails_leaves_the_one_that_was_there(tmp_path):
    write(tmp_path / "report", page="1", tables__cola="1")
    for out in (tmp_path / "report", tmp_path / "new"):
        with pytest.raises(TypeError):
            write(out, page="2", tables__cola=None)  # type: ignore[arg-type]
    assert files_in(tmp_path) == {"report/page", "report/tables/cola", f"report/{LIST}"}
    assert (tmp_path / "report" / "page").read_text(encoding="utf-8") == "1"
    assert not (tmp_path / "new").exists()


def test_the_tables_of_another_task_are_gone_from_the_next_page(command, tmp_path):
    """Who zips the folder for a paper must not send what the page no longer says."""
    for task, name in (("cola", "one"), ("rte", "two")):
        records = [fake_record(targets=t, task=task, seed=s) for t in ("q", "qv") for s in range(4)]
        write_store(tmp_path / name, records)
        ended = command("report", f"store={name}")
        assert ended.status == 0, ended.text
    names = files_in(tmp_path / "report")
    assert "index.html" in names and any("rte" in name for name in names)
    assert not [name for name in names if "cola" in name]
