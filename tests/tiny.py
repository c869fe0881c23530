"""Configurations of runs that train in a second: a random backbone, a few embedded rows."""

import copy
from typing import Any

from lora_bench.config.compose import parse
from lora_bench.config.schema import RunConfig

VALUES: dict[str, Any] = {
    "model": {
        "name": "tiny",
        "weights": "random",
        "architecture": {
            "model_type": "bert",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "vocab_size": 300,
            "max_position_embeddings": 128,
        },
    },
    "task": {"name": "acceptability", "source": "generated", "train_rows": 64, "report_rows": 40},
    "adapter": {
        "method": "lora",
        "targets": "qv",
        "rank": 4,
        "alpha": 16,
        "alpha_policy": "fixed",
        "dropout": 0.0,
        "init": "gaussian",
        "layers": "all",
        "replicate": 0,
    },
    "train": {
        "lr": 1e-2,
        "head_lr": 1e-2,
        "epochs": 2,
        "batch_size": 16,
        "grad_accumulation": 1,
        "max_length": 64,
        "schedule": "linear",
        "warmup_ratio": 0.06,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "precision": "fp32",
        "checkpoint": "last",
    },
    "tracking": {"backend": "none"},
    "seed": 0,
    "store": "unused",
}


def tiny_config(**overrides: Any) -> RunConfig:
    """A checked tiny run; keys are dotted paths with `__` for the dot: `adapter__rank=2`."""
    values = copy.deepcopy(VALUES)
    for path, value in overrides.items():
        *parents, leaf = path.split("__")
        place = values
        for parent in parents:
            place = place[parent]
        place[leaf] = value
    if values["task"]["source"] == "generated":
        values["task"].setdefault("select_rows", 80)  # a tenth would be 800, scored by every run
    return parse(values)
