"""Refuse weights whose numbers cannot be those of a trained model, although names and shapes are right.

A copy that broke off in a file made beforehand ends in zeros; a conversion that went wrong leaves NaN. Every tensor
with a place in the model is read once, which costs less than its hash does.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from lora_bench.config.errors import ConfigError
from lora_bench.models.fused import is_linear
from lora_bench.models.headers import FLOATING, Stored
from lora_bench.models.weights import Fit, head_parameters, plain_name

LARGEST = 1e8
"""Far beyond any weight: a network of larger ones overflows, and bytes in the wrong order are read as such numbers."""


def require_sound(model: PreTrainedModel, fit: Fit, stored: Mapping[str, Stored]) -> None:
    """Refuse weights with a number that no weight is, token embeddings that are all alike, a matrix of the base model
    that is zero, a file that ends in zeros within one, and a norm that is dead.

    Biases, tables of positions and types, rows of unused tokens and matrices of a head may be zero in sound weights;
    what multiplies every token's vector may not. A dead norm gives the same numbers for every input: a LayerNorm whose
    weight is zero everywhere does. Norms that add 1 to their weight (Gemma's) begin with that, and are alive.

    Args:
        model: the skeleton, before its fused projections are split.
        stored: the files' tensors by name.

    Raises:
        ConfigError: names the tensor, its file and what is wrong.
    """
    unused = {plain_name(model, name) for name in fit.unexpected | fit.fresh}
    parameters = {plain_name(model, name) for name, _ in model.named_parameters()}
    norms = {path: module for path, module in model.named_modules() if _is_norm(module)}
    words = _token_embedding(model)
    dense = _dense(model)
    vectors: dict[str, torch.Tensor] = {}
    for name, tensor, is_last in _in_file_order(stored):
        plain = plain_name(model, name)
        is_read = plain in parameters or plain.endswith((".weight", ".bias"))  # or read under a name of another version
        if not is_read or plain in unused or not tensor.numel():
            continue
        smallest, largest = (number.item() for number in tensor.aminmax())
        if not -LARGEST < smallest <= largest < LARGEST:
            number = largest if smallest > -LARGEST else smallest
            raise _refusal(name, stored, f"holds {number:g}, and no trained weight is NaN or beyond {LARGEST:g}")
        if plain == words and smallest == largest:
            raise _refusal(name, stored, f"is {smallest:g} everywhere, so every token is read alike")
        if plain in dense and smallest == largest == 0:
            raise _refusal(name, stored, "is 0 everywhere, so nothing of a text passes it")
        if is_last and plain in dense and not tensor[-1].any():
            raise _refusal(name, stored, "is the last in its file, and ends in zeros, as a copy that broke off does")
        if tensor.ndim == 1:
            vectors[plain] = tensor
    names = {plain_name(model, name): name for name in stored}
    for path, norm in norms.items():
        plain = plain_name(model, f"{path}.weight")
        if plain in vectors and _is_dead(norm, plain.removesuffix("weight"), vectors):
            value = f"is {vectors[plain][0].item():g} everywhere, so nothing of a text passes this norm"
            raise _refusal(names[plain], stored, value)


def _is_norm(module: nn.Module) -> bool:
    shapes = {name: value.ndim for name, value in module.named_parameters()}
    return "Norm" in type(module).__name__ and shapes in ({"weight": 1}, {"weight": 1, "bias": 1})


def _is_dead(norm: nn.Module, prefix: str, vectors: Mapping[str, torch.Tensor]) -> bool:
    """Whether a norm with these vectors gives one output for two inputs."""
    filled: Any = copy.deepcopy(norm).to_empty(device="cpu").float()
    parameters = dict(filled.named_parameters())
    if any(vectors.get(prefix + name, torch.empty(0)).shape != value.shape for name, value in parameters.items()):
        return False
    inputs = torch.arange(1.0, 2 * filled.weight.numel() + 1).sin().view(2, -1)
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(vectors[prefix + name])
        try:
            outputs = filled(inputs)
        except (TypeError, ValueError, RuntimeError):  # one that asks for more than its input
            return False
    return torch.equal(outputs[0], outputs[1])


def _in_file_order(stored: Mapping[str, Stored]) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """Every floating-point tensor with its name, and whether its file ends with it; one file open at a time."""
    for path in dict.fromkeys(tensor.path for tensor in stored.values()):
        with safe_open(path, framework="pt") as file:
            names = file.offset_keys()
            for name in names:
                if stored[name].dtype in FLOATING:
                    yield name, file.get_tensor(name), name == names[-1]


def _dense(model: PreTrainedModel) -> frozenset[str]:
    """The plain names of the matrices by which the base model multiplies."""
    head = set(head_parameters(model))
    paths = (f"{path}.weight" for path, module in model.named_modules() if is_linear(module))
    return frozenset(plain_name(model, path) for path in paths if path not in head)


def _token_embedding(model: PreTrainedModel) -> str | None:
    """The plain name of the table that token ids choose rows of."""
    try:
        table: Any = model.get_input_embeddings()
    except NotImplementedError:
        return None
    paths = (name for name, value in model.named_parameters() if value is getattr(table, "weight", None))
    return next((plain_name(model, path) for path in paths), None)


def _refusal(name: str, stored: Mapping[str, Stored], problem: str) -> ConfigError:
    return ConfigError(
        f"model.name: {name!r} in {str(stored[name].path)!r} {problem}; get the weights once more, or save the model "
        "once more with save_pretrained"
    )
