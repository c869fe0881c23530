"""The command as it was given."""

import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from lora_bench.config.arguments import as_typed


def sweep_name(arguments: Sequence[str]) -> str | None:
    """The sweep's name, without the quotes that the command line may need."""
    named = [word for word in arguments if word.lstrip("+").startswith("sweeps=")]
    return str(OverridesParser.create().parse_override(named[0]).value()) if named else None


def without_sweep(overrides: Sequence[str]) -> tuple[str, ...]:
    """What a point of a sweep is shown as: its overrides, less the name of the sweep that all points share."""
    return tuple(override for override in overrides if not override.lstrip("+").startswith("sweeps="))


def command() -> list[str]:
    """The command in a form that can be given again."""
    name = Path(sys.argv[0]).name
    start = ["python", "-m", "lora_bench"] if name == "__main__.py" else [name or "lora-bench"]
    return [*start, *_needed(as_typed())]


def arguments() -> list[str]:
    """The command's arguments as Hydra reads them."""
    return _needed(sys.argv[1:])


def _needed(words: Sequence[str]) -> list[str]:
    """Arguments without the switch that a named sweep does not need."""
    is_named = sweep_name(sys.argv[1:]) is not None
    return [word for word in words if not (is_named and word in ("-m", "--multirun"))]
