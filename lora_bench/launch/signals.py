"""How a process of a sweep is asked to stop."""

import signal
import threading
from collections.abc import Callable
from typing import Any

STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """The process was asked to stop, by Ctrl-C or by a signal."""


def stop_on_signals() -> Callable[[], None]:
    """Let SIGTERM and SIGHUP end the process as Ctrl-C does, so that locks are released and the ending is told.

    Returns:
        what puts the former handlers back.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None

    def stop(number: int, frame: Any) -> None:
        raise Interrupted(signal.Signals(number).name)

    former = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    return restore
