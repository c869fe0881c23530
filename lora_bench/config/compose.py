"""From what Hydra composed to a checked configuration, and from its errors to ours.

`parse` turns a composed configuration into dataclasses, so below it no code sees a DictConfig.
"""

import contextlib
import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import PurePath
from typing import Any, get_args, get_origin

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import (
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from lora_bench import paths
from lora_bench.config.check import check
from lora_bench.config.errors import ConfigError, did_you_mean
from lora_bench.config.habits import key_here, targets_here
from lora_bench.config.schema import KEYS, RunConfig

KEY_ALIASES = {key.fact.alias: key.path for key in KEYS if key.fact.alias}
"""Keys by the name that people give them, and by the name that the schema has: `store` itself is a folder."""

LARGEST_WHOLE = 2**63

COMMAND_KEYS = ("hydra", "show", "pack")
"""Keys of a composed configuration that steer the command and are no part of a run."""


def parse(composed: DictConfig | Mapping[str, Any]) -> RunConfig:
    """Check a composed configuration against the schema and the limits.

    Raises:
        ConfigError: on an unknown key, a wrong type, a missing or impossible value.
    """
    with _in_our_words():
        config: Any = OmegaConf.to_object(_typed(composed))
    config = _named_by_its_file(_with_whole_paths(config))
    check(config)
    return config


def compose(words: Sequence[str]) -> DictConfig:
    """What `lora-bench` composes from conf/ for these words; a command of Hydra may run already, as where a study ends.

    Raises:
        HydraException: when they do not compose.
    """
    import hydra  # a quarter of a second
    from hydra.core.global_hydra import GlobalHydra

    running = GlobalHydra.instance()
    outer = running.hydra
    running.clear()
    try:
        with hydra.initialize_config_dir(str(paths.resource_root() / "conf"), version_base="1.3"):
            return hydra.compose("config", overrides=list(words))
    finally:
        running.hydra = outer


class Template:
    """A composed configuration that is parsed again and again with other values: parsing anew costs 30 ms, this 1 ms.

    Every parse must set the same keys, so that none keeps the value of an earlier one; they must exist in the schema,
    and no value may refer to another (`is_fit`).
    """

    def __init__(self, composed: DictConfig):
        with _in_our_words():
            self._typed = _typed(composed)
            self._first: Any = OmegaConf.to_object(self._typed)

    @staticmethod
    def can_set(key: str) -> bool:
        """Whether a dotted key names one value of the schema."""
        return _is_value(key)

    @staticmethod
    def is_fit(composed: DictConfig, keys: Iterable[str]) -> bool:
        """Whether parsing by this class equals parsing anew."""
        return "${" not in OmegaConf.to_yaml(composed) and all(map(_is_value, keys))

    def parse(self, values: Mapping[str, Any]) -> RunConfig:
        """The configuration with these values, by dotted key, checked as `parse` does.

        Raises:
            ConfigError: as `parse` does.
        """
        config = self._first
        for key, value in values.items():
            section, _, name = key.rpartition(".")
            kind = {field.name: field.type for field in fields(getattr(config, section) if section else config)}[name]
            _refuse_scalar(key, kind, value)
            with _in_our_words():
                OmegaConf.update(self._typed, key, value, merge=False)
                chosen = OmegaConf.select(self._typed, key)
            chosen = OmegaConf.to_object(chosen) if OmegaConf.is_config(chosen) else chosen
            config = _with_value(config, section, {name: chosen})
        config = _named_by_its_file(_with_whole_paths(config))
        check(config)
        return config


def _with_whole_paths(config: RunConfig) -> RunConfig:
    """Every path with its `~` replaced: the one place that does so. Ids hold no paths, so none moves.

    Raises:
        ConfigError: when there is no such home, or the locale cannot spell the path.
    """
    for key in KEYS:
        if key.fact.path and (text := key.of(config)):
            try:
                config = _with_value(config, key.section, {key.name: paths.expanded(text)})
            except paths.PathError as error:
                raise ConfigError(f"{key.path}: {error}") from None
    return config


def _named_by_its_file(config: RunConfig) -> RunConfig:
    """A backbone that is read from `model.gguf` has the file's name: that of the preset is another model's."""
    if not config.model.gguf:
        return config
    return _with_value(config, "model", {"name": PurePath(config.model.gguf).name or config.model.gguf})


def _with_value(config: RunConfig, section: str, values: Mapping[str, Any]) -> RunConfig:
    """A configuration with other values in a section; an empty one is the run's own."""
    return replace(config, **({section: replace(getattr(config, section), **values)} if section else values))


def schema_override(override: str) -> str:
    """An override whose key is spelled as the schema has it (`KEY_ALIASES`)."""
    key, mark, value = override.partition("=")
    name = key.lstrip("+~")
    return f"{key[: len(key) - len(name)]}{KEY_ALIASES.get(name, name)}{mark}{value}"


def with_rank_yielding(overrides: Sequence[str]) -> tuple[str, ...]:
    """Overrides that give a budget and no rank, with the rank of the presets taken back: they say which of the two they
    mean. A rank that is given beside a budget stays, and is refused.

    Raises:
        ConfigError: for targets or a rank beside `adapter.like`; those of the presets yield to it.
    """
    given = {key.lstrip("+"): value for key, _, value in (override.partition("=") for override in overrides)}
    if given.get("adapter.like", "null") != "null":
        for key in ("adapter.targets", "adapter.rank"):
            if given.get(key, "null") != "null":
                raise ConfigError(f"{key}: {given[key]} beside adapter.like, whose file says it; give one of the two")
    yields = given.get("adapter.budget", "null") != "null" and "adapter.rank" not in given
    return (*overrides, "adapter.rank=null") if yields else tuple(overrides)


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass configuration as plain JSON values, in schema order."""
    values = ((field.name, getattr(config, field.name)) for field in fields(config))
    return {name: to_dict(value) if is_dataclass(value) else value for name, value in values}


def _typed(composed: DictConfig | Mapping[str, Any]) -> DictConfig:
    given = _own_part(composed)
    _refuse_wrong_scalars(given)
    merged: Any = OmegaConf.merge(OmegaConf.structured(RunConfig), given)
    return merged


@contextlib.contextmanager
def _in_our_words() -> Iterator[None]:
    """Turn OmegaConf's errors into ours."""
    try:
        yield
    except ConfigKeyError as error:
        raise ConfigError(unknown_key(str(error.full_key or error.key))) from None
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: no value given; set it on the command line or in a config file") from None
    except ValidationError as error:
        raise ConfigError(f"{error.full_key}: {_explain(error)}") from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'configuration'}: {_first_line(error)}") from None


