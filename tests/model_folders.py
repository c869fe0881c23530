"""Small model folders as people have them, and ways in which they go wrong."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification

from architectures import ARCHITECTURES, tiny_config
from configs import composed
from lora_bench.config.compose import parse
from lora_bench.config.schema import ModelConfig
from lora_bench.models import blueprint
from lora_bench.models.blueprint import byte_tokenizer

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def saved(folder: Path, name: str = "bert", *, kind: Any = AutoModel, shards: str = "1GB", **more: object) -> Path:
    """A tiny seeded model of an architecture with the byte tokenizer, as `save_pretrained` leaves it."""
    model_type, values = ARCHITECTURES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind.from_config(tiny_config(model_type, {**values, "vocab_size": 300}, **more))
    model.save_pretrained(folder, max_shard_size=shards)
    byte_tokenizer().save_pretrained(folder)
    return folder


def fine_tuned(folder: Path, name: str, *, n_labels: int = 2) -> Path:
    return saved(folder, name, kind=AutoModelForSequenceClassification, num_labels=n_labels)


def planned(folder: Path, n_labels: int = 2) -> blueprint.Blueprint:
    """What planning knows of a folder."""
    return blueprint.blueprint(replace(_default_model(), name=str(folder)), n_labels)


@functools.cache
def _default_model() -> ModelConfig:
    return parse(composed("tracking=none")).model


def configure(folder: Path, **values: object) -> None:
    """Change values of config.json; ... takes a key out."""
    path = folder / "config.json"
    document = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not ...}), encoding="utf-8")


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Rewrite model.safetensors."""
    path = folder / WEIGHTS
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file({name: tensor.contiguous() for name, tensor in edit(tensors).items()}, path, metadata={"format": "pt"})


def rename(folder: Path, new: Callable[[str], str]) -> None:
    change(folder, lambda tensors: {new(name): tensor for name, tensor in tensors.items()})
