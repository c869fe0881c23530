"""Baselines from the weights alone, without data.

    norm = ||W||_F        stable rank = ||W||_F^2 / ||W||_2^2        Hill = (k - 1) / sum over i < k of log(s_i / s_k)

s are the k largest eigenvalues of W^T W, a half of them all; a low Hill exponent is a heavy tail, which AlphaLoRA reads
as well trained. Source: Hill 1975; Lu et al. 2024, arXiv:2410.10054 (AlphaLoRA).
"""

import torch

from lora_bench.predictors.evidence import Evidence


def norm(evidence: Evidence) -> dict[str, float]:
    """The Frobenius norm of each matrix, by module."""
    return {matrix.module: float(evidence.weight(matrix).detach().norm()) for matrix in evidence.matrices}


def stable_rank(evidence: Evidence) -> dict[str, float]:
    """The stable rank of each matrix, by module; 1 to its full rank."""
    spectra = _singular_values(evidence)
    return {module: float(values.square().sum() / values[0] ** 2) for module, values in spectra.items()}


def hill(evidence: Evidence) -> dict[str, float]:
    """The tail exponent of each matrix's eigenvalues, by module; the higher, the less it was trained."""
    return {module: hill_exponent(values.square()) for module, values in _singular_values(evidence).items()}


def hill_exponent(eigenvalues: torch.Tensor) -> float:
    """Hill's estimate from eigenvalues in descending order: (n,)."""
    k = max(2, len(eigenvalues) // 2)
    logs = eigenvalues[:k].clamp(min=torch.finfo(eigenvalues.dtype).tiny).log()
    return float((k - 1) / (logs[: k - 1] - logs[k - 1]).sum().clamp(min=1e-12))


def _singular_values(evidence: Evidence) -> dict[str, torch.Tensor]:
    return {
        matrix.module: torch.linalg.svdvals(evidence.weight(matrix).detach().double()) for matrix in evidence.matrices
    }
