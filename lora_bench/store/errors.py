"""The errors of records, runs and the store, and the operating system's refusals in words that help a user."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable, Iterator
from pathlib import Path


class RecordError(ValueError):
    """A document that is not a record: `problems` says what is wrong with it."""

    def __init__(self, problems: Iterable[str]):
        self.problems = list(problems)
        super().__init__("record: " + "; ".join(self.problems))


class UnreadableRecord(RecordError):
    """Bytes that are no record: cut short, garbled, or belonging to another run."""


class NewerRecord(RecordError):
    """A record written by a newer lora_bench, which this one must not judge."""


class NonFiniteError(ArithmeticError):
    """A loss, gradient, logit or score that is not a finite number."""


class GuardError(RuntimeError):
    """A guard that did not hold: the run must fail rather than report its scores."""


class StoreError(RuntimeError):
    """The store cannot do what was asked: the message says why and what would help."""


class AlreadyFinished(StoreError):
    """A finished record is never replaced."""


@contextlib.contextmanager
def explained(action: str, root: Path, *, key: str = "store") -> Iterator[None]:
    """Turn what the operating system refuses into a StoreError that says what would help; `key` names `root`."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        # safetensors and shutil report a full disk in exceptions of their own.
        is_full = "No space left on device" in str(error)
        if not is_full and not isinstance(error, OSError):
            raise
        cause = OSError(errno.ENOSPC, "No space left on device") if is_full else error
        raise StoreError(f"{key}: cannot {action} in {root} ({reason(cause)}); {_remedy(cause, key)}") from error


def reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _remedy(error: Exception, key: str) -> str:
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "free some space and run the same command again: what is finished is kept"
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"give a folder that can be written, with {key}=FOLDER"
    return "what is finished is kept"
