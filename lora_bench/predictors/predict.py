"""Ask predictors for a ranking of the roles and a map of ranks at a budget, and measure what each costs."""

from __future__ import annotations

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lora_bench.config.grammar import spell_targets
from lora_bench.models.roles import Matrix
from lora_bench.predictors import aletheia, eva, fisher, gradient_energy, lora_ga, nulls, plop, sensitivity, spectrum
from lora_bench.predictors.allocate import pattern, rank_map
from lora_bench.predictors.evidence import Evidence

Scores = Mapping[str, float]


@dataclass(frozen=True)
class Predictor:
    """A score of every matrix, the higher the more it deserves the adapter, and how scores become shares of ranks."""

    scores: Callable[[Evidence], dict[str, float]]
    shares: Callable[[Sequence[Matrix], Scores], dict[str, float]]


def in_proportion(matrices: Sequence[Matrix], scores: Scores) -> dict[str, float]:
    """Ranks follow the scores."""
    total = sum(scores[matrix.module] for matrix in matrices)
    return {matrix.module: scores[matrix.module] if total > 0 else 1.0 for matrix in matrices}


def best_types(matrices: Sequence[Matrix], scores: Scores) -> dict[str, float]:
    """One rank for the best three roles."""
    chosen = ranking(matrices, scores)[: plop.N_TYPES]
    return {matrix.module: float(matrix.role in chosen) for matrix in matrices}


def best_layers(matrices: Sequence[Matrix], scores: Scores) -> dict[str, float]:
    """One rank for the better half of the layers."""
    of_layer = {matrix.layer: scores[matrix.module] for matrix in matrices}
    n_chosen = math.ceil(aletheia.SHARE * len(of_layer))
    chosen = sorted(of_layer, key=lambda layer: (-of_layer[layer], layer))[:n_chosen]
    return {matrix.module: float(matrix.layer in chosen) for matrix in matrices}


PREDICTORS = {
    "plop": Predictor(plop.scores, best_types),
    "aletheia": Predictor(aletheia.scores, best_layers),
    "gradient_energy": Predictor(gradient_energy.scores, in_proportion),
    "fisher": Predictor(fisher.scores, in_proportion),
    "sensitivity": Predictor(sensitivity.scores, in_proportion),
    "lora_ga": Predictor(lora_ga.scores, in_proportion),
    "eva": Predictor(eva.scores, in_proportion),
    "norm": Predictor(spectrum.norm, in_proportion),
    "stable_rank": Predictor(spectrum.stable_rank, in_proportion),
    "hill": Predictor(spectrum.hill, in_proportion),
    "random": Predictor(nulls.random, in_proportion),
    "parameters": Predictor(nulls.parameters, in_proportion),
}
"""Every predictor by name; the last two are what the others must beat."""


@dataclass(frozen=True)
class Prediction:
    """What a predictor says.

    Attributes:
        roles: best first.
        role_scores: mean over the layers, in the order of `roles`.
        scores: by module.
        ranks: of the map, by module; those of rank 0 are left out.
        targets, rank_pattern: the map at the budget, as the configuration has it.
        parameters: what the map costs.
        peak_bytes: memory above what was held before, or None where it cannot be measured.
    """

    predictor: str
    roles: list[str]
    role_scores: list[float]
    scores: dict[str, float]
    ranks: dict[str, int]
    targets: str
    rank_pattern: str
    parameters: int
    seconds: float
    peak_bytes: int | None

    def document(self) -> dict[str, Any]:
        return asdict(self)


def predict(name: str, evidence: Evidence, budget: int) -> Prediction:
    """The prediction of one predictor.

    Raises:
        ConfigError: for a budget that its map cannot meet.
        ValueError: for evidence that it cannot read.
    """
    predictor, matrices = PREDICTORS[name], evidence.matrices
    with peak_memory(next(evidence.model.parameters()).device) as peak:
        started = time.perf_counter()
        scores = predictor.scores(evidence)
        seconds = time.perf_counter() - started
    unusable = [module for module, score in scores.items() if not math.isfinite(score)]
    if unusable:
        raise ValueError(f"{name}: no finite score of {unusable[0]}")
    chosen = rank_map(matrices, predictor.shares(matrices, scores), budget)
    by_role = role_scores(matrices, scores)
    roles = ranking(matrices, scores)
    return Prediction(
        predictor=name,
        roles=roles,
        role_scores=[by_role[role] for role in roles],
        scores=scores,
        ranks={matrix.module: matrix.rank for matrix in chosen},
        targets=spell_targets({matrix.role for matrix in chosen}),
        rank_pattern=pattern(chosen, matrices),
        parameters=sum(matrix.rank * matrix.parameters_per_rank for matrix in chosen),
        seconds=seconds,
        peak_bytes=peak.get("bytes"),
    )


def role_scores(matrices: Sequence[Matrix], scores: Scores) -> dict[str, float]:
    """The mean score of each role over its layers."""
    by_role: dict[str, list[float]] = defaultdict(list)
    for matrix in matrices:
        by_role[matrix.role].append(scores[matrix.module])
    return {role: sum(values) / len(values) for role, values in by_role.items()}


def ranking(matrices: Sequence[Matrix], scores: Scores) -> list[str]:
    """Roles, the best first; equal ones in the order of the roles."""
    by_role = role_scores(matrices, scores)
    return sorted(by_role, key=lambda role: -by_role[role])


@contextlib.contextmanager
def peak_memory(device: torch.device):
    """A mapping that has `bytes` afterwards, if it could be measured: the peak above what was held at the start."""
    measured: dict[str, int] = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield measured
        measured["bytes"] = torch.cuda.max_memory_allocated(device) - before
        return
    before = _restart_high_water()
    yield measured
    if before is not None:
        measured["bytes"] = max(0, _status("VmHWM") - before)


def _restart_high_water() -> int | None:
    """Resident bytes now, from which Linux counts the peak anew; None elsewhere."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except (OSError, StopIteration):
        return None


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{key}:"))) * 1024
