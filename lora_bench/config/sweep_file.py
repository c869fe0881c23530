"""A sweep's file as people write it: what is wrong with it, in one line that names the file and the key or the line."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import yaml

from lora_bench.config.errors import ConfigError, did_you_mean
from lora_bench.config.schema import RunConfig

PACKAGE = "_global_"
SWEEPER_KEYS = ("params", "grids", "study", "pack_size", "workers", "hours", "dry_run", "fail_fast", "retry_failed")
_HINTS = {
    "'\\t'": "indent with spaces, never with tabs",
    "duplicate": "give each key once",
    "block": "check the indentation of this line and of those before it",
    "mapping values": "check the indentation, and put quotes around a value that holds a colon",
    "','": "put quotes around a value that holds a colon, a comma or a brace",
    "end of stream": "a quote or a bracket is not closed",
}


@contextlib.contextmanager
def readable(file: str) -> Iterator[None]:
    """Turn what goes wrong while a file is read into one line.

    Raises:
        ConfigError: when it cannot be opened, is no UTF-8 or no YAML.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        line = bytes(error.object[: error.start]).count(b"\n") + 1
        byte = f"byte 0x{error.object[error.start]:02x} in line {line}"
        raise ConfigError(f"sweeps: {file} is not UTF-8 ({byte}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        line = f", line {mark.line + 1}" if mark else ""
        hint = next((hint for sign, hint in _HINTS.items() if sign in problem), "check its YAML")
        raise ConfigError(f"sweeps: {file}{line}: {' '.join(problem.split())}; {hint}") from None
    except OSError as error:
        raise ConfigError(f"sweeps: {file} cannot be read ({error.strerror})") from None


def check_sweep(file: str, content: Any, *, package: str | None = PACKAGE) -> None:
    """Check the outline of a sweep: its sections, and the sweeper's own keys. Values are checked point by point.

    Args:
        package: of the file's header, as Hydra reads it; None without one.

    Raises:
        ConfigError: naming the file, the key and what would work.
    """
    if content is None or content == {}:
        raise ConfigError(f"sweeps: {file} is empty; give it axes under hydra.sweeper.params, as sweeps/quick.yaml has")
    if package is None or not (package == PACKAGE or package.startswith("hydra")):
        named = f"its package is {package!r}" if package else "it has no package"
        raise ConfigError(f"sweeps: {file}: {named}; its first line must be: # @package {PACKAGE}")
    if package != PACKAGE:
        return
    sections = {field.name: field.default_factory for field in fields(RunConfig)}
    _check_keys(file, "", content, (*sections, "hydra", "defaults"))
    for name, value in content.items():
        has_keys = name == "hydra" or (callable(sections.get(name)) and is_dataclass(sections[name]()))  # type: ignore[operator]
        if has_keys and not isinstance(value, Mapping):
            raise ConfigError(f"sweeps: {file}: {name}: {_shown(value)} where keys and values belong")
    hydra = content.get("hydra", {})
    if str(hydra.get("mode", "MULTIRUN")) != "MULTIRUN":
        raise ConfigError(f"sweeps: {file}: hydra.mode: {hydra['mode']!r}; give MULTIRUN, or leave it out")
    sweeper = hydra.get("sweeper", {})
    _check_keys(file, "hydra.sweeper", sweeper, SWEEPER_KEYS)
    if sweeper.get("params") is not None:
        _check_keys(file, "hydra.sweeper.params", sweeper["params"])
    grids = sweeper.get("grids")
    if grids is not None and not isinstance(grids, list):
        raise ConfigError(f"sweeps: {file}: hydra.sweeper.grids: {_shown(grids)} where a list of grids belongs")


def _check_keys(file: str, section: str, content: Any, known: tuple[str, ...] = ()) -> None:
    """That a section holds keys and values, of known names where those are given."""
    where = f"{section}: " if section else ""
    if not isinstance(content, Mapping):
        raise ConfigError(f"sweeps: {file}: {where}{_shown(content)} where keys and values belong")
    for key in content if known else ():
        if key not in known:
            whole = f"{section}.{key}" if section else str(key)
            hint = did_you_mean(str(key), known)
            raise ConfigError(f"sweeps: {file}: {whole}: no such key; keys are {', '.join(known)}{hint}")


def _shown(value: Any) -> str:
    return "a list" if isinstance(value, list) else "nothing" if value is None else repr(value)
