"""A sweep's runs: checked, deduplicated, minus what the store holds, grouped into packs, costed.

    cells x seeds -> resolved runs -> packs -> STORE/.plans/<id>.json

Every run is checked before the first one trains, and all that is wrong is said at once. The plan's id is a hash of its
runs, so the same sweep finds the same file again and forms the same packs after an interruption; the file holds
resolved configurations, and a job needs nothing but `pack=PLAN#i`.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import math
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from filelock import FileLock

from lora_bench import inputs, machine
from lora_bench.config import LORA_METHODS, PROTOCOL, ConfigError, RunConfig, parse, to_dict
from lora_bench.record import environment, scrub
from lora_bench.store import Store, explained

FORMAT = 1
FOLDER = ".plans"
LARGEST_PACK = {"cpu": 32, "cuda": 128}
ACTIVATION_BYTES = {"cpu": 2 * 2**30, "cuda": 32 * 2**30}
"""Activations that one pack may hold: a fixed rule, so the same sweep forms the same packs everywhere."""
PROCESS_BYTES = 2**30
"""Of a process that trains, before weights and activations."""
MEMORY_SHARE = 0.9
"""Of the memory that is free when a sweep begins, what packs side by side may take."""

SHARE_OF_MATMUL = 0.5
"""Of the machine's matrix products' rate, what a pack was seen to reach, scoring and checks included."""


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

    def pending(self, pack: Sequence[str] | None = None) -> list[str]:
        """Runs that are still to be trained, of one pack or of all."""
        run_ids = self.runs if pack is None else pack
        return [one for one in run_ids if self.status[one] is None or one in self.retry]

    def riders(self) -> list[str]:
        """Runs that are trained again and not written, because something else of their pack is missing."""
        pending = set(self.pending())
        return [one for pack in self.packs if pending & set(pack) for one in pack if one not in pending]

    @property
    def n_cells(self) -> int:
        return len({one.run.cell_id for one in self.runs.values()})


@dataclass(frozen=True)
class Places:
    """Where packs can train at once.

    Attributes:
        n_workers: at most so many.
        on_these_cores: whether they share this machine's cores, so that each gets its part of the threads.
    """

    n_workers: int = 1
    on_these_cores: bool = False


def make(
    candidates: Sequence[Candidate],
    store: Store,
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
    axes = _varied(candidates)
    runs: dict[str, Planned] = {}
    for candidate, run in zip(candidates, _resolve_all(candidates, store), strict=True):
        if run.run_id not in runs:
            runs[run.run_id] = Planned(run, candidate.overrides, _arm(candidate, axes))
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
        sizes = sorted((_pack_bytes(plan, pack) for pack in plan.packs if plan.pending(pack)), reverse=True)
        if plan.n_workers == 1 or sum(sizes[: plan.n_workers]) <= MEMORY_SHARE * machine.available_memory():
            break
    plan.n_workers = max(1, min(plan.n_workers, len(sizes)))
    if places.on_these_cores and plan.threads is None and not kept.packs and plan.n_workers > 1:
        plan.threads = machine.threads_asked() or max(1, machine.cores() // plan.n_workers)


def _all_packs(plan: Plan, kept: list[list[str]]) -> list[list[str]]:
    """The packs of a kept plan, and new ones of what is missing and in none of them."""
    held = {run_id for pack in kept for run_id in pack}
    rest = [plan.runs[run_id].run for run_id in plan.pending() if run_id not in held]
    return [*kept, *(form_packs(rest, plan.pack_size, n_workers=plan.n_workers) if rest else ())]


def form_packs(runs: Sequence[Any], pack_size: int | str, *, n_workers: int = 1) -> list[list[str]]:
    """Group runs that may share a pack, and cut each group into packs of nearly equal size: the fewest that fit, or as
    many more as let `n_workers` end soonest. Those with most work come first, so that the last round is full."""
    from lora_bench.resolve import pack_key

    by_key: dict[Any, list[Any]] = {}
    for run in runs:
        by_key.setdefault(pack_key(run), []).append(run)
    groups = list(by_key.values())
    most = [largest_pack(group[0]) if pack_size == "auto" else int(pack_size) for group in groups]
    cuts = [math.ceil(len(group) / limit) for group, limit in zip(groups, most, strict=True)]
    if n_workers > 1 and pack_size == "auto":
        cuts = _evened(groups, cuts, n_workers)
    packs = [pack for group, n_packs in zip(groups, cuts, strict=True) for pack in _cut(group, n_packs)]
    if n_workers > 1:
        packs.sort(key=_work_of, reverse=True)
    return [[run.run_id for run in pack] for pack in packs]


def _evened(groups: Sequence[Sequence[Any]], cuts: Sequence[int], n_workers: int) -> list[int]:
    """Packs of each group with which `n_workers` end soonest, of those with up to four more rounds than the fewest."""
    cuts, tried = list(cuts), []
    for _ in range(4 * n_workers + 1):
        packs = [pack for group, n_packs in zip(groups, cuts, strict=True) for pack in _cut(group, n_packs)]
        ends = [0.0] * n_workers
        for work in sorted(map(_work_of, packs), reverse=True):
            ends[ends.index(min(ends))] += work
        tried.append((max(ends), list(cuts)))
        largest = max(range(len(groups)), key=lambda g: _work_of(groups[g]) / cuts[g] * (len(groups[g]) > cuts[g]))
        if len(groups[largest]) == cuts[largest]:
            break
        cuts[largest] += 1
    return min(tried, key=lambda one: (round(one[0], 9), sum(one[1])))[1]


def _cut(group: Sequence[Any], n_packs: int) -> list[Sequence[Any]]:
    bounds = [round(i * len(group) / n_packs) for i in range(n_packs + 1)]
    return [group[a:b] for a, b in itertools.pairwise(bounds)]


def _work_of(pack: Sequence[Any]) -> float:
    """Relative time of a pack: a run more for what all share (measured: a pack of 4 takes 2.7 times a run alone)."""
    return (len(pack) + 1) * pack[0].steps * pack[0].config.train.batch_size


def _pack_bytes(plan: Plan, pack: Sequence[str]) -> int:
    """What a process takes that trains a pack: libraries, weights (read once, split once more) and activations."""
    run = plan.runs[pack[0]].run
    weights = sum(parameter.numel() for parameter in run.blueprint.skeleton.parameters())
    return PROCESS_BYTES + 8 * weights + len(pack) * _activation_bytes(run)


def settle(config: RunConfig, store: Store) -> RunConfig:
    """The configuration with `train.precision=auto` decided for a CPU: measured once for a store on such a machine, so
    that no two of its runs differ for a measurement that came out otherwise. `keep_precision` writes it down.

    Raises:
        ConfigError: when the device is absent.
    """
    from lora_bench import backbone

    device = backbone.resolve_device(config.device)
    if config.train.precision != "auto" or device.type != "cpu":
        return config
    try:
        precision = json.loads(_precision_file(store).read_text(encoding="utf-8"))["precision"]
    except (OSError, ValueError, KeyError):
        precision = backbone.resolve_precision("auto", device)
    return replace(config, train=replace(config.train, precision=precision))


def keep_precision(store: Store) -> None:
    """Write down what `settle` has measured in this process, unless the store knows it already.

    Raises:
        StoreError: when the store cannot be written.
    """
    from lora_bench import backbone

    if not backbone.cpu_rates.cache_info().currsize:
        return
    path, rates = _precision_file(store), backbone.cpu_rates()
    document = {"precision": backbone.faster_precision(rates), **_this_cpu()}
    document |= {f"{name}_gflops": round(rate / 1e9, 1) for name, rate in rates.items()}
    with explained("keep the precision of this CPU", store.root):
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), open(path, "x", encoding="utf-8") as file:
            json.dump(document, file, indent=1)


def _precision_file(store: Store) -> Path:
    identity = hashlib.sha256(json.dumps(_this_cpu()).encode()).hexdigest()[:12]
    return store.root / FOLDER / "precision" / f"{identity}.json"


def _this_cpu() -> dict[str, str]:
    here = environment(device="cpu", threads=1)
    return {"cpu": here["cpu"], "torch": here["torch"]}


def largest_pack(run: Any) -> int:
    """Runs whose activations fit the budget of a pack, at the longest batch of any split.

    One token keeps about 13 d values and, where attention weights are kept, 3 per head and token in each layer
    (measured: 26 d bytes in bf16).
    """
    from lora_bench import backbone

    device = backbone.resolve_device(run.config.device)
    most = ACTIVATION_BYTES[device.type] // max(1, _activation_bytes(run))
    return max(1, min(LARGEST_PACK[device.type], int(most)))


def _activation_bytes(run: Any) -> int:
    """Of one run of a pack, at the longest batch of any split."""
    width = {"bf16": 2, "fp32": 4, "fp64": 8}[run.precision]
    architecture = run.blueprint.architecture.get_text_config()
    n_heads = getattr(architecture, "num_attention_heads", 12)
    longest, _ = _lengths(run)
    n_rows = math.ceil(run.config.train.batch_size / run.config.train.grad_accumulation)
    per_token = architecture.num_hidden_layers * width * (13 * architecture.hidden_size + 3 * n_heads * longest)
    return per_token * longest * n_rows


# The plan file


def save(plan: Plan) -> None:
    """Write the plan beside the store's runs, in one rename. Another launch of the sweep may have kept its packs first;
    then the plan takes those, so that both speak of the same packs.

    Raises:
        StoreError: when the store cannot be written.
    """
    with explained("keep the plan of a sweep", plan.path.parent.parent):
        plan.path.with_suffix("").mkdir(parents=True, exist_ok=True)
        with FileLock(plan.path.with_suffix("") / "plan.lock"):
            kept = _kept(plan.path, plan.runs)
            plan.packs, plan.threads = _all_packs(plan, kept.packs or plan.packs), kept.threads or plan.threads
            _write(plan)


def _write(plan: Plan) -> None:
    document = {
        "format": FORMAT,
        "protocol": PROTOCOL,
        "sweep": plan.sweep,
        "command": [scrub(one) for one in plan.command],
        "folder": os.getcwd(),
        "retry": sorted(plan.retry),
        "threads": plan.threads,
        "packs": plan.packs,
        "runs": {run_id: _entry(one) for run_id, one in plan.runs.items()},
    }
    temporary = plan.path.with_name(f".{plan.path.name}.{uuid4().hex[:8]}")
    try:
        temporary.write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
        os.replace(temporary, plan.path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """The plan file as plain values.

    Raises:
        ConfigError: when it is absent or no plan.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"pack: cannot read the plan {str(path)!r} ({error}); start the sweep again") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ConfigError(f"pack: {str(path)!r} is no plan of this version; start the sweep again")
    return document


