"""Put a new archive in the place of an old one, so that at every moment one of the two is whole.

    OUT/.new-archive-<token>/   the new one, until its files are in place
    OUT/.old-archive-<token>/   the old one, whole, until the new one is; deleted last

Both lie inside the archive's own folder, which may be a mount of its own: no file ever changes its file system. A
failure puts the old one back. After a kill, the next `scratch` does, and readers name the folder where it is whole.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import uuid4

from lora_bench.store.archive import ADAPTERS, OLD, Content, is_name, old_archive
from lora_bench.store.errors import StoreError, reason
from lora_bench.store.journal import ARCHIVED
from lora_bench.store.locks import Lock, owner_of, remedy
from lora_bench.store.reader import MANIFEST, is_archive

NEW = ".new-archive-"
LOCK = ".archive.lock"


@contextlib.contextmanager
def scratch(out: Path) -> Iterator[Path]:
    """A folder inside `out` in which an archive is made; gone at the end, and so is `out` if nothing came of it.

    What a process that was killed here has left is put right first.

    Raises:
        StoreError: if `out` holds something that is no archive, or another process writes one there.
    """
    is_made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    lock = Lock(out / LOCK)
    if not lock.acquire():
        raise StoreError(f"results: {out} is being written by {owner_of(lock.path)}; {remedy(lock.path)}")
    try:
        _put_right(out)
        if not is_archive(out) and set(os.listdir(out)) != {LOCK}:
            raise StoreError(f"results: {out} holds something that is no archive; give a folder that is new or empty")
        folder = out / f"{NEW}{uuid4().hex[:12]}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        lock.release(remove=True)
        if is_made:
            with contextlib.suppress(OSError):  # it is not empty: the archive is there
                out.rmdir()


def replace(folder: Path, out: Path) -> None:
    """Move the files of a new archive from `folder` to `out`, in the place of what is there.

    Raises:
        StoreError: if a file of somebody else lies among the adapters, or if neither moving nor putting back worked:
            then it says where the old archive is whole.
        OSError: if moving failed; the old archive is back in its place.
    """
    old, new = files_of(out), files_of(folder)
    foreign = [name for name in old if not is_name(name)]
    if foreign:
        raise StoreError(f"results: {out / foreign[0]} is no file of an archive; move it elsewhere")
    staged, backup = (out / f"{prefix}{uuid4().hex[:12]}" for prefix in (NEW, OLD))
    try:
        _copy(old, out, staged)
        os.rename(staged, backup)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    try:
        # The manifest comes last, so that an archive that is half replaced is never taken for a whole one.
        for name in new:
            _move(folder / name, out / name)
        for name in set(old) - set(new):
            _remove(out, name)
    except BaseException as error:
        _restore(backup, out, why=reason(error) if isinstance(error, OSError) else type(error).__name__)
        raise
    shutil.rmtree(backup, ignore_errors=True)


def files_of(out: Path) -> list[str]:
    """The files of the archive in a folder, or of one that is damaged, the manifest last."""
    below = [path.relative_to(out).as_posix() for path in sorted((out / ADAPTERS).rglob("*")) if not path.is_dir()]
    below += [f"{ARCHIVED}/{name}" for name in _names_in(out / ARCHIVED) if is_name(f"{ARCHIVED}/{name}")]
    names = [name for name in sorted(os.listdir(out)) if is_name(name)]
    return sorted([*names, *below], key=lambda name: name == MANIFEST)


def _names_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def _put_right(out: Path) -> None:
    """Clear away what a process that was killed has left, and put back what it was replacing."""
    backup = old_archive(out)
    if backup is not None:
        try:
            Content(out)
        except StoreError:
            _restore(backup, out, why="a process was killed here")
    for prefix in (NEW, OLD):
        for place in out.glob(prefix + "[0-9a-f]" * 12):
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place, ignore_errors=True)
            else:
                place.unlink()


def _restore(backup: Path, out: Path, *, why: str) -> None:
    """Put the old archive back; it stays whole in `backup` until it is."""
    old = files_of(backup)
    try:
        for name in old:
            twin = out / f"{NEW}{uuid4().hex[:12]}"
            _twin(backup / name, twin)
            _move(twin, out / name)
        for name in set(files_of(out)) - set(old):
            _remove(out, name)
    except OSError as error:
        raise StoreError(f"results: {out} is half replaced ({why}); the old archive is whole in {backup}") from error
    shutil.rmtree(backup, ignore_errors=True)


def _copy(names: Sequence[str], source: Path, target: Path) -> None:
    """The same files in another folder, as further links where the file system has them."""
    target.mkdir()
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        _twin(source / name, target / name)


def _twin(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copyfile(source, target)


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)


def _remove(out: Path, name: str) -> None:
    place = out / name
    place.unlink(missing_ok=True)
    for folder in place.parents:
        if folder == out:
            break
        with contextlib.suppress(OSError):
            folder.rmdir()
