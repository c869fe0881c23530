"""What `adapter.targets`, `budget`, `layers` and `rank_pattern` may say, as text and as values."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_bench.config.errors import ConfigError, did_you_mean
from lora_bench.config.habits import targets_here

ROLES = ("q", "k", "v", "o", "up", "gate", "down")
GROUPS = {"attention": ("q", "k", "v", "o"), "mlp": ("up", "gate", "down"), "all": ROLES}
HIGHEST_RANK = 65536


@dataclass(frozen=True)
class RankRule:
    """A part of `adapter.rank_pattern`: the rank of some roles in some layers; rank 0 leaves them out."""

    text: str  # as it was given: v.first:3
    roles: tuple[str, ...]  # roles and groups
    layers: str | tuple[int, ...]  # as `adapter.layers` has them
    rank: int


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


def group_words(spelled: Collection[str]) -> dict[str, str]:
    """Of the placements of one table, those that are groups by their words: `attention`, `MLP`, `all`.

    Empty without the MLP among them: there `qkvo` is one of several sets of attention's matrices. A gate belongs to the
    MLP where any of them adapts one.
    """
    mlp = spell_targets(GROUPS["mlp"] if any("gate" in targets for targets in spelled) else ("up", "down"))
    attention = spell_targets(GROUPS["attention"])
    words = {attention: "attention", mlp: "MLP", f"{attention}+{mlp}": "all"}
    if {mlp, f"{attention}+{mlp}"}.isdisjoint(spelled):
        return {}
    return {targets: words[targets] for targets in spelled if targets in words}


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


def parse_rank_pattern(pattern: Any) -> tuple[RankRule, ...]:
    """The rules of a rank pattern in their order, of which the last that fits a matrix holds.

    Either a mapping, `{q: 4, v.first:3: 16}`, or the text `q@4+v.first:3@16`, where a rank is that of every part since
    the rank before: `q+v@8` is both. A part is a target, and after a dot its layers: `first:N`, `last:N`, a number,
    a range or several of them (`v.0-2,5`).

    Raises:
        ConfigError: on an unknown role, layers that cannot be read, a part named twice, or a rank that is none.
    """
    if pattern is None or pattern == "" or pattern == {}:
        return ()
    rules = [_rank_rule(part, rank, pattern) for part, rank in _rank_parts(pattern)]
    texts = [rule.text for rule in rules]
    if repeated := next((text for text in texts if texts.count(text) > 1), None):
        raise ConfigError(f"adapter.rank_pattern: {repeated!r} has two ranks in {pattern!r}; give it one")
    return tuple(rules)


def spell_rank_pattern(ranks: Mapping[tuple[str, int], int]) -> str:
    """The text of ranks by (role, layer), without commas: `q@4+v.0-2@16+v.3@0`."""
    parts = []
    for role in (role for role in ROLES if any(role == own for own, _ in ranks)):
        by_rank: dict[int, list[int]] = {}
        for layer in sorted(layer for own, layer in ranks if own == role):
            by_rank.setdefault(ranks[role, layer], []).append(layer)
        if len(by_rank) == 1:
            parts.append(f"{role}@{next(iter(by_rank))}")
        else:
            parts += ["+".join(f"{role}.{run}" for run in _runs(own)) + f"@{rank}" for rank, own in by_rank.items()]
    return "+".join(parts)


def layers_in_words(layers: Sequence[int]) -> str:
    """Numbers of layers, ascending, for people: `24-29`, `0-2, 5`."""
    return ", ".join(_runs(layers))


def _runs(layers: Sequence[int]) -> list[str]:
    """`0-2`, `5`: consecutive layers together."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]


def _rank_parts(pattern: Any) -> list[tuple[str, Any]]:
    """(part, rank) of a mapping or a text."""
    works = "give ranks by role, such as q@4+v@8 or {q: 4, v.first:3: 16}"
    if isinstance(pattern, Mapping):
        return [(str(part).strip(), rank) for part, rank in pattern.items()]
    if not isinstance(pattern, str):
        raise ConfigError(f"adapter.rank_pattern: cannot read {pattern!r}; {works}")
    parts: list[tuple[str, Any]] = []
    waiting: list[str] = []
    for piece in pattern.split("+"):
        part, mark, rank = piece.partition("@")
        waiting.append(part.strip())
        if mark:
            parts += [(name, int(rank) if re.fullmatch(r"\s*[0-9]{1,9}\s*", rank) else rank) for name in waiting]
            waiting = []
    if waiting:
        raise ConfigError(f"adapter.rank_pattern: no rank for {waiting[0]!r} in {pattern!r}; {works}")
    return parts


def _rank_rule(part: str, rank: Any, pattern: Any) -> RankRule:
    key = "adapter.rank_pattern"
    if type(rank) is not int or not 0 <= rank <= HIGHEST_RANK:
        raise ConfigError(f"{key}: {rank!r} is no rank for {part!r}; give a whole number from 1, or 0 to leave it out")
    targets, dot, where = part.partition(".")
    if targets not in GROUPS:
        parse_targets(targets, key=key)
    return RankRule(part, _names(targets), _rank_layers(where, pattern) if dot else "all", rank)


def _names(targets: str) -> tuple[str, ...]:
    """Roles and groups of a target string, the groups as they are."""
    parts = [part.strip() for part in targets.split("+")]
    return tuple(name for part in parts for name in ((part,) if part in (*GROUPS, *ROLES) else part))


def _rank_layers(where: str, pattern: Any) -> str | tuple[int, ...]:
    key = "adapter.rank_pattern"
    if re.fullmatch(r"all|(first|last):[0-9]+", where):
        parse_layers(where, key=key)
        return where
    numbers: list[int] = []
    for piece in where.strip("[] ").split(","):
        spelled = re.fullmatch(r"\s*([0-9]{1,6})(?:-([0-9]{1,6}))?\s*", piece)
        if not spelled:
            raise ConfigError(
                f"{key}: cannot read layers {where!r} in {pattern!r}; give first:N, last:N, a number or a range, as in "
                "v.0-2@16"
            )
        numbers += range(int(spelled[1]), int(spelled[2] or spelled[1]) + 1)
    parsed = parse_layers(numbers, key=key)
    return tuple(int(layer) for layer in parsed)


def parse_layers(
    layers: Any, n_layers: int | None = None, *, key: str = "adapter.layers"
) -> str | tuple[str, int] | tuple[int, ...]:
    """`all`, ('first' | 'last', n) or layer numbers, counted from 0.

    Args:
        key: what an error names.

    Raises:
        ConfigError: when unreadable, empty, repeated or (with `n_layers`) out of range.
    """
    say = key
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
