"""Short words of the command line, as the keys that they stand for.

study=NAME          the study that sweeps/NAME.yaml declares
study.KEY=VALUE     another value of its declaration
dry_run, hours      of a sweep and of a study
"""

from __future__ import annotations

from collections.abc import Sequence

SHORT = {"dry_run": "hydra.sweeper.dry_run", "hours": "hydra.sweeper.hours"}


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """The arguments with every short word replaced."""
    return [longer for argument in arguments for longer in _spelled_out(argument)]


def _spelled_out(argument: str) -> list[str]:
    key, mark, value = argument.partition("=")
    if key in SHORT and mark:
        return [f"{SHORT[key]}={value}"]
    if key == "study" and mark:
        return [f"+sweeps={value}", "hydra.sweeper.as_study=true"]
    if key.startswith("study.") and mark:
        return [f"++hydra.sweeper.{key}={value}"]
    return [argument]
