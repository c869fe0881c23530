"""Carry out a plan and tell how it went: packs here or through a launcher, progress, ranking, failures, what next."""

import contextlib
import hashlib
import io
import json
import logging
import math
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lora_bench import cells, jobs, results, tuning
from lora_bench import plan as plans
from lora_bench.config import LORA_METHODS, resource_root
from lora_bench.plan import Plan
from lora_bench.progress import SweepProgress, duration, size
from lora_bench.record import ENVIRONMENT_KEYS, SOFTWARE_KEYS, without_folders
from lora_bench.store import Store, StoreError

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
SHARE_OF_TRAINING = 0.8
"""Of a pack's time; scoring, checking and saving take the rest."""
FAILED_FAST = "a run failed (hydra.sweeper.fail_fast=true)"
DOUBTS = {  # certificates of a chosen rate that another may beat, as a sweep's table tells them
    "edge": "edge: the best rate is the smallest or largest tried; a wider grid may find a better one",
    "behind": "behind: another rate scores higher on the seeds that both have; run its other seeds",
}
PLAIN_WIDTH = 140
"""Columns of tables where there is no terminal to ask."""


def console() -> Console:
    """Standard output, wide enough for our tables where it is no terminal; brackets in a text are text, not markup."""
    found = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    if not found.is_terminal:
        found.width = PLAIN_WIDTH
    return found


# Before


def describe(plan: Plan, store: Store, out: Console, *, every_cell: bool, is_launched: bool = False) -> None:
    """Print what the plan will do; with `every_cell`, each cell's parameters and scales too.

    Args:
        is_launched: packs train in processes of a launcher, with threads and on devices of their own.
    """
    statuses = list(plan.status.values())
    n_seeds = len({one.run.config.seed for one in plan.runs.values()})
    pending = plan.pending()
    n_packs = sum(bool(plan.pending(pack)) for pack in plan.packs)
    estimate = plans.cost(plan, store) if every_cell else None
    if every_cell:
        out.print(_cell_table(plan))
    counts = (_count(plan.n_cells, "cell"), _count(n_seeds, "seed"), _count(len(plan.runs), "run"))
    told = f"{plan.sweep or 'grid'}: {', '.join(counts)}"
    duplicates = plan.n_candidates - len(plan.runs)
    if duplicates:
        told += f" ({_count(duplicates, 'duplicate')} dropped)"
    out.print(told)
    n_failed = statuses.count("failed")
    line = f"  {statuses.count('finished')} finished, {n_failed} failed before, {_count(len(pending), 'run')} to train"
    out.print(f"{line} in {_count(n_packs, 'pack')}{_how(plan)}" if pending else line)
    riders = plan.riders()
    if riders:
        told = "rides along, so that its pack is" if len(riders) == 1 else "ride along, so that their packs are"
        out.print(f"  {_count(len(riders), 'run')} of the same packs {told} the same as before")
    for line in _environments_apart(plan, store, is_launched=is_launched) if pending else ():
        out.print(f"  {line}")
    if n_failed and not plan.retry:
        out.print("  failed runs are left alone; hydra.sweeper.retry_failed=true trains them again")
    if estimate is not None and pending:
        sizes = [len(plan.pending(pack)) for pack in plan.packs if plan.pending(pack)]
        out.print(
            f"  packs of {min(sizes)} to {max(sizes)} runs" if min(sizes) < max(sizes) else f"  packs of {sizes[0]}"
        )
        seconds = f"{duration(estimate.seconds)} ({estimate.basis})"
        where = "on one worker" if plan.n_workers == 1 else f"with {plan.n_workers} packs at once"
        out.print(f"  about {seconds} {where}; about {size(estimate.bytes)} in {store.root}")
        out.print(f"  {_resolution(plan, store, n_seeds)}")


def _how(plan: Plan) -> str:
    if plan.threads is None or plan.n_workers == 1:
        return ""
    return f", {plan.n_workers} side by side with {_count(plan.threads, 'thread')} each"


