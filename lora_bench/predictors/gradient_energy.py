"""Gradient energy by matrix: how large the first gradient of B will be.

    E ||dL / dB||_F^2 per rank = s^2 sigma_A^2 ||G||_F^2 = ||G||_F^2 / (3 d_in)        G = dL / dW, s = 1

B starts at zero, so dL/dB = s G A^T, and A's entries have variance 1 / (3 d_in), as peft draws them; with a variance
that does not depend on the width the ranking would be another. Mean over batches. Source: the "initial trainable
gradient energy" of DomLoRA (PAGE), arXiv:2605.06183, whose abstract names it; the formula is derived here.
"""

from lora_bench.predictors.evidence import Evidence


def scores(evidence: Evidence) -> dict[str, float]:
    """The energy of each matrix, by module."""
    return evidence.by_batch(lambda weight, gradient: float(gradient.square().sum()) / (3 * weight.shape[1]))
