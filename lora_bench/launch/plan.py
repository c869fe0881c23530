"""A sweep's runs: checked, deduplicated, minus what the store holds, grouped into packs, costed.

    cells x seeds -> resolved runs -> packs -> STORE/.plans/<id>.json

Every run is checked before the first one trains, and all that is wrong is said at once. The plan's id is a hash of its
runs, so the same sweep finds the same file again and forms the same packs after an interruption; the file holds
resolved configurations, and a job needs nothing but `pack=PLAN#i`.
"""

import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from lora_bench import wording
from lora_bench.config.compose import to_dict
from lora_bench.config.errors import ConfigError
from lora_bench.config.overrides import key_of, value_of
from lora_bench.config.schema import LORA_METHODS, RunConfig
from lora_bench.launch.files import FOLDER
from lora_bench.launch.packs import activation_bytes, form_packs, process_bytes
from lora_bench.launch.plan_file import Entry, PlanFile
from lora_bench.launch.precision import settler
from lora_bench.models import machine
from lora_bench.store import StoreReader, locks
from lora_bench.store.errors import explained
from lora_bench.store.secrets import override_scrubber
from lora_bench.training import inputs

MEMORY_SHARE = 0.9
"""Of the memory that is free when a sweep begins, what packs side by side may take."""


class PlanError(ConfigError):
    """Runs that cannot run: every problem, each with the runs that have it."""


@dataclass(frozen=True)
class Candidate:
    """One point of a grid with a seed, not yet looked at: its checked configuration and the overrides that made it."""

    config: RunConfig
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Planned:
    """A resolved run of a plan. `arm` names its cell by what the sweep varies, but for the learning rate."""

    run: Any  # resolve.Run
    overrides: tuple[str, ...]
    arm: str


@dataclass
class Plan:
    """What a sweep will do.

    Attributes:
        runs: by run id, in the order of the grid, each once.
        packs: run ids, formed of what was missing when the plan was first made. A pack with anything left is trained
            whole, so that a restart gives the bits that no interruption would have given; only what is missing is
            written.
        status: what the store says of each run: finished, failed or None.
        retry: failed runs that are to be trained again, and when those records were written.
        n_candidates: points of the grid before duplicates were dropped.
        n_workers: packs that train at once, in processes of their own where there are several.
        threads: those of each of these processes; None where one process has all that it may use.
        launch: names this launch among those of the same plan, at other times or at once.
    """

    path: Path
    sweep: str | None
    command: list[str]
    runs: dict[str, Planned]
    packs: list[list[str]]
    status: dict[str, str | None]
    retry: dict[str, int | None] = field(default_factory=dict)
    n_candidates: int = 0
    axes: tuple[str, ...] = field(default=())
    pack_size: int | str = "auto"
    n_workers: int = 1
    threads: int | None = None
    launch: str = field(default_factory=lambda: uuid4().hex[:12])

    def pending(self, pack: Sequence[str] | None = None) -> list[str]:
        """Runs that are still to be trained, of one pack or of all."""
        run_ids = self.runs if pack is None else pack
        return [run_id for run_id in run_ids if self.status[run_id] is None or run_id in self.retry]

    def riders(self) -> list[str]:
        """Runs that are trained again and not written, because something else of their pack is missing."""
        pending = set(self.pending())
        return [run_id for pack in self.packs if pending & set(pack) for run_id in pack if run_id not in pending]

    @property
    def n_cells(self) -> int:
        return len({planned.run.cell_id for planned in self.runs.values()})


@dataclass(frozen=True)
class Places:
    """Where packs can train at once.

    Attributes:
        n_workers: at most so many.
        on_these_cores: whether they share this machine's cores, so that each gets its part of the threads.
        threads: of each process, however many packs there are; None goes by that number.
    """

    n_workers: int = 1
    on_these_cores: bool = False
    threads: int | None = None


