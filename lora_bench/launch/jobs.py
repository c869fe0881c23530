"""Train one pack of a plan: in this process, or in a child whose death becomes failed records.

A job is given a plan file and a number. It trains the runs of that pack which the store lacks, and nothing that goes
wrong leaves it as an exception: a launcher would take that for the end of the whole sweep.

    python -m lora_bench.launch.jobs PLAN FD    the child: reads numbers of packs, and answers each with a status on FD
"""

import contextlib
import dataclasses
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lora_bench import wording
from lora_bench.launch.files import environment_file, log_file, mark_file, offline_file, pack_lock, stop_file, store_of
from lora_bench.launch.gpus import claim_gpu
from lora_bench.launch.plan_file import Entry, PlanFile, launch_of, parse_reference
from lora_bench.launch.worker import INTERRUPTED, STORE_LOST, Worker, is_orphan, open_log
from lora_bench.store.environment import environment
from lora_bench.store.errors import AlreadyFinished, StoreError, explained
from lora_bench.store.folder import Store
from lora_bench.store.locks import Lock
from lora_bench.store.record import Failure, Measured, Subject, failed, utc_now
from lora_bench.store.secrets import scrub

STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOG_BYTES = 4_000
ORPHAN_SECONDS = 60.0
"""How long the child of a lost worker may take to end."""
PROGRESS_SECONDS = 2.0


class Interrupted(KeyboardInterrupt):
    """The process was asked to stop, by Ctrl-C or by a signal."""


def side_by_side(references: Sequence[str], *, n_workers: int) -> list[dict[str, Any]]:
    """Train packs in `n_workers` processes of this machine at once; what became of each, as `run_isolated` tells it."""
    workers = [Worker() for _ in range(min(n_workers, len(references)))]
    idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def train(reference: str) -> dict[str, Any]:
        worker = idle.get()
        try:
            return run_isolated(reference, worker)
        finally:
            idle.put(worker)

    with contextlib.ExitStack() as stack:
        for worker in workers:
            stack.enter_context(worker)
        pool = stack.enter_context(ThreadPoolExecutor(len(workers), thread_name_prefix="lora_bench-pack"))
        futures = [pool.submit(train, reference) for reference in references]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.stop()
            raise


def run_isolated(reference: str, worker: Worker | None = None) -> dict[str, Any]:
    """Run one pack in a child process. Never raises.

    Args:
        reference: `PLAN#i`, of a launch `PLAN#i@launch`.
        worker: who trains it; None starts one for this pack alone, which ends with the sweep that launched it.

    Returns:
        {"pack", "finished", "failed", "missing", "message", "is_held"}; held means that another process trains it.
    """
    outcome: dict[str, Any] = {"pack": reference, "finished": 0, "failed": 0, "missing": 0, "message": None}
    outcome["is_held"] = False
    try:
        path, number = parse_reference(reference)
        path = path.absolute()
        plan = PlanFile.load(path)
        pack = plan.packs[number]
        store = Store(store_of(path))
        is_stopped = (launch := launch_of(reference)) and stop_file(path, launch).exists()
        if is_stopped or (worker is None and launch and is_orphan()):
            outcome |= {"missing": len(_pending(plan, pack, store)), "message": "the sweep was stopped"}
            return outcome
        with claim_pack(path, number) as is_ours:
            if is_ours:
                with _under_way(path, number), contextlib.ExitStack() as own:
                    trainer = worker or own.enter_context(Worker())
                    if worker is None and launch:
                        own.enter_context(trainer.ending_with_parent())
                    outcome["message"] = _run_pack_in_child(path, number, plan, store, trainer)
            else:
                outcome |= {"message": "another process trains this pack", "is_held": True}
        statuses = [store.status(entry.run_id) for entry in pack]
        outcome |= {name: statuses.count(name) for name in ("finished", "failed")} | {"missing": statuses.count(None)}
    except Exception as error:
        outcome["message"] = f"{type(error).__name__}: {error}"
    return outcome


