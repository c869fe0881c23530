"""Carry out a plan: packs here or through a launcher, and what is kept and logged when they are done."""

import contextlib
import hashlib
import io
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console

from lora_bench.config.schema import TrackingConfig
from lora_bench.launch import files, jobs, losses, marks, precision
from lora_bench.launch.gpus import claim_gpu
from lora_bench.launch.plan import Plan, save
from lora_bench.launch.plan_file import PlanFile, reference
from lora_bench.launch.progress import SweepProgress
from lora_bench.launch.tell import frame_of_plan
from lora_bench.launch.worker import Worker
from lora_bench.store import StoreReader
from lora_bench.store.errors import StoreError
from lora_bench.store.folder import Store
from lora_bench.store.journal import journals
from lora_bench.store.locks import owner_of, waited_for
from lora_bench.store.secrets import scrub_override, without_folders
from lora_bench.verdicts import arms
from lora_bench.wording import counted, size

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
FAILED_FAST = "a run failed (hydra.sweeper.fail_fast=true)"
LATE = "the hours that it was given are over"


def carry_out(
    plan: Plan,
    store: StoreReader,
    out: Console,
    *,
    launch: Callable[[list[str]], Sequence[Any]] | None,
    fail_fast: bool,
    is_late: Callable[[], bool] = lambda: False,
    is_step: bool = False,
) -> tuple[str | None, bool]:
    """Train what is pending.

    Args:
        launch: starts one process-bound job per `pack=PLAN#i`, blocks, and returns what the jobs did; None trains in
            this process.
        is_late: whether the time that was given is over; then no further pack is begun.
        is_step: the plan is a step of a study, whose progress is told of the runs that it announced.

    Returns:
        (why it ended early or None, whether a user or a signal asked for that).
    """
    stopped = None
    if not plan.pending():
        return None, False
    folder = Store(store.root)
    folder.require_writable()
    precision.keep_precision(folder)
    save(plan)
    files.offline_file(plan.path).unlink(missing_ok=True)
    _choose_mirror(plan, folder)
    numbers = [number for number, pack in enumerate(plan.packs) if plan.pending(pack)]
    try:
        n_pending = len(plan.pending())
        n_before = 0 if is_step else len(plan.runs) - n_pending
        with SweepProgress(
            n_pending, console=out, n_before=n_before, of=" of this step" if is_step else ""
        ) as progress:
            while numbers and not stopped:
                if launch is None:
                    stopped, taken = _in_process(plan, folder, numbers, progress, fail_fast=fail_fast, is_late=is_late)
                else:
                    with _stopped_when(is_late, plan):
                        stopped, taken = _through_launcher(plan, folder, numbers, progress, launch, fail_fast=fail_fast)
                numbers = [] if stopped else _left_by_others(plan, folder, taken, out)
                progress.update(done=n_pending - len(plan.pending()), failed=progress.failed)
                if numbers:
                    save(plan)
    except KeyboardInterrupt as error:
        _stop(plan)
        return str(error) or "Ctrl-C", True
    finally:
        refresh(plan, store)
    if is_late() and plan.pending():
        return LATE, True
    return stopped, False