def _environments_apart(plan: Plan, store: Store, *, is_launched: bool) -> Iterator[str]:
    """Finished runs of the same backbone and task that no contrast will join with those to come, and what differs."""
    from lora_bench.run import environment_here

    here = environment_here(next(iter(plan.runs.values())).run.config.device, plan.threads)
    keys = SOFTWARE_KEYS if is_launched else ENVIRONMENT_KEYS
    kinds = {tuple(one.run.science[part]["fingerprint"] for part in ("model", "task")) for one in plan.runs.values()}
    frame: Any = store.frame()
    if frame.empty:
        return
    finished = frame[frame["status"] == "finished"].set_index(["model_fingerprint", "task_fingerprint"])
    for _, group in finished[finished.index.isin(kinds)].groupby("environment"):
        try:
            there = store.record(str(group["run_id"].iloc[0]))["environment"]
        except StoreError:  # gone since: it has nothing to say
            continue
        differing = [
            f"{key} {there.get(key)} (here {here.get(key)})" for key in keys if there.get(key) != here.get(key)
        ]
        if differing:
            told = f"{_count(len(group), 'finished run')} of this backbone and task, of another environment"
            yield f"{told}, will not be compared with new ones: {', '.join(differing)}"


def _cell_table(plan: Plan) -> Table:
    from lora_bench.adapters import init_scale, scale_of

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("cell", "lr", "ranks", "adapter", "alpha/rank", "scale of A", "runs", "finished", "to train"):
        table.add_column(name, justify="left" if name == "cell" else "right")
    by_cell: dict[str, list[str]] = {}
    for run_id, one in plan.runs.items():
        by_cell.setdefault(one.run.cell_id, []).append(run_id)
    to_train = set(plan.pending())
    for run_ids in by_cell.values():
        one = plan.runs[run_ids[0]]
        run, adapter = one.run, one.run.config.adapter
        ranks = sorted({matrix.rank for matrix in run.matrices})
        is_lora = adapter.method in LORA_METHODS
        scales = sorted({scale_of(adapter, rank) for rank in ranks})
        starts = {init_scale(adapter.init, matrix.d_in, matrix.rank) for matrix in run.matrices}
        table.add_row(
            one.arm,
            "-" if adapter.method == "head_only" else f"{run.config.train.lr:g}",
            _span(ranks) if is_lora else "-",
            f"{run.adapter_parameters:,}" if is_lora else "-",
            _span(scales) if is_lora else "-",
            ("of W" if None in starts else _span(sorted(s for s in starts if s is not None))) if is_lora else "-",
            str(len(run_ids)),
            str(sum(plan.status[run_id] == "finished" for run_id in run_ids)),
            str(sum(run_id in to_train for run_id in run_ids)),
        )
    return table


def _resolution(plan: Plan, store: Store, n_seeds: int) -> str:
    """What the sweep will be able to tell apart, from the spread of finished runs of its kind."""
    from lora_bench import stats

    n_arms = len({one.arm for one in plan.runs.values()})
    if n_arms < 2:
        return "what it can resolve: one cell, so nothing is compared"
    problem = stats.cannot_resolve(n_seeds, n_arms - 1)
    if n_seeds < stats.MIN_PAIRS:
        return f"what it can resolve: {problem}"
    beside = f"\n  {problem}" if problem else ""
    error = 0.05 / (n_arms - 1)  # verdicts are corrected over the contrasts, so their promise is too
    told = f"smallest difference seen with 80 % power, {_count(n_arms - 1, 'contrast')}"
    spread = math.nan
    with contextlib.suppress(cells.NothingToShow):
        frame = cells.prepare(_frame(plan, store))
        spread = cells.difference_sd(frame.assign(arm=frame["run_id"].map(lambda one: plan.runs[str(one)].arm)))
    if math.isnan(spread):
        # sd of differences between seeds, as a share of 1: what small GLUE tasks show.
        low, high = (stats.smallest_difference(n_seeds, sd, error=error) for sd in (0.01, 0.03))
        return f"{told}: {100 * low:.1f} to {100 * high:.1f} points, if differences vary by 1 to 3 over seeds{beside}"
    return f"{told}: {100 * stats.smallest_difference(n_seeds, spread, error=error):.1f} points{beside}"


