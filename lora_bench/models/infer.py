"""Find the module of an architecture that plays each role: by its family's table, by name, or by configuration."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lora_bench.config.errors import ConfigError
from lora_bench.config.grammar import GROUPS, ROLES
from lora_bench.models.families import FAMILIES, Layout
from lora_bench.models.fused import FusedProjection, is_linear, shape_of

# --- where the matrices are -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Linear:
    """A linear layer of the repeated part of a model."""

    stem: str  # path of the layer that holds it: `bert.encoder.layer.3`
    inner: str  # path within the layer: `attention.self.query`
    path: str
    module: nn.Module


@dataclass(frozen=True)
class _Located:
    layer: int
    path: str
    module: nn.Module
    role: str | Layout


def locate(model: nn.Module, overrides: Mapping[str, str]) -> list[_Located]:
    config: Any = model.config
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(
            f"model.name: {kind} is an encoder-decoder, where a role such as 'q' names three different matrices per "
            "layer; use an encoder (bert, roberta, deberta-v2, modernbert ...) or a decoder (gpt2, llama, qwen3 ...)"
        )
    family = FAMILIES.get(kind)
    # ALBERT nests two lists, so the last number is the layer's; in an unknown model a later one may count experts.
    linears = _linears(model, greedy=family is not None)
    known: dict[str, str | Layout] = {}
    if family is not None:
        known = {path: role for role, path in family.roles.items()}
        text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
        known.update({path: layout(text_config) for path, layout in family.fused.items()})
    by_path: dict[str, str | Layout] = {linear.path: known[linear.inner] for linear in linears if linear.inner in known}
    if not by_path:
        by_path.update(_infer(linears, kind, getattr(config, "hidden_size", None), lenient=bool(overrides)))
    by_path = _override(by_path, linears, overrides, kind)
    stems = list(dict.fromkeys(linear.stem for linear in linears if linear.path in by_path))
    located = []
    for linear in linears:
        role = by_path.get(linear.path)
        if role is None:
            continue
        if isinstance(role, Layout) and role.d_out != shape_in_role(linear.module)[1]:
            raise ConfigError(
                f"model.name: {linear.path} has {shape_in_role(linear.module)[1]} output rows where {kind} should have "
                f"{role.d_out}; its fused layout is not the one that lora_bench knows"
            )
        located.append(_Located(stems.index(linear.stem), linear.path, linear.module, role))
    counts = Counter((matrix.layer, matrix.role) for matrix in located if isinstance(matrix.role, str))
    twice = [key for key, n in counts.items() if n > 1]
    if twice:
        layer, role = twice[0]
        paths = [matrix.path for matrix in located if (matrix.layer, matrix.role) == twice[0]]
        raise _ambiguous(kind, linears, f"layer {layer} has {len(paths)} matrices for {role!r}: {', '.join(paths)}")
    return located


def _linears(model: nn.Module, *, greedy: bool) -> list[_Linear]:
    """Linear layers inside a numbered layer, in the order of the module tree; shared ones once."""
    split = re.compile(r"(.*\.\d+)\.(.+)" if greedy else r"(.*?\.\d+)\.(.+)")
    linears = []
    inside: str | None = None
    for path, module in model.named_modules():
        if inside is not None and path.startswith(inside):
            continue
        if not (isinstance(module, FusedProjection) or is_linear(module)):
            continue
        if isinstance(module, FusedProjection) or any(True for _ in module.children()):
            inside = path + "."
        if matched := split.fullmatch(path):
            linears.append(_Linear(matched[1], matched[2], path, module))
    return linears


def shape_in_role(module: nn.Module) -> tuple[int, int]:
    """(d_in, d_out)."""
    if isinstance(module, FusedProjection):
        return module.d_in, module.layout.d_out
    return shape_of(module)


def _override(
    by_path: dict[str, str | Layout], linears: Sequence[_Linear], overrides: Mapping[str, str], kind: str
) -> dict[str, str | Layout]:
    """`by_path` with the roles that `model.roles` names replaced by its choice."""
    given: dict[str, str] = {}
    for role, pattern in overrides.items():
        if role not in ROLES:
            raise ConfigError(f"model.roles: no role {role!r}; roles are {', '.join(ROLES)}")
        try:
            ends = re.compile(rf"(?:^|\.)(?:{pattern})$")
        except re.error as error:
            raise ConfigError(f"model.roles.{role}: {pattern!r} is no regular expression ({error})") from None
        matched = [linear for linear in linears if ends.search(linear.path)]
        say = f"model.roles.{role}: {pattern!r}"
        if not matched:
            raise ConfigError(f"{say} matches no linear layer of {kind}; it has {_described(linears)}")
        for linear in matched:
            known = given.get(linear.path) or by_path.get(linear.path)
            if isinstance(known, Layout) or linear.path in given:
                holds = ", ".join(known.roles) if isinstance(known, Layout) else f"{known}, {role}"
                raise ConfigError(
                    f"{say} matches {linear.path}, one fused weight for {holds}; its rows cannot be told apart from "
                    "the config: map roles to layers of their own"
                )
            given[linear.path] = role
    if not overrides:
        return by_path
    kept = {path: role for path, role in by_path.items() if role not in overrides and path not in given}
    return {**kept, **given}


# --- unknown architectures --------------------------------------------------------------------------------------------

# Last part of a module's path -> role. `o` and the MLP names need their surroundings, below.
_PROJECTIONS = {
    **dict.fromkeys(("q", "query", "q_proj", "query_proj", "q_lin", "q_linear", "linear_q", "wq", "to_q"), "q"),
    **dict.fromkeys(("k", "key", "k_proj", "key_proj", "k_lin", "k_linear", "linear_k", "wk", "to_k"), "k"),
    **dict.fromkeys(("v", "value", "v_proj", "value_proj", "v_lin", "v_linear", "linear_v", "wv", "to_v"), "v"),
}
_ATTENTION_OUTPUTS = {
    "o",
    "o_proj",
    "out_proj",
    "out_lin",
    "output_proj",
    "linear_out",
    "wo",
    "to_out",
    "dense",
    "c_proj",
}
_MLP = {
    **dict.fromkeys(("up_proj", "fc1", "lin1", "linear1", "c_fc", "fc_in", "dense_h_to_4h", "wi", "wi_1", "w3"), "up"),
    **dict.fromkeys(("intermediate.dense", "ffn"), "up"),
    **dict.fromkeys(("gate_proj", "wi_0"), "gate"),
    **dict.fromkeys(("down_proj", "fc2", "lin2", "linear2", "c_proj", "fc_out", "dense_4h_to_h", "wo", "w2"), "down"),
    **dict.fromkeys(("output.dense", "ffn_output"), "down"),
}


def _infer(linears: Sequence[_Linear], kind: str, hidden: int | None, *, lenient: bool) -> dict[str, str]:
    """Role by path, from names, shapes and position.

    Args:
        lenient: leave out what is ambiguous, rather than refuse it (for use with `model.roles`).
    """
    shapes = {linear.inner: shape_in_role(linear.module) for linear in linears}
    stacks = sorted({linear.stem.rpartition(".")[0] for linear in linears})
    roles = {inner: role for inner in shapes if (role := _by_name(inner, shapes))}
    rest = [inner for inner in shapes if inner not in roles and not _is_attention(inner)]
    if not {"up", "gate", "down"} & set(roles.values()) and len(rest) == 2:
        first, second = rest
        if shapes[first] == shapes[second][::-1] and shapes[first][0] == hidden != shapes[first][1]:
            roles.update({first: "up", second: "down"})
    problems = _problems(roles, shapes, hidden)
    if len(stacks) > 1:
        problems.insert(0, f"it has several stacks of layers ({', '.join(stacks)})")
    if problems and not lenient:
        raise _ambiguous(kind, linears, problems[0])
    counts = Counter(roles.values())
    return {linear.path: roles[linear.inner] for linear in linears if counts[roles.get(linear.inner, "")] == 1}


def _problems(roles: Mapping[str, str], shapes: Mapping[str, tuple[int, int]], hidden: int | None) -> list[str]:
    """Reasons not to trust the guess; empty when there are none."""
    problems = []
    counts = Counter(roles.values())
    problems += [
        f"{role!r} could be {' or '.join(inner for inner in roles if roles[inner] == role)}"
        for role, n in counts.items()
        if n > 1
    ]
    problems += [f"no layer is recognised as {role!r}" for role in GROUPS["attention"] if not counts[role]]
    if bool(counts["up"]) != bool(counts["down"]):
        problems.append("only one of 'up' and 'down' is recognised")
    problems += [f"{inner} has no recognised role" for inner in shapes if inner not in roles]
    for inner, role in roles.items():
        d_in, d_out = shapes[inner]
        outer = d_out if role in ("o", "down") else d_in
        if hidden is not None and outer != hidden:
            problems.append(f"{inner} looks like {role!r} by name, but its shape ({d_in} -> {d_out}) says otherwise")
    return problems


def _by_name(inner: str, shapes: Mapping[str, tuple[int, int]]) -> str | None:
    parts = inner.lower().split(".")
    leaf, pair = parts[-1], ".".join(parts[-2:])
    if any(part.isdigit() for part in parts) or "cross" in inner.lower():
        return None
    if leaf in _PROJECTIONS:
        return _PROJECTIONS[leaf]
    if _is_attention(inner):
        return "o" if leaf in _ATTENTION_OUTPUTS else None
    if leaf == "w1":  # Llama's own names: w2(act(w1 x) * w3 x); without w3 there is no gate
        return "gate" if inner[:-1] + "3" in shapes else "up"
    return _MLP.get(pair) or _MLP.get(leaf)


def _is_attention(inner: str) -> bool:
    return "att" in inner.lower()


def _ambiguous(kind: str, linears: Sequence[_Linear], reason: str) -> ConfigError:
    return ConfigError(
        f"model.name: the roles of {kind} cannot be told from its structure: {reason}. Its linear layers are "
        f"{_described(linears)}. Map them in the config, by the end of their paths, for example "
        "model.roles='{q: self_attn.to_queries, v: self_attn.to_values}'"
    )


def _described(linears: Sequence[_Linear]) -> str:
    shapes = {starred(linear.path): shape_in_role(linear.module) for linear in linears}
    if not shapes:
        return "none inside numbered layers"
    return ", ".join(f"{path} ({d_in} -> {d_out})" for path, (d_in, d_out) in shapes.items())


def starred(path: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", path)
