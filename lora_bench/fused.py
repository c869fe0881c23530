"""Split fused projections into one linear layer per matrix, and fold their adapters back.

With P_i the 0/1 matrix that places the rows of part i among the fused rows (a Layout),

    W_fused = sum_i P_i W_i
    sum_i P_i (s_i B_i A_i) = s [P_1 (s_1/s) B_1 | P_2 (s_2/s) B_2 | ...] [A_1; A_2; ...]

so each part can carry an adapter of its own, and the adapters of all parts are together one LoRA of the fused weight,
whose rank is the sum of theirs. GPT-2 stores its weights transposed (Conv1D); they become plain linear layers here.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_bench.config import ConfigError
from lora_bench.families import Layout


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
        return self.get_submodule(self.layout.roles[0]).in_features  # pyright: ignore[reportReturnType]

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
    return int(module.in_features), int(module.out_features)  # pyright: ignore[reportArgumentType]


def split_projection(path: str, module: nn.Module, layout: Layout) -> FusedProjection:
    """The same projection with one linear layer per part; dtype, device, bias and requires_grad stay as they are.

    Raises:
        ConfigError: when the weight is quantised or sharded, so its rows cannot be taken apart.
    """
    weight, bias = _dense_weight(path, module)
    parts = {}
    for role in layout.roles:
        rows = torch.from_numpy(layout.rows(role)).to(weight.device)
        parts[role] = _linear(
            weight.detach()[rows], None if bias is None else bias.detach()[rows], weight.requires_grad
        )
    return FusedProjection(layout, parts, was_conv1d=isinstance(module, Conv1D))


def linear_from_conv1d(path: str, module: Conv1D) -> nn.Linear:
    """The linear layer that computes what a Conv1D does."""
    weight, bias = _dense_weight(path, module)
    assert bias is not None
    return _linear(weight.detach().clone(), bias.detach().clone(), weight.requires_grad, kind=LinearFromConv1D)


def _dense_weight(path: str, module: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight as (d_out, d_in), and bias."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    d_in, d_out = shape_of(module)
    stored = (d_in, d_out) if isinstance(module, Conv1D) else (d_out, d_in)
    is_plain = isinstance(weight, torch.Tensor) and type(weight.detach()) is torch.Tensor
    if not is_plain or not weight.is_floating_point() or tuple(weight.shape) != stored:
        raise ConfigError(
            f"model.name: {path} ({type(module).__name__}) holds quantised or sharded weights, which cannot be split "
            f"into its matrices; load the backbone unquantised and on one device"
        )
    return (weight.T if isinstance(module, Conv1D) else weight), bias


def _linear(
    weight: torch.Tensor, bias: torch.Tensor | None, requires_grad: bool, kind: type[nn.Linear] = nn.Linear
) -> nn.Linear:
    d_out, d_in = weight.shape
    linear = kind(d_in, d_out, bias=bias is not None, device="meta", dtype=weight.dtype)
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(bias.contiguous(), requires_grad=requires_grad)
    return linear
