"""Locks between processes, on one machine or on several that share a file system, which say who holds them.

The operating system's lock on an open file (flock) decides, so a process that dies frees its locks. Where a file system
has no flock, the file itself is the lock: its holder makes it, and removes it on release. If its owner was on this host
and died, the lock is free again; if on another host, it is not, since nobody here can tell. In both cases the file
names its owner, in the lines `pid` and `host`, and a holder with `beats=True` touches it every BEAT_SECONDS, so that
whoever waits can tell a slow owner from a dead one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from lora_bench.store.errors import StoreError
from lora_bench.wording import duration

try:
    import fcntl
except ImportError:  # no flock on this system
    fcntl = None

BEAT_SECONDS = 20.0
SILENT_SECONDS = 600.0
"""After this long without a beat, a process that waits for an owner on another host gives up."""
POLL_SECONDS = 0.01
UNWRITTEN_SECONDS = 5.0
"""Where the file itself is the lock: how long it may name nobody before its owner counts as dead."""

_BUSY = {errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK}
_NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}


@dataclass(frozen=True)
class Owner:
    """Who holds a lock according to its file; `seconds` since the file was last touched."""

    path: Path
    pid: int | None
    host: str
    seconds: float

    @property
    def is_here(self) -> bool:
        return self.host == socket.gethostname()

    @property
    def is_dead(self) -> bool:
        """Whether the owner was a process of this host that has ended."""
        return self.is_here and self.pid is not None and not _is_alive(self.pid)

    def __str__(self) -> str:
        who = f"process {self.pid} on host {self.host}" if self.pid is not None else "a process that left no name"
        return f"{who} ({self.path}, touched {duration(self.seconds)} ago)"


def owner_of(path: Path) -> Owner | None:
    """Who holds the lock of this file, or last did; None without the file."""
    try:
        lines = path.read_bytes()[:1024].decode(errors="replace").split("\n")
        touched = path.stat().st_mtime
    except OSError:
        return None
    pid = int(lines[0]) if lines[0].isascii() and lines[0].isdigit() and len(lines) > 2 else None
    return Owner(path, pid, lines[1] if pid is not None else "", max(0.0, time.time() - touched))


class Lock:
    """The lock of one file; see the module. Not re-entrant: a second `Lock` of the same file waits for the first."""

    def __init__(self, path: str | Path, *, beats: bool = False):
        self.path = Path(path)
        self._beats = beats
        self._handle: int | None = None
        self._is_file = False  # whether the file itself is the lock

    def acquire(self, *, timeout: float = 0.0) -> bool:
        """Take the lock; False when another holds it for `timeout` seconds.

        Raises:
            OSError: when the file cannot be made.
        """
        deadline = time.monotonic() + timeout
        while not self._try():
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_SECONDS)
        if self._beats:
            _heart.add(self)
        return True

    def release(self, *, remove: bool = False) -> None:
        """Release the lock; with `remove`, remove its file too."""
        _heart.discard(self)
        handle, self._handle = self._handle, None
        if handle is None:
            return
        try:
            with contextlib.suppress(OSError):
                if remove or self._is_file:
                    os.unlink(self.path)
                else:
                    os.ftruncate(handle, 0)
        finally:
            os.close(handle)

    def beat(self) -> None:
        """Touch the file, so that others who wait see that the owner lives."""
        if (handle := self._handle) is not None:
            with contextlib.suppress(OSError):
                os.utime(handle if os.utime in os.supports_fd else self.path)

    def _try(self) -> bool:
        handle, is_new = _open(self.path)
        try:
            has_flock = _flock(handle)
            if has_flock is None:  # no flock here: the process that makes the file has the lock
                if is_new:
                    self._hold(handle, is_file=True)
            elif has_flock and _is_file_of(handle, self.path):  # else its last holder has just removed it
                self._hold(handle, is_file=False)
        finally:
            if self._handle is None:
                os.close(handle)
        if self._handle is None and has_flock is None and _take_away_if_dead(self.path):
            return self._try()
        return self._handle is not None

    def _hold(self, handle: int, *, is_file: bool) -> None:
        self._handle, self._is_file = handle, is_file
        with contextlib.suppress(OSError):  # a full disk: the lock holds, but names nobody
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n{socket.gethostname()}\n".encode(), 0)


@contextlib.contextmanager
def holding(path: Path, *, timeout: float = 120.0) -> Iterator[None]:
    """Hold a lock that others hold for milliseconds.

    Raises:
        StoreError: when another holds it for `timeout` seconds, naming who does and what to do.
        OSError: when the file cannot be made.
    """
    lock = Lock(path)
    if not lock.acquire(timeout=timeout):
        owner = owner_of(path) or "a process"
        raise StoreError(f"store: {path} was held for {timeout:g} s by {owner}; is it stopped? {remedy(path)}")
    try:
        yield
    finally:
        lock.release()


def waited_for(path: Path, what: str) -> Iterator[None]:
    """Steps of waiting for another process that holds the lock of `path`; the caller paces them, and stops.

    Raises:
        StoreError: when it gave no sign of life for SILENT_SECONDS, naming host, process, file, and what to do.
    """
    beat, since = None, time.monotonic()
    while True:
        try:
            latest = path.stat().st_mtime_ns
        except OSError:
            latest = None
        if latest != beat:
            beat, since = latest, time.monotonic()
        elif time.monotonic() - since >= SILENT_SECONDS:
            raise StoreError(
                f"store: {what} is held by {owner_of(path) or path} without a sign of life; {remedy(path)}"
            )
        yield


def remedy(path: Path) -> str:
    """What a user can do about a lock whose owner may be gone."""
    return f"if that process is gone, delete {path} and run the same command again: what is finished is kept"


def _open(path: Path) -> tuple[int, bool]:
    """A handle of the file, and whether this call made it; a link is refused."""
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
    while True:
        with contextlib.suppress(FileExistsError):
            return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666), True
        with contextlib.suppress(FileNotFoundError):  # removed by its last holder
            return os.open(path, flags), False


def _flock(handle: int) -> bool | None:
    """Whether the operating system's lock was acquired; None where it has none."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        if error.errno in _NO_FLOCK:
            return None
        raise
    return True


def _is_file_of(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


def _take_away_if_dead(path: Path) -> bool:
    """Remove a lock file whose owner, on this host, has ended, or that names nobody, as flock leaves it."""
    owner = owner_of(path)
    if owner is None:
        return True
    if not owner.is_dead and (owner.pid is not None or owner.seconds < UNWRITTEN_SECONDS):
        return False
    aside = path.with_name(f"{path.name}.{uuid4().hex[:12]}")
    try:
        os.rename(path, aside)
    except OSError:
        return False
    taken = owner_of(aside)
    if taken is not None and (taken.pid, taken.host) != (owner.pid, owner.host):  # a new owner was quicker
        with contextlib.suppress(OSError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)
    return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


class _Heart:
    """Touches the files of the locks that this process holds, so that others see that it lives."""

    def __init__(self) -> None:
        self._locks: set[Lock] = set()
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, lock: Lock) -> None:
        with self._guard:
            self._locks.add(lock)
            if self._thread is None or not self._thread.is_alive():  # the first one, or after a fork
                self._thread = threading.Thread(target=self._beat, name="lora_bench-locks", daemon=True)
                self._thread.start()

    def discard(self, lock: Lock) -> None:
        with self._guard:
            self._locks.discard(lock)

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT_SECONDS)
            with self._guard:
                for lock in self._locks:
                    lock.beat()


_heart = _Heart()
