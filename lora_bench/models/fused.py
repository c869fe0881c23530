"""Split fused projections into one linear layer per matrix, and fold their adapters back.

With P_i the 0/1 matrix that places the rows of part i among the fused rows (a Layout),

    W_fused = sum_i P_i W_i
    sum_i P_i (s_i B_i A_i) = s [P_1 (s_1/s) B_1 | P_2 (s_2/s) B_2 | ...] [A_1; A_2; ...]

so each part can carry an adapter of its own, and together the adapters of all parts are one LoRA of the fused weight,
whose rank is the sum of theirs. GPT-2 stores its weights transposed (Conv1D); they become plain linear layers here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_bench.config.errors import ConfigError
from lora_bench.models.families import Layout


class FusedProjection(nn.Module):
    """One linear child per part; the output has the rows in the fused order."""

    def __init__(self, layout: Layout, parts: Mapping[str, nn.Linear], *, was_conv1d: bool) -> None:
        super().__init__()
        self.layout = layout
        self.was_conv1d = was_conv1d
        for role in layout.roles:
            self.add_module(role, parts[role])

    @property
    def d_in(self) -> int:
        return shape_of(self.get_submodule(self.layout.roles[0]))[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        groups = self.layout.groups
        outputs = [self.get_submodule(role)(x) for role in self.layout.roles]
        if groups == 1:
            return torch.cat(outputs, dim=-1)
        return torch.cat([output.unflatten(-1, (groups, -1)) for output in outputs], dim=-1).flatten(-2)


class LinearFromConv1D(nn.Linear):
    """A linear layer that holds the transposed weight of a Conv1D."""


def is_linear(module: nn.Module) -> bool:
    """Whether `module` multiplies by one weight matrix; quantised layers count."""
    if isinstance(module, (nn.Linear, Conv1D)):
        return True
    return isinstance(getattr(module, "in_features", None), int) and isinstance(
        getattr(module, "out_features", None), int
    )


def shape_of(module: nn.Module) -> tuple[int, int]:
    """(d_in, d_out) of a linear layer or Conv1D."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    d_in, d_out = (int(getattr(module, name)) for name in ("in_features", "out_features"))
    return d_in, d_out


def split_projection(path: str, module: nn.Module, layout: Layout) -> FusedProjection:
    """The same projection with one linear layer per part; dtype, device, bias and requires_grad stay as they are.

    Raises:
        ConfigError: when the weight is quantised or sharded, so its rows cannot be separated.
    """
    weight, bias = _dense_weight(path, module)
    parts = {}
    for role in layout.roles:
        rows = torch.from_numpy(layout.rows(role)).to(weight.device)
        parts[role] = _linear(_taken(weight, rows), None if bias is None else _taken(bias, rows))
    return FusedProjection(layout, parts, was_conv1d=isinstance(module, Conv1D))


def linear_from_conv1d(path: str, module: Conv1D) -> nn.Linear:
    """The linear layer that computes what a Conv1D does."""
    weight, bias = _dense_weight(path, module)
    assert bias is not None
    weight = nn.Parameter(weight.detach().contiguous(), requires_grad=weight.requires_grad)
    return _linear(weight, bias, kind=LinearFromConv1D)


def fuse_adapter(
    model: nn.Module, pieces: Mapping[str, tuple[torch.Tensor, torch.Tensor, float]]
) -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
    """The same update, as one (A, B, scale) per module of the untouched Hub model.

    Args:
        model: the split backbone (its weights are not read, so a skeleton will do).
        pieces: module path in the split backbone -> (A (rank, d_in), B (d_out, rank), scale); update = scale * B A.

    Returns:
        Module path in the Hub model -> (A, B, scale), in the order of `pieces`. Parts of one fused projection are
        stacked: its rank is the sum of theirs, and rows that no part owns are zero.
    """
    fused: dict[str, tuple[torch.Tensor, torch.Tensor, float]] = {}
    by_projection: dict[str, dict[str, tuple[torch.Tensor, torch.Tensor, float]]] = {}
    for path, piece in pieces.items():
        parent, _, role = path.rpartition(".")
        if isinstance(model.get_submodule(parent), FusedProjection):
            by_projection.setdefault(parent, {})[role] = piece
            fused.setdefault(parent, piece)  # keeps its place
        else:
            fused[path] = piece
    for path, parts in by_projection.items():
        projection = model.get_submodule(path)
        assert isinstance(projection, FusedProjection)
        fused[path] = _stacked(projection.layout, parts)
    return fused


