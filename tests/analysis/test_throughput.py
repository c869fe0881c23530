"""Throughput is measured on the runs that `lora-bench` composes, not on a copy of its configuration."""

import pytest

from analysis import throughput
from configs import composed
from lora_bench.config.compose import parse

SAME = ("tracking=none", "device=cpu", "task.report_rows=64", "adapter.rank=null", "adapter.budget=q@8")
SMALL = ("--rows", "48", "--batch-size", "8", "--epochs", "2", "--precision", "fp32", "--child", "packed", "--pack")
WORDS = ("task.train_rows=48", "train.batch_size=8", "train.epochs=2", "train.precision=fp32", *SAME)


@pytest.mark.parametrize("task", ["acceptability", "similarity", "cola"])
def test_an_arm_trains_what_the_command_line_composes(task):
    """A copy of conf/ took regression tasks for classification, and followed no change of a default."""
    configs = throughput.configurations(throughput.parse(["--task", task, *SMALL, "9"]))
    assert [config.adapter.targets for config in configs] == [*throughput.PLACEMENTS, "q", "k"]
    for config, targets, rate in ((configs[5], "qv", 1e-3), (configs[8], "k", 2e-3)):
        point = (f"task={task}", f"adapter.targets={targets}", f"train.lr={rate}")
        assert config == parse(composed(*WORDS, *point))


def test_the_backbone_of_the_papers_size_is_drawn_at_random():
    """Measuring speed needs no download."""
    (config,) = throughput.configurations(throughput.parse(["--backbone", "roberta_base", *SMALL, "1"]))
    assert (config.model.weights, dict(config.model.architecture or {})) == ("random", throughput.ROBERTA_BASE)
