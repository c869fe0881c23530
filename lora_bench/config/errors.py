"""The error of every configuration that cannot run, and how a wrong word is answered."""

import difflib
from collections.abc import Sequence


class ConfigError(ValueError):
    """A configuration that cannot run: names the key, the value given and what would work."""


def did_you_mean(given: str, choices: Sequence[str]) -> str:
    """The closest choice, as the end of a message; empty when none is close."""
    hint = difflib.get_close_matches(given, choices, n=1)
    return f" (did you mean {hint[0]!r}?)" if hint else ""