# During


def carry_out(
    plan: Plan,
    store: Store,
    out: Console,
    *,
    launch: Callable[[list[str]], Sequence[Any]] | None,
    fail_fast: bool,
) -> tuple[str | None, bool]:
    """Train what is pending.

    Args:
        launch: starts one process-bound job per `pack=PLAN#i`, blocks, and returns what the jobs did; None trains in
            this process.

    Returns:
        (why it ended early or None, whether a user or a signal asked for that).
    """
    stopped = None
    if not plan.pending():
        return None, False
    store.require_writable()
    plans.keep_precision(store)
    plans.save(plan)
    for file in (jobs.stop_file(plan.path), jobs.offline_file(plan.path)):
        file.unlink(missing_ok=True)
    numbers = [number for number, pack in enumerate(plan.packs) if plan.pending(pack)]
    try:
        with SweepProgress(len(plan.pending()), console=out) as progress:
            while numbers and not stopped:
                if launch is None:
                    stopped, held = _in_process(plan, store, numbers, progress, fail_fast=fail_fast)
                else:
                    stopped, held = _through_launcher(plan, store, numbers, progress, launch, fail_fast=fail_fast)
                numbers = [] if stopped else _left_by_others(plan, store, held, out)
                if numbers:
                    plans.save(plan)
    except KeyboardInterrupt as error:
        jobs.stop_file(plan.path).touch()
        return str(error) or "Ctrl-C", True
    finally:
        refresh(plan, store)
    return stopped, False


def _left_by_others(plan: Plan, store: Store, held: Sequence[int], out: Console) -> list[int]:
    """Wait for packs that another launch of this sweep holds; those that it left unfinished when it ended."""
    for number in held:
        has_said = False
        while True:
            with jobs.claim_pack(plan.path, number) as is_free:
                if is_free:
                    break
            if not has_said:
                out.print(f"waiting for pack {number}, which another process trains")
            has_said = True
            time.sleep(POLL_SECONDS)
    refresh(plan, store)
    return [number for number in held if plan.pending(plan.packs[number])]


def _in_process(
    plan: Plan, store: Store, numbers: Sequence[int], progress: SweepProgress, *, fail_fast: bool
) -> tuple[str | None, list[int]]:
    """Why it stopped, and the packs that another process holds."""
    from lora_bench.tracking import open_tracking

    first = next(iter(plan.runs.values())).run
    tracking = open_tracking(first.config.tracking, directory=store.root / ".tracking")
    invocation = {"overrides": plan.command, "sweep": plan.sweep}
    done, failed = progress.done, progress.failed
    held = []
    try:
        for number in numbers:
            with jobs.claim_pack(plan.path, number) as is_ours:
                if not is_ours:
                    held.append(number)
                    continue
                refresh(plan, store, plan.packs[number])
                wanted = plan.pending(plan.packs[number])
                runs = [plan.runs[run_id].run for run_id in plan.packs[number]] if wanted else []
                listener = _inside(progress, done, failed)
                with jobs.claim_gpu(first.config.device, any_of_them=False):
                    records = jobs.run_here(
                        runs, store, only=wanted, tracking=tracking, invocation=invocation, on_progress=listener
                    )
            done += len(wanted)
            failed += sum(record["status"] == "failed" for record in records)
            progress.update(done=done, failed=failed)
            if failed and fail_fast:
                return FAILED_FAST, held
    finally:
        tracking.close()
    return None, held


