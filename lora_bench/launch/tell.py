"""What a sweep says: before it starts, and when it has ended."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from lora_bench import wording
from lora_bench.config.schema import LORA_METHODS
from lora_bench.launch import tell_tasks
from lora_bench.launch.estimate import estimate
from lora_bench.launch.packs import activation_bytes
from lora_bench.launch.plan import Plan, pack_bytes
from lora_bench.store import StoreReader
from lora_bench.store.environment import ENVIRONMENT_KEYS, SOFTWARE_KEYS
from lora_bench.store.errors import StoreError
from lora_bench.store.folder import Store
from lora_bench.store.locks import owner_of, remedy
from lora_bench.store.predictions import answers
from lora_bench.store.secrets import scrub_override
from lora_bench.verdicts import arms, collapse, settings, tuning
from lora_bench.wording import Grid, command_line, counted, duration, interval, points, size

DOUBTS = {  # certificates of a chosen rate that another may beat, as a sweep's table tells them
    "edge": "edge: the best rate is the smallest or largest tried; a wider grid may find a better one",
    "behind": "behind: another rate scores higher on the seeds that both have; run its other seeds",
}
PLAIN_WIDTH = 140
"""Columns of tables where there is no terminal to ask."""


def console() -> Console:
    """Standard output, wide enough for our tables where it is no terminal."""
    return wording.console(least_width=PLAIN_WIDTH, soft_wrap=True)


# Before


def describe(plan: Plan, store: StoreReader, out: Console, *, every_cell: bool, is_launched: bool = False) -> None:
    """Print what the plan will do; with `every_cell`, each cell's parameters and scales too.

    Args:
        is_launched: packs train in processes of a launcher, with threads and on devices of their own.
    """
    statuses = list(plan.status.values())
    n_seeds = len({planned.run.config.seed for planned in plan.runs.values()})
    pending = plan.pending()
    n_packs = sum(bool(plan.pending(pack)) for pack in plan.packs)
    expected = estimate(plan, store) if every_cell else None
    if every_cell:
        out.print(_cell_table(plan))
    counts = (counted(plan.n_cells, "cell"), counted(n_seeds, "seed"), counted(len(plan.runs), "run"))
    summary = f"{plan.sweep or 'grid'}: {', '.join(counts)}"
    duplicates = plan.n_candidates - len(plan.runs)
    if duplicates:
        summary += f" ({counted(duplicates, 'duplicate')} dropped)"
    out.print(summary)
    n_failed = statuses.count("failed")
    line = f"  {statuses.count('finished')} finished, {n_failed} failed before, {counted(len(pending), 'run')} to train"
    out.print(f"{line} in {counted(n_packs, 'pack')}{_how(plan)}" if pending else line)
    for line in tell_tasks.lines(planned.run for planned in plan.runs.values()):
        out.print(f"  {line}")
    riders = plan.riders()
    if riders:
        riding = "rides along, so that its pack is" if len(riders) == 1 else "ride along, so that their packs are"
        out.print(f"  {counted(len(riders), 'run')} of the same packs {riding} the same as before")
    for note in dict.fromkeys(planned.run.blueprint.remark for planned in plan.runs.values()):
        if note:
            out.print(f"  {note}")
    for line in _environments_apart(plan, store, is_launched=is_launched) if pending else ():
        out.print(f"  {line}")
    if n_failed and not plan.retry:
        out.print("  failed runs are left alone; hydra.sweeper.retry_failed=true trains them again")
    if expected is not None and pending:
        sizes = [len(plan.pending(pack)) for pack in plan.packs if plan.pending(pack)]
        out.print(
            f"  packs of {min(sizes)} to {max(sizes)} runs" if min(sizes) < max(sizes) else f"  packs of {sizes[0]}"
        )
        seconds = f"{duration(expected.seconds)} ({expected.basis})"
        where = "on one worker" if plan.n_workers == 1 else f"with {plan.n_workers} packs at once"
        out.print(f"  about {seconds} {where}; about {size(expected.bytes)} in {store.root}")
        out.print(f"  {memory_in_words(plan)}")
        out.print(f"  {_resolution(plan, store, n_seeds)}")
    elif pending:
        out.print(f"  {_ahead(plan, store, is_launched=is_launched)}")


def _ahead(plan: Plan, store: StoreReader, *, is_launched: bool) -> str:
    """What a sweep that begins will take, as far as that is known without its first steps, and how to see it before."""
    from lora_bench.models import devices

    works = "dry_run=true tells it without training; stopped with Ctrl-C, the same line goes on"
    if is_launched:
        return works
    expected = estimate(plan, store, rehearses=False)
    is_here = devices.resolve_device(next(iter(plan.runs.values())).run.config.device).type == "cpu"
    is_told = is_here or not expected.is_guess
    return f"about {duration(expected.seconds)} ({expected.basis}); {works}" if is_told else works


def memory_in_words(plan: Plan) -> str:
    """What the largest pack to come takes of memory, and one of its runs: how many fit a card."""
    pack = max((pack for pack in plan.packs if plan.pending(pack)), key=lambda pack: pack_bytes(plan, pack))
    of_run = max(activation_bytes(plan.runs[run_id].run) for run_id in pack)
    whole = size(pack_bytes(plan, pack))
    return f"memory of a pack of {counted(len(pack), 'run')}: about {whole}, of which {size(of_run)} a run"


def _how(plan: Plan) -> str:
    if plan.threads is None or plan.n_workers == 1:
        return ""
    return f", {plan.n_workers} side by side with {counted(plan.threads, 'thread')} each"


def _environments_apart(plan: Plan, store: StoreReader, *, is_launched: bool) -> Iterator[str]:
    """Finished runs of the same backbone and task that no contrast will join with those to come, and what differs."""
    from lora_bench.training.run import environment_here

    here = environment_here(next(iter(plan.runs.values())).run.config.device, plan.threads)
    keys = SOFTWARE_KEYS if is_launched else ENVIRONMENT_KEYS
    kinds = {
        tuple(planned.run.science[part]["fingerprint"] for part in ("model", "task")) for planned in plan.runs.values()
    }
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
            group_in_words = f"{counted(len(group), 'finished run')} of this backbone and task, of another environment"
            yield f"{group_in_words}, will not be compared with new ones: {', '.join(differing)}"


def _cell_table(plan: Plan) -> Grid:
    from lora_bench.models.adapters import scale_of
    from lora_bench.models.starts import init_scale

    headings = ("cell", "lr", "ranks", "adapter", "alpha/rank", "scale of A", "runs", "finished", "to train")
    table = Grid(headings, texts=["cell"])
    by_cell: dict[str, list[str]] = {}
    for run_id, planned in plan.runs.items():
        by_cell.setdefault(planned.run.cell_id, []).append(run_id)
    to_train = set(plan.pending())
    for run_ids in by_cell.values():
        planned = plan.runs[run_ids[0]]
        run, adapter = planned.run, planned.run.config.adapter
        ranks = sorted({matrix.rank for matrix in run.matrices})
        is_lora = adapter.method in LORA_METHODS
        scales = sorted({scale_of(adapter, rank) for rank in ranks})
        starts = {init_scale(adapter.init, matrix.d_in, matrix.rank) for matrix in run.matrices}
        table.add_row(
            planned.arm,
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


def _resolution(plan: Plan, store: StoreReader, n_seeds: int) -> str:
    """What the sweep will be able to tell apart, from the spread of finished runs of its kind."""
    from lora_bench.verdicts import power, stats

    n_arms = len({planned.arm for planned in plan.runs.values()})
    if n_arms < 2:
        return "what it can resolve: one cell, so nothing is compared"
    problem = stats.cannot_resolve(n_seeds, n_arms - 1)
    if n_seeds < stats.MIN_PAIRS:
        return f"what it can resolve: {problem}"
    beside = f"\n  {problem}" if problem else ""
    error = 0.05 / (n_arms - 1)  # verdicts are corrected over the contrasts, so their promise is too
    promise = f"smallest difference seen with 80 % power, {counted(n_arms - 1, 'contrast')}"
    spread = math.nan
    with contextlib.suppress(settings.NothingToShow):
        frame = settings.prepare(frame_of_plan(plan, store))
        spread = arms.difference_sd(frame.assign(arm=frame["run_id"].map(lambda run_id: plan.runs[str(run_id)].arm)))
    if math.isnan(spread):
        # sd of differences between seeds, as a share of 1: what small GLUE tasks show.
        low, high = (power.smallest_difference(n_seeds, sd, error=error) for sd in (0.01, 0.03))
        return (
            f"{promise}: {100 * low:.1f} to {100 * high:.1f} points, if differences vary by 1 to 3 over seeds{beside}"
        )
    return f"{promise}: {100 * power.smallest_difference(n_seeds, spread, error=error):.1f} points{beside}"


# After


def conclude(plan: Plan, store: StoreReader, out: Console, *, stopped: str | None, command: Sequence[str]) -> int:
    """Print the ranking, the failures and the next command. Returns the exit status: 0 if every run is finished."""
    frame = frame_of_plan(plan, store)
    statuses = list(plan.status.values())
    finished, failed, missing = (statuses.count(kind) for kind in ("finished", "failed", None))
    if finished:
        for table in ranking(plan, frame, store):
            out.print(table)
            for note in table.notes:
                out.print(f"  {note}")
    if failed:
        out.print(f"{counted(failed, 'run')} failed:", style="bold")
        for line in failures(plan, frame):
            out.print(f"  {line}")
    if stopped:
        out.print(f"stopped early: {stopped}; every finished run is kept")
    tell_offline(plan, store, out)
    same = command_line([scrub_override(word) for word in command])
    retry = " hydra.sweeper.retry_failed=true"
    if missing:
        elsewhere = _trained_elsewhere(plan, store)
        if elsewhere:
            n_elsewhere, lock = len(elsewhere), elsewhere[0]
            out.print(f"another process trains {n_elsewhere} of the {missing} missing runs; this sweep left them to it")
            out.print(f"  {owner_of(lock) or lock}; {remedy(lock)}", soft_wrap=True)
        out.print(f"{finished} of {counted(len(statuses), 'run')} finished, {missing} missing. Go on with:\n  {same}")
    elif failed:
        again = same if retry.strip() in command else same + retry
        out.print(f"{finished} of {counted(len(statuses), 'run')} finished. Try the failed ones again with:\n  {again}")
    else:
        out.print(f"all {counted(len(statuses), 'run')} finished. Next:\n  {analysis_command(plan, store)}")
    return 1 if failed or missing else 0


def tell_offline(plan: Plan, store: StoreReader, out: Console) -> None:
    """Say what waits to be sent to W&B, and how, where a plan is mirrored."""
    from lora_bench.tracking.offline import kept_offline

    config = next(iter(plan.runs.values())).run.config.tracking
    waiting = kept_offline(store.root / ".tracking") if config.backend != "none" else None
    if waiting:
        out.print(waiting)


def _trained_elsewhere(plan: Plan, store: StoreReader) -> list[Path]:
    """The locks of runs without a record that another process holds, as a sweep with other packs does."""
    locks = []
    with contextlib.suppress(StoreError):
        folder = Store(store.root)
        for run_id, status in plan.status.items():
            if status is None:
                with folder.claim(run_id) as is_free:
                    if not is_free:
                        locks.append(folder.claim_file(run_id))
    return locks


def ranking(plan: Plan, frame: Any, store: StoreReader) -> Iterator[Grid]:
    """One table per backbone, task and environment: each arm at the rate that `select` chose for it, the best first.

    Scores are in points; a caption names arms of which seeds predict one class.
    """
    try:
        runs: Any = settings.prepare(frame)
    except settings.NothingToShow:
        return
    runs = runs.assign(arm=runs["run_id"].map(lambda run_id: plan.runs[run_id].arm))
    environments = runs.loc[runs["scored"], "environment"]
    for (model, task, environment), group in runs.groupby(["model", "task", "environment"], sort=False, dropna=False):
        group: Any = group[group.groupby("arm")["scored"].transform("any")]
        if group.empty:
            continue
        rates: Any = tuning.choose_rates(group)
        chosen = group[group["scored"] & (group["lr"] == group["arm"].map(rates["lr"]))]
        stuck = [run_id for run_id in chosen["run_id"] if _is_stuck(store, run_id)]
        group = group.assign(learns=~group["run_id"].isin(stuck))
        estimates: Any = arms.estimate(group, rates["lr"].to_dict()).sort_values("mean", ascending=False)
        metric = group["metric"].dropna().iloc[0]
        title = [str(model), str(task), f"{str(metric).replace('_', ' ')} × 100"]
        title += [f"environment {environment}"] if environments.nunique() > 1 else []
        headings = ("cell", "parameters", "lr", "on select", "on report", "95 % interval", "seeds", "failed")
        table = Grid(headings, texts=["cell"], title=" · ".join(title))
        for arm, row in estimates.iterrows():
            certificate = str(rates.at[arm, "certificate"])
            doubt = f" ({certificate})" if certificate in DOUBTS else ""
            parameters = row["adapter_parameters"]
            table.add_row(
                str(arm),
                f"{parameters:,.0f}" if parameters > 0 else "-",
                f"{row['lr']:g}{doubt}",
                points(rates.at[arm, "select"]),
                points(row["mean"]),
                interval(row["low"], row["high"]),
                str(row["n_seeds"]),
                str(int((group[group["arm"] == arm]["status"] == "failed").sum())),
            )
        table.notes = [words for doubt, words in DOUBTS.items() if (rates["certificate"] == doubt).any()]
        by_arm = zip(estimates.index, estimates["n_stuck"], estimates["learns"], strict=True)
        if unlearned := [f"{arm} {n} of {len(learns)}" for arm, n, learns in by_arm if n]:
            table.notes.append(f"seeds that predict one class or diverged: {', '.join(unlearned)}")
        yield table


def _is_stuck(store: StoreReader, run_id: str) -> bool:
    """Whether a run's model gives one answer whatever it reads; False where its predictions cannot be read."""
    with contextlib.suppress(StoreError):
        predictions = store.predictions(run_id)
        return predictions is not None and collapse.has_collapsed(*answers(predictions))
    return False


