"""Section 7 of the paper: how much two learned subspaces overlap, and what chance would give.

    phi(i, j) = ||U_i^T V_j||_F^2 / min(i, j)        U_i: first i right-singular vectors of one A, V_j: of the other

phi is 1 when the smaller span lies in the larger one and 0 when they are orthogonal. Two random spans of d dimensions
overlap by max(i, j) / d on average, which is not small for a small backbone: hence the null bands. (Appendix G prints
phi as (1 / p)(1 - d^2); with its own d^2 = p - sum of squared cosines the identity is 1 - d^2 / p, used here.)
Adapters are read from the store with safetensors alone, so none of this needs torch.
Source: Hu et al. 2021, arXiv:2106.09685, sections 7.2, 7.3 and appendix G; of intruder dimensions Shuttleworth et al.
2024, arXiv:2410.21228.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import linalg

WEIGHTS = "adapter_model.safetensors"
STACKED = ("q", "k", "v", "o", "gate", "up", "down")  # the order of parts within a fused projection


@dataclass(frozen=True)
class LowRank:
    """One matrix's trained pair; its update is a multiple of B A."""

    A: np.ndarray  # (rank, d_in)
    B: np.ndarray  # (d_out, rank)


# ---------------------------------------------------------------- subspaces


def right_basis(A: np.ndarray) -> np.ndarray:
    """(d_in, rank): right-singular vectors of A, by falling singular value. They live in the space of the inputs."""
    return np.linalg.svd(np.asarray(A, dtype=np.float64), full_matrices=False)[2].T


