"""Keep secrets, and the machine's folders, out of records, logs and pages.

What counts as a secret:

1. text in the form of a service's token (Hugging Face, W&B's newer keys, GitHub, GitLab, Slack, OpenAI, AWS), the
   password of a URL, and what follows `Bearer`;
2. the value of a variable that W&B or Hugging Face read their key from, of 8 characters or more;
3. the value of another environment variable whose name says key, token, secret or password, of 12 characters or more,
   where it stands as a word of its own. One that looks random (20 characters with letters and digits) counts anywhere.
   A value that is a path, or that names something on the disk, is no secret: PWD, HOME and the like hold folders;
4. on a command line: the value of a key of such a name, and a word of 40 hexadecimal digits, the form of W&B's keys,
   unless its key names a revision.

All four are looked for in texts that people and libraries wrote: the error, the command and the words of a summary. A
configuration, its metrics, its matrices and its data define the run (`FACTS`): the values of variables (2 and 3) are
never looked for there, nor in scores, so that no variable can rewrite what was trained. Other parts of a document, such
as what is sent to W&B, lose the values that can only be secrets.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

SERVICE_VARIABLES = ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "HF_API_TOKEN")
TEXTS = ("error", "error_message", "invocation", "command", "verdict")
"""Parts of a document with texts that people and libraries wrote."""
FACTS = ("run_id", "cell_id", "config", "metrics", "manifest", "data", "scores", "parameters", "norms", "environment")
"""Parts of a record that define the run."""
_SHORTEST_SERVICE, _SHORTEST, _SHORTEST_RANDOM = 8, 12, 20
_FOLDER_VARIABLES = ("PWD", "OLDPWD", "HOME")
_SECRET_NAME = re.compile(r"secret|passw|apikey|credential|(^|_)(key|token|pass|pwd|pat)s?(_|$)", re.IGNORECASE)
_SECRET_SHAPES = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bwandb_v\d_[A-Za-z0-9_]{20,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}"
    r"|\bglpat-[\w-]{20,}|\bxox[abprs]-[\w-]{10,}|\bsk-[\w-]{20,}|\bAKIA[A-Z0-9]{16}\b"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)|(?<=[Bb]earer )[\w.~+/=-]{12,}"
)
_WANDB_KEY = re.compile(r"(?<![\w/])[0-9a-fA-F]{40}(?!\w)")
_REVISION = re.compile(r"revision|commit|sha|fingerprint", re.IGNORECASE)
_SETTING = re.compile(r"""([\w-]+)(['"]?\s*[=:]\s*)('[^']*'|"[^"]*"|[^,\s}\]]+)""")
_HIDDEN = "***"


def scrub(text: str) -> str:
    """The text without secrets, and with the paths of this machine made relative."""
    return scrubber()(text)


def scrub_override(word: str) -> str:
    """A word of a command line without secrets; see rule 4 of the module."""
    return override_scrubber()(word)


def override_scrubber() -> Callable[[str], str]:
    """A function that takes secrets out of words of a command line: for many words, since it reads the environment
    once."""
    scrubbed = scrubber()

    def hide(match: re.Match[str]) -> str:
        is_secret = _SECRET_NAME.search(match[1].replace("-", "_")) and match[3] != "null"
        return f"{match[1]}{match[2]}{_HIDDEN}" if is_secret else match[0]

    def without_secrets(word: str) -> str:
        key, is_set, value = word.partition("=")
        name = re.split(r"[.@/]", key.lstrip("+~-"))[-1].replace("-", "_")
        if is_set and value.strip("'\"") not in ("", "null") and _SECRET_NAME.search(name):
            return f"{key}={_HIDDEN}"
        word = _SETTING.sub(hide, word)
        return scrubbed(word if _REVISION.search(name) else _WANDB_KEY.sub(_HIDDEN, word))

    return without_secrets


_FOLDERS = re.compile(r"(?<![\w./<])~?/(?:[^\s/'\":,;()\[\]{}]+/)*(?=[^\s/'\"])")


def without_folders(text: str) -> str:
    """The text, each absolute path in it cut to its last part: for what leaves the machine."""
    return _FOLDERS.sub("", text)


def scrubber(variables: Literal["all", "sure", "none"] = "all") -> Callable[[str], str]:
    """A function that takes secrets out of a text, and the folders of home, project and Python.

    Args:
        variables: which values of environment variables count as secrets: all of rules 2 and 3; those that can be
            nothing else (of a service, or random); or none, in the parts that define the run.
    """
    known: dict[str, str] = {}
    patterns: list[str] = []
    if variables != "none":
        anywhere, as_word = _values()
        as_word = as_word if variables == "all" else []
        known = dict.fromkeys((*anywhere, *as_word), _HIDDEN)
        patterns = [re.escape(value) for value in anywhere]
        patterns += [rf"(?<![\w/.-]){re.escape(value)}(?![\w/-])" for value in as_word]
    home = os.path.expanduser("~")  # as it is where the account has none
    prefixes = _machine_prefixes(tuple(sys.path), os.getcwd(), "" if home == "~" else home)
    known |= prefixes
    # Longest first, so that a secret or folder that begins with another is replaced whole.
    pattern = re.compile("|".join([*patterns, *map(re.escape, prefixes)])) if known else None

    def scrubbed(text: str) -> str:
        if pattern is not None:
            text = pattern.sub(lambda match: known[match[0]], text)
        return _SECRET_SHAPES.sub(_HIDDEN, text)

    return scrubbed


def _values() -> tuple[list[str], list[str]]:
    """The secrets that variables hold, longest first: those that count anywhere, and those that count as a word."""
    anywhere, as_word = set(), set()
    for name, value in os.environ.items():
        if name in SERVICE_VARIABLES and len(value) >= _SHORTEST_SERVICE:
            anywhere.add(value)
        elif len(value) < _SHORTEST or name in _FOLDER_VARIABLES or not _SECRET_NAME.search(name):
            continue
        elif not _is_path(value):
            (anywhere if _looks_random(value) else as_word).add(value)
    return sorted(anywhere, key=len, reverse=True), sorted(as_word, key=len, reverse=True)


def _is_path(value: str) -> bool:
    if re.match(r"~?/[\w.-]+/", value) or value.startswith(("./", "../")):
        return True
    try:
        return os.path.exists(value)
    except (OSError, ValueError):
        return False


def _looks_random(value: str) -> bool:
    has_both = bool(re.search(r"[A-Za-z]", value)) and bool(re.search(r"\d", value))
    return len(value) >= _SHORTEST_RANDOM and has_both and not re.search(r"[\s/]", value)


@functools.lru_cache(maxsize=8)
def _machine_prefixes(search_path: tuple[str, ...], folder: str, home: str) -> dict[str, str]:
    """Absolute folders, longest first, and what stands for them in a record."""
    replacements = {f"{home.rstrip('/')}/": "~/", f"{folder.rstrip('/')}/": "", f"{Path(__file__).parents[2]}/": ""}
    replacements |= {f"{place.rstrip('/')}/": "" for place in search_path if os.path.isabs(place)}
    return {place: replacements[place] for place in sorted(replacements, key=len, reverse=True) if len(place) > 1}
