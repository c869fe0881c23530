"""Overrides as text: a key and a value that Hydra's grammar and OmegaConf read back as they were."""

import re

_PLAIN = re.compile(r"(\.{0,2}/)?[A-Za-z_][\w.+@/-]*", flags=re.ASCII)
_WORDS = {"null", "true", "false", "nan", "inf"}
"""Words that the grammar reads as no text, in any case."""


def override(key: str, text: str) -> str:
    """`key=text`, quoted where needed (`value`)."""
    return f"{key}={value(text)}"


def key_of(word: str) -> str:
    """The key of an override: `train.lr` of `+train.lr=1e-3`."""
    return word.partition("=")[0].lstrip("+~")


def value_of(word: str) -> str:
    """The value of an override as Hydra reads it: `first:3` of `adapter.layers=first\\:3`."""
    return re.sub(r"\\(.)", r"\1", word.partition("=")[2].strip("'\""))


def value(text: str) -> str:
    """Text as a value, quoted where the grammar would read something else: a list, a number, an interpolation."""
    return text if _PLAIN.fullmatch(text) and text.lower() not in _WORDS else quote(text)


def quote(text: str) -> str:
    """Text as one quoted value of Hydra's override grammar, without a reference to another key in it."""
    # OmegaConf reads `\\${` as the text `${`, and halves the backslashes before it.
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    # The grammar takes a backslash for itself, except before a quote and at the end.
    return "'" + re.sub(r"(\\+)(?='|\Z)", r"\1\1", text).replace("'", r"\'") + "'"
