"""What a rank can take of the first gradient.

    score = sum over i <= 2 r of sigma_i(G)^2        G = dL / dW, the mean over batches, r = 8

LoRA-GA starts A and B at the leading 2 r singular vectors of G; the share of the gradient that such a start reaches is
the score. Source: LoRA-GA, arXiv:2407.05000; the score is derived from its start.
"""

import torch

from lora_bench.predictors.evidence import Evidence

RANK = 8


def scores(evidence: Evidence) -> dict[str, float]:
    """The reachable squared gradient of each matrix, by module."""
    weights = [evidence.weight(matrix) for matrix in evidence.matrices]
    means = [torch.zeros_like(weight) for weight in weights]
    for gradients in evidence.gradients(weights):
        for mean, gradient in zip(means, gradients, strict=True):
            mean += gradient / len(evidence.batches)
    return {
        matrix.module: float(torch.linalg.svdvals(mean.double())[: 2 * RANK].square().sum())
        for matrix, mean in zip(evidence.matrices, means, strict=True)
    }
