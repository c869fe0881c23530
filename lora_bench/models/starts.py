"""Where A starts, drawn from the run's own stream with torch alone: an analysis draws it again without peft."""

from __future__ import annotations

import math

import torch
from torch import nn

from lora_bench.models import seeds

DRAWN = ("gaussian", "kaiming", "peft_gaussian")
"""Starts that are drawn; the others are made of the weight."""


def init_scale(init: str, d_in: int, rank: int) -> float | None:
    """Standard deviation of A's entries at the start; None where it depends on the weights (pissa, olora)."""
    return {"gaussian": 1 / math.sqrt(3 * d_in), "kaiming": 1 / math.sqrt(3 * d_in), "peft_gaussian": 1 / rank}.get(
        init
    )


def draw_A(
    init: str, module: str, shape: tuple[int, int], *, seed: int, replicate: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """A of one matrix before the first step, from the stream of the run's seed, replicate, matrix and rank.

    Args:
        init: one of `DRAWN`; the others derive A from the weight.
        shape: (rank, d_in).
        dtype: of the result; the draw itself is float32.
    """
    rank, d_in = shape
    stream = seeds.generator("adapter", seed, replicate, module, rank)
    A = torch.empty(shape)
    if init == "kaiming":
        nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=stream)
    else:
        std = init_scale(init, d_in, rank)
        assert std is not None, f"init={init} does not draw A"
        nn.init.normal_(A, std=std, generator=stream)
    return A.to(dtype)
