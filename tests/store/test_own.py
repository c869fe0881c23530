"""A store may lie in a folder with anything else in it: a user's files are not ours to touch."""

import os
import shutil
from pathlib import Path

import pytest

from fake_store import fake_record
from lora_bench.store import open_store
from lora_bench.store.errors import StoreError
from lora_bench.store.folder import Store
from records import finished_record

FOREIGN = (
    *(".tmp-backup/notes.txt", ".tmp-0000000000000001-backup/notes.txt", ".tmp-/x", "20241128/photo.jpg"),
    *(".tmp-deadbeef-0123456789ab/notes.txt", ".tmp-deadbeef-0123456789ab-replaced/notes.txt", "deadbeef/index.html"),
    *(".env", "index.jsonl", "manifest.json", "quarantine/mine-1/x", "quarantine/deadbeef-1.txt", "0123456789abcdef"),
    *(".claims/notes.txt", "adapters/mine.txt", "record.json", "runs/00000001/x"),
)


def state_of(root: Path) -> dict[str, tuple]:
    """Everything below a folder that was there before the store was: kind, content or target, and time."""
    return {
        name: (path.is_symlink(), os.readlink(path) if path.is_symlink() else path.read_bytes(), path.lstat().st_mtime)
        for name in (*FOREIGN, ".tmp-deadbeef-ba9876543210", "feedbeef")
        if (path := root / name).is_symlink() or path.is_file()
    }


@pytest.fixture
def crowded(tmp_path) -> Path:
    root = tmp_path / "home"
    for name in FOREIGN:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text('{"name": "my page"}\n', encoding="utf-8")
    (tmp_path / "elsewhere").mkdir()
    for name in (".tmp-deadbeef-ba9876543210", "feedbeef"):
        (root / name).symlink_to(tmp_path / "elsewhere")
    return root


def test_no_read_or_write_touches_what_is_not_ours(crowded):
    """`store=.` deleted a folder called .tmp-backup, and moved one that is called like a date."""
    before = state_of(crowded)
    assert len(before) == len(FOREIGN) + 2
    store = Store(crowded)
    store.recover()
    store.require_writable()
    for number in range(1, 4):
        store.write(finished_record(number))
    (store.path(f"{1:016x}") / "record.json").write_bytes(b"{")
    again = open_store(crowded)
    assert sorted(again.frame()["run_id"]) == [f"{2:016x}", f"{3:016x}"]
    assert len(list(again.records())) == 2
    assert again.bytes_by_part()["record"][0] == 3
    Store(crowded).write(finished_record(1))
    assert [folder.name for folder in again.quarantined] == [f"{1:016x}-1"]
    assert again.drop_adapter(f"{1:016x}", "none") == 0
    assert state_of(crowded) == before


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_a_run_whose_name_is_taken_by_something_else_is_refused_before_it_trains(tmp_path, kind):
    """Its record could not be written once it is trained."""
    store, place = Store(tmp_path), tmp_path / f"{1:016x}"
    if kind == "folder":
        place.mkdir()
        (place / "thesis.tex").write_text("x", encoding="utf-8")
    elif kind == "file":
        place.write_text("x", encoding="utf-8")
    else:
        place.symlink_to(tmp_path)
    with pytest.raises(StoreError, match=r"0001 is in the way and holds no record; move it elsewhere"):
        store.claim(f"{1:016x}").__enter__()
    with pytest.raises(StoreError, match="in the way"):
        store.write(finished_record(1))
    assert place.exists()


def test_reading_moves_and_deletes_nothing(tmp_path):
    """Whoever looks at a store while another writes, or at a backup, must not change it."""
    store = Store(tmp_path)
    for number in range(3):
        store.write(finished_record(number))
    (tmp_path / f"{0:016x}" / "record.json").write_bytes(b"")
    shutil.move(tmp_path / f"{1:016x}", tmp_path / f".tmp-{1:016x}-0123456789ab")
    (tmp_path / "index.jsonl").unlink()
    before = sorted(path for path in tmp_path.rglob("*"))
    reader = open_store(tmp_path)
    assert list(reader.frame()["run_id"]) == [f"{2:016x}"]
    assert reader.status(f"{0:016x}") is None
    assert sorted(set(tmp_path.rglob("*")) - set(before)) == [tmp_path / "index.jsonl"]
    assert set(before) <= set(tmp_path.rglob("*"))


@pytest.mark.parametrize("has_lock", [True, False], ids=["with_its_lock", "record_alone"])
def test_what_lacked_only_its_rename_is_put_into_place(tmp_path, has_lock):
    """A writer that was killed at the last moment: the run is complete, and must not be trained again."""
    store = Store(tmp_path)
    store.write(finished_record(1))
    temporary = tmp_path / f".tmp-{1:016x}-0123456789ab"
    shutil.move(store.path(f"{1:016x}"), temporary)
    if has_lock:
        (tmp_path / ".claims" / f"{temporary.name}.lock").touch()
    assert not Store(tmp_path).has(f"{1:016x}")
    again = Store(tmp_path)
    again.recover()
    assert again.has(f"{1:016x}")
    assert not temporary.exists()
    assert not list((tmp_path / ".claims").glob(".tmp-*"))


def test_another_programs_manifest_makes_no_archive(tmp_path):
    """A web page's manifest.json is common, and the folder was refused as a read-only archive."""
    (tmp_path / "manifest.json").write_text('{"name": "app", "files": {}}', encoding="utf-8")
    Store(tmp_path).write(fake_record())
    assert len(open_store(tmp_path).frame()) == 1
