"""The process that trains packs: reads which, and answers each with a status.

    python -m lora_bench.launch.child FD    standard input: a JSON object a line, as `worker.Order` writes it

Nothing that goes wrong with a pack ends the process: failures become records.
"""

import dataclasses
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lora_bench import wording
from lora_bench.launch.files import environment_file, offline_file, store_of
from lora_bench.launch.losses import fail
from lora_bench.launch.marks import note, progress_teller
from lora_bench.launch.plan_file import PlanFile
from lora_bench.launch.signals import stop_on_signals
from lora_bench.launch.worker import INTERRUPTED, OUT_OF_MEMORY, STORE_LOST, Order, open_log
from lora_bench.models import machine
from lora_bench.store.errors import StoreError
from lora_bench.store.folder import Store
from lora_bench.store.record import Failure, utc_now


def main(arguments: Sequence[str]) -> int:
    """Train the packs that are ordered, and answer each with a status: 0 unless it could not even begin, was stopped,
    or is to be halved."""
    wording.spell_out()
    stop_on_signals()
    with os.fdopen(int(arguments[0]), "w", encoding="ascii") as answers:
        try:
            for count, order in enumerate(_orders()):
                with open_log(order.path, order.number) as log:
                    for stream in (sys.stdout, sys.stderr):
                        stream.flush()
                        os.dup2(log.fileno(), stream.fileno())
                status = train(order, own_process=count == 0)
                _is_training.clear()
                print(status, file=answers, flush=True)
        except KeyboardInterrupt:
            return INTERRUPTED
    return 0


_is_training = threading.Event()


def _orders() -> Iterator[Order]:
    """Orders as they come in. While one is worked on, the end of the input says that the parent is gone."""
    arrived: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        # Not through sys.stdin, whose lock the interpreter needs to end.
        with os.fdopen(0, "rb", buffering=0, closefd=False) as lines:
            for line in lines:
                _is_training.set()
                arrived.put(line)
        arrived.put(b"")
        if _is_training.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=listen, daemon=True, name="lora_bench-parent").start()
    while line := arrived.get():
        yield Order.read(line)


def train(order: Order, *, own_process: bool) -> int:
    """Resolve and train one pack, or a part of it, in this process; failures become records. Returns the status that
    the parent is told.

    Args:
        own_process: whether this process has trained nothing else, so that its peak memory is the pack's.
    """
    path, number = order.path, order.number
    plan = PlanFile.load(path)
    entries = [plan.runs[run_id] for run_id in order.run_ids]
    wanted = [entry for entry in entries if entry.run_id in order.wanted]
    store = Store(store_of(path))
    started = utc_now()
    try:
        with machine.importing():
            from lora_bench.training.resolve import resolve
            from lora_bench.training.run import environment_here, run_pack

        # Told early, in case this process does not live to write its records.
        note(environment_file(path, number), json.dumps(environment_here(wanted[0].config["device"])))
        runs = [resolve(entry.checked_config()) for entry in entries]
        moved = [entry.run_id for entry, run in zip(entries, runs, strict=True) if run.run_id != entry.run_id]
        if moved:
            raise RuntimeError(
                f"here, run {moved[0]} is another one: backbone, data or precision differ from the planner's"
            )
        tracking = open_mirror(runs[0].config.tracking, path, store)
        status = 0
        try:
            run_pack(
                runs,
                store,
                only=order.wanted,
                tracking=tracking,
                invocation=plan.invocation,
                on_progress=progress_teller(path, number),
                own_process=own_process,
                halves_on_cpu=False,
            )
        except MemoryError as error:
            print(error, file=sys.stderr)
            status = OUT_OF_MEMORY
        tracking.close()
        if tracking.mode == "offline":
            note(offline_file(path))
        return status
    except KeyboardInterrupt:
        return INTERRUPTED
    except StoreError as error:
        print(error, file=sys.stderr)
        return STORE_LOST
    except Exception as error:
        lost = [entry for entry in wanted if not store.has(entry.run_id)]
        fail(plan, lost, store, Failure.of(error), started, where=environment_file(path, number))
    return 0


def open_mirror(config: Any, path: Path, store: Store) -> Any:
    """The tracking of a plan's runs, offline without a question where another job has found it so."""
    from lora_bench.tracking.live import open_tracking

    if offline_file(path).exists():
        config = dataclasses.replace(config, mode="offline")
    tracking = open_tracking(config, directory=store.root / ".tracking")
    if tracking.mode == "offline":
        note(offline_file(path))
    return tracking


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
