"""What must not leave the machine in a record, a log or a plan: secrets, and the machine's folders."""

from __future__ import annotations

import functools
import os
import re
import sys
from pathlib import Path
from typing import Any

_SECRET_NAME = re.compile(r"secret|passw|apikey|credential|(^|_)(key|token|pass|pwd|pat)s?(_|$)", re.IGNORECASE)
_SECRET_SHAPES = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bwandb_v\d_[A-Za-z0-9_]{20,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)|(?<=[Bb]earer )[\w.~+/=-]{12,}"
)
_HIDDEN = "***"


def scrub(text: str) -> str:
    """The text without secrets, and with the paths of this machine made relative.

    Secrets are the values of environment variables named like a key, token, secret or password, and strings shaped
    like one of the services' tokens. Values below 8 characters stay: they hide nothing, and occur in honest text.
    """
    return scrubber()(text)


_FOLDERS = re.compile(r"(?<![\w./<])~?/(?:[^\s/'\":,;()\[\]{}]+/)*(?=[^\s/'\"])")


def without_folders(text: str) -> str:
    """The text, each absolute path in it cut to its last part: for what leaves the machine."""
    return _FOLDERS.sub("", text)


def scrubber() -> Any:
    secrets = {value for name, value in os.environ.items() if len(value) >= 8 and _SECRET_NAME.search(name)}
    prefixes = _machine_prefixes(tuple(sys.path), os.getcwd(), os.path.expanduser("~"))
    # Longest first, so that a secret or folder that begins with another is replaced whole.
    known = dict.fromkeys(sorted(secrets, key=len, reverse=True), _HIDDEN) | prefixes
    pattern = re.compile("|".join(re.escape(text) for text in known)) if known else None

    def scrubbed(text: str) -> str:
        if pattern is not None:
            text = pattern.sub(lambda match: known[match[0]], text)
        return _SECRET_SHAPES.sub(_HIDDEN, text)

    return scrubbed


@functools.lru_cache(maxsize=8)
def _machine_prefixes(search_path: tuple[str, ...], folder: str, home: str) -> dict[str, str]:
    """Absolute folders, longest first, and what stands for them in a record."""
    replacements = {f"{home.rstrip('/')}/": "~/", f"{folder.rstrip('/')}/": "", f"{Path(__file__).parents[2]}/": ""}
    replacements |= {f"{place.rstrip('/')}/": "" for place in search_path if os.path.isabs(place)}
    return {place: replacements[place] for place in sorted(replacements, key=len, reverse=True) if len(place) > 1}
