"""Failed records for the runs that a process took along when it died."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from lora_bench.launch.files import environment_file, log_file, mark_file, store_of
from lora_bench.launch.marks import claim_pack
from lora_bench.launch.plan_file import Entry, PlanFile
from lora_bench.launch.worker import OUT_OF_MEMORY
from lora_bench.store.environment import environment
from lora_bench.store.errors import AlreadyFinished
from lora_bench.store.folder import Store
from lora_bench.store.record import Failure, Measured, Subject, failed, utc_now
from lora_bench.store.secrets import scrub

LOG_BYTES = 4_000
ORPHAN_SECONDS = 60.0
"""How long the child of a lost worker may take to end."""


def fail(
    plan: PlanFile, lost: Sequence[Entry], store: Store, failure: Failure, started: str, *, where: Path
) -> list[Entry]:
    """Write a failed record for runs that a process has lost; what is finished stays.

    Args:
        where: file of the environment that the process left; without one, that of this process stands in.

    Returns:
        the runs that another process holds, which are left to it.
    """
    try:
        place = json.loads(where.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        place = environment(device="unknown", threads=os.cpu_count() or 1)
    left = []
    for entry in lost:
        subject = Subject(
            run_id=entry.run_id,
            cell_id=entry.cell_id,
            config=entry.science,
            metrics=entry.science["task"]["metrics"],
            manifest=entry.manifest,
            environment=place,
            started=started,
            invocation=plan.invocation,
        )
        record = failed(subject, Measured(parameters={"adapter": entry.adapter_parameters}), failure)
        with store.claim(entry.run_id) as is_ours, contextlib.suppress(AlreadyFinished):
            if is_ours:
                store.write(record)
            else:
                left.append(entry)
    return left


def fail_abandoned(path: Path, number: int, reason: str) -> None:
    """Write failed records for what a lost worker left of its pack. Its child ends with it, but holds its runs until
    it has."""
    plan = PlanFile.load(path)
    store = Store(store_of(path))
    with claim_pack(path, number) as is_ours:
        if is_ours:
            failure = Failure.died(f"the worker that trained this pack was lost: {reason}")
            lost = plan.pending(number, store)
            give_up_at = time.monotonic() + ORPHAN_SECONDS
            where = environment_file(path, number)
            while lost := fail(plan, lost, store, failure, utc_now(), where=where):
                if time.monotonic() >= give_up_at:
                    break
                time.sleep(1.0)
            mark_file(path, number).unlink(missing_ok=True)


def log_size(path: Path, number: int) -> int:
    """Bytes that the log of a pack has by now."""
    try:
        return log_file(path, number).stat().st_size
    except OSError:
        return 0


def last_words(path: Path, number: int, *, since: int) -> str:
    """What the process that trained a pack said last, behind the first `since` bytes of its log. Secrets are taken out,
    of the log as well: a crash may print anything."""
    try:
        said = log_file(path, number).read_bytes()
        words = scrub(said[since:].decode(errors="replace"))
        log_file(path, number).write_bytes(scrub(said.decode(errors="replace")).encode())
    except OSError:
        return ""
    return words[-LOG_BYTES:].strip()


def obituary(status: int, words: str) -> str:
    """How a process ended that did not answer, and what it said last."""
    if status < 0:
        try:
            how = f"was killed by {signal.Signals(-status).name}"
        except ValueError:
            how = f"was killed by signal {-status}"
        how += ", perhaps for want of memory" if -status == signal.SIGKILL else ""
    else:
        how = f"ended with status {status}"
    return f"the process that trained this pack {how}" + (f"; it said last:\n{words}" if words else "")


def ran_out_of_memory(status: int, words: str) -> bool:
    """Whether a process had, or was killed for, no memory: it says so, or Linux killed it, which tells no reason."""
    said_so = status != 0 and Failure.of(RuntimeError(words)).kind == "out_of_memory"
    return status in (OUT_OF_MEMORY, -signal.SIGKILL) or said_so
