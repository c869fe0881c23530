"""The vectorised AdamW, clipping and schedules against torch and transformers, run by run."""

import pytest
import torch
from torch import nn
from transformers import get_constant_schedule_with_warmup, get_linear_schedule_with_warmup

from lora_bench.packing.packed import Trained
from lora_bench.training.optimizer import PackedAdamW, clip_each_run, schedule_factor


def _stacks(n_runs: int) -> list[Trained]:
    stream = torch.Generator().manual_seed(0)
    every = torch.arange(n_runs)
    shapes = [("A", (3, 5), every), ("B", (4, 3), every[1:]), ("head", (2, 4), every), ("head", (2,), every)]
    return [
        Trained(
            f"{kind}{place}",
            kind,
            nn.Parameter(torch.randn(len(runs), *shape, generator=stream, dtype=torch.float64)),
            runs,
            decays=len(shape) > 1,
        )
        for place, (kind, shape, runs) in enumerate(shapes)
    ]


def test_each_run_moves_as_under_torch_adamw():
    """Rates, decays and clipping of one run are those of torch.optim.AdamW and clip_grad_norm_ for that run alone."""
    n_runs, steps = 3, 12
    rates = {kind: torch.tensor(values, dtype=torch.float64) for kind, values in _RATES.items()}
    decays, max_norms = torch.tensor([0.0, 0.1, 0.5]).double(), torch.tensor([1.0, 0.2, 1e9]).double()
    packed = _stacks(n_runs)
    optimizer = PackedAdamW(packed, rates, decays)
    alone = []
    for run in range(n_runs):
        groups = []
        for each in packed:
            if run in each.runs.tolist():
                leaf = nn.Parameter(each.parameter[each.runs.tolist().index(run)].detach().clone())
                decay = float(decays[run]) if each.decays else 0.0
                groups.append(
                    {"params": [leaf], "lr": float(rates[each.kind][run]), "weight_decay": decay, "of": each.name}
                )
        alone.append(torch.optim.AdamW(groups, foreach=False))
    stream = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for each in packed:
            each.parameter.grad = torch.randn(each.parameter.shape, generator=stream, dtype=torch.float64)
            for run, single in enumerate(alone):
                for group in single.param_groups:
                    if group["of"] == each.name:
                        group["params"][0].grad = each.parameter.grad[each.runs.tolist().index(run)].clone()
        norms = clip_each_run(packed, max_norms)
        for run, single in enumerate(alone):
            leaves = [leaf for group in single.param_groups for leaf in group["params"]]
            expected = nn.utils.clip_grad_norm_(leaves, float(max_norms[run]))
            torch.testing.assert_close(norms[run], expected, rtol=1e-12, atol=0)
            single.step()
        optimizer.step(torch.ones(n_runs, dtype=torch.float64), torch.ones(n_runs, dtype=torch.bool))
    for run, single in enumerate(alone):
        for group in single.param_groups:
            each = next(one for one in packed if one.name == group["of"])
            mine = each.parameter[each.runs.tolist().index(run)]
            torch.testing.assert_close(mine, group["params"][0], rtol=1e-12, atol=1e-14)


_RATES = {"A": [1e-3, 1e-2, 1e-1], "B": [1e-3, 1e-2, 1e-1], "head": [1e-2, 1e-3, 1e-2]}


def test_a_frozen_run_keeps_its_weights_whatever_its_gradient():
    """0 x NaN is NaN, so a frozen run must be left out by selection and not by a rate of zero."""
    stacks = _stacks(2)
    before = [each.parameter.detach().clone() for each in stacks]
    rates = {kind: torch.full((2,), 0.1, dtype=torch.float64) for kind in ("A", "B", "head")}
    optimizer = PackedAdamW(stacks, rates, torch.zeros(2, dtype=torch.float64))
    for each in stacks:
        each.parameter.grad = torch.ones_like(each.parameter)
        each.parameter.grad[each.runs == 1] = float("nan")
    norms = clip_each_run(stacks, torch.ones(2, dtype=torch.float64))
    optimizer.step(torch.ones(2, dtype=torch.float64), norms.isfinite())
    assert norms.isfinite().tolist() == [True, False]
    for each, start in zip(stacks, before, strict=True):
        frozen = each.runs == 1
        assert torch.equal(each.parameter[frozen], start[frozen])
        assert each.parameter.isfinite().all()
        if (~frozen).any():
            assert not torch.equal(each.parameter[~frozen], start[~frozen])


@pytest.mark.parametrize("kind", ["linear", "constant"])
@pytest.mark.parametrize(("total", "warmup"), [(20, 0), (20, 2), (7, 7), (1, 0)])
def test_schedules_are_those_of_transformers(kind, total, warmup):
    """Rates per step equal the schedules that the released scripts use."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    if kind == "linear":
        schedule = get_linear_schedule_with_warmup(optimizer, warmup, total)
    else:
        schedule = get_constant_schedule_with_warmup(optimizer, warmup)
    for step in range(total):
        assert schedule_factor(kind, step, total_steps=total, warmup_steps=warmup) == pytest.approx(
            schedule.get_last_lr()[0]
        )
        optimizer.step()
        schedule.step()