def _inside(progress: SweepProgress, done: int, failed: int) -> Callable[[dict], None]:
    """A listener to one pack, behind `done` and `failed` runs: its steps move the bar, its records count."""
    ended: list[bool] = []

    def listen(event: dict) -> None:
        if event.get("event") == "record":
            ended.append(event.get("status") == "failed")
            progress.update(done=done + len(ended), failed=failed + sum(ended))
        elif event.get("event") == "step":
            inside = SHARE_OF_TRAINING * event["step"] / event["steps"] * event["runs"]
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
    jobs.forget_marks(plan.path, numbers)
    pending = plan.pending()
    unfinished = {number: set(plan.pending(plan.packs[number])) for number in numbers}
    before = {run_id: store.written_at(run_id) for run_id in pending}
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
            failed = sum(status == "failed" for status in seen.values())
            shares |= {number: share for number in numbers if (share := jobs.share_trained(plan.path, number))}
            in_training = (shares[number] * len(unfinished[number] - seen.keys()) for number in numbers)
            progress.update(done=len(seen), failed=failed, inside=SHARE_OF_TRAINING * sum(in_training))
            if failed and fail_fast and not has_failed.is_set():
                has_failed.set()
                jobs.stop_file(plan.path).touch()
            if is_last:
                return

    watcher = threading.Thread(target=watch, name="lora_bench-progress", daemon=True)
    watcher.start()
    ended_early, outcomes, is_lost = None, [], False
    try:
        outcomes = launch([f"{plan.path.absolute()}#{number}" for number in numbers])
    except Exception as error:  # a launcher that loses a worker; what the workers wrote counts
        ended_early = (
            f"the launcher gave up ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        )
        is_lost = True
    finally:
        is_over.set()
        watcher.join()
    told = {number: one for number, one in zip(numbers, outcomes, strict=False) if isinstance(one, dict)}
    held = [number for number, outcome in told.items() if outcome["is_held"]]
    messages = [outcome["message"] for outcome in told.values() if outcome["message"] and not outcome["is_held"]]
    ended_early = ended_early or (messages[0] if messages else None)
    if has_failed.is_set():
        return FAILED_FAST, held
    if is_lost:
        return _after_a_loss(plan, store, numbers, progress, launch, str(ended_early), fail_fast=fail_fast)
    return ended_early, held


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
    suspects = jobs.abandoned(plan.path, numbers)
    if len(suspects) == 1:
        jobs.fail_abandoned(plan.path, suspects[0], reason)
    refresh(plan, store)
    plans.save(plan)  # jobs read there what is to be tried again
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


def refresh(plan: Plan, store: Store, run_ids: Collection[str] | None = None) -> None:
    """Read statuses anew, of some runs or of all. What was to be tried again, and was, is not tried once more."""
    looked_at = plan.runs if run_ids is None else run_ids
    plan.status |= {run_id: store.status(run_id) for run_id in looked_at}
    tried = {run_id for run_id in looked_at if run_id in plan.retry and store.written_at(run_id) != plan.retry[run_id]}
    plan.retry = {run_id: before for run_id, before in plan.retry.items() if run_id not in tried}


# After


def conclude(plan: Plan, store: Store, out: Console, *, stopped: str | None, command: Sequence[str]) -> int:
    """Print the ranking, the failures and the next command. Returns the exit status: 0 if every run is finished."""
    frame = _frame(plan, store)
    statuses = list(plan.status.values())
    finished, failed, missing = (statuses.count(kind) for kind in ("finished", "failed", None))
    if finished:
        for table in ranking(plan, frame):
            out.print(table)
    if failed:
        out.print(f"{_count(failed, 'run')} failed:", style="bold")
        for line in _failures(plan, frame):
            out.print(f"  {line}")
    if stopped:
        out.print(f"stopped early: {stopped}; every finished run is kept")
    same = plans.command_line(command)
    retry = " hydra.sweeper.retry_failed=true"
    if missing:
        elsewhere = _n_trained_elsewhere(plan, store)
        if elsewhere:
            out.print(f"another process trains {elsewhere} of the {missing} missing runs; this sweep left them to it")
        out.print(f"{finished} of {_count(len(statuses), 'run')} finished, {missing} missing. Go on with:\n  {same}")
    elif failed:
        out.print(f"{finished} of {_count(len(statuses), 'run')} finished. Try the failed ones again with:")
        out.print(f"  {same if retry.strip() in command else same + retry}")
    else:
        out.print(f"all {_count(len(statuses), 'run')} finished. Next:\n  {analysis_command(plan, store)}")
    return 1 if failed or missing else 0


def _n_trained_elsewhere(plan: Plan, store: Store) -> int:
    """Runs without a record that another process holds, as a sweep with other packs does."""
    held = 0
    with contextlib.suppress(StoreError):
        for run_id, status in plan.status.items():
            if status is None:
                with store.claim(run_id) as is_free:
                    held += not is_free
    return held


def drop_adapters(plan: Plan, store: Store, out: Console) -> None:
    """Delete the adapters that `store.keep_adapters` does not keep, of this sweep's finished runs.

    With `best`, each cell keeps its runs at the rate that `select` chose, those that tables and section 7 read.
    """
    wanted = next(iter(plan.runs.values())).run.config.keep_adapters
    if wanted == "all":
        return
    finished = {run_id for run_id, status in plan.status.items() if status == "finished"}
    if not finished:
        return
    kept = set(results.chosen_runs(store.frame())["run_id"]) if wanted == "best" else set()
    freed = [store.drop_adapter(run_id, f"store.keep_adapters={wanted}") for run_id in sorted(finished - kept)]
    n_dropped = sum(n_bytes > 0 for n_bytes in freed)
    if n_dropped:
        dropped = f"dropped {_count(n_dropped, 'adapter')}, {size(sum(freed))}"
        out.print(f"store.keep_adapters={wanted}: kept {_count(len(finished & kept), 'adapter')}, {dropped}")


def log_findings(plan: Plan, store: Store) -> None:
    """One W&B run of job type `analysis` with the tables, figures and sentences of this sweep.

    Costs a sweep nothing when it fails: the store has everything, and the scripts of analysis/ show it.
    """
    first = next(iter(plan.runs.values())).run
    config = first.config.tracking
    frame = _frame(plan, store)
    if config.backend == "none" or not (frame["status"] == "finished").any():
        return
    from lora_bench import findings
    from lora_bench.tracking import open_tracking

    try:
        by_script = findings.sections(frame, store=store.root)
        found = [section for sections in by_script.values() for section in sections]
        tables = {table.name: table.frame for section in found for table in section.tables}
        figures = {name: _png(figure) for section in found for name, figure in section.figures.items()}
        content = json.dumps(sorted(plan.status.items()))
        about = {
            "sweep": plan.sweep,
            "runs": len(frame),
            "cells": plan.n_cells,
            "command": [without_folders(one) for one in plan.command],
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
        run.finish("finished", {"verdict": "\n".join(section.sentence for section in found)})
        tracking.close()
    except Exception as error:
        log.warning("tracking: the analysis of this sweep was not logged (%s: %s)", type(error).__name__, error)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def ranking(plan: Plan, frame: Any) -> Iterator[Table]:
    """One table per backbone, task and environment: each arm at the rate that `select` chose for it, the best first."""
    try:
        runs: Any = cells.prepare(frame)
    except cells.NothingToShow:
        return
    runs = runs.assign(arm=runs["run_id"].map(lambda run_id: plan.runs[run_id].arm))
    environments = runs.loc[runs["scored"], "environment"]
    for (model, task, environment), group in runs.groupby(["model", "task", "environment"], sort=False, dropna=False):
        group: Any = group[group.groupby("arm")["scored"].transform("any")]
        if group.empty:
            continue
        rates: Any = tuning.choose_rates(group)
        estimates: Any = cells.estimate(group, rates["lr"].to_dict()).sort_values("mean", ascending=False)
        metric = group["metric"].dropna().iloc[0]
        title = [str(model), str(task), metric, *([f"environment {environment}"] if environments.nunique() > 1 else [])]
        table = Table(title=" · ".join(title), title_justify="left", box=None, pad_edge=False)
        for name in ("cell", "parameters", "lr", "on select", "on report", "95 % interval", "seeds", "failed"):
            table.add_column(name, justify="left" if name == "cell" else "right")
        for arm, row in estimates.iterrows():
            interval = f"{row['low']:.3f} to {row['high']:.3f}" if math.isfinite(row["low"]) else "-"
            certificate = str(rates.at[arm, "certificate"])
            doubt = f" ({certificate})" if certificate in DOUBTS else ""
            parameters = row["adapter_parameters"]
            table.add_row(
                str(arm),
                f"{parameters:,.0f}" if parameters > 0 else "-",
                f"{row['lr']:g}{doubt}",
                f"{rates.at[arm, 'select']:.3f}",
                f"{row['mean']:.3f}",
                interval,
                str(row["n_seeds"]),
                str(int((group[group["arm"] == arm]["status"] == "failed").sum())),
            )
        told = [words for doubt, words in DOUBTS.items() if (rates["certificate"] == doubt).any()]
        if told:
            table.caption, table.caption_justify = "\n".join(told), "left"
        yield table


def _failures(plan: Plan, frame: Any) -> Iterator[str]:
    """Failed runs, those of one cause together."""
    failed = frame[frame["status"] == "failed"]
    for (kind, message), group in failed.groupby(["error_kind", "error_message"], dropna=False):
        first = plan.runs[group["run_id"].iloc[0]]
        others = f" and {len(group) - 1} more" if len(group) > 1 else ""
        told = message if isinstance(message, str) else "no message"
        yield f"{kind}: {told}  ({' '.join(first.overrides)}{others}; {group['run_id'].iloc[0]}/record.json)"


def analysis_command(plan: Plan, store: Store) -> str:
    """The script that shows what this sweep found: by its axes, the placement first, then the rank, then any other."""
    methods = {one.run.config.adapter.method for one in plan.runs.values()} - {cells.FLOOR}
    varied = [by for by, key in cells.FACTORS.items() if key in plan.axes and (by != "method" or len(methods) > 1)]
    option = ""
    if any(key.endswith(".rank") for key in plan.axes):
        script = "rank"
    elif "adapter.targets" in plan.axes:
        script = "weight_types"
    elif varied:
        script, option = "factor", f" --by {varied[0]}"
    else:
        script = "rank" if "adapter.budget" in plan.axes else "learning_rate"
    root = resource_root()
    is_checkout = root.name != "lora_bench" or not (root / "analysis").is_dir()
    start = (
        f"python {_short(root / 'analysis' / f'{script}.py')}"
        if is_checkout
        else f"python -m lora_bench.analysis.{script}"
    )
    return f"{start}{option} --store {_short(store.root)} --out report"


def _short(path: Path) -> str:
    """A path as seen from here."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _frame(plan: Plan, store: Store) -> Any:
    frame: Any = store.frame()
    return frame[frame["run_id"].isin(set(plan.runs))].reset_index(drop=True)


def _span(values: Sequence[float]) -> str:
    if not values:
        return "-"
    texts = list(dict.fromkeys(f"{value:.4g}" for value in (values[0], values[-1])))
    return " to ".join(texts)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def remove_job_folder(store: Store) -> None:
    """The launchers' own folder, when it is empty."""
    folder = store.root / plans.FOLDER / "jobs"
    with contextlib.suppress(OSError):
        if folder.is_dir() and not any(folder.iterdir()):
            shutil.rmtree(folder)
