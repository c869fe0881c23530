"""Where a published adapter lies: the matrices that an `adapter_config.json` of peft adapts, at its ranks.

Names are matched by peft itself, so its lists, regular expressions, exclusions, layers and rank patterns mean what they
mean there. A fused projection, which peft adapts by one pair of rank r, is several matrices here: they share the
parameters of that pair, as nearly as whole ranks allow.
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from torch import nn

from lora_bench.config.errors import ConfigError
from lora_bench.models.budget import solve_ranks
from lora_bench.models.fused import is_linear
from lora_bench.models.quiet import first_line
from lora_bench.models.roles import Matrix

CONFIG_FILE = "adapter_config.json"

_PLACES = ("r", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern")
_LANGUAGE_HEADS = ("lm_head", "embed_out", "output_layer")  # which a classifier of the same backbone lacks


def published_matrices(path: str, skeleton: nn.Module, matrices: Sequence[Matrix]) -> list[Matrix]:
    """The matrices of this backbone that the file adapts, with their ranks, by layer and role.

    Args:
        path: an adapter_config.json, or the folder that holds it.
        skeleton: the split classifier, with or without weights.
        matrices: every matrix of every role.

    Raises:
        ConfigError: when the file cannot be read, is of another method, names what this backbone lacks or what has no
            role, or when a rank does not fit.
    """
    config = _config(path)
    everything = config.target_modules == "all-linear"
    placed = [matrix for matrix in matrices if everything or _is_target(config, _hub_name(matrix))]
    if not placed:
        names = config.target_modules if isinstance(config.target_modules, str) else sorted(config.target_modules or ())
        raise ConfigError(f"{_say(path)} adapts {names!r}, none of which is a matrix of this backbone")
    if not everything:
        _refuse_strangers(path, config, skeleton, matrices)
    by_projection: dict[str, list[Matrix]] = defaultdict(list)
    for matrix in placed:
        by_projection[_hub_name(matrix)].append(matrix)
    alike: dict[tuple[int, bool], list[Matrix]] = defaultdict(list)
    ranks: dict[str, int] = config.rank_pattern or {}
    for name, parts in by_projection.items():
        rank = ranks.get(get_pattern_key(list(ranks), name), config.r)
        alike[rank, parts[0].fused is not None] += parts
    solved = [
        matrix for (rank, is_fused), parts in alike.items() for matrix in _at_rank(path, rank, parts, is_fused=is_fused)
    ]
    order = {matrix.module: place for place, matrix in enumerate(matrices)}
    return sorted(solved, key=lambda matrix: order[matrix.module])


def _at_rank(path: str, rank: int, parts: Sequence[Matrix], *, is_fused: bool) -> list[Matrix]:
    """Matrices at a rank, those of fused projections at the cost of one pair of that rank for each projection."""
    try:
        if not is_fused:
            return solve_ranks(parts, rank=rank)
        widths: dict[str | None, int] = defaultdict(int)
        for matrix in parts:
            widths[matrix.fused] += matrix.d_out
        d_in = {matrix.fused: matrix.d_in for matrix in parts}
        budget = sum(rank * (d_in[name] + width) for name, width in widths.items())
        return solve_ranks(parts, budget=budget)
    except ConfigError as error:
        why = str(error).partition(": ")[2]
        raise ConfigError(f"{_say(path)} has rank {rank} where it cannot be: {why}") from None


def _config(path: str) -> LoraConfig:
    """What the file says of places and ranks, as peft reads it."""
    file = Path(path) / CONFIG_FILE if Path(path).is_dir() else Path(path)
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        works = f"give an {CONFIG_FILE} of peft, or its folder"
        raise ConfigError(f"adapter.like: cannot read {str(file)!r} ({first_line(error)}); {works}") from None
    if not isinstance(document, Mapping) or not document.get("target_modules"):
        raise ConfigError(f"{_say(path)} names no target_modules; give an {CONFIG_FILE} of a LoRA")
    if (method := document.get("peft_type", "LORA")) != "LORA":
        raise ConfigError(f"{_say(path)} is of peft's {method}; only a LORA has ranks that can be placed here")
    if document.get("target_parameters"):
        raise ConfigError(f"{_say(path)} adapts target_parameters, which have no role here; give target_modules")
    values: dict[str, Any] = {key: document[key] for key in _PLACES if document.get(key) is not None}
    try:
        config = LoraConfig(**values)
        ranks = [config.r, *(config.rank_pattern or {}).values()]
        _require_expressions(config)
    except Exception as error:
        raise ConfigError(f"{_say(path)} is no configuration that peft can read ({first_line(error)})") from None
    wrong = [rank for rank in ranks if type(rank) is not int or rank < 1]
    if wrong:
        raise ConfigError(f"{_say(path)} has rank {wrong[0]!r}; ranks are whole numbers from 1")
    return config


def _require_expressions(config: LoraConfig) -> None:
    """Compile the regular expressions that peft would meet.

    Raises:
        re.error, TypeError: for what is none.
    """
    patterns: Any = config.layers_pattern or []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        re.compile(pattern)
    check_target_module_exists(config, "module")
    get_pattern_key(list(config.rank_pattern or {}), "module")


def _refuse_strangers(path: str, config: LoraConfig, skeleton: nn.Module, matrices: Sequence[Matrix]) -> None:
    """Refuse a target that matches nothing here, or that matches a layer without a role: the cell would be another."""
    base = str(getattr(skeleton, "base_model_prefix", ""))
    known = {_hub_name(matrix) for matrix in matrices}
    inside = tuple(f"{name}." for name in known)
    for name, module in skeleton.named_modules():
        is_own = name in known or name.startswith(inside) or not (is_linear(module) or isinstance(module, nn.Embedding))
        if not is_own and name.startswith(f"{base}.") and _is_target(config, name):
            raise ConfigError(f"{_say(path)} adapts {name!r}, which has no role here; roles are of attention and MLP")
    if isinstance(config.target_modules, str):
        return
    names = [name for name, _ in skeleton.named_modules()]
    for target in sorted(config.target_modules or ()):
        is_here = any(name == target or name.endswith(f".{target}") for name in names)
        if not is_here and target.rpartition(".")[2] not in _LANGUAGE_HEADS:
            raise ConfigError(f"{_say(path)} adapts {target!r}, which this backbone lacks")


def _is_target(config: LoraConfig, name: str) -> bool:
    return bool(check_target_module_exists(config, name))


def _hub_name(matrix: Matrix) -> str:
    return matrix.fused or matrix.module


def _say(path: str) -> str:
    return f"adapter.like: {path!r}"