def _run_pack_in_child(path: Path, number: int, plan: PlanFile, store: Store, worker: Worker) -> str | None:
    """Train what is missing of a pack; returns why the store could not take it, if so."""
    store.recover()
    pending = _pending(plan, plan.packs[number], store)
    if not pending:
        return None
    before = {entry.run_id: _finished_at(store, entry.run_id) for entry in pending}
    started = utc_now()
    log = log_file(path, number)
    threads = {"OMP_NUM_THREADS": str(plan.threads)} if plan.threads else {}
    with claim_gpu(pending[0].config["device"]) as gpu:
        status = worker.train(path, number, folder=plan.folder, environment=threads | gpu)
    _scrub_file(log)
    lost = [entry for entry in pending if _finished_at(store, entry.run_id) == before[entry.run_id]]
    if lost and status not in (0, INTERRUPTED, STORE_LOST, *(-one for one in STOPPING_SIGNALS)):
        _fail(plan, lost, store, Failure.died(_obituary(status, log)), started, where=environment_file(path, number))
    return (_last_words(log).splitlines() or ["the store could not be written"])[-1] if status == STORE_LOST else None


@contextlib.contextmanager
def _under_way(path: Path, number: int) -> Iterator[None]:
    """Leave a mark while a job trains a pack; a worker that is killed cannot take it away."""
    mark = mark_file(path, number)
    _note(mark)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            mark.unlink(missing_ok=True)


def _tell_progress(path: Path, number: int) -> Callable[[dict], None]:
    """A listener that writes the share of a pack's steps that are done into its mark, for whoever watches the sweep."""
    told_at = 0.0

    def listen(event: dict) -> None:
        nonlocal told_at
        if event.get("event") == "step" and time.monotonic() - told_at >= PROGRESS_SECONDS:
            told_at = time.monotonic()
            _note(mark_file(path, number), f"{event['step'] / event['steps']:.4f}")

    return listen