def parse_reference(text: str) -> tuple[Path, int]:
    """`PLAN#i` as a path and a number.

    Raises:
        ConfigError: when it is something else.
    """
    path, mark, number = str(text).rpartition("#")
    if not mark or not path or not number.isdigit():
        raise ConfigError(f"pack: cannot read {text!r}; give PLAN#i, the file of a plan and the number of a pack")
    return Path(path), int(number)


def config_of(entry: Mapping[str, Any]) -> RunConfig:
    """The checked configuration of a plan file's run."""
    return parse(entry["config"])


def _entry(planned: Planned) -> dict[str, Any]:
    run = planned.run
    config = to_dict(run.config)
    config["tracking"]["tags"] = [scrub(tag) for tag in run.config.tracking.tags]
    return {
        "cell_id": run.cell_id,
        "config": config,
        "overrides": [scrub(one) for one in planned.overrides],
        "science": run.science,
        "manifest": run.manifest,
        "adapter_parameters": run.counted_parameters,
    }


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
        document = load(path)
        packs = document["packs"]
    except (ConfigError, KeyError):
        return _Kept()
    held = [one for pack in packs for one in pack]
    fits = len(set(held)) == len(held) and set(held) <= set(runs)
    return _Kept(packs, document.get("threads")) if fits else _Kept()


