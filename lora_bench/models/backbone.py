"""Load the frozen backbone's weights as its blueprint says.

A loaded backbone keeps its frozen weights in the compute precision, with fused projections split into one Linear per
role (lora_bench/models/roles.py).
"""

import copy
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from lora_bench.models import headers, last_token, misfit, roles, seeds, weights
from lora_bench.models.blueprint import Blueprint
from lora_bench.models.devices import DTYPES
from lora_bench.models.quiet import quiet


@dataclass(eq=False)
class Backbone:
    """A loaded backbone: frozen, split, in eval mode and in its compute precision.

    Attributes:
        new_modules: the task's head, whether the checkpoint has it or not, and a pooler that it lacks; trained and
            saved.
        fresh_parameters: those that the checkpoint lacks; all of them in `new_modules`.
        frozen_hash: sha256 of every parameter outside `new_modules`.
    """

    blueprint: Blueprint
    model: PreTrainedModel
    new_modules: tuple[str, ...]
    fresh_parameters: frozenset[str]
    precision: str
    device: torch.device
    frozen_hash: str

    def untouched(self) -> PreTrainedModel:
        """A private copy in the Hub's own module layout (fused projections whole) and the same precision, for stock
        peft."""
        if not self.is_split:
            return copy.deepcopy(self.model)
        model, _ = _instantiate(self.blueprint)
        model.requires_grad_(False)
        _place(model, self.precision, self.device)
        return model

    @property
    def inputs(self) -> frozenset[str]:
        """Names of the tensors that the model reads; token types only where it has more than one."""
        has_types = (getattr(self.model.config, "type_vocab_size", 0) or 0) > 1
        return frozenset({"input_ids", "attention_mask", *(["token_type_ids"] if has_types else [])})

    @property
    def trained_dtype(self) -> torch.dtype:
        """The dtype of everything that trains and of its optimizer: small steps on a large value vanish in bf16."""
        return torch.float64 if self.precision == "fp64" else torch.float32

    @property
    def is_split(self) -> bool:
        return any(matrix.fused for matrix in self.blueprint.matrices)


def load(plan: Blueprint, *, precision: str, device: torch.device) -> Backbone:
    """Load a backbone's weights; the last one is kept, so the runs of a sweep share it."""
    return _load(plan, precision, device)


def outline(plan: Blueprint, *, precision: str, device: torch.device) -> Backbone:
    """The backbone without data: its tensors are shapes on the meta device, whatever `device` it is planned for, and
    its head counts as new."""
    model = copy.deepcopy(plan.skeleton)
    last_token.read_by_mask(model)
    model.requires_grad_(False)
    _place(model, precision, torch.device("meta"))
    fresh = frozenset(weights.head_parameters(model))
    return Backbone(plan, model, _new_modules(model, fresh), fresh, precision, device, frozen_hash="")


def weights_hash(named_parameters: Iterable[tuple[str, torch.Tensor]]) -> str:
    """sha256 over names and bytes, in name order."""
    digest = hashlib.sha256()
    for name, parameter in sorted(named_parameters, key=lambda item: item[0]):
        digest.update(name.encode())
        digest.update(parameter.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def frozen_parameters(model: nn.Module, new_modules: Iterable[str]) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters outside the newly initialised modules."""
    prefixes = tuple(f"{name}." for name in new_modules)
    return ((name, parameter) for name, parameter in model.named_parameters() if not name.startswith(prefixes))


def head_state(backbone: Backbone, seed: int) -> dict[str, torch.Tensor]:
    """Initial head of a seed: parameter path -> fp32 tensor (fp64 in fp64 runs); the same for every cell of the seed.

    New parameters are drawn as the architecture itself draws them (`_init_weights`), from the seed's head stream;
    parameters of a head that the checkpoint brings, fine-tuned before, keep their values.
    """
    state: dict[str, torch.Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.derive("head", seed))
        for module_name in backbone.new_modules:
            module = copy.deepcopy(backbone.model.get_submodule(module_name)).to("cpu", torch.float32)
            for part in module.modules():
                for holder in (part, *part.parameters(recurse=False)):
                    if hasattr(holder, "_is_hf_initialized"):
                        delattr(holder, "_is_hf_initialized")
            drawn = copy.deepcopy(module)
            drawn.apply(backbone.model._init_weights)
            for name, parameter in drawn.named_parameters():
                path = f"{module_name}.{name}"
                kept = parameter if path in backbone.fresh_parameters else module.get_parameter(name)
                state[path] = kept.detach().to(backbone.trained_dtype)
    return state


def _load(plan: Blueprint, precision: str, device: torch.device) -> Backbone:
    key = (plan.fingerprint, plan.n_labels, precision, str(device))
    if _LOADED.get("key") != key:
        _LOADED.clear()
        _LOADED.update(key=key, backbone=_read_weights(plan, precision, device))
    return _LOADED["backbone"]


_LOADED: dict[str, Any] = {}


def _read_weights(plan: Blueprint, precision: str, device: torch.device) -> Backbone:
    model, fresh = _instantiate(plan)
    new_modules = _new_modules(model, fresh)
    roles.split_fused(model, plan.config.roles)
    model.requires_grad_(False)
    _place(model, precision, device)
    return Backbone(
        blueprint=plan,
        model=model,
        new_modules=new_modules,
        fresh_parameters=fresh,
        precision=precision,
        device=device,
        frozen_hash=weights_hash(frozen_parameters(model, new_modules)),
    )


def _place(model: nn.Module, precision: str, device: torch.device) -> None:
    """Put a model on its device in its precision, ready to evaluate."""
    model.eval().to(device=device, dtype=DTYPES[precision])


def _instantiate(plan: Blueprint) -> tuple[PreTrainedModel, frozenset[str]]:
    """The model as transformers makes it, on the CPU in fp32, and the parameters that its weights lack.

    Raises:
        ConfigError: when the base model cannot be read whole from the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.derive("random backbone", 0))
        if plan.folder is None:
            with quiet():
                model = AutoModelForSequenceClassification.from_config(plan.architecture)
            last_token.read_by_mask(model)
            return model, frozenset(weights.head_parameters(model))
        tensors: dict[str, torch.Tensor] = {}
        for path in headers.weight_files(plan.folder):
            tensors |= load_file(path)
        model, fit = weights.load_into(type(plan.skeleton), plan.architecture, tensors, device=None)
    misfit.require_base(model, fit, headers.stored(plan.folder))
    last_token.read_by_mask(model)
    return model, fit.fresh


def _new_modules(model: PreTrainedModel, fresh: frozenset[str]) -> tuple[str, ...]:
    """The head, new or fine-tuned before, and the largest other modules whose parameters are all new.

    `classifier` and `score` come first, then the others in the model's order: a seed's head is drawn in this order.
    """
    head = weights.head_modules(model)
    modules = [name for name in head if name in ("classifier", "score")]
    for name, module in model.named_modules():
        paths = [f"{name}.{path}" for path, _ in module.named_parameters()]
        inside = name.startswith(tuple(f"{other}." for other in modules)) or name in modules
        if name and not inside and paths and (name in head or all(path in fresh for path in paths)):
            modules.append(name)
    return tuple(modules)
