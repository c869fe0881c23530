"""Runs that could not move at all."""

import pytest

from lora_bench.config.errors import ConfigError
from lora_bench.store.folder import Store
from lora_bench.training.resolve import resolve
from lora_bench.training.run import run_pack
from tiny import tiny_config

ONE_STEP = {"task__train_rows": 16, "train__batch_size": 16, "train__epochs": 1}


@pytest.mark.parametrize(
    "values",
    [
        ONE_STEP,
        ONE_STEP | {"train__batch_size": 64},
        {"train__epochs": 0.1},
        ONE_STEP | {"train__schedule": "constant"},
    ],
    ids=["one_batch", "large_batch", "part_of_an_epoch", "constant"],
)
def test_one_step_of_warm_up_is_refused_before_training(values):
    """Its rate is 0: the run would end on the guard that asks whether anything moved."""
    with pytest.raises(ConfigError, match=r"^train\.epochs: .* train\.warmup_ratio=0\.06 .*train\.batch_size"):
        resolve(tiny_config(**values))


@pytest.mark.parametrize("values", [ONE_STEP | {"train__warmup_ratio": 0.0}, ONE_STEP | {"train__epochs": 2}])
def test_what_the_refusal_of_one_step_offers_trains(values, tmp_path):
    (record,) = run_pack([resolve(tiny_config(**values))], Store(tmp_path / "runs"))
    assert record["status"] == "finished", record["error"]
