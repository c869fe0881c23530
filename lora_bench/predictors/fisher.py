"""Empirical Fisher information of the adapter: how much the first gradient of B varies over batches.

    score = mean over entries of  Var over batches of  dL / dB = G A^T

A: (8, d_in) is what a run of this seed draws. Rank follows the score. Source: FIM-LoRA, arXiv:2605.16800 (diagonal of
the empirical Fisher information, of the low-rank matrices alone). Its abstract says variance; its code keeps the mean.
"""

import torch

from lora_bench.models.starts import draw_A
from lora_bench.predictors.evidence import Evidence

RANK = 8


def scores(evidence: Evidence) -> dict[str, float]:
    """The mean variance of each matrix, by module.

    Raises:
        ValueError: for fewer than two batches, which have no variance.
    """
    if len(evidence.batches) < 2:
        raise ValueError("rows: one batch has no variance; give more rows, or a smaller batch")
    weights = [evidence.weight(matrix) for matrix in evidence.matrices]
    drawn = [
        draw_A("gaussian", matrix.module, (RANK, matrix.d_in), seed=evidence.seed, replicate=0, dtype=weight.dtype)
        for matrix, weight in zip(evidence.matrices, weights, strict=True)
    ]
    starts = [A.to(weight.device) for A, weight in zip(drawn, weights, strict=True)]
    means = [torch.zeros(weight.shape[0], RANK, dtype=weight.dtype, device=weight.device) for weight in weights]
    squares = [torch.zeros_like(mean) for mean in means]
    for count, gradients in enumerate(evidence.gradients(weights), start=1):  # Welford's recurrence
        for gradient, A, mean, square in zip(gradients, starts, means, squares, strict=True):
            value = gradient @ A.T
            change = value - mean
            mean += change / count
            square += change * (value - mean)
    n = len(evidence.batches) - 1
    return {matrix.module: float(square.mean()) / n for matrix, square in zip(evidence.matrices, squares, strict=True)}
