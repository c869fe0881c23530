"""The process that trains packs, as the one that waits for it sees it."""

import contextlib
import functools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from lora_bench.launch.files import log_file

INTERRUPTED = 130
"""Exit status of a child that was asked to stop: its runs are missing, not failed."""
PARENT_SECONDS = 2.0
"""A pack that a launcher's worker trains ends so long after the sweep was killed, with the step that it is at."""
OUT_OF_MEMORY = 71
"""Answer of a child that had no memory for runs of a pack: they are missing, and fewer at once may fit."""
STORE_LOST = 74
"""Exit status of a child whose store could not be written: its runs are missing, not failed."""


@dataclass(frozen=True)
class Order:
    """What a child is to train: runs of a pack of a plan together, those that are not `wanted` leaving nothing."""

    path: Path
    number: int
    run_ids: tuple[str, ...]
    wanted: frozenset[str]

    def line(self) -> bytes:
        """One line, whatever the path holds."""
        fields = {"plan": str(self.path), "pack": self.number, "runs": self.run_ids, "wanted": sorted(self.wanted)}
        return f"{json.dumps(fields)}\n".encode("ascii")

    @classmethod
    def read(cls, line: bytes) -> "Order":
        fields = json.loads(line)
        return cls(Path(fields["plan"]), fields["pack"], tuple(fields["runs"]), frozenset(fields["wanted"]))


class Worker(contextlib.AbstractContextManager):
    """A child process that trains packs of any plan, one after another; started with the first, anew after a death.

    It ends when this process does.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._answers: IO[str] | None = None
        self._surroundings: tuple[str | None, dict[str, str]] | None = None
        self._is_stopped = False
        self.has_trained = False
        """Whether the child has answered an order, and may keep memory for it."""

    def train(self, order: Order, *, folder: str | None, environment: Mapping[str, str]) -> int:
        """Train a pack and wait. Returns the status that the child gave, or with which it ended.

        Args:
            folder: where the sweep was started, and the child shall be.
            environment: variables that a child has beside those of this process. A child that has others, or another
                folder, ends, and a new one begins.
        """
        if self._is_stopped:
            return INTERRUPTED
        surroundings = folder, dict(environment)
        if self._child is not None and (self._child.poll() is not None or self._surroundings != surroundings):
            self.end()
        child = self._child or self._start(order, folder, environment)
        self._surroundings = surroundings
        assert child.stdin is not None
        assert self._answers is not None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(order.line())
            child.stdin.flush()
        if answer := self._answers.readline().strip():
            self.has_trained = True
            return int(answer)
        self.end()
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

    def dismiss(self) -> None:
        """Tell the child that no order will come, and do not wait: of several, all end at once."""
        if self._child is not None and self._child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._child.stdin.close()

    def end(self) -> None:
        """Let the child end, which gives its memory back; the next pack starts another."""
        child, self._child = self._child, None
        self.has_trained = False
        if child is None or self._answers is None:
            return
        # The end of its input ends it; one that is dead may have left a line in the pipe.
        with self._answers, contextlib.suppress(BrokenPipeError), child:
            pass

    def __exit__(self, *exception: object) -> None:
        if exception[0] is not None and self._child is not None:
            self._child.terminate()
        self.end()

    def _start(self, order: Order, folder: str | None, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        reader, writer = os.pipe()
        self._answers = open(reader, encoding="ascii")  # noqa: SIM115    closed with the child
        try:
            with open_log(order.path, order.number) as file:
                self._child = subprocess.Popen(
                    child_command(writer),
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


def child_command(answers: int) -> list[str]:
    """The process that trains packs, and the file descriptor that it answers on. It takes no module from the folder
    that it works in."""
    return [sys.executable, "-P", "-m", "lora_bench.launch.child", str(answers)]
