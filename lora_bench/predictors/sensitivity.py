"""Sensitivity: what the loss would lose, to first order, if an entry of the weight were zero.

    score = mean over entries and batches of |w dL/dw|

Source: the importance I of AdaLoRA, arXiv:2303.10512, equation 8, here of the frozen weight, as in GoRA,
arXiv:2502.12171.
"""

from lora_bench.predictors.evidence import Evidence


def scores(evidence: Evidence) -> dict[str, float]:
    """The mean sensitivity of each matrix, by module."""
    return evidence.by_batch(lambda weight, gradient: float((weight * gradient).abs().mean()))
