"""What a plan will cost: time, and room on the disk.

    time = start of a worker + the end of the last worker, each taking the next pack of the plan

A pack's seconds are those of finished packs that were trained in the same way, in proportion to operations; where the
store has none, of a few of its steps that are taken here and now; and where that cannot be, a guess.
"""

import functools
import heapq
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_bench.launch.packs import lengths
from lora_bench.launch.plan import Plan
from lora_bench.store import StoreReader
from lora_bench.wording import counted

if TYPE_CHECKING:
    from lora_bench.training.rehearsal import Pace

SHARE_OF_MATMUL = 0.5
"""Of the machine's matrix products' rate, what a pack was seen to reach, scoring and checks included."""
MOST_REHEARSALS = 3
"""Kinds of packs that are tried, those with most work; others take as long for an operation as the first of them."""
GUESS = "a guess"
"""How the basis of an estimate begins that rests on no run, finished or tried."""
LONGEST_START = 20.0
"""Seconds that a worker needs to start, at most: as many as this process has computed until it asks, since both import
the same and read the same rows."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Estimate:
    """What a plan will cost: seconds of training left, the bytes that it will leave, and what the seconds rest on."""

    seconds: float
    bytes: int
    basis: str
    is_guess: bool = False  # whether some packs are guessed from this CPU's products


def estimate(plan: Plan, store: StoreReader, *, rehearses: bool = True) -> Estimate:
    """What the pending runs cost, from finished packs of the store where it has some of the same kind.

    Args:
        rehearses: try a few steps of the others, which takes their backbone's memory and some seconds; else they are
            guessed from operations alone.
    """
    start = min(time.process_time(), LONGEST_START) if plan.threads is not None else 0.0  # before steps are tried
    packs = [[plan.runs[run_id].run for run_id in pack] for pack in plan.packs if plan.pending(pack)]
    n_bytes = sum(_bytes(plan.runs[run_id].run) for run_id in plan.pending())
    if not packs:
        return Estimate(0.0, 0, "nothing to do")
    by_kind: dict[Kind, list[list[Any]]] = {}
    for pack in packs:
        by_kind.setdefault(Kind.of(pack[0]), []).append(pack)
    known = _known(plan, store, {kind: of_kind[0][0] for kind, of_kind in by_kind.items()})
    unknown = {kind: of_kind for kind, of_kind in by_kind.items() if kind not in known}
    paces, basis = _rehearsed(plan, unknown) if rehearses else _guessed(unknown)
    is_guess = bool(paces) and basis.startswith(GUESS)
    seconds = []
    for pack in packs:
        kind = Kind.of(pack[0])
        pace = _pace(known[kind], pack) if kind in known else paces[kind]
        seconds.append(pace.seconds(*_operations(pack)))
    if known:
        n_finished = sum(len(frame) for frame in known.values())
        basis = " and ".join([f"from {counted(n_finished, 'finished run')}", *([basis] if paces else [])])
    return Estimate(start + _end_of(seconds, plan.n_workers), n_bytes, basis, is_guess)


def _end_of(seconds: Sequence[float], n_workers: int) -> float:
    """When the last pack ends, each taken in its turn by the worker that is free first."""
    ends = [0.0] * n_workers
    for pack in seconds:
        heapq.heapreplace(ends, ends[0] + pack)
    return max(ends)


@dataclass(frozen=True)
class Kind:
    """What packs share whose steps cost the same for an operation.

    Attributes:
        alone: the method of runs that are trained each by itself; None of those that share a pack.
    """

    model_fingerprint: str
    task: str
    precision: str
    batch_size: int
    max_length: int
    alone: str | None

    @classmethod
    def of(cls, run: Any) -> "Kind":
        from lora_bench.training.resolve import packable

        train = run.config.train
        return cls(
            model_fingerprint=run.science["model"]["fingerprint"],
            task=run.science["task"]["name"],
            precision=run.precision,
            batch_size=train.batch_size,
            max_length=train.max_length,
            alone=None if packable(run) else run.config.adapter.method,
        )

    def among(self, frame: Any) -> Any:
        """Which rows of a store's frame are runs of this kind, (n_rows,)."""
        from lora_bench.models.adapters import PACKED_METHODS

        is_alike = frame["method"].isin(PACKED_METHODS if self.alone is None else [self.alone])
        for column in ("model_fingerprint", "task", "precision", "batch_size", "max_length"):
            is_alike &= frame[column] == getattr(self, column)
        return is_alike


# ---------------------------------------------------------------- from finished packs


def _known(plan: Plan, store: StoreReader, runs: Mapping[Kind, Any]) -> dict[Kind, Any]:
    """The finished runs of each of these kinds that were trained on such a machine with as many threads."""
    from lora_bench.training.run import environment_here

    frame: Any = store.frame()
    if frame.empty:
        return {}
    frame = frame[(frame["status"] == "finished") & (frame["pack_seconds"] > 0) & (frame["flops"] > 0)]
    known = {}
    for kind, run in runs.items():
        is_here = frame["environment"] == environment_here(run.config.device, plan.threads)["id"]
        same = is_here & kind.among(frame)
        if same.any():
            known[kind] = frame[same]
    return known


