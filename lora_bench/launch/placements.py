"""What a study's placements are called, and the rates at which the search of each starts.

    q        qv r=4        first:3        DoRA        qv DoRA alpha=32

A name holds what the placements of a family differ in, as tables and papers write it. Where two would share a name, all
have the keys of their overrides in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lora_bench.config.errors import ConfigError
from lora_bench.config.overrides import key_of, value_of
from lora_bench.config.schema import LORA_METHODS
from lora_bench.launch.plan import Candidate, arm_name
from lora_bench.verdicts.settings import preset_of
from lora_bench.wording import METHODS, listed

TARGETS = "adapter.targets"
PREFIXES = {"adapter.rank": "r=", "adapter.layers": "", "adapter.like": ""}
"""What stands before a value, where that is not its key."""
SAID_BY_LIKE = (TARGETS, "adapter.rank", "adapter.budget", "adapter.layers", "adapter.rank_pattern")
"""What an adapter_config.json says in the place of these keys, whatever they hold."""
VALUES = {("adapter.layers", "all"): "all layers"}


def names(candidates: Sequence[Candidate], axes: Sequence[str]) -> list[str]:
    """The name of each placement.

    Args:
        candidates: one of each placement.
        axes: the keys in which their overrides differ.
    """
    shown = [_parts(candidate, axes) for candidate in candidates]
    of_targets = [parts.pop(TARGETS, "") for parts in shown]
    has_targets = len({*of_targets} - {""}) > 1 or not all(shown)
    made = [
        " ".join([*([targets] if targets and has_targets else []), *parts.values()])
        for targets, parts in zip(of_targets, shown, strict=True)
    ]
    return made if len(set(made)) == len(made) else written_out(candidates, axes)


def written_out(candidates: Sequence[Candidate], axes: Sequence[str]) -> list[str]:
    """Names with the keys of overrides, as the tables of a sweep have them: `qv rank=4`."""
    return [arm_name(candidate, axes) for candidate in candidates]


def _parts(candidate: Candidate, axes: Sequence[str]) -> dict[str, str]:
    """Axis -> what it is shown as, for those that count for the candidate's method."""
    adapter = candidate.config.adapter
    is_lora = adapter.method in LORA_METHODS
    values = {key_of(word): value_of(word) for word in candidate.overrides}
    parts = {TARGETS: adapter.targets} if is_lora and adapter.like is None else {}
    if "adapter" in axes or "adapter.method" in axes or not is_lora:
        parts["adapter"] = METHODS[preset_of(adapter.method, adapter.init, adapter.alpha_policy)]
    for key in axes:
        counts = (is_lora or not key.startswith("adapter.")) and (adapter.like is None or key not in SAID_BY_LIKE)
        if counts and key in values and key not in ("adapter", "adapter.method", TARGETS):
            shown = VALUES.get((key, values[key]), values[key])
            if key == "adapter.like" and adapter.like is not None:
                path = Path(adapter.like)
                shown = path.parent.name if path.suffix else path.name
            parts[key] = PREFIXES.get(key, f"{key.rpartition('.')[2]}=") + shown
    return parts


def named_reference(reference: str, known: Sequence[Sequence[str]]) -> int | None:
    """The position of the placement that a reference names by any of the lists of names, in capitals or not; None where
    none or several are meant."""
    for spelled in known:
        if reference in spelled:
            return list(spelled).index(reference)
    alike = {i for spelled in known for i, name in enumerate(spelled) if name.lower() == reference.lower()}
    return alike.pop() if len(alike) == 1 else None


def own_values(rates_of: Mapping[str, object], points: Sequence[Sequence[str]]) -> list[str | None]:
    """Of each placement, the value of its overrides for which rates of its own are declared.

    Args:
        rates_of: by value.
        points: overrides of each placement.

    Raises:
        ConfigError: where no placement has such a value, or one has two of them.
    """
    values_of = [set(map(value_of, words)) for words in points]
    for value in rates_of:
        if not any(value in values for values in values_of):
            known = listed(sorted(set().union(*values_of)))
            raise ConfigError(f"study.rates_of.{value}: no placement has this value; values are {known}")
    own = []
    for values in values_of:
        having = [value for value in rates_of if value in values]
        if len(having) > 1:
            raise ConfigError(
                f"study.rates_of.{having[1]}: rates of {having[0]} are declared too, and a placement has both"
            )
        own.append(having[0] if having else None)
    return own
