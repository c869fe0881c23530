"""On the real backbone: each subset of the attention matrices trains, and packed runs agree with runs alone on GLUE."""

import itertools
import os
from pathlib import Path

import pytest

from lora_bench.store import Store

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
def test_packed_and_solo_agree_on_real_rows(command, precision, task, metric, chance, settings):
    """Labels of at least 99.5 % of the report rows, after a training that has learned something."""
    common = [
        f"task={task}",
        f"task.data_dir={REAL_GLUE / task}",
        "task.select_rows=200",
        "adapter.targets=o,qv,qkvo",
        "adapter.rank=4",
        "train.batch_size=16",
        f"train.precision={precision}",
        *settings,
    ]
    packed = sweep(command, "packed", *common, "hydra.sweeper.pack_size=3")
    solo = sweep(command, "solo", *common, "hydra.sweeper.pack_size=1")
    frame = packed.frame()
    assert set(frame["pack_size"]) == {3} and set(solo.frame()["pack_size"]) == {1}
    assert frame[f"report_{metric}"].min() > chance, frame[["targets", f"report_{metric}"]]
    for run_id in frame["run_id"]:
        ours, alone = (each.predictions(run_id).query("split == 'report'") for each in (packed, solo))
        assert len(ours) == len(alone) > 500
        labels = [one.filter(like="logit_").to_numpy().argmax(axis=1) for one in (ours, alone)]
        agree = (labels[0] == labels[1]).mean()
        print(task, precision, run_id, f"{agree:.4%}")
        assert agree >= 0.995
