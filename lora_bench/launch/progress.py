"""How a sweep or a run is doing: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from lora_bench.wording import counted, duration

QUIET_SECONDS = 15.0
"""The shortest time between two plain lines."""
QUIET_SHARE = 0.05
"""Of the time passed, what lies between two plain lines at least: a log of hours has a hundred lines, not thousands."""
FIRST_SHARE, LEAST_SHARE, FIRST_SECONDS = 0.03, 0.01, 120.0
"""The time left is told from this share of the work on, or after this time from the lesser one: before, it is that of
starting workers, and hours are told that will be minutes."""
WIDE = 100
"""Columns of a terminal from which on the time passed stands beside the time left."""


class Meter:
    """One line that is written over where a terminal can do that, and lines from time to time where not.

    Whatever else is printed, standard error included, stands above the bar, as long as it goes to the same terminal.
    """

    def __init__(self, *, console: Console) -> None:
        self._console = console
        self.started = time.monotonic()
        self._said_at = self.started
        self._said: str | None = None
        self._bar: Progress | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            self._bar = Progress(
                TextColumn("{task.fields[head]}"),
                BarColumn(bar_width=30 if console.width >= WIDE else 12),
                TextColumn("{task.fields[tail]}"),
                console=console,
                transient=True,
                redirect_stderr=sys.stderr.isatty(),
            )
            self._task = self._bar.add_task("", total=1.0, head="", tail="")

    @property
    def is_wide(self) -> bool:
        return self._bar is None or self._console.width >= WIDE

    def start(self) -> None:
        if self._bar:
            self._bar.start()

    def stop(self) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, head: str, share: float, tail: str, *, about: str, is_last: bool = False) -> None:
        """Draw the bar, or print a line if it is time for one.

        Args:
            share: how much of the bar is full.
            about: what is told of, without times: a line that tells nothing new is left out.
        """
        if self._bar:
            self._bar.update(self._task, completed=share, head=head, tail=tail)
            return
        now = time.monotonic()
        pause = max(QUIET_SECONDS, QUIET_SHARE * (now - self.started))
        if (is_last or now - self._said_at >= pause) and about != self._said:
            self._said, self._said_at = about, now
            self._console.print(f"{head}  {tail}", highlight=False)

    def times(self, share: float) -> list[str]:
        """The time passed, and the time left once the share of the work that is done can tell it."""
        passed = time.monotonic() - self.started
        is_known = (LEAST_SHARE if passed >= FIRST_SECONDS else FIRST_SHARE) <= share < 1
        left = [f"about {duration(passed / share * (1 - share))} left"] if is_known else []
        return [*([f"{duration(passed)} passed"] if self.is_wide or not left else []), *left]


class SweepProgress:
    """Runs that have ended, how much of the work is done, runs that failed and the time left. None of them ever goes
    back: what is trained anew, as after a loss or when memory ran out, stands still until it is behind what was told.

    Args:
        n_runs: that this launch is to train.
        n_before: runs of the same plan that had ended before, which are counted too.
        of: what the runs are of, where more are to come.
    """

    def __init__(self, n_runs: int, *, console: Console, n_before: int = 0, of: str = "") -> None:
        self.n_runs, self.n_before, self.of = n_runs, n_before, of
        self.done = 0
        self.failed = 0
        self._behind = 0.0
        self._meter = Meter(console=console)

    def __enter__(self) -> SweepProgress:
        self._meter.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._meter.stop()
        if kind is None:
            self._show(is_last=True)

    def update(self, *, done: int, failed: int, inside: float = 0.0) -> None:
        """Take in how far the sweep is.

        Args:
            done: runs of this launch that have ended, failed ones included.
            inside: of the packs in training, the work that is behind them, in runs.
        """
        self.done, self.failed = max(self.done, min(done, self.n_runs)), max(self.failed, failed)
        self._behind = max(self._behind, min(done + inside, self.n_runs))
        self._show()

    def _show(self, *, is_last: bool = False) -> None:
        total = self.n_before + self.n_runs
        share = self._behind / self.n_runs if self.n_runs else 1.0
        of_all = (self.n_before + self._behind) / total if total else 1.0
        percent = math.floor(100 * of_all)
        state = [f"{percent} % done"] if self._behind > self.done and percent else []
        state += [f"{self.failed} failed"] if self.failed else []
        head = f"{self.n_before + self.done}/{counted(total, 'run')}{self.of}"
        about = f"{self.done} {self.failed} {self._behind:.2f}"
        self._meter.show(head, of_all, "  ".join([*state, *self._meter.times(share)]), about=about, is_last=is_last)


class StepProgress:
    """Steps, loss and time left of a single run."""

    def __init__(self, *, console: Console) -> None:
        self._console = console
        self._meter = Meter(console=console)
        self._first: float | None = None
        self._last = math.nan
        self._step = self._steps = 0
        self._share = 0.0

    def __enter__(self) -> Callable[[Mapping[str, Any]], None]:
        """The listener that the run's events are for."""
        self._meter.start()
        return self._listen

    def __exit__(self, *_: object) -> None:
        self._meter.stop()
        if self._first is not None:
            losses = f"loss {_loss(self._first)} at first, {_loss(self._last)} at last"
            self._console.print(f"{counted(self._step, 'step')}: {losses}", highlight=False)

    def _listen(self, event: Mapping[str, Any]) -> None:
        kind = event.get("event")
        if kind == "work":
            self._share = event["share"]
        elif kind == "step":
            self._step, self._steps, self._last = event["step"], event["steps"], event["loss"]
            self._first = self._last if self._first is None else self._first
        if self._first is None or kind not in ("work", "step"):
            return
        state = [f"loss {_loss(self._last)}", *(["scoring"] if self._step == self._steps else [])]
        head, tail = f"step {self._step:,}/{self._steps:,}", "  ".join([*state, *self._meter.times(self._share)])
        self._meter.show(head, self._share, tail, about=f"{self._step} {self._share:.2f}")


def _loss(loss: float) -> str:
    return f"{loss:.3f}" if math.isfinite(loss) else "not finite"