@contextlib.contextmanager
def _stopped_when(is_late: Callable[[], bool], plan: Plan) -> Iterator[None]:
    """While jobs run, tell those that have not begun to leave it at that once the time is over."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(POLL_SECONDS):
            if is_late():
                _stop(plan)
                return

    watcher = threading.Thread(target=watch, name="lora_bench-deadline", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()


def _stop(plan: Plan) -> None:
    """Let jobs of this launch that have not begun do nothing."""
    with contextlib.suppress(OSError):  # on a full disk they begin, and fail to write
        files.stop_file(plan.path, plan.launch).touch()


_OFFLINE: set[tuple[str, ...]] = set()
"""Commands of this process, with their stores, whose runs were found to be kept offline: a study has many plans."""


def _choose_mirror(plan: Plan, store: Store) -> None:
    """Find out, and say once, before anything trains whether runs are mirrored online; jobs need not ask again."""
    from lora_bench.tracking.live import choose_mode

    config, command = _mirror(plan), (str(store.root.absolute()), *plan.command)
    with contextlib.suppress(Exception):  # whoever opens the mirror says so
        if config.backend != "none" and (command in _OFFLINE or choose_mode(config) == "offline"):
            _OFFLINE.add(command)
            files.offline_file(plan.path).touch()


def _mirror(plan: Plan) -> TrackingConfig:
    """The tracking of a sweep, offline once it was found to be."""
    config = next(iter(plan.runs.values())).run.config.tracking
    return replace(config, mode="offline") if files.offline_file(plan.path).exists() else config


def _left_by_others(plan: Plan, store: Store, taken: Sequence[int], out: Console) -> list[int]:
    """Wait for packs that another launch of this sweep holds; those that it left unfinished when it ended."""
    for number in taken:
        lock, has_said = files.pack_lock(plan.path, number), False
        for _ in waited_for(lock, f"pack {number}"):
            with marks.claim_pack(plan.path, number) as is_free:
                if is_free:
                    break
            if not has_said:
                owner = owner_of(lock) or lock
                out.print(f"waiting for pack {number}, which another process trains: {owner}", soft_wrap=True)
            has_said = True
            time.sleep(POLL_SECONDS)
    store.recover()
    refresh(plan, store)
    return [number for number in taken if plan.pending(plan.packs[number])]


def _in_process(
    plan: Plan,
    store: Store,
    numbers: Sequence[int],
    progress: SweepProgress,
    *,
    fail_fast: bool,
    is_late: Callable[[], bool],
) -> tuple[str | None, list[int]]:
    """Why it stopped, and the packs that another process holds."""
    from lora_bench.tracking.live import open_tracking

    tracking = open_tracking(_mirror(plan), directory=store.root / ".tracking")
    failed, taken = progress.failed, []
    try:
        for number in numbers:
            if is_late():
                return LATE, taken
            with marks.claim_pack(plan.path, number) as is_ours:
                if not is_ours:
                    taken.append(number)
                    continue
                refresh(plan, store, plan.packs[number])  # another launch may have trained some
                wanted = plan.pending(plan.packs[number])
                done = progress.n_runs - len(plan.pending())
                listener = _inside(progress, done, failed)
                failed += _train_pack(plan, store, number, wanted, tracking, listener)
                refresh(plan, store, plan.packs[number])
            progress.update(done=progress.n_runs - len(plan.pending()), failed=failed)
            if failed and fail_fast:
                return FAILED_FAST, taken
    finally:
        tracking.close()
    return None, taken


def _train_pack(
    plan: Plan, store: Store, number: int, wanted: Sequence[str], tracking: Any, listener: Callable[[dict], None]
) -> int:
    """How many of the runs have failed. Where a CPU's memory runs out, each half has a process of its own: this one
    keeps what it took."""
    if not wanted:
        return 0
    from lora_bench.training.run import run_pack

    runs = [plan.runs[run_id].run for run_id in plan.packs[number]]
    invocation = {"overrides": plan.command, "sweep": plan.sweep}
    try:
        with claim_gpu(runs[0].config.device, any_of_them=False):
            records = run_pack(
                runs,
                store,
                only=wanted,
                tracking=tracking,
                invocation=invocation,
                on_progress=listener,
                halves_on_cpu=False,
            )
        return sum(record["status"] == "failed" for record in records)
    except MemoryError as error:
        log.warning("pack %d: out of memory with %d runs (%s); trying halves", number, len(runs), error)
    with Worker() as worker:
        refusal = jobs.train_in_child(plan.path, number, PlanFile.load(plan.path), store, worker, is_halved=True)
    if refusal:
        raise StoreError(refusal)
    return sum(store.status(run_id) == "failed" for run_id in wanted)


def _inside(progress: SweepProgress, done: int, failed: int) -> Callable[[dict], None]:
    """A listener to one pack, behind `done` and `failed` runs: its work moves the bar, its records count."""
    ended: list[bool] = []

    def listen(event: dict) -> None:
        if event.get("event") == "record":
            ended.append(event.get("status") == "failed")
            progress.update(done=done + len(ended), failed=failed + sum(ended))
        elif event.get("event") == "work":
            inside = event["share"] * event["runs"]
            progress.update(done=done + len(ended), failed=failed + sum(ended), inside=inside)

    return listen


def _through_launcher(
    plan: Plan,
    store: Store,
    numbers: Sequence[int],
    progress: SweepProgress,
    launch: Callable[[list[str]], Sequence[Any]],
    *,
    fail_fast: bool,
) -> tuple[str | None, list[int]]:
    """Jobs report through the store alone, so a thread reads it and the marks of packs while the launcher blocks."""
    marks.forget_marks(plan.path, numbers)
    pending = plan.pending()
    unfinished = {number: set(plan.pending(plan.packs[number])) for number in numbers}
    before = {run_id: store.written_at(run_id) for run_id in pending}
    done_before, failed_before = progress.n_runs - len(pending), progress.failed
    is_over = threading.Event()
    has_failed = threading.Event()

    def watch() -> None:
        seen: dict[str, str] = {}
        shares = dict.fromkeys(numbers, 0.0)
        while True:
            is_last = is_over.wait(POLL_SECONDS)
            for run_id in pending:
                if run_id not in seen and store.written_at(run_id) != before[run_id]:
                    seen[run_id] = store.status(run_id) or "failed"
            failed = failed_before + sum(status == "failed" for status in seen.values())
            shares |= {number: share for number in numbers if (share := marks.share_done(plan.path, number))}
            n_runs = {number: len(unfinished[number] - seen.keys()) for number in numbers}
            inside = sum(shares[number] * n_runs[number] for number in numbers)
            progress.update(done=done_before + len(seen), failed=failed, inside=inside)
            if failed and fail_fast and not has_failed.is_set():
                has_failed.set()
                _stop(plan)
            if is_last:
                return

    watcher = threading.Thread(target=watch, name="lora_bench-progress", daemon=True)
    watcher.start()
    ended_early, outcomes, is_lost = None, [], False
    try:
        outcomes = launch([reference(plan.path, number, plan.launch) for number in numbers])
    except Exception as error:  # a launcher that loses a worker; what the workers wrote counts
        ended_early = (
            f"the launcher gave up ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        )
        is_lost = True
    finally:
        is_over.set()
        watcher.join()
    reports = {number: outcome for number, outcome in zip(numbers, outcomes, strict=False) if isinstance(outcome, dict)}
    taken = [number for number, outcome in reports.items() if outcome["is_held"]]
    messages = [outcome["message"] for outcome in reports.values() if outcome["message"] and not outcome["is_held"]]
    ended_early = ended_early or (messages[0] if messages else None)
    if has_failed.is_set():
        return FAILED_FAST, taken
    if is_lost:
        return _after_a_loss(plan, store, numbers, progress, launch, str(ended_early), fail_fast=fail_fast)
    return ended_early, taken


def _after_a_loss(
    plan: Plan,
    store: Store,
    numbers: Sequence[int],
    progress: SweepProgress,
    launch: Callable[[list[str]], Sequence[Any]],
    reason: str,
    *,
    fail_fast: bool,
) -> tuple[str | None, list[int]]:
    """What is still to be launched after a worker was lost, which takes along the packs beside and behind it.

    The pack at fault is not told by the launcher. Those that were under way are launched one by one: what loses its
    worker by itself is at fault, and gets failed records.
    """
    suspects = marks.abandoned(plan.path, numbers)
    if len(suspects) == 1:
        losses.fail_abandoned(plan.path, suspects[0], reason)
    refresh(plan, store)
    save(plan)  # jobs read there what is to be tried again
    for number in suspects if len(suspects) > 1 else []:
        log.warning("%s; launching pack %d, which was under way, by itself", reason, number)
        stopped, _ = _through_launcher(plan, store, [number], progress, launch, fail_fast=fail_fast)
        if stopped:
            return stopped, []
    refresh(plan, store)
    if fail_fast and any(plan.status[run_id] == "failed" for number in suspects for run_id in plan.packs[number]):
        return FAILED_FAST, []
    left = [number for number in numbers if plan.pending(plan.packs[number])]
    if len(left) == len(numbers):
        return reason, []
    if left:
        log.warning("%s; launching the %d packs that are left", reason, len(left))
    return None, left


def refresh(plan: Plan, store: StoreReader, run_ids: Collection[str] | None = None) -> None:
    """Read statuses anew, of some runs or of all. What was to be tried again, and was, is not tried once more."""
    looked_at = plan.runs if run_ids is None else run_ids
    plan.status |= {run_id: store.status(run_id) for run_id in looked_at}
    tried = {run_id for run_id in looked_at if run_id in plan.retry and store.written_at(run_id) != plan.retry[run_id]}
    plan.retry = {run_id: before for run_id, before in plan.retry.items() if run_id not in tried}


def drop_adapters(plan: Plan, store: StoreReader, out: Console) -> None:
    """Delete the adapters that `store.keep_adapters` does not keep, of this sweep's finished runs.

    With `best`, each cell keeps its runs at the rate that `select` chose, those that tables and section 7 read.
    """
    wanted = next(iter(plan.runs.values())).run.config.keep_adapters
    if wanted == "all":
        return
    finished = {run_id for run_id, status in plan.status.items() if status == "finished"}
    if not finished:
        return
    kept = set(arms.chosen_runs(store.frame())["run_id"]) if wanted == "best" else set()
    spare = sorted(finished - kept)
    if not spare:
        return
    folder = Store(store.root)
    freed = [folder.drop_adapter(run_id, f"store.keep_adapters={wanted}") for run_id in spare]
    n_dropped = sum(n_bytes > 0 for n_bytes in freed)
    if n_dropped:
        dropped = f"dropped {counted(n_dropped, 'adapter')}, {size(sum(freed))}"
        out.print(f"store.keep_adapters={wanted}: kept {counted(len(finished & kept), 'adapter')}, {dropped}")


def log_findings(plan: Plan, store: StoreReader) -> None:
    """One W&B run of job type `analysis` with the tables, figures and sentences of this sweep.

    Costs a sweep nothing when it fails: the store has everything, and the scripts of analysis/ show it.
    """
    config = _mirror(plan)
    frame = frame_of_plan(plan, store)
    if config.backend == "none" or not (frame["status"] == "finished").any():
        return
    from lora_bench.questions import findings
    from lora_bench.tracking.live import open_tracking

    try:
        by_script = findings.sections(frame, store=store.root)
        made = [section for sections in by_script.values() for section in sections]
        tables = {table.name: table.frame for section in made for table in section.tables}
        figures = {name: _png(figure) for section in made for name, figure in section.figures.items()}
        content = json.dumps(sorted(plan.status.items()))
        about = {
            "sweep": plan.sweep,
            "runs": len(frame),
            "cells": plan.n_cells,
            "command": [without_folders(scrub_override(word)) for word in plan.command],
        }
        tracking = open_tracking(config, directory=store.root / ".tracking")
        run = tracking.start(
            {
                "run_id": f"analysis-{plan.path.stem}",
                "copy": hashlib.sha256(content.encode()).hexdigest()[:6],
                "name": f"analysis of {plan.sweep or 'a grid'}",
                "group": "analysis",
                "job_type": "analysis",
                "tags": ["analysis", plan.sweep],
                "config": about,
            }
        )
        run.attach({"runs": frame, **tables}, figures)
        verdict = "\n".join(section.sentence for section in made)
        run.finish("finished", {"verdict": verdict, "study": _looks(store, plan)})
        tracking.close()
    except Exception as error:
        log.warning("tracking: the analysis of this sweep was not logged (%s: %s)", type(error).__name__, error)


def _looks(store: StoreReader, plan: Plan) -> dict[str, Any]:
    """Of every family whose looks rest on runs of this plan: how many looks there were, and each contrast's word."""
    said = {}
    for journal in journals(store.root):
        written = journal.read() or {"looks": []}
        if written["looks"] and not set(written["looks"][-1]["runs"]).isdisjoint(plan.runs):
            last = written["looks"][-1]
            words = {f"{finding['first']} - {finding['second']}": finding["word"] for finding in last["findings"]}
            said[written["title"]] = {"looks": len(written["looks"]), "seeds": last["n_seeds"], **words}
    return said


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def remove_job_folder(store: StoreReader) -> None:
    """The launchers' own folder, when it is empty."""
    folder = store.root / files.FOLDER / "jobs"
    with contextlib.suppress(OSError):
        if folder.is_dir() and not any(folder.iterdir()):
            shutil.rmtree(folder)
