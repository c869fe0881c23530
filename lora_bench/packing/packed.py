"""What a pack offers: to its modules, and to the optimizer."""


# P runs in the pack, M runs that adapt a matrix, B rows of the batch, N rows x tokens of one run, D width in, O width
# out, R padded rank

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from lora_bench.packing.dropout import DropoutMasks


@dataclass(frozen=True)
class Trained:
    """Trained tensors. `parameter`: (n, ...), a slice for each of `runs`: (n,); where one run trains it, of any
    shape."""

    name: str
    kind: str  # A | B | head
    parameter: nn.Parameter
    runs: torch.Tensor
    decays: bool  # weight decay spares biases and norms, as the HF Trainer does


class Stacked(Protocol):
    """A pack as its modules see it."""

    n_runs: int
    rows: int
    training: bool
    adapters_on: bool
    adapter_dropouts: list[float]
    masks: DropoutMasks

    def repeat(self, x: torch.Tensor) -> torch.Tensor:
        """What all runs share, once for each of them."""
        ...
