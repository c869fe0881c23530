"""What `adapter.targets`, `adapter.budget` and `adapter.layers` may say, as text and as values."""

import re
from collections.abc import Collection
from typing import Any

from lora_bench.config.errors import ConfigError, did_you_mean
from lora_bench.config.habits import targets_here

ROLES = ("q", "k", "v", "o", "up", "gate", "down")
GROUPS = {"attention": ("q", "k", "v", "o"), "mlp": ("up", "gate", "down"), "all": ROLES}


def parse_targets(text: str, *, key: str = "adapter.targets") -> tuple[str, ...]:
    """The roles and groups that a target string names, in order, each once.

    Parts are joined by `+`; a part is a group, an MLP role, or letters of `qkvo`: `qv`, `qkvo+up+down`.

    Raises:
        ConfigError: on an unknown, empty or repeated role.
    """
    works = f"roles are {', '.join(ROLES)}, groups {', '.join(GROUPS)}"
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{key}: no role in {text!r}; roles are {', '.join(ROLES)}, groups {', '.join(GROUPS)}")
    roles: list[str] = []
    for part in text.strip().split("+"):
        part = part.strip()
        if part in GROUPS or part in ROLES:
            roles.append(part)
            continue
        unknown = [letter for letter in part if letter not in "qkvo"] if len(part) <= 4 else [part]
        if not part or unknown:
            named = unknown[0] if unknown else part
            here = targets_here(text)
            hint = f"; {text!r} is {here} here" if here else did_you_mean(named, (*ROLES, *GROUPS))
            raise ConfigError(f"{key}: no role {named!r} in {text!r}; {works}{hint}")
        roles.extend(part)
    repeated = [role for role in dict.fromkeys(roles) if roles.count(role) > 1]
    if repeated:
        raise ConfigError(f"{key}: role {repeated[0]!r} is named twice in {text!r}; name each once")
    return tuple(roles)


def spell_targets(roles: Collection[str]) -> str:
    """Canonical text of a set of roles: attention letters joined, then the MLP roles: `qv+up+down`."""
    letters = "".join(role for role in "qkvo" if role in roles)
    return "+".join([*([letters] if letters else []), *(role for role in ("up", "gate", "down") if role in roles)])


def parse_budget(budget: int | str) -> int | tuple[tuple[str, ...], int]:
    """A budget as a number of adapter parameters, or as (roles, rank) whose cost it is.

    Raises:
        ConfigError: when it is neither a positive number nor of the form `q@8`.
    """
    if isinstance(budget, int) and not isinstance(budget, bool):
        if budget < 1:
            raise ConfigError(
                f"adapter.budget: {budget} is below 1; give a number of parameters, or a cost such as q@8"
            )
        return budget
    text = str(budget).strip()
    if re.fullmatch(r"[0-9][0-9_]*", text):
        return parse_budget(int(text))
    matched = re.fullmatch(r"([A-Za-z_+.,-]+)@([0-9]+)", text)
    if not matched or int(matched[2]) < 1:
        raise ConfigError(f"adapter.budget: cannot read {budget!r}; give a number of parameters, or a cost such as q@8")
    return parse_targets(matched[1], key="adapter.budget"), int(matched[2])


def parse_layers(layers: Any, n_layers: int | None = None) -> str | tuple[str, int] | tuple[int, ...]:
    """`all`, ('first' | 'last', n) or layer numbers, counted from 0.

    Raises:
        ConfigError: when unreadable, empty, repeated or (with `n_layers`) out of range.
    """
    say = "adapter.layers"
    works = "give all, first:N, last:N or a list such as [0,2,5]"
    if layers == "all":
        return "all"
    if isinstance(layers, str) and (matched := re.fullmatch(r"(first|last):([0-9]+)", layers)):
        count = int(matched[2])
        if count < 1 or (n_layers is not None and count > n_layers):
            raise ConfigError(f"{say}: {layers!r} is out of range; the backbone has {n_layers or 'at least 1'} layers")
        return str(matched[1]), count
    if isinstance(layers, (list, tuple)) and layers and all(type(layer) is int for layer in layers):
        if len(set(layers)) < len(layers):
            raise ConfigError(f"{say}: {list(layers)} names a layer twice; name each once")
        outside = [layer for layer in layers if layer < 0 or (n_layers is not None and layer >= n_layers)]
        if outside:
            limit = f"0 to {n_layers - 1}" if n_layers else "0 and above"
            raise ConfigError(f"{say}: no layer {outside[0]} in {list(layers)}; layers are {limit}")
        return tuple(sorted(int(layer) for layer in layers))
    raise ConfigError(f"{say}: cannot read {layers!r}; {works}")