def peft_files(
    model: nn.Module, pieces: Mapping[str, tuple[torch.Tensor, torch.Tensor, float]]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What stock peft needs to put `pieces` on the untouched Hub model: LoraConfig keywords and checkpoint tensors.

    The configuration names full module paths, with a rank and an alpha for each where they differ. The caller adds
    heads and other modules that are saved whole.
    """
    fused = fuse_adapter(model, pieces)
    ranks = {path: a.shape[0] for path, (a, _, _) in fused.items()}
    alphas = {path: _tidy(scale * ranks[path]) for path, (_, _, scale) in fused.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    config: dict[str, Any] = {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(fused),
        "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
        "fan_in_fan_out": any(_was_conv1d(model.get_submodule(path)) for path in fused),
        "bias": "none",
    }
    tensors = {}
    for path, (a, b, _) in fused.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = a.contiguous()
        tensors[f"base_model.model.{path}.lora_B.weight"] = b.contiguous()
    return config, tensors


def fuse_magnitudes(model: nn.Module, magnitudes: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """DoRA's magnitudes, one per output row, on module paths of the Hub model.

    Rows of a fused weight whose part has none get the norm of the frozen row, with which DoRA leaves them unchanged.
    """
    fused: dict[str, torch.Tensor] = {}
    for path, magnitude in magnitudes.items():
        parent, _, role = path.rpartition(".")
        projection = model.get_submodule(parent)
        if not isinstance(projection, FusedProjection):
            fused[path] = magnitude
            continue
        layout = projection.layout
        if parent not in fused:
            fused[parent] = magnitude.new_empty(layout.d_out)
            for other in layout.roles:
                part = projection.get_submodule(other)
                weight = getattr(part, "base_layer", part).get_parameter("weight").detach()
                fused[parent][torch.from_numpy(layout.rows(other))] = weight.to(magnitude).norm(dim=1)
        fused[parent][torch.from_numpy(layout.rows(role))] = magnitude
    return fused


def fuse_state(model: nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights and biases of the split backbone under the names, and in the shapes, of the Hub model.

    Parts of a fused tensor that `state` lacks are taken from `model`.
    """
    fused: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        path, _, kind = name.rpartition(".")
        parent = path.rpartition(".")[0]
        projection = model.get_submodule(parent)
        if isinstance(projection, FusedProjection):
            if f"{parent}.{kind}" in fused:
                continue
            layout = projection.layout
            parts = {role: state.get(f"{parent}.{role}.{kind}") for role in layout.roles}
            whole = tensor.new_empty((layout.d_out, *tensor.shape[1:]))
            for role, part in parts.items():
                rows = torch.from_numpy(layout.rows(role)).to(whole.device)
                whole[rows] = projection.get_submodule(role).get_parameter(kind).detach() if part is None else part
            fused[f"{parent}.{kind}"] = whole.T.contiguous() if projection.was_conv1d and kind == "weight" else whole
        elif kind == "weight" and _was_conv1d(model.get_submodule(path)):
            fused[name] = tensor.T.contiguous()
        else:
            fused[name] = tensor
    return fused


def _stacked(
    layout: Layout, parts: Mapping[str, tuple[torch.Tensor, torch.Tensor, float]]
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """One LoRA of the fused weight from those of its parts."""
    roles = [role for role in layout.roles if role in parts]
    common = max((parts[role][2] for role in roles), key=abs)
    a_fused = torch.cat([parts[role][0] for role in roles])
    _, b_first, _ = parts[roles[0]]
    b_fused = b_first.new_zeros((layout.d_out, a_fused.shape[0]))
    start = 0
    for role in roles:
        a, b, scale = parts[role]
        rows = torch.from_numpy(layout.rows(role)).to(b.device)
        b_fused[rows, start : start + a.shape[0]] = b if scale == common else b * (scale / common)
        start += a.shape[0]
    return a_fused, b_fused, common


def _was_conv1d(module: nn.Module) -> bool:
    if isinstance(module, FusedProjection):
        return module.was_conv1d
    return isinstance(getattr(module, "base_layer", module), (LinearFromConv1D, Conv1D))


def _tidy(number: float) -> float | int:
    return int(number) if float(number).is_integer() else float(number)


def _dense_weight(path: str, module: nn.Module) -> tuple[torch.Tensor, nn.Parameter | None]:
    """Weight as (d_out, d_in), and bias."""
    weight: Any = getattr(module, "weight", None)
    bias: Any = getattr(module, "bias", None)
    d_in, d_out = shape_of(module)
    stored = (d_in, d_out) if isinstance(module, Conv1D) else (d_out, d_in)
    is_plain = isinstance(weight, torch.Tensor) and type(weight.detach()) is torch.Tensor
    if not (is_plain and weight.is_floating_point() and tuple(weight.shape) == stored):
        raise ConfigError(
            f"model.name: {path} ({type(module).__name__}) holds quantised or sharded weights, which cannot be split "
            f"into its matrices; load the backbone unquantised and on one device"
        )
    return (weight.T if isinstance(module, Conv1D) else weight), bias


def _taken(tensor: torch.Tensor, rows: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach()[rows].contiguous(), requires_grad=tensor.requires_grad)


def _linear(weight: nn.Parameter, bias: nn.Parameter | None, kind: type[nn.Linear] = nn.Linear) -> nn.Linear:
    d_out, d_in = weight.shape
    linear = kind(d_in, d_out, bias=bias is not None, device="meta", dtype=weight.dtype)
    linear.weight = weight
    if bias is not None:
        linear.bias = bias
    return linear