def failures(plan: Plan, frame: Any) -> Iterator[str]:
    """Failed runs, those of one cause together."""
    failed = frame[frame["status"] == "failed"]
    for (kind, message), group in failed.groupby(["error_kind", "error_message"], dropna=False):
        first = plan.runs[group["run_id"].iloc[0]]
        others = f" and {len(group) - 1} more" if len(group) > 1 else ""
        reason = message if isinstance(message, str) else "no message"
        words = " ".join(map(scrub_override, first.overrides))
        yield f"{kind}: {reason}  ({words}{others}; {group['run_id'].iloc[0]}/record.json)"


def analysis_command(plan: Plan, store: StoreReader) -> str:
    """The command that shows what this sweep found: by its axes, the placement first, then the rank, then any other."""
    methods = {planned.run.config.adapter.method for planned in plan.runs.values()} - {settings.FLOOR}
    varied = [by for by, key in settings.FACTORS.items() if key in plan.axes and (by != "method" or len(methods) > 1)]
    options: list[str] = []
    if any(key.endswith(".rank") for key in plan.axes):
        script = "rank"
    elif "adapter.targets" in plan.axes:
        script = "weight_types"
    elif varied:
        script, options = "factor", [f"by={varied[0]}"]
    else:
        script = "rank" if "adapter.budget" in plan.axes else "learning_rate"
    return command_line(["lora-bench", script, *options, f"store={_short(store.root)}"])


def _short(path: Path) -> str:
    """A path as seen from here, that a command takes for neither an option nor a home."""
    try:
        text = str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
    return f"./{text}" if text.startswith(("-", "~")) else text


def frame_of_plan(plan: Plan, store: StoreReader) -> Any:
    frame: Any = store.frame()
    return frame[frame["run_id"].isin(set(plan.runs))].reset_index(drop=True)


def _span(values: Sequence[float]) -> str:
    if not values:
        return "-"
    texts = list(dict.fromkeys(f"{value:.4g}" for value in (values[0], values[-1])))
    return " to ".join(texts)