def _is_value(key: str) -> bool:
    """Whether a dotted key of the schema names one value: no section, no mapping, nothing inside a value."""
    section, _, name = key.rpartition(".")
    schema: Any = RunConfig
    if section:
        part = next((field for field in fields(schema) if field.name == section), None)
        schema = part.type if part else None
    kinds = {field.name: field.type for field in fields(schema)} if is_dataclass(schema) else {}
    return name in kinds and not is_dataclass(kinds[name]) and get_origin(kinds[name]) is not dict


def _refuse_wrong_scalars(given: DictConfig) -> None:
    """OmegaConf reads `true` as the number 1, and ends in an OverflowError where an integer fits no float."""

    def walk(schema: Any, values: Any, prefix: str) -> None:
        if not OmegaConf.is_dict(values):
            return
        for field in fields(schema):
            name = field.name
            if name not in values or OmegaConf.is_missing(values, name) or OmegaConf.is_interpolation(values, name):
                continue
            value = values[name]
            nested = field.default_factory() if callable(field.default_factory) else None  # type: ignore[misc]
            if is_dataclass(nested):
                if value is None:
                    raise ConfigError(f"{prefix}{name}: null; give its keys, or leave it out")
                walk(nested, value, f"{prefix}{name}.")
            else:
                _refuse_scalar(f"{prefix}{name}", field.type, value)

    walk(RunConfig, given, "")


