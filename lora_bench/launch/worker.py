"""The process that trains packs, as the one that waits for it sees it."""

import contextlib
import functools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, BinaryIO

from lora_bench.launch.files import log_file

INTERRUPTED = 130
"""Exit status of a child that was asked to stop: its runs are missing, not failed."""
PARENT_SECONDS = 2.0
"""A pack that a launcher's worker trains ends so long after the sweep was killed, with the step that it is at."""
STORE_LOST = 74
"""Exit status of a child whose store could not be written: its runs are missing, not failed."""


class Worker(contextlib.AbstractContextManager):
    """A child process that trains packs of one plan, one after another; started with the first, anew after a death.

    It ends when this process does.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._answers: IO[str] | None = None
        self._is_stopped = False

    def train(self, path: Path, number: int, *, folder: str | None, environment: Mapping[str, str]) -> int:
        """Train a pack and wait. Returns the status that the child gave, or with which it ended.

        Args:
            folder: where the sweep was started, and the child shall be.
            environment: variables that a child has beside those of this process.
        """
        if self._is_stopped:
            return INTERRUPTED
        child = self._child or self._start(path, number, folder, environment)
        assert child.stdin is not None
        assert self._answers is not None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(f"{number}\n".encode())
            child.stdin.flush()
        if answer := self._answers.readline().strip():
            return int(answer)
        self._child = None
        with self._answers, contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        return child.wait()

    @contextlib.contextmanager
    def ending_with_parent(self) -> Iterator[None]:
        """Stop the child within some `PARENT_SECONDS` where the parent of this process dies: killed, it could not."""
        is_over = threading.Event()

        def watch() -> None:
            while not is_over.wait(PARENT_SECONDS):
                if is_orphan():
                    self.stop()
                    return

        is_orphan()
        threading.Thread(target=watch, name="lora_bench-parent", daemon=True).start()
        try:
            yield
        finally:
            is_over.set()

    def stop(self) -> None:
        """Ask the child to stop at once, and start none; whoever waits in `train` is told how it ended."""
        self._is_stopped = True
        if self._child is not None:
            self._child.terminate()

    def __exit__(self, *exception: object) -> None:
        child, self._child = self._child, None
        if child is None or self._answers is None:
            return
        if exception[0] is not None:
            child.terminate()
        with child, self._answers:  # the end of its input ends it
            pass

    def _start(
        self, path: Path, number: int, folder: str | None, environment: Mapping[str, str]
    ) -> "subprocess.Popen[bytes]":
        reader, writer = os.pipe()
        self._answers = open(reader, encoding="ascii")  # noqa: SIM115    closed with the child
        try:
            with open_log(path, number) as file:
                self._child = subprocess.Popen(
                    child_command(path, writer),
                    stdin=subprocess.PIPE,
                    stdout=file,
                    stderr=file,
                    cwd=folder if folder and os.path.isdir(folder) else None,
                    env=os.environ | dict(environment),
                    pass_fds=[writer],
                )
        finally:
            os.close(writer)
        return self._child


def is_orphan() -> bool:
    """Whether the process that started this one has gone since this was first asked."""
    return os.getppid() != _parent()


@functools.cache
def _parent() -> int:
    return os.getppid()


def open_log(path: Path, number: int) -> BinaryIO:
    """The log of a pack, to be written behind what it holds; nowhere, where that cannot be."""
    log = log_file(path, number)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return open(log, "ab", buffering=0)
    except OSError:
        return open(os.devnull, "ab", buffering=0)


def child_command(path: Path, answers: int) -> list[str]:
    """The process that trains packs of a plan, and the file descriptor that it answers on. It takes no module from the
    folder that it works in."""
    return [sys.executable, "-P", "-m", "lora_bench.launch.jobs", str(path), str(answers)]
