"""What a field of the configuration is declared with: its limits, what it means for a run's identity, and its words.

    warmup_ratio: float = fact(at_least=0, at_most=1, of="train", factor=True, help="fraction of all steps")

Checks, identity, the store's columns, what a setting shares, the factors, `--help` and docs/config.md follow from it.
Light, since `--help` reads it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_args

from lora_bench.config.errors import ConfigError, did_you_mean

MISSING: Any = "???"
"""OmegaConf's mark of a value that a file must give."""

ALWAYS: Any = object()
"""Of a scientific field that has been there since protocol 1."""

PARTS = ("task", "adapter", "train", "run")
"""Parts of a run's science that fields enter; a backbone is its fingerprint."""


@dataclass(frozen=True)
class Fact:
    """The facts of one field.

    Attributes:
        help: what the field does, for docs/config.md.
        brief: how `--help` names it; None: by its name; empty: not at all.
        filled: a text that must not be empty.
        path: of a file or a folder, in which a leading `~` is replaced.
        of: the part of a run's science that the field enters; None: it cannot change a result.
        methods: those whose results it can change; None: all.
        later: of a scientific field added after protocol 1, the value that earlier versions amounted to: with it, a run
            keeps the id that it had.
        column: its name in a store's frame, where another part has a field of the same name.
        factor: whether its levels may be contrasted, all else held equal.
        label: its name on the report's page; None: its column's, in words; empty: the page leaves it out.
        alias: the key that people give, where it is not the field's.
    """

    help: str
    brief: str | None = None
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    filled: bool = False
    path: bool = False
    of: str | None = None
    methods: tuple[str, ...] | None = None
    later: Any = ALWAYS
    column: str | None = None
    factor: bool = False
    label: str | None = None
    alias: str | None = None

    def __post_init__(self) -> None:
        if self.of not in (None, *PARTS):
            raise ValueError(f"of: no {self.of!r}; parts of a run's science are {', '.join(PARTS)}")


def fact(default: Any = MISSING, **facts: Any) -> Any:
    """A dataclass field with its facts (see `Fact`); without a default, a file must give its value."""
    metadata = {"fact": Fact(**facts)}
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Key:
    """A field of the configuration in its place."""

    section: str  # empty for those of the run itself
    name: str
    type: Any
    fact: Fact

    @property
    def path(self) -> str:
        return f"{self.section}.{self.name}" if self.section else self.name

    @property
    def column(self) -> str:
        return self.fact.column or self.name

    @property
    def brief(self) -> str:
        return self.name if self.fact.brief is None else self.fact.brief

    @property
    def label(self) -> str:
        return self.column.replace("_", " ") if self.fact.label is None else self.fact.label

    @property
    def members(self) -> set[Any]:
        """The types that a value may have."""
        return {*(get_args(self.type) or (self.type,))}

    def of(self, config: Any) -> Any:
        """Its value in a configuration."""
        return getattr(getattr(config, self.section) if self.section else config, self.name)

    def counts(self, method: object) -> bool:
        """Whether the field can change a result of this method."""
        return self.fact.methods is None or method in self.fact.methods


def keys_of(schema: type, section: str = "") -> Iterator[Key]:
    """Every field of a configuration, in order; each must be declared by `fact`."""
    for entry in fields(schema):
        if is_dataclass(entry.default_factory):
            yield from keys_of(entry.default_factory, entry.name)
        else:
            yield Key(section, entry.name, entry.type, entry.metadata["fact"])


def check_value(key: Key, value: Any) -> None:
    """Refuse a value outside the limits of its field; a null that the field may be has none.

    Raises:
        ConfigError: naming the key, the value and what would work.
    """
    facts, path = key.fact, key.fact.alias or key.path
    if value is None and type(None) in key.members:
        return
    if facts.filled and (not isinstance(value, str) or not value.strip()):
        raise ConfigError(f"{path}: {value!r} is empty; give a name")
    has_limits = any(limit is not None for limit in (facts.at_least, facts.above, facts.at_most, facts.below))
    values: list[Any] = value if isinstance(value, list) else [value]
    for item in values:
        if isinstance(item, str) and any("\ud800" <= letter <= "\udfff" for letter in item):
            raise ConfigError(f"{path}: {item!r} holds bytes that are no text, which no record can keep; give text")
        if facts.choices:
            _check_choice(path, item, facts.choices)
        if has_limits:
            _check_number(path, item, facts)


def _check_choice(path: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{path}: no {value!r}; choices are {', '.join(choices)}{did_you_mean(str(value), choices)}")


def _check_number(path: str, value: Any, facts: Fact) -> None:
    """Refuse a number that is not finite or lies outside its interval."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path}: {value} is not finite")
    if facts.above is not None and value <= facts.above:
        raise ConfigError(f"{path}: {value} is too small; give a value above {facts.above}")
    if facts.at_least is not None and value < facts.at_least:
        raise ConfigError(f"{path}: {value} is too small; give a value of at least {facts.at_least}")
    if facts.below is not None and value >= facts.below:
        raise ConfigError(f"{path}: {value} is too large; give a value below {facts.below}")
    if facts.at_most is not None and value > facts.at_most:
        raise ConfigError(f"{path}: {value} is too large; give a value of at most {facts.at_most}")
