"""The words of the command line, as the keys that they stand for.

sweeps=NAME         +sweeps=NAME, as Hydra wants it; so does sweep=NAME
study=NAME          the study that sweeps/NAME.yaml declares; so does `study NAME`
study.KEY=VALUE     another value of its declaration
show WHAT           show=WHAT
dry_run, hours      of a sweep and of a study
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

from lora_bench.config.errors import ConfigError
from lora_bench.config.habits import key_here

SHORT = {"dry_run": "hydra.sweeper.dry_run", "hours": "hydra.sweeper.hours"}
FIRST_WORDS = ("study", "show")
"""First words that take their value from the next one."""

SWITCHES = (
    *("--help", "--version", "--multirun", "--cfg", "--resolve", "--package", "--info", "--run", "--hydra-help"),
    *("--config-path", "--config-name", "--config-dir", "--shell-completion", "--experimental-rerun"),
)
"""Ours, and Hydra's own."""

_TYPED: ContextVar[Sequence[str] | None] = ContextVar("typed", default=None)


@contextlib.contextmanager
def read_as(arguments: Sequence[str]) -> Iterator[None]:
    """Let Hydra, which reads `sys.argv`, find these instead of what was typed; `as_typed` remembers that."""
    given = sys.argv
    token = _TYPED.set(given[1:])
    sys.argv = [given[0], *arguments]
    try:
        yield
    finally:
        sys.argv = given
        _TYPED.reset(token)


def as_typed() -> list[str]:
    """The arguments of this process as they were typed, which is how a line to paste repeats them."""
    typed = _TYPED.get()
    return list(sys.argv[1:] if typed is None else typed)


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """The arguments with every short word replaced.

    Raises:
        ConfigError: for nothing to show, another tool's switch, a study without a name, and several studies.
    """
    if list(arguments) == ["show"]:
        raise ConfigError("show: targets, store or config; give one, as lora-bench show store")
    for word in arguments:
        _refuse_switch(word)
    if len(arguments) > 1 and arguments[0] in FIRST_WORDS:
        arguments = [f"{arguments[0]}={arguments[1]}", *arguments[2:]]
    spelled = [longer for argument in arguments for longer in _spelled_out(argument)]
    names = [word.partition("=")[2] for word in spelled if word.startswith("+sweeps=")]
    if "hydra.sweeper.as_study=true" in spelled:
        if len(names) > 1:
            raise ConfigError(f"study: one at a time, not {' and '.join(names)}")
    elif any(word.startswith("++hydra.sweeper.study.") for word in spelled):
        key = next(word for word in arguments if word.startswith("study.")).partition("=")[0]
        raise ConfigError(f"{key}: no study is named; run one as lora-bench study NAME, or study=NAME")
    return spelled


def _refuse_switch(word: str) -> None:
    """Refuse a switch of another tool, and a key that is spelled as one, with the key that it is here."""
    name = word.partition("=")[0]
    key = name[2:].replace("-", "_")
    if not name.startswith("--") or not key:
        return
    if here := key_here(key):
        raise ConfigError(f"{name}: no such switch; {here}, given as KEY=VALUE")
    if written := _as_key(key):
        raise ConfigError(f"{name}: no such switch; it is a key, given as {written}=VALUE")
    if not any(switch.startswith(name) for switch in SWITCHES):
        raise ConfigError(f"{name}: no such switch; switches are {', '.join(SWITCHES)}; all else is key=value")


def _as_key(name: str) -> str | None:
    """How a key or a part of the configuration is given, by its name or the end of it; None where it is neither."""
    from lora_bench.config.schema import KEYS  # which only a line with such a switch has to wait for

    if name in {key.section or key.name for key in KEYS} | {"hours", "dry_run", "study", "sweeps", "show"}:
        return name
    return " or ".join(key.path for key in KEYS if name in (key.name, key.path)) or None


def _spelled_out(argument: str) -> list[str]:
    key, mark, value = argument.partition("=")
    if key in SHORT and mark:
        return [f"{SHORT[key]}={value}"]
    if key.lstrip("+") in ("sweep", "sweeps") and mark:
        return [f"+sweeps={value.removeprefix('./').removeprefix('sweeps/')}"]
    if key == "study" and mark:
        if not value.strip() or value.startswith("-") or "=" in value:
            raise ConfigError(f"study: {value!r} is no name; lora-bench study lists the studies that there are")
        if "," in value and value[0] not in "'\"":
            raise ConfigError(f"study: one at a time, not {value}")
        return [f"+sweeps={value}", "hydra.sweeper.as_study=true"]
    if key.startswith("study.") and mark:
        is_list = "," in value and value[0] not in "[{('\""  # Hydra would take it for values of a sweep
        return [f"++hydra.sweeper.{key}={f'[{value}]' if is_list else value}"]
    return [argument]
