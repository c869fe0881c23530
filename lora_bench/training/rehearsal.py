"""A few steps of a pack, from which a plan tells what all of its steps will take.

    seconds of a pack = opening + closing n + training (sum F + mean F) + scoring (sum S + mean S)

over its n runs, with F and S the operations that `cost` counts for training and scoring: a pack takes about a run more
than it has, for what all share.
"""

import contextlib
import itertools
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lora_bench.models import adapters, backbone, devices
from lora_bench.packing.packed import Packed
from lora_bench.tasks.tokens import Tokens
from lora_bench.training import guards
from lora_bench.training.cost import run_flops, scoring_flops
from lora_bench.training.evaluate import predict
from lora_bench.training.loop import batches, train_pack
from lora_bench.training.norms import matrix_norms
from lora_bench.training.opening import open_pack
from lora_bench.training.reloaded import Reloader
from lora_bench.training.resolve import Run

STEPS = 4
"""Steps that are taken; the first, which libraries prepare themselves in, is not counted where there are more."""
MOST_SECONDS = 10.0
"""After these no further step begins."""
SCORED_ROWS = 64


@dataclass(frozen=True)
class Pace:
    """What packs take.

    Attributes:
        training, scoring: seconds per floating-point operation.
        opening: seconds of a pack before its first step, and of what all its runs share at the end.
        closing: seconds that checking and saving a run takes.
    """

    training: float
    scoring: float
    opening: float = 0.0
    closing: float = 0.0

    def seconds(self, training: Sequence[float], scoring: Sequence[float]) -> float:
        """Of a pack whose runs have these operations."""
        work = self.training * with_shared(training) + self.scoring * with_shared(scoring)
        return self.opening + len(training) * self.closing + work


def with_shared(flops: Sequence[float]) -> float:
    """Operations of a pack's runs, and those of one more for what all share."""
    return sum(flops) * (1 + 1 / len(flops))


def rehearse(
    runs: Sequence[Run],
    *,
    threads: int | None = None,
    n_beside: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Pace:
    """Take a few steps of a pack, score some rows, save a run and read it back, and keep nothing.

    Args:
        threads: of the process that will train the pack; None is those of this one.
        n_beside: packs that will train beside it, whose cores are kept busy meanwhile.
    """
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads or devices.set_threads())
    try:
        with torch.random.fork_rng(), _kept_busy(n_beside, torch.get_num_threads()):
            return _rehearse(runs, clock)
    finally:
        torch.set_num_threads(threads_before)


def _rehearse(runs: Sequence[Run], clock: Callable[[], float]) -> Pace:
    first, tokens = runs[0], runs[0].tokens()
    device = devices.resolve_device(first.config.device)

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock()

    began = now()
    loaded = backbone.load(first.blueprint, precision=first.precision, device=device)
    with open_pack(loaded, runs) as pack:
        guards.require_unchanged_start(pack, tokens["train"])
        opening = now() - began
        training = _step_pace(pack, runs, tokens["train"], now)
        report, rows = tokens["report"], np.arange(min(SCORED_ROWS, len(tokens["report"])))
        predict(pack, report, rows[:1])
        began = now()
        logits = predict(pack, report, rows)
        scored = scoring_flops(first.blueprint, int(report.lengths[rows].sum()))
        scoring = (now() - began) / with_shared([scored] * len(runs))
        state = pack.state(0)
    began = now()
    closed = _closer(loaded, first, state, report, logits[0])
    closed()  # the first time it decomposes the weights and makes a model to read back into, for all runs
    opening += now() - began
    began = now()
    closed()
    return Pace(training, scoring, opening, now() - began)


def _closer(
    loaded: backbone.Backbone, run: Run, state: adapters.AdapterState, report: Tokens, logits: np.ndarray
) -> Callable[[], None]:
    """What is done for each run of a pack at its end: measured, saved and read back; nothing is kept."""
    reloader = Reloader(loaded)

    def close() -> None:
        matrix_norms(loaded, run.matrices, state)
        with tempfile.TemporaryDirectory(prefix="lora_bench-") as scratch:
            folder = Path(scratch) / "adapter"
            adapters.save(folder, loaded, run.config.adapter, run.matrices, state)
            n_rows = min(len(logits), guards.RELOADED_ROWS[run.precision])
            guards.reload_gap(folder, loaded, report, logits, n_rows, reloader=reloader)

    return close


class _Enough(Exception):
    """The steps that were asked for are taken."""


def _step_pace(pack: Packed, runs: Sequence[Run], train: Tokens, now: Callable[[], float]) -> float:
    """Seconds per operation of the first steps."""
    first, at = runs[0], [now()]

    def on_step(step: int, **measured: torch.Tensor) -> None:
        at.append(now())
        if step + 1 >= STEPS or at[-1] - at[0] > MOST_SECONDS:
            raise _Enough

    configs = [run.config for run in runs]
    with contextlib.suppress(_Enough):
        train_pack(pack, train, configs, total_steps=first.steps, on_step=on_step, on_epoch=lambda epoch, step: None)
    n_steps = len(at) - 1
    n_warm = min(1, n_steps - 1)
    steps = batches(train.lengths, first.config.train.batch_size, first.config.seed, n_steps)
    n_tokens = sum(int(train.lengths[rows].sum()) for _, _, rows in itertools.islice(steps, n_warm, None))
    flops = [run_flops(first.blueprint, run.config, run.matrices, n_tokens) for run in runs]
    return (at[-1] - at[n_warm]) / with_shared(flops)


@contextlib.contextmanager
def _kept_busy(n_beside: int, threads: int) -> Iterator[None]:
    """Products on so many other cores, as packs beside this one will keep them busy."""
    is_over = threading.Event()

    def multiply() -> None:
        torch.set_num_threads(threads)
        a = torch.ones(768, 768)
        while not is_over.is_set():
            torch.mm(a, a)

    workers = [threading.Thread(target=multiply, daemon=True) for _ in range(n_beside)]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        is_over.set()
        for worker in workers:
            worker.join()
