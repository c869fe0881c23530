"""Who trains a pack: a lock that its owner holds, and a mark beside the plan for whoever watches the sweep."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lora_bench.launch.files import mark_file, pack_lock, store_of
from lora_bench.store.errors import explained
from lora_bench.store.locks import Lock

PROGRESS_SECONDS = 2.0


@contextlib.contextmanager
def claim_pack(plan_path: Path, number: int) -> Iterator[bool]:
    """Hold a pack against other launches of the same sweep, so that no two of them split it; False when one has it.

    The claim is a lock of the operating system, so that of a process that died is free again.
    """
    lock = Lock(pack_lock(plan_path, number), beats=True)
    with explained(f"claim pack {number}", store_of(plan_path)):
        lock.path.parent.mkdir(parents=True, exist_ok=True)
        is_ours = lock.acquire()
    try:
        yield is_ours
    finally:
        lock.release()


@contextlib.contextmanager
def under_way(path: Path, number: int) -> Iterator[None]:
    """Leave a mark while a job trains a pack; a worker that is killed cannot take it away."""
    mark = mark_file(path, number)
    note(mark)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            mark.unlink(missing_ok=True)


def progress_teller(path: Path, number: int) -> Callable[[dict], None]:
    """A listener that writes the share of a pack's work that is done into its mark, for whoever watches the sweep."""
    last_note = 0.0

    def listen(event: dict) -> None:
        nonlocal last_note
        if event.get("event") == "work" and time.monotonic() - last_note >= PROGRESS_SECONDS:
            last_note = time.monotonic()
            note(mark_file(path, number), f"{event['share']:.4f}")

    return listen


def note(file: Path, text: str = "") -> None:
    """Leave word beside the plan, for whoever looks; no run fails for want of it."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def share_done(path: Path, number: int) -> float | None:
    """The share of its work that a pack under way has done; None where its job has not told, or is telling now."""
    try:
        return float(mark_file(path, number).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def forget_marks(path: Path, numbers: Sequence[int]) -> None:
    """Take away what workers of an earlier launch left, so that the next loss is told from theirs."""
    for number in abandoned(path, numbers):
        mark_file(path, number).unlink(missing_ok=True)


def abandoned(path: Path, numbers: Sequence[int]) -> list[int]:
    """The packs that a worker began and that nobody holds any more: their workers were lost."""
    lost = []
    for number in numbers:
        if mark_file(path, number).exists():
            with claim_pack(path, number) as is_free:
                if is_free:
                    lost.append(number)
    return lost