# Checking


def _resolve_all(candidates: Sequence[Candidate], store: Store) -> list[Any]:
    stores = {candidate.config.store for candidate in candidates}
    if len(stores) > 1:
        raise PlanError(f"store: {len(stores)} folders in one sweep; give one ({', '.join(sorted(stores))})")
    refused = _refused_inputs(candidates)
    runs = []
    if len(refused) < len(candidates):  # else nothing is left that needs torch, which `resolve` imports
        machine.be_considerate()
        from lora_bench.resolve import resolve

        for number, candidate in enumerate(candidates):
            try:
                if number not in refused:
                    runs.append(resolve(settle(candidate.config, store)))
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
    lines = [f"{n_bad} of {n_candidates} run{'s' if n_candidates > 1 else ''} cannot run, so none was started:"]
    for message, which in by_message.items():
        lines.append(f"  {message}")
        if n_candidates > 1:
            lines.append(f"      {len(which)} run{'s' if len(which) > 1 else ''}, the first: {' '.join(which[0])}")
    return "\n".join(lines)


# Names


def _varied(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """Keys whose values differ along the sweep, in their order; a key that only some candidates have counts."""
    values: dict[str, set[str]] = {}
    for candidate in candidates:
        for key, value in map(_split, candidate.overrides):
            values.setdefault(key, set()).add(value)
    counts = {key: sum(key in dict(map(_split, one.overrides)) for one in candidates) for key in values}
    return tuple(key for key in values if len(values[key]) > 1 or counts[key] < len(candidates))


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key.lstrip("+~"), value


def _arm(candidate: Candidate, axes: Sequence[str]) -> str:
    """A cell's name in tables, without its learning rate and seed: `qv`, or `qv rank=4` where more varies."""
    values = dict(map(_split, candidate.overrides))
    adapter = candidate.config.adapter
    is_lora = adapter.method in LORA_METHODS
    named = [adapter.targets if is_lora else adapter.method]
    for key in axes:
        ignored = (key.startswith("adapter.") and not is_lora) or (key == "adapter" and values.get(key) == named[0])
        if key in values and key not in ("seed", "train.lr", "adapter.targets") and not ignored:
            said = re.sub(r"\\(.)", r"\1", values[key].strip("'\""))  # as Hydra reads it: first\:3 is first:3
            named.append(f"{key.rpartition('.')[2]}={said}")
    return " ".join(named)


# What it will cost


@dataclass(frozen=True)
class Cost:
    """An estimate: seconds of training left, the bytes that it will leave, and what the seconds rest on."""

    seconds: float
    bytes: int
    basis: str


def cost(plan: Plan, store: Store) -> Cost:
    """Estimate what the pending runs cost, from finished runs of the store where it has some of the same kind."""
    pending = [plan.runs[run_id].run for run_id in plan.pending()]
    n_bytes = sum(_bytes(run) for run in pending)
    pending += [plan.runs[run_id].run for run_id in plan.riders()]
    if not pending:
        return Cost(0.0, 0, "nothing to do")
    frame = store.frame()
    if not frame.empty and "attributed_seconds" in frame:
        frame = frame[(frame["status"] == "finished") & (frame["attributed_seconds"] > 0)]
        by_kind = dict(iter(frame.groupby(["model_fingerprint", "task"])))
        kinds = [(run.science["model"]["fingerprint"], run.science["task"]["name"]) for run in pending]
        if set(kinds) <= set(by_kind):
            one_of = dict(zip(kinds, pending, strict=True))
            per_row = {kind: _seconds_per_row(by_kind[kind], run) for kind, run in one_of.items()}
            work = [_work(run.science["task"]["train_rows"], run.config.train.epochs, run) for run in pending]
            seconds = float(sum(per_row[kind] * n for kind, n in zip(kinds, work, strict=True)))
            n_known = sum(len(by_kind[kind]) for kind in set(kinds))
            told = f"from {n_known} finished run{'s' if n_known > 1 else ''}"
            return Cost(seconds / plan.n_workers, n_bytes, told)
    precision = pending[0].precision
    rate = SHARE_OF_MATMUL * _matmul_rate(precision)
    seconds = sum(flops(run) for run in pending) / rate
    told = f"a guess from this CPU's {precision} matrix products, {rate / 1e9:.0f} GFLOP/s of them made use of"
    return Cost(seconds, n_bytes, told)


def _seconds_per_row(known: Any, run: Any) -> float:
    """Of finished runs of a kind, whose select and report are as large as those of `run`."""
    return float((known["attributed_seconds"] / _work(known["train_rows"], known["epochs"], run)).median())


def _work(n_train: Any, epochs: Any, run: Any) -> Any:
    """Rows of training, and rows scored at half the cost (`flops`): select at every epoch's end, report once."""
    n_select, n_report = (len(run.task.splits.get(name, ())) for name in ("select", "report"))
    return n_train * epochs + (n_select * np.ceil(epochs) + n_report) / 2


def flops(run: Any) -> float:
    """4 P per token and epoch for training (forward, and gradients of activations), 2 P per scored token."""
    parameters = sum(matrix.d_in * matrix.d_out for matrix in run.blueprint.matrices)
    _, tokens = _lengths(run)
    scored = tokens.get("select", 0) * max(1, math.ceil(run.config.train.epochs)) + tokens.get("report", 0)
    return parameters * (4 * tokens["train"] * run.config.train.epochs + 2 * scored)


def _bytes(run: Any) -> int:
    """Adapter and head (with a dense layer) in fp32, predictions (8 bytes a logit and 24 a row), and the record."""
    n_rows = sum(len(rows) for name, rows in run.task.splits.items() if name != "train")
    width = run.blueprint.architecture.get_text_config().hidden_size
    head = 0 if run.config.adapter.method == "full" else run.task.n_labels * width + width * width
    n_saved = 0 if run.config.keep_adapters == "none" else _trained(run) + head
    return 4 * n_saved + n_rows * (24 + 8 * run.task.n_labels) + 20_000


def _trained(run: Any) -> int:
    """Parameters that a run's adapter saves; full fine-tuning and BitFit save those of the backbone that they train."""
    method = run.config.adapter.method
    if method not in ("full", "bitfit"):
        return run.adapter_parameters
    weights = run.blueprint.skeleton.named_parameters()
    return sum(each.numel() for name, each in weights if method == "full" or name.endswith("bias"))


def _lengths(run: Any) -> tuple[int, dict[str, int]]:
    """Tokens of the longest row of any split, and the tokens of each split; remembered by what they depend on."""
    key = (run.science["task"]["fingerprint"], run.science["model"]["fingerprint"], run.config.train.max_length)
    if key not in _known_lengths:
        splits = run.tokens()
        longest = max(int(split.lengths.max()) for split in splits.values())
        _known_lengths[key] = longest, {name: int(split.lengths.sum()) for name, split in splits.items()}
    return _known_lengths[key]


_known_lengths: dict[tuple[str, str, int], tuple[int, dict[str, int]]] = {}


@functools.cache
def _matmul_rate(precision: str) -> float:
    """FLOP per second of a matrix product here; the estimate's yardstick, used for no decision."""
    import time

    import torch

    from lora_bench.backbone import DTYPES, set_threads

    set_threads()
    a = torch.randn(2048, 384, dtype=DTYPES[precision])
    b = torch.randn(384, 1536, dtype=DTYPES[precision])
    torch.matmul(a, b)
    start = time.perf_counter()
    for _ in range(5):
        torch.matmul(a, b)
    return 5 * 2 * a.shape[0] * a.shape[1] * b.shape[1] / (time.perf_counter() - start)


def command_line(command: Sequence[str]) -> str:
    """The command as it would be typed."""
    return shlex.join(command)
