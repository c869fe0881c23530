"""On the real backbone: each subset of the attention matrices trains, and packed runs agree with runs alone on GLUE."""

import itertools
import os
from pathlib import Path

import pytest
import torch

from lora_bench.store.folder import Store

REAL_GLUE = Path(os.environ.get("LORA_BENCH_GLUE", Path(__file__).resolve().parents[2] / "shared" / "glue"))
SUBSETS = ["".join(roles) for size in (1, 2, 3, 4) for roles in itertools.combinations("qkvo", size)]

pytestmark = pytest.mark.slow


def sweep(command, store: str, *arguments: str) -> Store:
    ended = command("-m", "tracking=none", "model=minilm", f"store={store}", *arguments)
    assert ended.status == 0, ended.text
    return Store(store)


def test_every_subset_of_the_attention_matrices_trains_in_one_sweep(command):
    store = sweep(
        command,
        "runs",
        f"adapter.targets={','.join(SUBSETS)}",
        "adapter.rank=4",
        "task=acceptability",
        "task.train_rows=256",
        "task.select_rows=64",
        "task.report_rows=100",
        "train.epochs=1",
    )
    frame = store.frame()
    assert sorted(frame["targets"]) == sorted(SUBSETS)
    assert set(frame["status"]) == {"finished"}
    alone = frame.set_index("targets")["adapter_parameters"]
    assert all(alone[targets] == sum(alone[role] for role in targets) for targets in SUBSETS)


@pytest.mark.skipif(not REAL_GLUE.exists(), reason="no real GLUE rows")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("task", "metric", "chance", "settings"),
    [
        ("sst2", "accuracy", 0.65, ["task.train_rows=2000", "train.epochs=1", "train.lr=3e-3"]),
        ("cola", "matthews", 0.05, ["train.epochs=4", "train.lr=1e-3"]),
    ],
)
def test_packed_and_solo_agree_on_real_rows(command, monkeypatch, precision, task, metric, chance, settings):
    """Labels of at least 99.5 % of the report rows, after a training that has learned something.

    On CoLA a run lingers at the majority class for hundreds of steps, and when it leaves, the last bit decides how. So
    a run may differ there if it also differs from itself alone with another number of threads, which sums in another
    order; its losses must still agree until then.
    """
    common = [
        f"task={task}",
        f"task.data_dir={REAL_GLUE / task}",
        "task.select_rows=200",
        "adapter.rank=4",
        "train.batch_size=16",
        f"train.precision={precision}",
        *settings,
    ]
    three = "adapter.targets=o,qv,qkvo"
    packed = sweep(command, "packed", *common, three, "hydra.sweeper.pack_size=3")
    solo = sweep(command, "solo", *common, three, "hydra.sweeper.pack_size=1")
    frame = packed.frame()
    assert set(frame["pack_size"]) == {3} and set(solo.frame()["pack_size"]) == {1}
    assert frame[f"report_{metric}"].min() > chance, frame[["targets", f"report_{metric}"]]
    for run_id, targets in frame[["run_id", "targets"]].itertuples(index=False):
        agree = agreement(packed, solo, run_id, run_id)
        print(task, precision, targets, f"{agree:.4%}")
        if agree >= 0.995:
            continue
        assert task == "cola", (targets, agree)
        losses = [one.record(run_id)["history"]["loss"][:50] for one in (packed, solo)]  # of 250 steps
        assert losses[0] == pytest.approx(losses[1], rel=1e-4 if precision == "fp32" else 2e-2)
        n_threads = torch.get_num_threads()
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        try:
            again = sweep(command, f"one-{targets}", *common, f"adapter.targets={targets}", "hydra.sweeper.pack_size=1")
        finally:
            torch.set_num_threads(n_threads)
        monkeypatch.delenv("OMP_NUM_THREADS")
        with_itself = agreement(solo, again, run_id, again.frame()["run_id"].iloc[0])
        print(task, precision, targets, "alone with another number of threads", f"{with_itself:.4%}")
        assert with_itself < 0.995, "the run is determined to the last bit, and the pack is another"


def agreement(one: Store, other: Store, run_id: str, other_id: str) -> float:
    """The share of report rows to which two runs give the same label."""
    ours, theirs = (
        store.predictions(name).query("split == 'report'") for store, name in ((one, run_id), (other, other_id))
    )
    assert len(ours) == len(theirs) > 500
    labels = [rows.filter(like="logit_").to_numpy().argmax(axis=1) for rows in (ours, theirs)]
    return float((labels[0] == labels[1]).mean())
