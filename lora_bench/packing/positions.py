"""DeBERTa in a pack: its query and key weights also project relative positions, which have no batch.

Adapted weights give every run its own projected positions, (P, 2k, D), where transformers expects the one copy of a
batch-free input and repeats it along the batch. These helpers repeat each run's copy along that run's rows, and draw
the positions' dropout once a step instead of once a row. Source: He et al. 2021, arXiv:2006.03654, section 3.1, as in
transformers' DisentangledSelfAttention.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

FAMILIES = ("deberta", "deberta-v2")


class PerRun:
    """Projected positions of every run, (P * H, 2k, D), not yet repeated along the batch."""

    def __init__(self, x: torch.Tensor, n_runs: int) -> None:
        self.x, self.n_runs = x, n_runs

    def repeat(self, n_rows: int, *_: int) -> torch.Tensor:
        """(P * B * H, 2k, D), run after run; replaces transformers' call of Tensor.repeat(P * B, 1, 1)."""
        x_PHKD = self.x.view(self.n_runs, 1, -1, *self.x.shape[1:])
        return x_PHKD.expand(-1, n_rows // self.n_runs, *[-1] * 3).reshape(-1, *self.x.shape[1:])


class PositionDropout(nn.Module):
    """Dropout of the relative embeddings, (2k, D): no rows to share a mask between, so one mask for all runs."""

    def __init__(self, masks: Any, p: float) -> None:
        super().__init__()
        self._masks, self.p = [masks], p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._masks[0].drop_whole(x, self.p) if self.training else x


def attentions(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Path and module of every disentangled attention."""
    return (
        (name, module)
        for name, module in model.named_modules()
        if hasattr(module, "pos_att_type") and hasattr(module, "pos_dropout")
    )


def mark_per_run(projected: Any) -> None:
    """Mark a tensor as holding a projection for every run, for `split_by_run`."""
    projected.per_run = True


def split_by_run(attention: Any, n_runs: int) -> Callable[..., Any]:
    """`transpose_for_scores` that keeps runs apart in what a packed projection marked as `per_run`."""
    original = attention.transpose_for_scores

    def transpose_for_scores(x: torch.Tensor, *n_heads: int) -> Any:
        scores = original(x, *n_heads)
        return PerRun(scores, n_runs) if getattr(x, "per_run", False) else scores

    return transpose_for_scores
