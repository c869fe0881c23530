"""A frozen Linear with the low-rank updates of many runs: one base product for all, small batched ones for each."""


# P runs in the pack, M runs that adapt a matrix, B rows of the batch, N rows x tokens of one run, D width in, O width
# out, R padded rank

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lora_bench.models import seeds
from lora_bench.models.adapters import LowRank
from lora_bench.packing import positions
from lora_bench.packing.packed import Stacked, Trained

RANK_BUCKETS = (16, 64, 256)


class PackedLinear(nn.Module):
    """A frozen Linear with the low-rank updates of the runs that adapt it. Input (P * B, ..., D), output (P * B, ...,
    O)."""

    def __init__(self, pack: Stacked, path: str, base: Any, pairs: dict[int, LowRank]) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        self.sees_repeats = False
        self._pack = pack
        self._path = path
        self.groups: Any = nn.ModuleList(
            RankGroup({run: pairs[run] for run in runs}, self.weight.device) for runs in _bucketed(pairs)
        )
        self.dropout_stream: torch.Generator | None = None

    def trained(self) -> Iterator[Trained]:
        for group in self.groups:
            yield Trained(self._path, "A", group.A, group.runs, decays=True)
            yield Trained(self._path, "B", group.B, group.runs, decays=True)

    def pair(self, run: int) -> LowRank | None:
        return next((pair for group in self.groups if (pair := group.pair(run)) is not None), None)

    def set_pair(self, run: int, pair: LowRank) -> None:
        for group in self.groups:
            if run in group.run_list:
                m, rank = group.run_list.index(run), pair.A.shape[0]
                group.A[m, :rank], group.B[m, :, :rank] = pair.A, pair.B

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pack = self._pack
        groups = list(self.groups) if pack.adapters_on else []
        has_no_batch = x.shape[0] == 1 and pack.n_runs * pack.rows > 1
        if pack.training and any(pack.adapter_dropouts[run] for group in groups for run in group.run_list):
            y = self._with_dropout(x.expand(pack.n_runs, *x.shape[1:]) if has_no_batch else x, groups)
        else:
            y = self._without_dropout(x, groups, has_no_batch=has_no_batch)
        if has_no_batch:
            positions.mark_per_run(y)
        return y

    def _without_dropout(self, x: torch.Tensor, groups: Sequence[Any], *, has_no_batch: bool) -> torch.Tensor:
        pack = self._pack
        is_shared = self.sees_repeats or has_no_batch
        shape = (pack.n_runs if has_no_batch else x.shape[0], *x.shape[1:-1], self.weight.shape[0])
        if self.sees_repeats:
            x = x[: pack.rows]
        x_PND = x.reshape(1 if is_shared else pack.n_runs, -1, x.shape[-1])
        tensors = [
            tensor for group in groups for tensor in (group.A.to(x.dtype), group.B.to(x.dtype), group.scale.to(x.dtype))
        ]
        segments = [group.segments for group in groups]
        y: Any = _PackedLinear.apply(x_PND, self.weight, self.bias, pack.n_runs, segments, *tensors)
        return y.view(shape)

    def _with_dropout(self, x: torch.Tensor, groups: Sequence[Any]) -> torch.Tensor:
        """One uniform draw per site and step, shared by all runs; a run keeps what is above its own rate."""
        pack = self._pack
        if self.dropout_stream is None:
            self.dropout_stream = seeds.generator(
                "adapter dropout", pack.masks.seed, self._path, device=pack.masks.stream.device
            )
        x_PND = x.reshape(pack.n_runs, -1, x.shape[-1])
        drawn_ND = torch.rand(x_PND.shape[1:], generator=self.dropout_stream, device=x.device)
        y_PNO = F.linear(x_PND, self.weight, self.bias)
        for group in groups:
            p_M = torch.tensor([pack.adapter_dropouts[run] for run in group.run_list], device=x.device)
            keep_MND = (drawn_ND >= p_M[:, None, None]) / (1 - p_M[:, None, None])
            h_MNR = torch.bmm(x_PND[group.runs] * keep_MND.to(x.dtype), group.A.to(x.dtype).mT) * group.scale.to(
                x.dtype
            )
            y_PNO = y_PNO.index_add(0, group.runs, torch.bmm(h_MNR, group.B.to(x.dtype).mT))
        return y_PNO.view(*x.shape[:-1], -1)


