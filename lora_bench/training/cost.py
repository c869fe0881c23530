"""What a run costs: floating-point operations, and its share of a pack's time.

    operations per token = 2 N + 2 N_above + 6 sum rank (d_in + d_out)

with N the backbone's linear weights (forward), N_above those at or above the lowest adapted layer (backward to the
activations), and the adapters' forward, backward and weight gradients. Frozen weights get no gradient, which is why
LoRA costs about two thirds of full fine-tuning; this has 6 N, and BitFit 4 N. Scoring a token takes 2 N. Source:
Schulman et al. 2025, "LoRA Without Regret"; attention scores are left out, as is padding. This is what a plan
estimates, what a record holds, and what throughput is measured against.
"""

from collections.abc import Sequence

from torch import nn

from lora_bench.config.schema import RunConfig
from lora_bench.models.blueprint import Blueprint
from lora_bench.models.roles import Matrix


def run_flops(blueprint: Blueprint, config: RunConfig, matrices: Sequence[Matrix], n_tokens: int) -> int:
    """Floating-point operations of training on `n_tokens` tokens; evaluation is left out."""
    total = _linear_weights(blueprint)
    if config.adapter.method in ("full", "bitfit"):
        return n_tokens * total * (6 if config.adapter.method == "full" else 4)
    if not matrices:
        return n_tokens * 2 * total
    n_layers = 1 + max(matrix.layer for matrix in blueprint.matrices)
    share_above = (n_layers - min(matrix.layer for matrix in matrices)) / n_layers
    pairs = sum(matrix.rank * matrix.parameters_per_rank for matrix in matrices)
    return int(n_tokens * (2 * total + 2 * total * share_above + 6 * pairs))


def scoring_flops(blueprint: Blueprint, n_tokens: int) -> int:
    """Floating-point operations of a forward pass over `n_tokens` tokens; the adapters' are left out."""
    return 2 * n_tokens * _linear_weights(blueprint)


def _linear_weights(blueprint: Blueprint) -> int:
    linear = [layer for layer in blueprint.skeleton.modules() if isinstance(layer, nn.Linear)]
    return sum(layer.in_features * layer.out_features for layer in linear)


def attribute(seconds: float, flops: Sequence[int]) -> list[float]:
    """The seconds of a pack, divided among its runs by operations."""
    total = sum(flops)
    return [seconds * count / total for count in flops]
