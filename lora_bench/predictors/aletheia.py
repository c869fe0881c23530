"""Gradient norm by layer: the half of the layers that the loss pulls at hardest.

    score of a layer = sum over batches and over all its parameters of ||dL / dtheta||_2

Norms are added, not squared, biases and layer norms included; every matrix has its layer's score. The upper half of the
layers is adapted. Source: Aletheia, arXiv:2604.15351; there the batches are of one row, and dropout is on.
"""

from __future__ import annotations

from collections import defaultdict

from torch import nn

from lora_bench.predictors.evidence import Evidence

SHARE = 0.5


def scores(evidence: Evidence) -> dict[str, float]:
    """The score of each matrix's layer, by module."""
    by_layer = parameters_by_layer(evidence)
    flat = [(layer, parameter) for layer, parameters in by_layer.items() for parameter in parameters]
    totals: dict[int, float] = defaultdict(float)
    for gradients in evidence.gradients([parameter for _, parameter in flat]):
        for (layer, _), gradient in zip(flat, gradients, strict=True):
            totals[layer] += float(gradient.norm())
    return {matrix.module: totals[matrix.layer] for matrix in evidence.matrices}


def parameters_by_layer(evidence: Evidence) -> dict[int, list[nn.Parameter]]:
    """The parameters below the module that holds all matrices of a layer."""
    paths: dict[int, list[list[str]]] = defaultdict(list)
    for matrix in evidence.matrices:
        paths[matrix.layer].append(matrix.module.split("."))
    return {
        layer: list(evidence.model.get_submodule(_shared_path(parts)).parameters()) for layer, parts in paths.items()
    }


def _shared_path(paths: list[list[str]]) -> str:
    """The longest path that all begin with."""
    n_shared = next((n for n, names in enumerate(zip(*paths, strict=False)) if len(set(names)) > 1), len(min(paths)))
    return ".".join(paths[0][:n_shared])
