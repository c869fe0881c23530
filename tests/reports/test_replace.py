"""An archive that is overwritten: the old one or the new one is whole, whatever refuses and whenever a process dies."""

import contextlib
import errno
import itertools
import os
import shutil
from pathlib import Path

import pytest

from fake_store import fake_record, write_store
from lora_bench.reports import publish, replace
from lora_bench.store import open_store
from lora_bench.store.archive import Content
from lora_bench.store.errors import StoreError

STEPS = {
    **dict.fromkeys(("os.replace", "os.rename", "os.link"), errno.EXDEV),
    **dict.fromkeys(("os.unlink", "os.mkdir", "shutil.copyfile", "shutil.rmtree"), errno.ENOSPC),
}


class Killed(BaseException):
    """Nothing after it is carried out."""


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")

    def keep(folder: Path) -> None:
        (folder / "adapter").mkdir()
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            (folder / "adapter" / name).write_text(folder.name[:12], encoding="utf-8")

    made = []
    for name, seeds in (("a", (0, 1)), ("b", (1, 2, 3))):
        store = open_store(write_store(root / name, []))
        for seed in seeds:
            store.write(fake_record(seed=seed, targets="q"), adapter=keep)
        made.append(store)
    return made


def archive_of(store, out: Path, **options) -> Path:
    return publish.write_archive([store], out, adapters=["all"], **options).root


def content_of(out: Path) -> dict[str, bytes]:
    """The files of an archive's folder; what is hidden is ours, while it is written."""
    names = {path.relative_to(out): path for path in out.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in names.items() if not name.parts[0].startswith(".")}


@pytest.fixture(scope="module")
def made(stores, tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("made")
    return archive_of(stores[0], root / "old"), archive_of(stores[1], root / "new")


def lay_out(made: Path, out: Path) -> dict[str, bytes]:
    """A copy of an archive with a file of the user's; what its folder holds."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(made, out)
    (out / "README.md").write_text("mine", encoding="utf-8")
    return content_of(out)


@pytest.fixture
def archives(made, tmp_path):
    """The archive to be overwritten, and what its folder holds before and after."""
    new = lay_out(made[1], tmp_path / "new")
    return tmp_path / "out", lay_out(made[0], tmp_path / "out"), new


def overwrite(made: Path, out: Path) -> None:
    with replace.scratch(out) as folder:
        shutil.copytree(made, folder, dirs_exist_ok=True)
        replace.replace(folder, out)


def refuse_at(patch, step: str, number: int, error: BaseException, *, for_good: bool) -> list[int]:
    """Let a call of the operating system fail, once or from then on; the list grows by one with each call."""
    module, name = step.split(".")
    real, calls = getattr({"os": os, "shutil": shutil}[module], name), []

    def refuse(*arguments, **options):
        calls.append(1)
        if len(calls) == number or (for_good and len(calls) > number):
            raise error
        return real(*arguments, **options)

    patch.setattr(step, refuse)
    return calls


@pytest.mark.parametrize(("step", "code"), STEPS.items())
def test_whatever_refuses_the_old_or_the_new_archive_is_whole(archives, made, monkeypatch, step, code):
    """The old one was deleted, and then the new one could not be moved to another device."""
    out, old, new = archives
    for number in itertools.count(1):
        with monkeypatch.context() as patch:
            calls = refuse_at(patch, step, number, OSError(code, os.strerror(code)), for_good=False)
            with contextlib.suppress(OSError, shutil.Error):
                overwrite(made[1], out)
        if len(calls) < number:
            break
        assert content_of(out) in (old, new)
        Content(out)
        lay_out(made[0], out)
    assert content_of(out) == new
    assert not list(out.glob(".*"))


@pytest.mark.parametrize("step", ["os.replace", "os.unlink", "shutil.rmtree"])
@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "gone_for_good"])
def test_a_disk_that_stays_away_or_a_kill_leaves_one_whole_and_says_where(archives, made, monkeypatch, step, is_killed):
    out, old, new = archives
    for number in itertools.count(1):
        with monkeypatch.context() as patch:
            error = Killed() if is_killed else OSError(errno.EIO, os.strerror(errno.EIO))
            calls = refuse_at(patch, step, number, error, for_good=True)
            if is_killed:
                patch.setattr(replace, "_restore", lambda *_, **__: None)
            with contextlib.suppress(Killed, OSError, shutil.Error, StoreError):
                overwrite(made[1], out)
        if len(calls) < number:
            break
        try:
            open_store(out)
            assert content_of(out) in (old, new)
        except StoreError as refused:
            (backup,) = out.glob(".old-archive-*")
            assert str(backup) in str(refused)
            assert content_of(backup) == {name: content for name, content in old.items() if name != "README.md"}
        with replace.scratch(out):
            assert content_of(out) in (old, new)
            Content(out)
        assert not list(out.glob(".*"))
        lay_out(made[0], out)


def test_a_files_system_without_links_is_copied_on(archives, stores, monkeypatch):
    out, _, new = archives
    refuse_at(monkeypatch, "os.link", 1, OSError(errno.EPERM, "no links"), for_good=True)
    archive_of(stores[1], out, overwrite=True)
    assert content_of(out) == new


def test_what_lies_among_the_adapters_of_an_archive_is_not_deleted(archives, stores):
    out, old, _ = archives
    (out / "adapters" / "thesis.tex").write_text("mine", encoding="utf-8")
    with pytest.raises(StoreError, match=r"thesis\.tex is no file of an archive; move it elsewhere"):
        archive_of(stores[1], out, overwrite=True)
    assert content_of(out) == old | {"adapters/thesis.tex": b"mine"}


def test_a_new_archive_that_fails_leaves_no_folder(stores, tmp_path, monkeypatch):
    refuse_at(monkeypatch, "os.replace", 1, OSError(errno.EXDEV, "another device"), for_good=False)
    with pytest.raises(StoreError, match="another device"):
        archive_of(stores[0], tmp_path / "deep" / "out")
    assert not (tmp_path / "deep" / "out").exists()