def update_basis(A: np.ndarray, B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Right-singular vectors and singular values of B A, without forming it.

    A's own order says how large its rows are; this order says in which input directions the update acts most.

    Returns:
        ((d_in, rank), (rank,)).
    """
    q_in, r_in = np.linalg.qr(np.asarray(A, dtype=np.float64).T)
    r_out = np.linalg.qr(np.asarray(B, dtype=np.float64), mode="r")
    _, values, rows = np.linalg.svd(r_out @ r_in.T)
    return q_in @ rows.T, values


def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """phi(i, j) for i = 1..n and j = 1..m.

    Args:
        first, second: (d, n) and (d, m), orthonormal columns, most important first.

    Returns:
        (n, m), each in [0, 1].

    Raises:
        ValueError: when the spaces differ in dimension.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[0] != second.shape[0]:
        raise ValueError(f"bases must share their dimension, got shapes {first.shape} and {second.shape}")
    shared = np.cumsum(np.cumsum((first.T @ second) ** 2, axis=0), axis=1)
    n, m = shared.shape
    return np.clip(shared / np.minimum(np.arange(1, n + 1)[:, None], np.arange(1, m + 1)[None, :]), 0.0, 1.0)


def chance_overlap(d: int, n: int, m: int) -> np.ndarray:
    """Mean of phi(i, j) between random spans: i j / (d min(i, j)) = max(i, j) / d. Shape (n, m)."""
    return np.maximum(np.arange(1, n + 1)[:, None], np.arange(1, m + 1)[None, :]) / d


def null_band(
    d: int, n: int, m: int, *, n_pairs: int = 1, level: float = 0.95, n_draws: int = 200, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The band that phi(i, j) of random Gaussian matrices stays in, as a mean over `n_pairs` independent pairs.

    One side may be held fixed (the first coordinates), since a Gaussian span has no preferred direction.

    Returns:
        (low, high), each (n, m), pointwise.
    """
    drawn = np.empty((n_draws, n, m))
    for k in range(n_draws):
        total = np.zeros((n, m))
        for _ in range(n_pairs):
            basis = np.linalg.qr(rng.standard_normal((d, m)))[0]
            total += np.cumsum(np.cumsum(basis[:n] ** 2, axis=0), axis=1)
        drawn[k] = total / n_pairs
    drawn /= np.minimum(np.arange(1, n + 1)[:, None], np.arange(1, m + 1)[None, :])
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


# ---------------------------------------------------------------- amplification


def amplification(update: float, weight_in_update: float) -> float:
    """||dW||_F / ||U^T W V||_F: how much the update enlarges directions that the weight has but does not stress."""
    return update / weight_in_update if weight_in_update > 0 else float("inf")


def leading(A: np.ndarray, B: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """What the first singular direction u, v of B A holds: s_1(B A) of the update, |u^T W v| of the weight.

    The whole span of a trained A is for the most part its random start; the direction that the update acts in most was
    learned.

    Args:
        A, B, weight: (rank, d_in), (d_out, rank) and (d_out, d_in).

    Raises:
        ValueError: when the weight is of another shape.
    """
    if weight.shape != (B.shape[0], A.shape[1]):
        raise ValueError(f"the weight is {weight.shape}, and the update {(B.shape[0], A.shape[1])}")
    q_in, r_in = np.linalg.qr(np.asarray(A, dtype=np.float64).T)
    q_out, r_out = np.linalg.qr(np.asarray(B, dtype=np.float64))
    left, values, right = np.linalg.svd(r_out @ r_in.T)
    return float(values[0]), float(abs((q_out @ left[:, 0]) @ weight @ (q_in @ right[0])))


def weight_in_random(weight: float, rank: int, shape: tuple[int, int]) -> float:
    """||U^T W V||_F for random U and V of `rank` directions, as the root of its mean square: r ||W||_F / sqrt(mn).

    Exact for uniformly random spans, since the mean of U U^T is (r / m) I; one draw strays from it.

    Args:
        weight: ||W||_F.
        shape: (m, n) of W.
    """
    return rank * weight / math.sqrt(shape[0] * shape[1])


# ---------------------------------------------------------------- intruder dimensions

INTRUDER_TOP, INTRUDER_BELOW = 10, 0.5
"""The first directions that are looked at, and the cosine below which one is new: the defaults of the authors' code."""


def left_basis(weight: np.ndarray, n: int | None = None) -> np.ndarray:
    """(d_out, n): left-singular vectors of a (d_out, d_in) weight, by falling singular value; None: all of them.

    The first few come from the smaller of the weight's two Gram matrices, in a third of the time.
    """
    if n is None:
        return np.linalg.svd(weight, full_matrices=False)[0]
    is_wide = weight.shape[0] <= weight.shape[1]
    gram = weight @ weight.T if is_wide else weight.T @ weight
    size = len(gram)
    vectors = linalg.eigh(gram, subset_by_index=(size - min(n, size), size - 1))[1][:, ::-1]
    if is_wide:
        return vectors
    left = weight @ vectors
    return left / np.maximum(np.linalg.norm(left, axis=0), np.finfo(float).tiny)


def intruders(before: np.ndarray, weight: np.ndarray, *, top: int = INTRUDER_TOP, below: float = INTRUDER_BELOW) -> int:
    """How many of the first directions of a trained weight are like none of the backbone's:

        y_j with max over i of |<y_j, x_i>| < below        y_j: j <= top, of the trained weight; x_i: all of W_0

    Args:
        before: (d_out, n), every left-singular vector of the backbone's weight W_0, in any order.
        weight: (d_out, d_in), as trained.

    Source: Shuttleworth et al. 2024, arXiv:2410.21228, definition 1, and its find_intruder_dimensions.py.
    """
    likeness = np.abs(left_basis(weight, top).T @ before).max(axis=1)
    return int((likeness < below).sum())


# ---------------------------------------------------------------- adapters of the store


def read_adapter(folder: Path, manifest: Sequence[Mapping]) -> dict[str, LowRank]:
    """The low-rank pairs of a run by the manifest's module paths, from its PEFT folder.

    Roles that share a fused matrix are stored as one pair, stacked in the order that `fused.py` keeps; they are taken
    apart here.

    Raises:
        FileNotFoundError: when the run kept no adapter.
        ValueError: when the file does not match the manifest.
    """
    from safetensors.numpy import load_file

    path = Path(folder) / "adapter" / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"no adapter in {folder}")
    tensors = load_file(path)
    stacked = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): (
            array,
            tensors[name.replace("lora_A", "lora_B")],
        )
        for name, array in tensors.items()
        if name.endswith(".lora_A.weight")
    }
    holders: dict[str, list[Mapping]] = {}
    for matrix in sorted(manifest, key=lambda matrix: STACKED.index(matrix["role"])):
        holder = matrix["module"]
        while holder and holder not in stacked:
            holder = holder.rpartition(".")[0]
        if not holder:
            raise ValueError(f"{path} has no pair for {matrix['module']}")
        holders.setdefault(holder, []).append(matrix)
    pairs: dict[str, LowRank] = {}
    for holder, matrices in holders.items():
        A, B = stacked[holder]
        ranks, start = [matrix["rank"] for matrix in matrices], 0
        if sum(ranks) != A.shape[0] or A.shape[1] != matrices[0]["d_in"]:
            # pissa and olora are saved as the difference to where they started, at twice the rank
            raise ValueError(
                f"{path}: {holder} is {A.shape}, but the manifest has rank {sum(ranks)} of {matrices[0]['d_in']} inputs"
            )
        for matrix, rank in zip(matrices, ranks, strict=True):
            pairs[matrix["module"]] = LowRank(A[start : start + rank], B[:, start : start + rank])
            start += rank
    return pairs