class RankGroup(nn.Module):
    """The runs of one rank bucket at one matrix. A: (M, R, D), B: (M, O, R), scale: (M, 1, 1), runs: (M,)."""

    def __init__(self, pairs: dict[int, LowRank], device: torch.device) -> None:
        super().__init__()
        self.run_list = list(pairs)
        self.ranks = [pair.A.shape[0] for pair in pairs.values()]
        widest = max(self.ranks)
        self.A = nn.Parameter(
            torch.stack([F.pad(p.A, (0, 0, 0, widest - p.A.shape[0])) for p in pairs.values()]).to(device)
        )
        self.B = nn.Parameter(torch.stack([F.pad(p.B, (0, widest - p.B.shape[1])) for p in pairs.values()]).to(device))
        scales = torch.tensor([pair.scale for pair in pairs.values()], dtype=self.A.dtype, device=device)
        self.register_buffer("scale", scales[:, None, None], persistent=False)
        self.register_buffer("runs", torch.tensor(self.run_list, device=device), persistent=False)
        self.segments = _segments(self.run_list)

    def pair(self, run: int) -> LowRank | None:
        if run not in self.run_list:
            return None
        m = self.run_list.index(run)
        rank = self.ranks[m]
        return LowRank(
            self.A[m, :rank].detach().clone(),
            self.B[m, :, :rank].detach().clone(),
            float(self.get_buffer("scale")[m]),
        )


class _PackedLinear(torch.autograd.Function):
    """y = W x + b, then y[p] += s_p B_p A_p x[p] in place, without copying the rows of any run.

    x: (P, N, D), or (1, N, D) where all runs see the same rows; tensors: A (M, R, D), B (M, O, R), scale (M, 1, 1) per
    group. Output (P * N, O).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        n_runs: int,
        segments: Any,
        *tensors: torch.Tensor,
    ) -> torch.Tensor:
        flat = F.linear(x.view(-1, x.shape[-1]), weight, bias)
        is_shared = x.shape[0] != n_runs
        if is_shared:
            flat = flat.repeat(n_runs, 1)
        y = flat.view(n_runs, x.shape[1], -1)
        hidden = []
        for group, (A, B, scale) in zip(segments, _triples(tensors), strict=True):
            h = x.new_empty(A.shape[0], x.shape[1], A.shape[1])
            if is_shared:
                torch.matmul(x, A.mT, out=h)
            for run, m, count in group:
                if not is_shared:
                    torch.bmm(x[run : run + count], A[m : m + count].mT, out=h[m : m + count])
                h[m : m + count].mul_(scale[m : m + count])
                y[run : run + count].baddbmm_(h[m : m + count], B[m : m + count].mT)
            hidden.append(h)
        ctx.save_for_backward(x, weight, *tensors, *hidden)
        ctx.segments, ctx.is_shared, ctx.n_groups, ctx.n_runs = segments, is_shared, len(hidden), n_runs
        return flat  # a tensor of its own, so that models may change it in place

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple:
        gy = gradients[0].contiguous().view(ctx.n_runs, -1, gradients[0].shape[-1])
        x, weight, *rest = ctx.saved_tensors
        tensors, hidden = rest[: 3 * ctx.n_groups], rest[3 * ctx.n_groups :]
        gx = None
        if ctx.needs_input_grad[0]:
            gx = (gy.sum(0, keepdim=True) if ctx.is_shared else gy) @ weight
        result: list[torch.Tensor | None] = []
        for group, (A, B, scale), h in zip(ctx.segments, _triples(tensors), hidden, strict=True):
            gA, gB = torch.empty_like(A), torch.empty_like(B)
            for run, m, count in group:
                gy_run, part = gy[run : run + count], slice(m, m + count)
                torch.bmm(gy_run.mT, h[part], out=gB[part])
                gh = torch.bmm(gy_run, B[part]).mul_(scale[part])
                x_run = x.expand(count, -1, -1) if ctx.is_shared else x[run : run + count]
                torch.bmm(gh.mT, x_run, out=gA[part])
                if gx is not None:
                    if ctx.is_shared:
                        gx += torch.bmm(gh, A[part]).sum(0, keepdim=True)
                    else:
                        gx[run : run + count].baddbmm_(gh, A[part])
            result += [gA, gB, None]
        return (gx, None, None, None, None, *result)


def _triples(tensors: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, ...]]:
    return [tuple(tensors[i : i + 3]) for i in range(0, len(tensors), 3)]


def _bucketed(pairs: dict[int, LowRank]) -> list[list[int]]:
    """Runs by rank bucket, so that a rank of 1 is not padded to 256."""
    limits = (*RANK_BUCKETS, float("inf"))
    buckets = [
        [run for run, pair in pairs.items() if low < pair.A.shape[0] <= high]
        for low, high in zip((0, *limits), limits, strict=False)
    ]
    return [runs for runs in buckets if runs]


def _segments(runs: Sequence[int]) -> list[tuple[int, int, int]]:
    """Stretches of neighbouring runs as (first run, its slice in the stack, length): views of the activations, no
    copies."""
    stretches: list[tuple[int, int, int]] = []
    for m, run in enumerate(runs):
        if stretches and stretches[-1][0] + stretches[-1][2] == run:
            stretches[-1] = (*stretches[-1][:2], stretches[-1][2] + 1)
        else:
            stretches.append((run, m, 1))
    return stretches
