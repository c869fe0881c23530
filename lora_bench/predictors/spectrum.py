"""Baselines from the weights alone, without data.

    norm = ||W||_F        stable rank = ||W||_F^2 / ||W||_2^2        Hill = 1 + k / sum over i <= k of log(s_i / s_k)

s are the k largest eigenvalues of W^T W, a half of them all, rounded up. Hill is the exponent of their density, which
falls as s^-Hill, by maximum likelihood: 1 more than Hill's own index of the tail. A low one is a heavy tail, which
AlphaLoRA reads as well trained. The tail is that of `xmin_mid` in AlphaPruning's code; AlphaLoRA's code takes the same
exponent of a tail from near the peak of the spectrum on, where it fits best. Both count s_k itself among the k, as is
done here; as it is often written, 1 + k / sum of log(s_i / s_(k+1)), it does not count.
Source: Hill 1975; Qing et al. 2024, arXiv:2410.10054 (AlphaLoRA); Lu et al. 2024, arXiv:2410.10912 (AlphaPruning).
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
    """The tail exponent of each matrix's eigenvalues, by module; above 1, and the higher, the less it was trained."""
    return {module: hill_exponent(values.square()) for module, values in _singular_values(evidence).items()}


def hill_exponent(eigenvalues: torch.Tensor) -> float:
    """The exponent of the density's tail, 1 + k / sum of log(s_i / s_k), from eigenvalues in descending order: (n,)."""
    k = max(2, (len(eigenvalues) + 1) // 2)
    logs = eigenvalues[:k].clamp(min=torch.finfo(eigenvalues.dtype).tiny).log()
    return 1 + k / float((logs - logs[-1]).sum().clamp(min=1e-12))


def _singular_values(evidence: Evidence) -> dict[str, torch.Tensor]:
    return {
        matrix.module: torch.linalg.svdvals(evidence.weight(matrix).detach().double()) for matrix in evidence.matrices
    }
