"""Dropout whose masks belong to the seed and not to the pack.

A mask is drawn for the B rows of a batch, from a generator that belongs to the seed, and repeated along the pack, so
that a packed run and a solo run of one seed drop the same activations.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from lora_bench.models import seeds


class DropoutMasks(TorchFunctionMode):
    """Dropout masks of one seed, one for each site and batch, shared by the runs of a pack.

    `F.dropout` takes no generator and its draw depends on the shape, so packed could never equal solo. Rates
    are the backbone's own unless `rate` overrides them.
    """

    def __init__(self, pack: Any, rate: float | None, seed: int) -> None:
        super().__init__()
        self._pack, self.rate, self.seed = pack, rate, seed
        self.stream = seeds.generator("dropout", seed, device=pack.backbone.device)
        own = [module.p for module in pack.model.modules() if isinstance(module, nn.Dropout)]
        own += [
            float(value) for key, value in vars(pack.model.config).items() if "drop" in key and isinstance(value, float)
        ]
        self.active = rate > 0 if rate is not None else any(own)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.dropout:
            return func(*args, **kwargs)
        return self._dropout(*args, **kwargs)

    def drop_whole(self, input: torch.Tensor, p: float) -> torch.Tensor:
        """Dropout of an input without a batch: one mask of its whole shape."""
        rate = p if self.rate is None else self.rate
        if rate == 0:
            return input
        kept = torch.rand(input.shape, generator=self.stream, device=input.device) >= rate
        return input * (kept / (1 - rate)).to(input.dtype)

    def _dropout(
        self, input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> torch.Tensor:
        rate = p if self.rate is None else self.rate
        if not training or rate == 0:
            return input
        shape = (self._pack.rows, *input.shape[1:])
        kept = torch.rand(shape, generator=self.stream, device=input.device) >= rate
        mask = (kept / (1 - rate)).to(input.dtype)
        repeats = input.shape[0] // shape[0]
        return input * (mask if repeats == 1 else mask.repeat(repeats, *[1] * (input.dim() - 1)))
