"""Section 7.3 of the LoRA paper, for every adapted matrix: how large the update is, and how much of the weight is in
the directions where it acts.

    dW = s B A = U S V^T (rank r)    weight_in_update = ||U^T W V||_F    amplification = ||dW||_F / ||U^T W V||_F

Kept in the record, so that Table 7 can be drawn without weights: the same norm in the top-r directions of W itself and
in r random directions are what the paper compares with. The update's first direction u, v stands beside its whole
subspace, which is for the most part A's random start: s_1 and |u^T W v|. Source: Hu et al. 2021, arXiv:2106.09685,
section 7.3 and Table 7.
"""

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch

from lora_bench.models import seeds
from lora_bench.models.adapters import AdapterState
from lora_bench.models.backbone import Backbone
from lora_bench.models.roles import Matrix


@torch.no_grad()
def matrix_norms(backbone: Backbone, matrices: Sequence[Matrix], state: AdapterState) -> list[dict[str, Any]]:
    """Frobenius norms per adapted matrix: the weight, the update, and the weight within three sets of r directions.

    The directions are the update's own, those of the weight's largest singular values, and random ones; of the update's
    own the first by itself, too.
    """
    rows = []
    if state.extra:  # DoRA rescales the whole weight: its change is of full rank
        return rows
    for matrix in matrices:
        pair = state.low_rank[matrix.module]
        rank = pair.A.shape[0]
        A, B = pair.A.double().cpu(), pair.B.double().cpu()
        weight, frozen = _weight(backbone, matrix.module), _frozen_norms(backbone, matrix.module, rank)
        # Orthonormal bases of the update's column and row spaces; the norm depends on the spaces only.
        left, right = torch.linalg.qr(B)[0], torch.linalg.qr(A.T)[0]
        # Its leading direction, by the small core between the two bases.
        columns, values, across = torch.linalg.svd((left.T @ B) @ (A @ right))
        first_left, first_right = left @ columns[:, 0], right @ across[0]
        rows.append(
            {
                "module": matrix.module,
                "role": matrix.role,
                "layer": matrix.layer,
                "rank": rank,
                "scale": pair.scale,
                "weight": frozen["weight"],
                "update": pair.norm(),
                "weight_in_update": float((left.T @ weight @ right).norm()),
                "update_leading": float(pair.scale * values[0]),
                "weight_in_leading": float((first_left @ weight @ first_right).abs()),
                "weight_in_weight": frozen["weight_in_weight"],
                "weight_in_random": frozen["weight_in_random"],
            }
        )
    return rows


def _frozen_norms(backbone: Backbone, module: str, rank: int) -> dict[str, float]:
    """What no run changes: the norms of a weight, in its own first directions and in random ones."""
    known = _known_norms.setdefault(backbone, {})
    if (module, rank) not in known:
        weight = _weight(backbone, module)
        stream = seeds.generator("random subspace", module, rank)
        left, right = (
            torch.linalg.qr(torch.randn(width, rank, generator=stream, dtype=torch.float64))[0]
            for width in weight.shape
        )
        known[module, rank] = {
            "weight": float(weight.norm()),
            "weight_in_weight": float(_spectrum(backbone, module)[:rank].norm()),
            "weight_in_random": float((left.T @ weight @ right).norm()),
        }
    return known[module, rank]


def _weight(backbone: Backbone, module: str) -> torch.Tensor:
    return backbone.model.get_submodule(module).get_parameter("weight").detach().cpu().double()


def _spectrum(backbone: Backbone, module: str) -> torch.Tensor:
    """Singular values of a frozen weight, largest first; in fp32, which is ample for a norm."""
    known = _spectra.setdefault(backbone, {})
    if module not in known:
        known[module] = torch.linalg.svdvals(_weight(backbone, module).float()).double()
    return known[module]


# Freed with their backbone.
_spectra: WeakKeyDictionary[Backbone, dict[str, torch.Tensor]] = WeakKeyDictionary()
_known_norms: WeakKeyDictionary[Backbone, dict[tuple[str, int], dict[str, float]]] = WeakKeyDictionary()