def _pace(known: Any, pack: Sequence[Any]) -> "Pace":
    """That of the finished packs whose size is nearest to this one's."""
    from lora_bench.training.rehearsal import Pace, with_shared

    packs = known.groupby(["pack_seconds", "pack_size"], as_index=False)[["flops"]].mean()
    distance = np.abs(np.log(packs["pack_size"] / len(pack)))
    packs = packs[distance <= distance.min() + 1e-9]
    _, (scoring,) = _operations(pack[:1])
    work = [
        with_shared([flops + scoring] * int(size))
        for flops, size in zip(packs["flops"], packs["pack_size"], strict=True)
    ]
    per_operation = float((packs["pack_seconds"] / work).median())
    return Pace(per_operation, per_operation, closing=float(known["overhead_seconds"].fillna(0.0).median()))


# ---------------------------------------------------------------- from a few steps, or by guess


def _rehearsed(plan: Plan, by_kind: Mapping[Kind, list[list[Any]]]) -> tuple[dict[Kind, "Pace"], str]:
    """The pace of each kind, and what it rests on."""
    from lora_bench.training.rehearsal import Pace, rehearse

    ordered = sorted(by_kind, key=lambda kind: -sum(sum(map(sum, _operations(pack))) for pack in by_kind[kind]))
    paces: dict[Kind, Pace] = {}
    for kind in ordered[:MOST_REHEARSALS]:
        largest = max(by_kind[kind], key=len)
        n_beside = plan.n_workers - 1 if plan.threads is not None else 0
        try:
            paces[kind] = rehearse(largest, threads=plan.threads, n_beside=n_beside)
        except Exception as error:  # whatever it is, training says so; a plan is told all the same
            log.debug("no rehearsal", exc_info=error)
    if paces:
        return paces | {kind: next(iter(paces.values())) for kind in ordered if kind not in paces}, "a few steps here"
    return _guessed(by_kind)


def _guessed(by_kind: Mapping[Kind, list[list[Any]]]) -> tuple[dict[Kind, "Pace"], str]:
    """The same by operations alone, of a CPU: no more than an order of magnitude for small backbones and short rows."""
    from lora_bench.training.rehearsal import Pace

    ordered = list(by_kind)
    precision = by_kind[ordered[0]][0][0].precision if ordered else "fp32"
    rate = SHARE_OF_MATMUL * _matmul_rate(precision) if ordered else 1.0
    basis = f"{GUESS} from this CPU's {precision} matrix products, {rate / 1e9:.0f} GFLOP/s of them made use of"
    return {kind: Pace(1 / rate, 1 / rate) for kind in ordered}, basis


# ---------------------------------------------------------------- operations and bytes


def _operations(pack: Sequence[Any]) -> tuple[list[float], list[float]]:
    """Of training and of scoring, run by run."""
    from lora_bench.training.work import operations

    training, scoring = zip(*(operations(run, lengths(run).tokens) for run in pack), strict=True)
    return list(training), list(scoring)


def _bytes(run: Any) -> int:
    """Adapter and head (with a dense layer) in fp32, predictions (8 bytes a logit and 24 a row), and the record."""
    n_rows = sum(len(rows) for name, rows in run.task.splits.items() if name != "train")
    width = run.blueprint.architecture.get_text_config().hidden_size
    head = 0 if run.config.adapter.method == "full" else run.task.n_labels * width + width * width
    n_saved = 0 if run.config.keep_adapters == "none" else _saved_parameters(run) + head
    return 4 * n_saved + n_rows * (24 + 8 * run.task.n_labels) + 20_000


def _saved_parameters(run: Any) -> int:
    """Parameters that a run's adapter saves; full fine-tuning and BitFit save those of the backbone that they train."""
    method = run.config.adapter.method
    if method not in ("full", "bitfit"):
        return run.adapter_parameters
    weights = run.blueprint.skeleton.named_parameters()
    return sum(weight.numel() for name, weight in weights if method == "full" or name.endswith("bias"))


@functools.cache
def _matmul_rate(precision: str) -> float:
    """FLOP per second of a matrix product here; the estimate's yardstick, used for no decision."""
    import torch

    from lora_bench.models.devices import DTYPES, set_threads

    set_threads()
    a = torch.randn(2048, 384, dtype=DTYPES[precision])
    b = torch.randn(384, 1536, dtype=DTYPES[precision])
    torch.matmul(a, b)
    start = time.perf_counter()
    for _ in range(5):
        torch.matmul(a, b)
    return 5 * 2 * a.shape[0] * a.shape[1] * b.shape[1] / (time.perf_counter() - start)
