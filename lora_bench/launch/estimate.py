"""What a plan will cost: time, and room on the disk."""

import functools
from dataclasses import dataclass
from typing import Any

from lora_bench import wording
from lora_bench.launch.packs import lengths
from lora_bench.launch.plan import Plan
from lora_bench.store import StoreReader
from lora_bench.training.scored import count_scored

SHARE_OF_MATMUL = 0.5
"""Of the machine's matrix products' rate, what a pack was seen to reach, scoring and checks included."""


@dataclass(frozen=True)
class Estimate:
    """What a plan will cost: seconds of training left, the bytes that it will leave, and what the seconds rest on."""

    seconds: float
    bytes: int
    basis: str


def estimate(plan: Plan, store: StoreReader) -> Estimate:
    """What the pending runs cost, from finished runs of the store where it has some of the same kind."""
    pending = [plan.runs[run_id].run for run_id in plan.pending()]
    n_bytes = sum(_bytes(run) for run in pending)
    pending += [plan.runs[run_id].run for run_id in plan.riders()]
    if not pending:
        return Estimate(0.0, 0, "nothing to do")
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
            basis = f"from {wording.counted(n_known, 'finished run')}"
            return Estimate(seconds / plan.n_workers, n_bytes, basis)
    precision = pending[0].precision
    rate = SHARE_OF_MATMUL * _matmul_rate(precision)
    seconds = sum(_flops(run) for run in pending) / rate
    basis = f"a guess from this CPU's {precision} matrix products, {rate / 1e9:.0f} GFLOP/s of them made use of"
    return Estimate(seconds, n_bytes, basis)


def _seconds_per_row(known: Any, run: Any) -> float:
    """Of finished runs of a kind, whose select and report are as large as those of `run`."""
    return float((known["attributed_seconds"] / _work(known["train_rows"], known["epochs"], run)).median())


def _work(n_train: Any, epochs: Any, run: Any) -> Any:
    """Rows of training, and rows scored at half the cost: select as often as `run` scores it, report once."""
    n_select, n_report = (len(run.task.splits.get(name, ())) for name in ("select", "report"))
    n_scored = count_scored(run.config.train, epochs, n_train=n_train, n_select=n_select)
    return n_train * epochs + (n_select * n_scored + n_report) / 2


def _flops(run: Any) -> int:
    """Of training, and of scoring select as often as the run does and report once."""
    from lora_bench.training.cost import run_flops, scoring_flops

    _, tokens = lengths(run)
    train, (n_train, n_select) = run.config.train, (len(run.task.splits.get(name, ())) for name in ("train", "select"))
    trained = round(tokens["train"] * train.epochs)
    n_scored = int(count_scored(train, train.epochs, n_train=n_train, n_select=n_select))
    scored = tokens.get("select", 0) * n_scored + tokens.get("report", 0)
    return run_flops(run.blueprint, run.config, run.matrices, trained) + scoring_flops(run.blueprint, scored)


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
    import time

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
