"""AdamW, clipping and schedules for a pack: one step moves every run, each with its own rate, decay and gradient norm.

    m = b1 m + (1 - b1) g      v = b2 v + (1 - b2) g^2
    w = (1 - lr wd) w - lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)

Source: Loshchilov and Hutter 2019, arXiv:1711.05101; constants are torch.optim.AdamW's defaults.
"""

import math
from collections.abc import Sequence

import torch

from lora_bench.packing.packed import Trained

BETAS = (0.9, 0.999)
EPS = 1e-8


class PackedAdamW:
    """AdamW over stacks. Rates and decays are vectors over the pack's runs.

    Args:
        rates: kind (`A`, `B`, `head`) -> peak learning rate of each run: (P,).
        weight_decays: (P,), applied to matrices only.
    """

    def __init__(self, trained: Sequence[Trained], rates: dict[str, torch.Tensor], weight_decays: torch.Tensor) -> None:
        self.trained = trained
        self.steps = 0
        self._rates = [rates[stack.kind][stack.runs] for stack in trained]
        self._decays = [
            weight_decays[stack.runs] if stack.decays else torch.zeros_like(weight_decays[stack.runs])
            for stack in trained
        ]
        self._first = [torch.zeros_like(stack.parameter) for stack in trained]
        self._second = [torch.zeros_like(stack.parameter) for stack in trained]

    @torch.no_grad()
    def step(self, factors: torch.Tensor, alive: torch.Tensor) -> None:
        """Update every run that is alive; the others keep their weights, whatever their gradients hold.

        Args:
            factors: (P,) schedule factors on the peak rates.
            alive: (P,) bool.
        """
        self.steps += 1
        correction1, correction2 = 1 - BETAS[0] ** self.steps, 1 - BETAS[1] ** self.steps
        for stack, rates, decays, first, second in zip(
            self.trained, self._rates, self._decays, self._first, self._second, strict=True
        ):
            parameter, gradient = stack.parameter, stack.parameter.grad
            if gradient is None:
                continue
            shape = (-1, *[1] * (parameter.dim() - 1))
            moves = alive[stack.runs].view(shape)
            lr = (rates * factors[stack.runs] * alive[stack.runs]).view(shape)
            gradient = torch.where(moves, gradient, 0)
            parameter.mul_(1 - lr * decays.view(shape))
            first.lerp_(gradient, 1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            denominator = second.sqrt().div_(math.sqrt(correction2)).add_(EPS)
            parameter.sub_(lr / correction1 * first / denominator)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The trained stacks and their moments, in place: what a checkpoint keeps besides `steps`."""
        named = {"weight": [stack.parameter for stack in self.trained], "first": self._first, "second": self._second}
        return {
            f"{kind}.{place}": tensor.detach()
            for kind, tensors in named.items()
            for place, tensor in enumerate(tensors)
        }

    def zero_grad(self) -> None:
        for stack in self.trained:
            stack.parameter.grad = None


@torch.no_grad()
def clip_each_run(trained: Sequence[Trained], max_norms: torch.Tensor) -> torch.Tensor:
    """Scale each run's gradient, adapter and head together, to its own largest norm. Returns the norms before: (P,).

    Source: the rule of torch.nn.utils.clip_grad_norm_, applied within each run.
    """
    squares = torch.zeros_like(max_norms)
    for stack in trained:
        if stack.parameter.grad is not None:
            squares.index_add_(
                0, stack.runs, stack.parameter.grad.reshape(len(stack.runs), -1).square().sum(1).to(squares.dtype)
            )
    norms = squares.sqrt()
    scales = (max_norms / (norms + 1e-6)).clamp(max=1.0)
    for stack in trained:
        if stack.parameter.grad is not None:
            shape = (-1, *[1] * (stack.parameter.dim() - 1))
            stack.parameter.grad.mul_(scales[stack.runs].view(shape))
    return norms


def schedule_factor(kind: str, step: int, *, total_steps: int, warmup_steps: int) -> float:
    """Factor on the peak rate at a step counted from 0: linear warm-up, then linear decay to zero, or constant.

    Source: transformers `get_linear_schedule_with_warmup` and `get_constant_schedule_with_warmup`.
    """
    if step < warmup_steps:
        return step / max(1, warmup_steps)
    if kind == "constant":
        return 1.0
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))
