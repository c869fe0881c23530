"""Which of a folder's weights a model takes: its whole base model, and as much of its head as fits.

transformers itself decides, given tensors that have a shape and no data, so its own rules apply: prefixes, renamed and
converted parameters, tied ones.
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from lora_bench.models import headers, trial
from lora_bench.models.headers import FLOATING, Stored
from lora_bench.models.quiet import quiet

READ = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Types from which parameters are read: `headers.FLOATING`."""
OTHER_HEADS = ("ForTokenClassification", "ForMultipleChoice", "ForQuestionAnswering", "ForNextSentencePrediction")
"""How classes end whose head may have the name and the shape of a classifier of texts, and is none."""


@dataclass(frozen=True)
class Fit:
    """What a model takes of given weights.

    Attributes:
        missing: parameters that the weights lack.
        mismatched: parameter -> its shape in the weights and in the model, where they differ.
        unexpected: names in the weights for which the model has no place, as transformers would rename them.
        set_aside: parameters of a head that the weights hold and that does not classify texts.
    """

    missing: frozenset[str]
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    unexpected: frozenset[str]
    set_aside: frozenset[str] = frozenset()

    @property
    def fresh(self) -> frozenset[str]:
        """Parameters that are drawn at random."""
        return self.missing | frozenset(self.mismatched) | self.set_aside


@dataclass(frozen=True)
class Head:
    """A classification head that the weights bring.

    Attributes:
        labels: the names of its outputs in config.json, in order.
        parameters: paths, in the order of the model.
    """

    labels: tuple[str, ...]
    parameters: tuple[str, ...]


@functools.cache
def head_of(folder: Path) -> Head | None:
    """The head in a folder's weights, which a task with as many labels starts from; None where every task starts from a
    fresh one. Remembered per process.

    Raises:
        ConfigError: when the weights cannot be read.
    """
    with quiet():
        architecture: Any = AutoConfig.from_pretrained(folder)
    trial.use_present_attention(architecture)
    tensors = headers.stored(folder)
    skeleton = _skeleton(architecture)
    inside = head_parameters(skeleton)
    fit = fit_of(skeleton, tensors)
    rows = {stored[0] for name, (stored, _) in fit.mismatched.items() if name in inside and stored}
    if len(rows) == 1:  # the weights have another number of labels than config.json
        architecture.num_labels = rows.pop()
        skeleton = _skeleton(architecture)
        fit = fit_of(skeleton, tensors)
    if not inside or fit.fresh & set(inside):
        return None
    labels = tuple(str(architecture.id2label.get(index, f"LABEL_{index}")) for index in range(architecture.num_labels))
    return Head(labels, inside)


def head_modules(model: nn.Module) -> tuple[str, ...]:
    """The children of a sequence-classification model outside its base model that have parameters."""
    base = getattr(model, "base_model_prefix", "")
    children = dict(model.named_children())
    if base not in children:
        return tuple(name for name in children if name.endswith(("classifier", "score")))
    return tuple(name for name, child in children.items() if name != base and any(True for _ in child.parameters()))


def head_parameters(model: nn.Module) -> tuple[str, ...]:
    """Paths of the parameters in `head_modules`, in the order of the model."""
    prefixes = tuple(f"{name}." for name in head_modules(model))
    return tuple(name for name, _ in model.named_parameters() if name.startswith(prefixes))


def fit_of(skeleton: PreTrainedModel, tensors: Mapping[str, Stored]) -> Fit:
    """What transformers would take of tensors with these names and shapes, without reading them."""
    shapes = {
        name: torch.empty(tensor.shape, device="meta") for name, tensor in tensors.items() if tensor.dtype in FLOATING
    }
    return load_into(type(skeleton), skeleton.config, shapes, device="meta")[1]


def saved_as_other(architecture: Any) -> bool:
    """Whether config.json says that the weights were saved with a head that does not classify texts."""
    names = architecture.architectures
    return isinstance(names, list) and any(str(name).endswith(OTHER_HEADS) for name in names)


def is_pooler(path: str) -> bool:
    """Whether a parameter belongs to the pooler of a base model, which many checkpoints lack."""
    return "pooler" in path.split(".")


def kept_modules(model: nn.Module, fit: Fit) -> tuple[str, ...]:
    """The head's modules of which the weights bring at least one parameter."""
    fresh = fit.fresh
    return tuple(
        name
        for name in head_modules(model)
        if any(path.startswith(f"{name}.") and path not in fresh for path in head_parameters(model))
    )


def plain_name(model: PreTrainedModel, name: str) -> str:
    """A name of a parameter as the base model itself has it: without its prefix, however often that stands there, and
    with LayerNorm's older names changed. What transformers puts in one place has one name.
    """
    prefix = f"{model.base_model_prefix}."
    known = _names_in_base(model)
    name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
    while name.startswith(prefix) and name not in known:
        name = name.removeprefix(prefix)
    return name


def load_into(
    kind: type[PreTrainedModel], architecture: Any, tensors: Mapping[str, torch.Tensor], *, device: str | None
) -> tuple[PreTrainedModel, Fit]:
    """A model of this kind in fp32 that holds these tensors and nothing else of any folder, and what it took of them.

    Parameters that the tensors lack are drawn from torch's own generator; a head that classifies no texts counts as
    lacking, since its outputs mean something else. So do tensors of other types than `READ`: whole numbers would be
    taken for weights, and quantised ones without their scales. `device` is "meta" or None, which is the CPU.
    """
    tensors = {name: tensor for name, tensor in tensors.items() if tensor.dtype in READ}
    with quiet():
        loaded: Any = kind.from_pretrained(
            None,
            config=architecture,
            state_dict=tensors,
            device_map=device,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    model, report = loaded
    parameters = dict(model.named_parameters())
    missing = frozenset(name for name in report["missing_keys"] if name in parameters)
    mismatched = {name: (tuple(stored), tuple(wanted)) for name, stored, wanted in report["mismatched_keys"]}
    other = head_parameters(model) if saved_as_other(architecture) else ()
    fit = Fit(
        missing=missing,
        mismatched=mismatched,
        unexpected=frozenset(report["unexpected_keys"]),
        set_aside=frozenset(other) - missing - frozenset(mismatched),
    )
    return model, fit


@functools.lru_cache(maxsize=8)
def _names_in_base(model: PreTrainedModel) -> frozenset[str]:
    base = getattr(model, model.base_model_prefix, model)
    return frozenset(name for name, _ in base.named_parameters())


def _skeleton(architecture: Any) -> PreTrainedModel:
    with torch.device("meta"), quiet():
        return AutoModelForSequenceClassification.from_config(architecture)
