"""Train one pack of a plan in a child process, whose death becomes failed records.

A job is given a plan file and a number. It trains the runs of that pack which the store lacks, and nothing that goes
wrong leaves it as an exception: a launcher would take that for the end of the whole sweep.
"""

import contextlib
import logging
import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lora_bench.launch.files import environment_file, stop_file, store_of
from lora_bench.launch.gpus import claim_gpu
from lora_bench.launch.losses import fail, last_words, log_size, obituary, ran_out_of_memory
from lora_bench.launch.marks import claim_pack, under_way
from lora_bench.launch.plan_file import Entry, PlanFile, launch_of, parse_reference
from lora_bench.launch.signals import STOPPING_SIGNALS
from lora_bench.launch.worker import INTERRUPTED, STORE_LOST, Order, Worker, is_orphan
from lora_bench.store.folder import Store
from lora_bench.store.record import Failure, utc_now

log = logging.getLogger(__name__)


class Crew(contextlib.AbstractContextManager):
    """Processes of this machine that train packs side by side, of one plan after another: importing torch for every
    plan would cost more than small packs train. Each starts with its first pack; all end with the crew."""

    def __init__(self) -> None:
        self._workers: list[Worker] = []

    def train(self, references: Sequence[str], *, n_workers: int) -> list[dict[str, Any]]:
        """Train packs in `n_workers` processes at once; what became of each, as `run_isolated` tells it."""
        n_workers = min(n_workers, len(references))
        self._workers += [Worker() for _ in range(n_workers - len(self._workers))]
        idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._workers[:n_workers]:
            idle.put(worker)

        def train(reference: str) -> dict[str, Any]:
            worker = idle.get()
            try:
                return run_isolated(reference, worker)
            finally:
                idle.put(worker)

        with ThreadPoolExecutor(n_workers, thread_name_prefix="lora_bench-pack") as pool:
            futures = [pool.submit(train, reference) for reference in references]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in self._workers:
                    worker.stop()
                raise

    def __exit__(self, *exception: object) -> None:
        workers, self._workers = self._workers, []
        if exception[0] is not None:
            for worker in workers:
                worker.stop()
        for worker in workers:
            worker.dismiss()
        for worker in workers:
            worker.end()


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
            outcome |= {"missing": len(plan.pending(number, store)), "message": "the sweep was stopped"}
            return outcome
        with claim_pack(path, number) as is_ours:
            if is_ours:
                with under_way(path, number), contextlib.ExitStack() as own:
                    trainer = worker or own.enter_context(Worker())
                    if worker is None and launch:
                        own.enter_context(trainer.ending_with_parent())
                    outcome["message"] = train_in_child(path, number, plan, store, trainer)
            else:
                outcome |= {"message": "another process trains this pack", "is_held": True}
        statuses = [store.status(entry.run_id) for entry in pack]
        outcome |= {name: statuses.count(name) for name in ("finished", "failed")} | {"missing": statuses.count(None)}
    except Exception as error:
        outcome["message"] = f"{type(error).__name__}: {error}"
    return outcome


def train_in_child(
    path: Path, number: int, plan: PlanFile, store: Store, worker: Worker, *, is_halved: bool = False
) -> str | None:
    """Train what is missing of a pack. What memory runs out for is halved, down to single runs, each part in a process
    of its own; so is what a process was killed over, as Linux does when memory runs out.

    Args:
        is_halved: whether memory has run out for the whole pack already.

    Returns:
        why the store could not take it, if so.
    """
    store.recover()
    pack = plan.packs[number]
    pending = {entry.run_id for entry in plan.pending(number, store)}
    parts: list[Sequence[Entry]] = _halves(pack) if is_halved else [pack]
    threads = {"OMP_NUM_THREADS": str(plan.threads)} if plan.threads else {}
    with claim_gpu(pack[0].config["device"]) if pending else contextlib.nullcontext({}) as gpu:
        while parts:
            part = parts.pop(0)
            wanted = frozenset(entry.run_id for entry in part) & pending
            if not wanted:
                continue
            order = Order(path, number, tuple(entry.run_id for entry in part), wanted)
            before = {run_id: _finished_at(store, run_id) for run_id in wanted}
            is_fresh, started, since = not worker.has_trained, utc_now(), log_size(path, number)
            status = worker.train(order, folder=plan.folder, environment=threads | gpu)
            words = last_words(path, number, since=since)
            if status == STORE_LOST:
                return (words.splitlines() or ["the store could not be written"])[-1]
            if status in (INTERRUPTED, *(-signal for signal in STOPPING_SIGNALS)):
                return None
            lost = [entry for entry in part if before.get(entry.run_id, "") == _finished_at(store, entry.run_id)]
            pending -= wanted - {entry.run_id for entry in lost}
            is_short = bool(lost) and ran_out_of_memory(status, words)
            if is_short or len(part) < len(pack):
                worker.end()  # which gives its memory back
            if is_short and not is_fresh:
                parts.insert(0, part)  # what was trained before may have left too little
            elif is_short and len(part) > 1:
                parts[:0] = _halves(part)
                sizes = " and ".join(str(len(half)) for half in parts[:2])
                log.warning("pack %d: out of memory with %d runs; trying %s", number, len(part), sizes)
            elif lost and status != 0:
                death = Failure.died(obituary(status, words))
                fail(plan, lost, store, death, started, where=environment_file(path, number))
    return None


def _halves(part: Sequence[Entry]) -> list[Sequence[Entry]]:
    half = (len(part) + 1) // 2
    return [part[:half], part[half:]]


def _finished_at(store: Store, run_id: str) -> str | None:
    return store.record(run_id)["finished"] if store.status(run_id) else None
