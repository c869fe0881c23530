"""The words of the command line, as the keys that they stand for.

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
        if word.startswith("--") and (here := key_here(word[2:].partition("=")[0])):
            raise ConfigError(f"{word.partition('=')[0]}: no such switch; {here}, given as KEY=VALUE")
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


def _spelled_out(argument: str) -> list[str]:
    key, mark, value = argument.partition("=")
    if key in SHORT and mark:
        return [f"{SHORT[key]}={value}"]
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
