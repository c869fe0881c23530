"""Normalised feature norms: how well a matrix is aligned with its inputs, against chance.

    NFN = mean over tokens z of  sqrt(d_in) ||W z|| / (||W||_F ||z||)

The denominator is what Gaussian inputs of the same norm give in a wide matrix, so chance is 1 and no random draw is
needed. A type is the mean over its layers; types of the lowest norms, least adapted to what they read, get the adapter:
three of them. Source: Hayou et al. 2025, arXiv:2506.20629 (PLoP).
"""

from collections import defaultdict

import torch

from lora_bench.models.roles import Matrix
from lora_bench.predictors.evidence import Evidence

N_TYPES = 3


def scores(evidence: Evidence) -> dict[str, float]:
    """Minus the norm of each matrix, by module: the higher, the more it needs the adapter."""
    totals: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)

    def see(matrix: Matrix, tokens: torch.Tensor) -> None:
        weight = evidence.weight(matrix).detach()
        norms = tokens.norm(dim=1)
        kept = tokens[norms > 0]
        aligned = (kept @ weight.T).norm(dim=1) / norms[norms > 0]
        totals[matrix.module] += float(aligned.double().sum() * matrix.d_in**0.5 / weight.norm())
        counts[matrix.module] += len(kept)

    evidence.layer_inputs(see)
    return {module: -total / max(counts[module], 1) for module, total in totals.items()}