def make(
    candidates: Sequence[Candidate],
    store: StoreReader,
    *,
    pack_size: int | str = "auto",
    retry_failed: bool = False,
    sweep: str | None = None,
    command: Sequence[str] = (),
    places: Places | None = None,
) -> Plan:
    """Resolve and check every candidate, drop duplicates, ask the store, form packs (or take those of the kept plan).

    Args:
        places: where packs can train at once; None is one place.

    Raises:
        PlanError: with every problem of every candidate.
    """
    axes = varied_axes(candidates)
    runs: dict[str, Planned] = {}
    for candidate, run in zip(candidates, _resolve_all(candidates, store), strict=True):
        if run.run_id not in runs:
            runs[run.run_id] = Planned(run, candidate.overrides, arm_name(candidate, axes))
    identity = json.dumps([sorted(runs), str(pack_size)])
    path = store.root / FOLDER / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"
    known = store.statuses()
    status = {run_id: known.get(run_id) for run_id in runs}
    failed = [run_id for run_id in runs if status[run_id] == "failed"] if retry_failed else []
    retry = {run_id: store.written_at(run_id) for run_id in failed}
    plan = Plan(path, sweep, list(command), runs, [], status, retry, len(candidates), axes, pack_size)
    _arrange(plan, places or Places())
    return plan


