"""Rename, measure and sync files and folders."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def rename(source: Path, target: Path) -> bool:
    """Rename a folder; False when a folder that is not empty is in the way."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            return False
        raise
    return True


def bytes_of(place: Path) -> int | None:
    """Bytes of a file, or of all files below a folder; None when there is no such path."""
    try:
        facts = place.stat()
        if not stat.S_ISDIR(facts.st_mode):
            return facts.st_size
        return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    except OSError:
        return None


def to_disk(*places: Path) -> None:
    """Wait until these files and folders are on the disk."""
    for place in places:
        handle = os.open(place, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            # Some file systems cannot sync a folder; that is no reason to lose the run.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP) or place.is_file():
                raise
        finally:
            os.close(handle)
