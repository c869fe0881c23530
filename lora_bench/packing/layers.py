"""Heads of many runs side by side: dense layers and norms that every run trains for itself."""


# P runs in the pack, M runs that adapt a matrix, B rows of the batch, N rows x tokens of one run, D width in, O width
# out, R padded rank

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from lora_bench.packing.packed import Stacked, Trained


class PackedDense(nn.Module):
    """A head's Linear, one for each run, in the head's own precision. weight: (P, O, D), bias: (P, O) or none."""

    def __init__(self, pack: Stacked, path: str, stacks: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self._pack, self._path = pack, path
        self.stack_weight = nn.Parameter(stacks["weight"])
        self.stack_bias = nn.Parameter(stacks["bias"]) if "bias" in stacks else None

    @property
    def weight(self) -> torch.Tensor:
        """Some models look at a head's dtype through its weight."""
        return self.stack_weight

    def trained(self) -> Iterator[Trained]:
        return _head_trained(self._path, self._pack.n_runs, weight=self.stack_weight, bias=self.stack_bias)

    def tensors(self, path: str, run: int) -> Iterator[tuple[str, torch.Tensor]]:
        return _head_tensors(path, run, weight=self.stack_weight, bias=self.stack_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pack = self._pack
        x = pack.repeat(x).to(self.stack_weight.dtype)
        x_PND = x.reshape(pack.n_runs, -1, x.shape[-1])
        if self.stack_bias is None:
            y_PNO = torch.bmm(x_PND, self.stack_weight.mT)
        else:
            y_PNO = torch.baddbmm(self.stack_bias[:, None], x_PND, self.stack_weight.mT)
        return y_PNO.view(*x.shape[:-1], -1)


class PackedNorm(nn.Module):
    """A head's LayerNorm, one for each run. weight and bias: (P, D)."""

    def __init__(self, pack: Stacked, path: str, stacks: dict[str, torch.Tensor], eps: float) -> None:
        super().__init__()
        self._pack, self._path, self.eps = pack, path, eps
        self.stack_weight = nn.Parameter(stacks["weight"])
        self.stack_bias = nn.Parameter(stacks["bias"]) if "bias" in stacks else None

    def trained(self) -> Iterator[Trained]:
        return _head_trained(self._path, self._pack.n_runs, weight=self.stack_weight, bias=self.stack_bias)

    def tensors(self, path: str, run: int) -> Iterator[tuple[str, torch.Tensor]]:
        return _head_tensors(path, run, weight=self.stack_weight, bias=self.stack_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pack = self._pack
        x = pack.repeat(x).to(self.stack_weight.dtype)
        y_PND = (
            F.layer_norm(x, x.shape[-1:], eps=self.eps).reshape(pack.n_runs, -1, x.shape[-1])
            * self.stack_weight[:, None]
        )
        return (y_PND if self.stack_bias is None else y_PND + self.stack_bias[:, None]).view(x.shape)


def _head_trained(path: str, n_runs: int, **stacks: nn.Parameter | None) -> Iterator[Trained]:
    for name, stack in stacks.items():
        if stack is not None:
            yield Trained(
                f"{path}.{name}", "head", stack, torch.arange(n_runs, device=stack.device), decays=stack.dim() > 2
            )


def _head_tensors(path: str, run: int, **stacks: nn.Parameter | None) -> Iterator[tuple[str, torch.Tensor]]:
    for name, stack in stacks.items():
        if stack is not None:
            yield f"{path}.{name}", stack[run].detach().clone()
