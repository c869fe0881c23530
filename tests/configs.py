"""Configurations, composed as the command line composes them."""

import copy
import functools
from dataclasses import replace

from hydra import compose, initialize_config_dir

from lora_bench.config.compose import parse
from lora_bench.launch.plan import Candidate
from lora_bench.paths import resource_root

ROOT = resource_root()


def names(folder):
    return sorted(path.stem for path in (ROOT / folder).glob("*.yaml"))


def composed(*overrides):
    return copy.deepcopy(_composed(overrides))


@functools.cache
def _composed(overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=list(overrides))


SMALL = (
    "model=tiny",
    "tracking=none",
    "task.train_rows=40",
    "task.report_rows=20",
    "train.epochs=1",
    "train.max_length=32",
)


def candidates(*points, store):
    """Points as a sweep has them; the store, which is another in every test, is no reason to compose anew."""
    return [Candidate(replace(parse(composed(*SMALL, *point)), store=str(store)), tuple(point)) for point in points]
