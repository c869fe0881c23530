"""Locks that name their owner, with and without the operating system's help, and that nobody waits for for ever."""

import errno
import itertools
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lora_bench.store import locks
from lora_bench.store.errors import StoreError
from lora_bench.store.folder import Store
from lora_bench.store.locks import Lock, owner_of, waited_for
from records import finished_record

NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def paced(steps):
    for step in steps:
        time.sleep(0.01)
        yield step


@pytest.fixture(params=["flock", *NO_FLOCK], ids=lambda code: errno.errorcode.get(code, code))
def file_system(request, monkeypatch):
    """A file system with flock, and those that refuse it in their ways."""
    if request.param != "flock":

        def refuse(*_):
            raise OSError(request.param, os.strerror(request.param))

        monkeypatch.setattr(locks.fcntl, "flock", refuse)
    return request.param


def test_a_lock_is_held_by_one_and_names_it(file_system, tmp_path):
    path = tmp_path / "x.lock"
    first, second = Lock(path), Lock(path)
    assert first.acquire()
    assert not second.acquire(timeout=0.05)
    owner = owner_of(path)
    assert (owner.pid, owner.host, owner.is_dead) == (os.getpid(), socket.gethostname(), False)
    first.release()
    assert second.acquire()
    second.release(remove=True)
    assert not path.exists()


def test_the_lock_of_a_process_of_this_host_that_died_is_free(file_system, tmp_path):
    path = tmp_path / "x.lock"
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    path.write_text(f"{gone.stdout.strip()}\n{socket.gethostname()}\n", encoding="ascii")
    assert Lock(path).acquire(timeout=1)


def test_without_flock_an_owner_on_another_host_keeps_its_lock_and_is_named(file_system, tmp_path):
    """Nobody here can tell whether it lives."""
    path = tmp_path / "x.lock"
    path.write_text("4711\nnode7\n", encoding="ascii")
    os.utime(path, (time.time() - 7200,) * 2)
    assert Lock(path).acquire() == (file_system == "flock")
    if file_system != "flock":
        assert str(owner_of(path)).startswith(f"process 4711 on host node7 ({path}, touched 2 h")


def test_a_store_without_flock_is_written_and_read(file_system, tmp_path):
    store = Store(tmp_path)
    with store.claim(f"{1:016x}") as is_held:
        assert is_held
        with Store(tmp_path).claim(f"{1:016x}") as is_held_again:
            assert not is_held_again
        store.write(finished_record(1))
    assert list(Store(tmp_path).frame()["run_id"]) == [f"{1:016x}"]
    assert {path.name for path in tmp_path.iterdir()} == {f"{1:016x}", ".claims", "index.jsonl"}


def test_a_store_lock_that_is_not_given_back_ends_in_words(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.require_writable()
    path = tmp_path / ".claims" / "store.lock"
    other = Lock(path)
    assert other.acquire()
    with pytest.raises(StoreError) as refused, store._lock(timeout=0.05):
        pass
    other.release()
    for word in (str(path), f"process {os.getpid()}", socket.gethostname(), "touched 0", "if that process is gone"):
        assert word in str(refused.value)


def test_whoever_waits_gives_up_on_an_owner_without_a_sign_of_life(tmp_path, monkeypatch):
    """A dead owner on another host blocked a sweep for ever, unnamed."""
    monkeypatch.setattr(locks, "SILENT_SECONDS", 0.1)
    path = tmp_path / "pack-0.lock"
    path.write_text("4711\nnode7\n", encoding="ascii")
    with pytest.raises(StoreError, match=rf"pack 0 is held by process 4711 on host node7 \({path}.*delete {path}"):
        list(paced(waited_for(path, "pack 0")))


def test_an_owner_that_gives_signs_of_life_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "SILENT_SECONDS", 0.3)
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.02)
    path, began = tmp_path / "pack-0.lock", time.monotonic()
    lock = Lock(path, beats=True)
    assert lock.acquire()
    for _ in itertools.takewhile(lambda _: time.monotonic() - began < 0.8, waited_for(path, "pack 0")):
        lock.beat()
        time.sleep(0.02)
    touched = path.stat().st_mtime_ns
    lock.beat()
    assert path.stat().st_mtime_ns >= touched
    lock.release()


def test_a_link_is_no_lock(tmp_path):
    """A lock file is opened for writing: what a link points to must not be emptied."""
    target = Path(tmp_path / "thesis.tex")
    target.write_text("text", encoding="utf-8")
    (tmp_path / "x.lock").symlink_to(target)
    with pytest.raises(OSError, match=r"symbolic links|Too many levels"):
        Lock(tmp_path / "x.lock").acquire()
    assert target.read_text(encoding="utf-8") == "text"