def _arrange(plan: Plan, places: Places) -> None:
    """Give a plan its packs, those of the kept plan first, and the workers and threads that they train with.

    As many packs train at once as there are places and memory for. A thread to a pack, where there are packs enough: it
    wastes nothing on waiting, and scores do not depend on the number of cores. The threads of a kept plan stay.
    """
    kept = _kept(plan.path, plan.runs)
    plan.threads = kept.threads
    for plan.n_workers in range(places.n_workers, 0, -1):
        plan.packs = _all_packs(plan, kept.packs)
        sizes = sorted((pack_bytes(plan, pack) for pack in plan.packs if plan.pending(pack)), reverse=True)
        if plan.n_workers == 1 or sum(sizes[: plan.n_workers]) <= MEMORY_SHARE * machine.available_memory():
            break
    plan.n_workers = max(1, min(plan.n_workers, len(sizes)))
    is_shared = places.threads or plan.n_workers > 1
    if places.on_these_cores and plan.threads is None and not kept.packs and is_shared:
        plan.threads = places.threads or machine.threads_asked() or max(1, machine.cores() // plan.n_workers)


def _all_packs(plan: Plan, kept: list[list[str]]) -> list[list[str]]:
    """The packs of a kept plan, and new ones of what is missing and in none of them."""
    packed = {run_id for pack in kept for run_id in pack}
    rest = [plan.runs[run_id].run for run_id in plan.pending() if run_id not in packed]
    return [*kept, *(form_packs(rest, plan.pack_size, n_workers=plan.n_workers) if rest else ())]


def pack_bytes(plan: Plan, pack: Sequence[str]) -> int:
    """What a process takes of memory that trains a pack."""
    runs = [plan.runs[run_id].run for run_id in pack]
    return process_bytes(runs[0]) + sum(activation_bytes(run) for run in runs)


# The plan file


def save(plan: Plan) -> None:
    """Write the plan beside the store's runs, in one rename. Another launch of the sweep may have kept its packs first;
    then the plan takes those, so that both speak of the same packs.

    Raises:
        StoreError: when the store cannot be written.
    """
    with explained("keep the plan of a sweep", plan.path.parent.parent):
        plan.path.with_suffix("").mkdir(parents=True, exist_ok=True)
        with locks.holding(plan.path.with_suffix("") / "plan.lock"):
            kept = _kept(plan.path, plan.runs)
            plan.packs, plan.threads = _all_packs(plan, kept.packs or plan.packs), kept.threads or plan.threads
            _file_of(plan).save(plan.path)


def _file_of(plan: Plan) -> PlanFile:
    scrubbed = functools.cache(override_scrubber())  # the words of a grid are few, and stand in many runs
    runs = {run_id: _entry(planned, scrubbed) for run_id, planned in plan.runs.items()}
    return PlanFile(
        runs=runs,
        packs=[[runs[run_id] for run_id in pack] for pack in plan.packs],
        retry=frozenset(plan.retry),
        threads=plan.threads,
        folder=os.getcwd(),
        command=tuple(map(scrubbed, plan.command)),
        sweep=plan.sweep,
    )


def _entry(planned: Planned, scrubbed: Callable[[str], str]) -> Entry:
    run = planned.run
    config = to_dict(run.config)
    config["tracking"]["tags"] = [*map(scrubbed, run.config.tracking.tags)]
    return Entry(
        run_id=run.run_id,
        cell_id=run.cell_id,
        config=config,
        overrides=[*map(scrubbed, planned.overrides)],
        science=run.science,
        manifest=run.manifest,
        adapter_parameters=run.counted_parameters,
    )


@dataclass(frozen=True)
class _Kept:
    """What a launch before this one decided."""

    packs: list[list[str]] = field(default_factory=list)
    threads: int | None = None


def _kept(path: Path, runs: Mapping[str, Planned]) -> _Kept:
    """The packs and threads of the plan file; empty unless it is there and made of these runs, each in one pack at
    most."""
    if not path.is_file():
        return _Kept()
    try:
        file = PlanFile.load(path)
    except ConfigError:
        return _Kept()
    packs = [[entry.run_id for entry in pack] for pack in file.packs]
    packed = [run_id for pack in packs for run_id in pack]
    fits = len(set(packed)) == len(packed) and set(packed) <= set(runs)
    return _Kept(packs, file.threads) if fits else _Kept()


# Checking


def _resolve_all(candidates: Sequence[Candidate], store: StoreReader) -> list[Any]:
    stores = {candidate.config.store for candidate in candidates}
    if len(stores) > 1:
        raise PlanError(f"store: {len(stores)} folders in one sweep; give one ({', '.join(sorted(stores))})")
    refused = _refused_inputs(candidates)
    runs = []
    if len(refused) < len(candidates):  # else nothing is left that needs torch, which `resolve` imports
        machine.be_considerate()
        with machine.importing():
            from lora_bench.training.resolve import resolve

        settle = settler(store)
        for number, candidate in enumerate(candidates):
            try:
                if number not in refused:
                    runs.append(resolve(settle(candidate.config)))
            except ConfigError as error:
                refused[number] = str(error)
    if refused:
        problems = [(refused[number], candidates[number].overrides) for number in sorted(refused)]
        raise PlanError(tell_problems(problems, len(candidates)))
    return runs


def _refused_inputs(candidates: Sequence[Candidate]) -> dict[int, str]:
    """Which candidates' rows or backbone cannot be used, by position, and why; each pair of them is looked at once."""
    answers: dict[str, str | None] = {}
    refused = {}
    for number, candidate in enumerate(candidates):
        key = json.dumps([vars(candidate.config.task), vars(candidate.config.model)], sort_keys=True)
        if key not in answers:
            answers[key] = None
            try:
                inputs.check(candidate.config)
            except ConfigError as error:
                answers[key] = str(error)
        if (problem := answers[key]) is not None:
            refused[number] = problem
    return refused


def tell_problems(problems: Iterable[tuple[str, Sequence[str]]], n_candidates: int) -> str:
    """Every problem once, with how many runs have it and the first of them."""
    by_message: dict[str, list[Sequence[str]]] = {}
    for message, overrides in problems:
        by_message.setdefault(message, []).append(overrides)
    n_bad = sum(map(len, by_message.values()))
    lines = [f"{n_bad} of {wording.counted(n_candidates, 'run')} cannot run, so none was started:"]
    for message, which in by_message.items():
        lines.append(f"  {message}")
        if n_candidates > 1:
            lines.append(f"      {wording.counted(len(which), 'run')}, the first: {' '.join(which[0])}")
    return "\n".join(lines)


# Names


def varied_axes(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """Keys whose values differ along the sweep, in their order; a key that only some candidates have counts.

    Numbers are compared by value: 1e-3 is 0.001.
    """
    values: dict[str, set[object]] = {}
    for candidate in candidates:
        for word in candidate.overrides:
            values.setdefault(key_of(word), set()).add(_comparable(value_of(word)))
    counts = {key: sum(key in map(key_of, candidate.overrides) for candidate in candidates) for key in values}
    return tuple(key for key in values if len(values[key]) > 1 or counts[key] < len(candidates))


def _comparable(value: str) -> object:
    """A value as a number where it is one."""
    try:
        number = float(value)
    except ValueError:
        return value
    return number if math.isfinite(number) else value


def arm_name(candidate: Candidate, axes: Sequence[str]) -> str:
    """A cell's name in tables, without its learning rate and seed: `qv`, or `qv rank=4` where more varies."""
    values = {key_of(word): value_of(word) for word in candidate.overrides}
    adapter = candidate.config.adapter
    is_lora = adapter.method in LORA_METHODS
    named = [adapter.method if not is_lora else adapter.targets if adapter.like is None else "published"]
    for key in axes:
        ignored = (key.startswith("adapter.") and not is_lora) or (key == "adapter" and values.get(key) == named[0])
        if key in values and key not in ("seed", "train.lr", "adapter.targets") and not ignored:
            named.append(f"{key.rpartition('.')[2]}={values[key]}")
    return " ".join(named)
