"""How a sweep is doing: a bar on a terminal, plain lines elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from lora_bench.wording import duration

QUIET_SECONDS = 15.0
"""The shortest time between two plain lines."""
QUIET_SHARE = 0.05
"""Of the time passed, what lies between two plain lines at least: a log of hours has a hundred lines, not thousands."""
FIRST_SHARE, FIRST_SECONDS = 0.03, 120.0
"""The time left is told from this share of the work on, or after this time: before, it is that of starting workers."""


class SweepProgress:
    """Runs done, runs failed and the time left, from what this sweep itself has trained."""

    def __init__(self, n_runs: int, *, console: Console):
        self.n_runs = n_runs
        self.done = 0
        self.failed = 0
        self._console = console
        self._started = time.monotonic()
        self._said_at = self._started
        self._said: tuple[int, int] | None = None
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.completed:.0f}/{task.total} runs"),
                BarColumn(bar_width=30),
                TextColumn("{task.fields[state]}"),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task("", total=n_runs, state="")

    def __enter__(self) -> "SweepProgress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        elif kind is None:
            self._say()

    def update(self, *, done: int, failed: int, inside: float = 0.0) -> None:
        """Take in how far the sweep is.

        Args:
            done: runs that have ended, failed ones included.
            inside: of the pack in training, the work that is behind it, in runs.
        """
        self.done, self.failed = done, failed
        state = self._tell(done + inside)
        if self._bar:
            self._bar.update(self._task, completed=done + inside, state=state)
        else:
            now = time.monotonic()
            if now - self._said_at >= max(QUIET_SECONDS, QUIET_SHARE * (now - self._started)):
                self._say(inside)

    def _say(self, inside: float = 0.0) -> None:
        if self._said == (self.done, round(100 * inside)):
            return
        self._said, self._said_at = (self.done, round(100 * inside)), time.monotonic()
        self._console.print(f"{self.done}/{self.n_runs} runs{self._tell(self.done + inside)}", highlight=False)

    def _tell(self, progress: float) -> str:
        parts = [f"  {self.failed} failed"] if self.failed else []
        passed = time.monotonic() - self._started
        parts.append(f"  {duration(passed)} passed")
        is_known = progress >= FIRST_SHARE * self.n_runs or passed >= FIRST_SECONDS
        if is_known and 0 < progress < self.n_runs:
            parts.append(f"  about {duration(passed / progress * (self.n_runs - progress))} left")
        return "".join(parts)
