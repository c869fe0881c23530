"""Resolve roles to the weight matrices of one backbone, as a manifest.

A role says what a matrix does, in the same word on every architecture:

    attention   q k v o        softmax(x W_q (x W_k)^T) (x W_v) W_o
    MLP         up gate down   (act(x W_gate) * x W_up) W_down,   or act(x W_up) W_down where there is no gate

Known families come from the table in families.py, unknown ones from the names, shapes and positions of their linear
layers; what stays ambiguous is refused, and can be mapped by hand with `model.roles`. Every function here works on a
meta-device skeleton, so a sweep is checked before any weights load.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_bench.config.errors import ConfigError
from lora_bench.config.grammar import GROUPS, ROLES, parse_layers, parse_targets, spell_targets
from lora_bench.models.families import Layout
from lora_bench.models.fused import FusedProjection, linear_from_conv1d, split_projection
from lora_bench.models.infer import locate, shape_in_role, starred


@dataclass(frozen=True)
class Matrix:
    """One weight matrix that an adapter can change; layers that share weights share the matrix."""

    role: str
    layer: int  # counted from 0 over the distinct layers
    module: str  # full path in the split backbone
    d_in: int
    d_out: int
    fused: str | None = None  # full path of the fused projection that holds it in the Hub model
    rank: int = 0

    @property
    def parameters_per_rank(self) -> int:
        return self.d_in + self.d_out


def roles_of(model: nn.Module, overrides: Mapping[str, str] | None = None) -> list[Matrix]:
    """Every matrix of every role, by layer and role; the same list before and after `split_fused`.

    Args:
        model: a transformers model for sequence classification, with weights or on the meta device.
        overrides: role -> regular expression (or plain suffix) that ends the paths of its modules (`model.roles`).

    Raises:
        ConfigError: for an encoder-decoder, an ambiguous structure, or an override that does not fit.
    """
    matrices = []
    for located in locate(model, overrides or {}):
        if isinstance(located.role, Layout):
            d_in, _ = shape_in_role(located.module)
            matrices += [
                Matrix(role, located.layer, f"{located.path}.{role}", d_in, located.role.size(role), fused=located.path)
                for role in located.role.roles
            ]
        else:
            matrices.append(Matrix(located.role, located.layer, located.path, *shape_in_role(located.module)))
    return sorted(matrices, key=lambda matrix: (matrix.layer, ROLES.index(matrix.role)))


def split_fused(model: nn.Module, overrides: Mapping[str, str] | None = None) -> list[str]:
    """Replace fused projections, in place, by modules with one nn.Linear per matrix; Conv1D becomes nn.Linear.

    The backbone computes the same function. Other modules stay untouched, and a second call does nothing.

    Returns:
        The paths of the modules that were replaced.

    Raises:
        ConfigError: as `roles_of`, and when a fused weight is quantised or sharded.
    """
    replaced = []
    for located in locate(model, overrides or {}):
        if isinstance(located.role, Layout) and not isinstance(located.module, FusedProjection):
            _replace(model, located.path, split_projection(located.path, located.module, located.role))
        elif isinstance(located.module, Conv1D):
            _replace(model, located.path, linear_from_conv1d(located.path, located.module))
        else:
            continue
        replaced.append(located.path)
    return replaced


def select_layers(matrices: Sequence[Matrix], layers: str | Sequence[int], *, key: str = "adapter.layers") -> list[int]:
    """The layer numbers that `adapter.layers` (all, first:4, last:4 or a list) names on this backbone."""
    n_layers = 1 + max(matrix.layer for matrix in matrices)
    parsed = parse_layers(layers, n_layers, key=key)
    if isinstance(parsed, str):
        return list(range(n_layers))
    if isinstance(parsed[0], str):
        count = int(parsed[1])
        return list(range(count)) if parsed[0] == "first" else list(range(n_layers - count, n_layers))
    return [int(layer) for layer in parsed]


def select_targets(
    matrices: Sequence[Matrix], targets: str, layers: str | Sequence[int] = "all", *, backbone: str = "this backbone"
) -> list[Matrix]:
    """The matrices that `targets` names in `layers`, by layer and role.

    Raises:
        ConfigError: when a role is absent from the backbone or from one of the layers, or a layer is out of range.
    """
    chosen = set(select_layers(matrices, layers))
    within = [matrix for matrix in matrices if matrix.layer in chosen]
    roles = _expand(within, targets, backbone)
    selected = [matrix for matrix in within if matrix.role in roles]
    for role in roles:
        missing = chosen - {matrix.layer for matrix in selected if matrix.role == role}
        if missing:
            having = sorted(chosen - missing)
            raise ConfigError(
                f"adapter.targets: {backbone} has no {role!r} matrix in layers {_listed(sorted(missing))}; "
                f"adapter.layers={_listed(having)} has it"
            )
    return selected


def canonical_targets(matrices: Sequence[Matrix], targets: str, *, backbone: str = "this backbone") -> str:
    """One spelling per set of roles on this backbone: `vq` is `qv`, `mlp` is `up+down` or `up+gate+down`."""
    return spell_targets(_expand(matrices, targets, backbone))


def manifest_table(matrices: Iterable[Matrix]) -> list[dict[str, Any]]:
    """Rows for printing: matrices that differ only in their layer share a row, with `*` for the layer's number.

    Columns: role, module, fused, shape (d_out x d_in, as the weight is stored), layers, matrices,
    parameters_per_rank (of all its matrices) and, once solved, parameters and rank: `4`, or `1,2` where layers differ
    (0 is a layer without).
    """
    rows: dict[tuple[Any, ...], list[Matrix]] = defaultdict(list)
    for matrix in matrices:
        rows[matrix.role, starred(matrix.module), matrix.d_in, matrix.d_out].append(matrix)
    table = []
    for (role, module, d_in, d_out), members in sorted(rows.items(), key=lambda item: ROLES.index(item[0][0])):
        ranks = sorted({member.rank for member in members})
        table.append(
            {
                "role": role,
                "module": module,
                "fused": starred(members[0].fused) if members[0].fused else "",
                "shape": f"{d_out} x {d_in}",
                "layers": _ranged([member.layer for member in members]),
                "matrices": len(members),
                "parameters_per_rank": sum(member.parameters_per_rank for member in members),
                "rank": ",".join(map(str, ranks)),
                "parameters": sum(member.rank * member.parameters_per_rank for member in members),
            }
        )
    return table


def _expand(matrices: Sequence[Matrix], targets: str, backbone: str) -> list[str]:
    """Roles of a target string, with groups widened to what the backbone has, in the order of ROLES."""
    has = [role for role in ROLES if any(matrix.role == role for matrix in matrices)]
    roles: list[str] = []
    for name in parse_targets(targets):
        if name in GROUPS:
            members = [role for role in GROUPS[name] if role in has]
            halves = ("attention", "mlp") if name == "all" else (name,)
            for half in halves:
                if not set(GROUPS[half]) & set(has):
                    raise ConfigError(f"adapter.targets: {backbone} has no {half} matrices; it has {', '.join(has)}")
        elif name in has:
            members = [name]
        else:
            raise ConfigError(f"adapter.targets: {backbone} has no {name!r} matrix; it has {', '.join(has)}")
        repeated = [role for role in members if role in roles]
        if repeated:
            raise ConfigError(f"adapter.targets: role {repeated[0]!r} is named twice in {targets!r}; name each once")
        roles += members
    return [role for role in ROLES if role in roles]


# --- small text helpers -----------------------------------------------------------------------------------------------


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _listed(layers: Sequence[int]) -> str:
    return "[" + ",".join(str(layer) for layer in layers) + "]"


def _ranged(layers: Sequence[int]) -> str:
    """`0-11`, or the numbers themselves when they have gaps."""
    low, high = min(layers), max(layers)
    if len(set(layers)) == high - low + 1:
        return f"{low}-{high}" if high > low else str(low)
    return _listed(sorted(set(layers)))
