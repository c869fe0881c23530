"""A sweep's runs: checked, deduplicated, minus what the store holds, grouped into packs, costed.

    cells x seeds -> resolved runs -> packs -> STORE/.plans/<id>.json

Every run is checked before the first one trains, and all that is wrong is said at once. The plan's id is a hash of its
runs, so the same sweep finds the same file again and forms the same packs after an interruption; the file holds
resolved configurations, and a job needs nothing but `pack=PLAN#i`.
"""

import functools
import hashlib
import itertools
import json
import math
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from filelock import FileLock

from lora_bench.config import LORA_METHODS, PROTOCOL, ConfigError, RunConfig, parse, to_dict
from lora_bench.record import scrub
from lora_bench.store import Store, explained

FORMAT = 1
FOLDER = ".plans"
LARGEST_PACK = {"cpu": 32, "cuda": 128}
ACTIVATION_BYTES = {"cpu": 2 * 2**30, "cuda": 32 * 2**30}
"""Activations that one pack may hold: a fixed rule, so the same sweep forms the same packs everywhere."""

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


def make(
    candidates: Sequence[Candidate],
    store: Store,
    *,
    pack_size: int | str = "auto",
    retry_failed: bool = False,
    sweep: str | None = None,
    command: Sequence[str] = (),
) -> Plan:
    """Resolve and check every candidate, drop duplicates, ask the store, form packs (or take those of the kept plan).

    Raises:
        PlanError: with every problem of every candidate.
    """
    axes = _varied(candidates)
    runs: dict[str, Planned] = {}
    for candidate, run in zip(candidates, _resolve_all(candidates), strict=True):
        if run.run_id not in runs:
            runs[run.run_id] = Planned(run, candidate.overrides, _arm(candidate, axes))
    identity = json.dumps([sorted(runs), str(pack_size)])
    path = store.root / FOLDER / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"
    known = store.statuses()
    status = {run_id: known.get(run_id) for run_id in runs}
    failed = [run_id for run_id in runs if status[run_id] == "failed"] if retry_failed else []
    retry = {run_id: store.written_at(run_id) for run_id in failed}
    plan = Plan(path, sweep, list(command), runs, [], status, retry, len(candidates), axes, pack_size)
    plan.packs = _all_packs(plan, _kept_packs(path, runs) or [])
    return plan


def _all_packs(plan: Plan, kept: list[list[str]]) -> list[list[str]]:
    """The packs of a kept plan, and new ones of what is missing and in none of them."""
    held = {run_id for pack in kept for run_id in pack}
    rest = [plan.runs[run_id].run for run_id in plan.pending() if run_id not in held]
    return [*kept, *(form_packs(rest, plan.pack_size) if rest else ())]


def form_packs(runs: Sequence[Any], pack_size: int | str) -> list[list[str]]:
    """Group runs that may share a pack; a group is cut into the fewest packs that fit, of nearly equal size."""
    from lora_bench.resolve import pack_key

    groups: dict[Any, list[Any]] = {}
    for run in runs:
        groups.setdefault(pack_key(run), []).append(run)
    packs = []
    for group in groups.values():
        most = largest_pack(group[0]) if pack_size == "auto" else int(pack_size)
        n_packs = math.ceil(len(group) / most)
        bounds = [round(i * len(group) / n_packs) for i in range(n_packs + 1)]
        packs += [[run.run_id for run in group[a:b]] for a, b in itertools.pairwise(bounds)]
    return packs


def largest_pack(run: Any) -> int:
    """Runs whose activations fit the budget of a pack, at the longest batch of any split.

    One token keeps about 13 d values and, where attention weights are kept, 3 per head and token in each layer
    (measured: 26 d bytes in bf16).
    """
    from lora_bench import backbone

    device = backbone.resolve_device(run.config.device)
    width = {"bf16": 2, "fp32": 4, "fp64": 8}[run.precision]
    architecture = run.blueprint.architecture.get_text_config()
    n_heads = getattr(architecture, "num_attention_heads", 12)
    longest, _ = _lengths(run)
    n_rows = math.ceil(run.config.train.batch_size / run.config.train.grad_accumulation)
    per_token = architecture.num_hidden_layers * width * (13 * architecture.hidden_size + 3 * n_heads * longest)
    most = ACTIVATION_BYTES[device.type] // max(1, per_token * longest * n_rows)
    return max(1, min(LARGEST_PACK[device.type], int(most)))


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
            plan.packs = _all_packs(plan, _kept_packs(plan.path, plan.runs) or plan.packs)
            _write(plan)


def _write(plan: Plan) -> None:
    document = {
        "format": FORMAT,
        "protocol": PROTOCOL,
        "sweep": plan.sweep,
        "command": [scrub(one) for one in plan.command],
        "folder": os.getcwd(),
        "retry": sorted(plan.retry),
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


def _kept_packs(path: Path, runs: Mapping[str, Planned]) -> list[list[str]] | None:
    """The packs of the plan file, when it is there and they are made of these runs, each in one pack at most."""
    if not path.is_file():
        return None
    try:
        packs = load(path)["packs"]
    except (ConfigError, KeyError):
        return None
    held = [one for pack in packs for one in pack]
    return packs if len(set(held)) == len(held) and set(held) <= set(runs) else None


# Checking


def _resolve_all(candidates: Sequence[Candidate]) -> list[Any]:
    from lora_bench.resolve import resolve

    runs, problems = [], []
    stores = {candidate.config.store for candidate in candidates}
    if len(stores) > 1:
        raise PlanError(f"store: {len(stores)} folders in one sweep; give one ({', '.join(sorted(stores))})")
    for candidate in candidates:
        try:
            runs.append(resolve(candidate.config))
        except ConfigError as error:
            problems.append((str(error), candidate.overrides))
    if problems:
        raise PlanError(tell_problems(problems, len(candidates)))
    return runs


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
            return Cost(seconds, n_bytes, f"from {n_known} finished run{'s' if n_known > 1 else ''}")
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