def _note(file: Path, text: str = "") -> None:
    """Leave word beside the plan, for whoever looks; no run fails for want of it."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def share_trained(path: Path, number: int) -> float | None:
    """The share of its steps that a pack under way has done; None where its job has not told, or is telling now."""
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
    found = []
    for number in numbers:
        if mark_file(path, number).exists():
            with claim_pack(path, number) as is_free:
                if is_free:
                    found.append(number)
    return found


def fail_abandoned(path: Path, number: int, reason: str) -> None:
    """Write failed records for what a lost worker left of its pack."""
    plan = PlanFile.load(path)
    store = Store(store_of(path))
    with claim_pack(path, number) as is_ours:
        if is_ours:
            failure = Failure.died(f"the worker that trained this pack was lost: {reason}")
            given_up_at = time.monotonic() + ORPHAN_SECONDS
            while lost := _pending(plan, plan.packs[number], store):
                _fail(plan, lost, store, failure, utc_now(), where=environment_file(path, number))
                # The worker's child ends with it, but holds its runs until it has.
                if not plan.retry and _pending(plan, plan.packs[number], store) and time.monotonic() < given_up_at:
                    time.sleep(1.0)
                else:
                    break
            mark_file(path, number).unlink(missing_ok=True)


def run_here(
    runs: Sequence[Any],
    store: Store,
    *,
    only: Sequence[str] | None = None,
    tracking: Any,
    invocation: Mapping[str, Any],
    on_progress: Callable[[dict], None] | None = None,
    own_process: bool = False,
) -> list[dict[str, Any]]:
    """Train the runs of one pack in this process, and write `only` those; `run_pack` turns failures into records."""
    from lora_bench.training.run import run_pack

    return run_pack(
        runs,
        store,
        only=only,
        tracking=tracking,
        invocation=invocation,
        on_progress=on_progress,
        own_process=own_process,
    )


@contextlib.contextmanager
def claim_pack(plan_path: Path, number: int) -> Iterator[bool]:
    """Hold a pack against other launches of the same sweep, so that no two of them split it; False when one has it.

    The claim is a lock of the operating system, so that of a process that died is free again.
    """
    lock = Lock(pack_lock(plan_path, number), beats=True)
    with explained(f"claim pack {number}", store_of(plan_path)):
        lock.path.parent.mkdir(parents=True, exist_ok=True)
        is_held = lock.acquire()
    try:
        yield is_held
    finally:
        lock.release()


def _open_tracking(config: Any, path: Path, store: Store) -> Any:
    from lora_bench.tracking.live import open_tracking

    if offline_file(path).exists():
        config = dataclasses.replace(config, mode="offline")
    tracking = open_tracking(config, directory=store.root / ".tracking")
    if tracking.mode == "offline":
        _note(offline_file(path))
    return tracking


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


def main(arguments: Sequence[str]) -> int:
    """The child: train the packs whose numbers come in, and answer each with a status: 0 unless it could not even
    begin, or was stopped."""
    path = Path(arguments[0])
    wording.spell_out()
    stop_on_signals()
    with os.fdopen(int(arguments[1]), "w", encoding="ascii") as answers:
        try:
            for count, number in enumerate(_numbers()):
                with open_log(path, number) as log:
                    for stream in (sys.stdout, sys.stderr):
                        stream.flush()
                        os.dup2(log.fileno(), stream.fileno())
                status = train(path, number, own_process=count == 0)
                _is_training.clear()
                print(status, file=answers, flush=True)
        except KeyboardInterrupt:
            return INTERRUPTED
    return 0


_is_training = threading.Event()


def _numbers() -> Iterator[int]:
    """Numbers as they come in. While one is worked on, the end of the input says that the parent is gone."""
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
        yield int(line)


def train(path: Path, number: int, *, own_process: bool) -> int:
    """Resolve and train one pack in this process; failures become records. Returns the status that the parent is told.

    Args:
        own_process: whether this process has trained nothing else, so that its peak memory is the pack's.
    """
    plan = PlanFile.load(path)
    pack = plan.packs[number]
    store = Store(store_of(path))
    pending = _pending(plan, pack, store)
    started = utc_now()
    try:
        from lora_bench.training.resolve import resolve
        from lora_bench.training.run import environment_here

        # Told early, in case this process does not live to write its records.
        _note(environment_file(path, number), json.dumps(environment_here(pending[0].config["device"])))
        runs = [resolve(entry.checked_config()) for entry in pack]
        moved = [entry.run_id for entry, run in zip(pack, runs, strict=True) if run.run_id != entry.run_id]
        if moved:
            raise RuntimeError(
                f"here, run {moved[0]} is another one: backbone, data or precision differ from the planner's"
            )
        tracking = _open_tracking(runs[0].config.tracking, path, store)
        run_here(
            runs,
            store,
            only=[entry.run_id for entry in pending],
            tracking=tracking,
            invocation=plan.invocation,
            on_progress=_tell_progress(path, number),
            own_process=own_process,
        )
        tracking.close()
        if tracking.mode == "offline":
            _note(offline_file(path))
    except KeyboardInterrupt:
        return INTERRUPTED
    except StoreError as error:
        print(error, file=sys.stderr)
        return STORE_LOST
    except Exception as error:
        lost = [entry for entry in pending if not store.has(entry.run_id)]
        _fail(plan, lost, store, Failure.of(error), started, where=environment_file(path, number))
    return 0


def _pending(plan: PlanFile, pack: Sequence[Entry], store: Store) -> list[Entry]:
    statuses = {entry.run_id: store.status(entry.run_id) for entry in pack}
    again = {run_id for run_id, status in statuses.items() if status == "failed" and run_id in plan.retry}
    return [entry for entry in pack if statuses[entry.run_id] is None or entry.run_id in again]


def _finished_at(store: Store, run_id: str) -> str | None:
    return store.record(run_id)["finished"] if store.status(run_id) else None


def _obituary(status: int, log: Path) -> str:
    if status < 0:
        try:
            how = f"was killed by {signal.Signals(-status).name}"
        except ValueError:
            how = f"was killed by signal {-status}"
        how += ", perhaps for want of memory" if -status == signal.SIGKILL else ""
    else:
        how = f"ended with status {status}"
    said = _last_words(log)
    return f"the process that trained this pack {how}" + (f"; it said last:\n{said}" if said else "")


def _scrub_file(log: Path) -> None:
    """Take secrets out of what the child said: a crash may print anything."""
    with contextlib.suppress(OSError):
        said = log.read_bytes().decode(errors="replace")
        log.write_bytes(scrub(said).encode())


def _last_words(log: Path) -> str:
    try:
        return log.read_bytes()[-LOG_BYTES:].decode(errors="replace").strip()
    except OSError:
        return ""


def _fail(
    plan: PlanFile,
    lost: Sequence[Entry],
    store: Store,
    failure: Failure,
    started: str,
    *,
    where: Path,
) -> None:
    """Write a failed record for runs that a process has lost; what is finished, or trained elsewhere, stays."""
    try:
        place = json.loads(where.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        place = environment(device="unknown", threads=os.cpu_count() or 1)
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
