"""What a predictor must beat: chance, and the largest matrices."""

import numpy as np

from lora_bench.models import seeds
from lora_bench.predictors.evidence import Evidence


def random(evidence: Evidence) -> dict[str, float]:
    """A uniform draw for each matrix, from a stream of the seed, by module."""
    draw = np.random.Generator(np.random.PCG64(seeds.derive("predictor", evidence.seed)))
    return {
        matrix.module: float(value)
        for matrix, value in zip(evidence.matrices, draw.random(len(evidence.matrices)), strict=True)
    }


def parameters(evidence: Evidence) -> dict[str, float]:
    """Entries of each weight, by module."""
    return {matrix.module: float(matrix.d_in * matrix.d_out) for matrix in evidence.matrices}