def _refuse_scalar(key: str, kind: Any, value: Any) -> None:
    """Refuse a switch where none belongs, and a number that neither a float nor a table of the store can hold."""
    if isinstance(value, bool):
        if kind is not bool and kind is not Any:
            raise ConfigError(f"{key}: {str(value).lower()} is a switch; give a {_type_name(kind)}")
    elif isinstance(value, int) and abs(value) >= LARGEST_WHOLE:
        shown = f"{str(value)[:12]}... ({len(str(abs(value)))} digits)"
        raise ConfigError(f"{key}: {shown} is too large; give a {_type_name(kind)} below {LARGEST_WHOLE}")


def _type_name(kind: Any) -> str:
    words = {int: "whole number", float: "number", str: "text"}
    members = [member for member in (get_args(kind) or (kind,)) if member is not type(None)]
    return " or ".join(words.get(member, getattr(member, "__name__", str(member))) for member in members)


def unknown_key(full: str) -> str:
    """The message for a key that the schema does not have: its neighbours, and the likeliest one."""
    head, _, tail = full.rpartition(".")
    schema: Any = RunConfig
    for part in head.split(".") if head else []:
        known = {field.name: field for field in fields(schema)} if is_dataclass(schema) else {}
        if part not in known or not callable(known[part].default_factory):
            if here := key_here(full):
                return f"{full}: no such key; {here}"
            return unknown_key(head) if schema is RunConfig else f"{full}: no such key"
        schema = type(known[part].default_factory())  # type: ignore[misc]
    names = [field.name for field in fields(schema)] if is_dataclass(schema) else []
    if full == "sweeps":
        return "sweeps: no sweep was loaded; name a file of sweeps/ as +sweeps=NAME, such as +sweeps=quick"
    if sections := _sections_with(tail):
        return f"{full}: no such key; did you mean {' or '.join(f'{section}.{tail}' for section in sections)}?"
    here = key_here(full)
    where = f"keys of {head} are" if head else "keys are"
    if here and not head:
        return f"{full}: no such key; {here}"
    hint = "" if here else did_you_mean(tail, names)
    return f"{full}: no such key; {f'{here}; ' if here else ''}{where} {', '.join(names)}{hint}"


def _sections_with(name: str) -> list[str]:
    """Sections of the schema that have a key of this name."""
    parts = {field.name: field.default_factory for field in fields(RunConfig) if callable(field.default_factory)}
    sections = {section: make() for section, make in parts.items()}
    return [
        section
        for section, part in sections.items()
        if is_dataclass(part) and name in {field.name for field in fields(part)}
    ]


def _own_part(composed: DictConfig | Mapping[str, Any]) -> DictConfig:
    """The composed configuration without the command's own keys, with a preset's per-task table looked up."""
    given: Any = copy.deepcopy(composed) if isinstance(composed, DictConfig) else OmegaConf.create(dict(composed))
    with open_dict(given):
        for key in COMMAND_KEYS:
            given.pop(key, None)
        train = given.get("train")
        table = train.get("per_task") if isinstance(train, DictConfig) else None
        if table is None:
            return given
        task = OmegaConf.select(given, "task.name")
        try:
            values: Any = OmegaConf.to_container(given.train, resolve=True)
        except InterpolationResolutionError:
            known = ", ".join(map(str, table))
            raise ConfigError(f"train: this preset has no values for task {task!r}; it has {known}") from None
        given.train = {key: value for key, value in values.items() if key != "per_task"}
    return given


def _explain(error: OmegaConfBaseException) -> str:
    """OmegaConf's first line, with what would work."""
    said = _first_line(error)
    if "is not a ListConfig" in said:
        return "one value where a list belongs; write it in brackets, as [a,b]"
    if composite := re.search(r"Cannot convert '(List|Dict)Config' to string: '(.*)'", said):
        what = "list" if composite[1] == "List" else "mapping"
        is_targets = str(error.full_key) == "adapter.targets"
        here = (targets_here(composite[2]) if is_targets and what == "list" else None) or "qv"
        both = "qv is both q and v" if here == "qv" else f"{here} is all of them"
        works = both if is_targets else "give it without brackets"
        return f"{composite[2]} is a {what}, where one text belongs; {works}, and with -m a,b is a sweep over several"
    hints = {"to Integer": "give a whole number", "to Float": "give a number", "valid bool": "give true or false"}
    hint = next((hint for kind, hint in hints.items() if kind in said), None)
    return f"{said}; {hint}" if hint else said


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
