"""What people read: numbers, counts, lists, times and sizes in words, on any terminal."""

from __future__ import annotations

import io
import math
import re
import shlex
import string
import sys
from collections.abc import Callable, Sequence


def points(value: object, digits: int = 1) -> str:
    """A score as points (hundredths); a dash when there is none."""
    return _number(value, lambda x: f"{100 * x:.{digits}f}".replace("-", "−"))


def signed(value: object, digits: int = 1) -> str:
    """A difference as points with its sign."""
    return _number(value, lambda x: f"{100 * x:+.{digits}f}".replace("-", "−"))


def p_value(value: object) -> str:
    """A p-value as papers print it."""
    return _number(value, lambda x: "<.001" if x < 0.001 else f"{x:.3f}".lstrip("0") if x < 1 else "1")


def count(value: object) -> str:
    """A whole number with thousands separated."""
    return _number(value, lambda x: f"{round(x):,}")


def plain(value: object) -> str:
    """A number in its shortest form."""
    return _number(value, lambda x: f"{x:g}")


def seconds(value: object) -> str:
    """A time in seconds, to a tenth."""
    return _number(value, lambda x: f"{round(x, 1):g}")


def text(value: object) -> str:
    """A text; empty when there is none."""
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)


def interval(low: float, high: float, show: Callable[[object], str] = points) -> str:
    """`low to high`; a dash when there is none."""
    return "–" if math.isnan(low) or math.isnan(high) else f"{show(low)} to {show(high)}"


def plus_minus(mean: float, high: float, show: Callable[[object], str] = points) -> str:
    """`mean ± half`, of a symmetric interval; the mean alone when there is none."""
    return show(mean) if math.isnan(high) else f"{show(mean)} ± {points(high - mean)}"


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    words = list(words)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"


def _number(value: object, show: Callable[[float], str]) -> str:
    import pandas as pd  # the caller has a table; what else is said here needs none

    if value is None or value is pd.NA:
        return "–"
    number = float(value)  # type: ignore[arg-type]
    return show(number) if math.isfinite(number) else "–"


def duration(seconds: float) -> str:
    """A time for people: 8 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(n_bytes: float) -> str:
    """A size for people, in decimal units: 40 kB, 1.2 GB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.1f} {unit}"
    return f"{math.ceil(n_bytes / 1e3)} kB"


def counted(n: int, noun: str) -> str:
    """`1 run`, `2 runs`: a count with its noun, whose plural takes an s."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def percent(value: object) -> str:
    return points(value)


def command_line(words: Sequence[str]) -> str:
    """A command as one line to paste into a shell, whatever its words hold: each is read back as it is.

    Control characters, and what the terminal cannot write, are spelled as bytes: `$'a\\012b'` (bash, zsh, ksh).
    """
    return " ".join(map(_shell_word, words))


def _shell_word(word: str) -> str:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    if word.isprintable() and word.encode(encoding, "ignore").decode(encoding) == word:
        return shlex.quote(word)
    given = _NO_BYTE.sub("\N{REPLACEMENT CHARACTER}", word).encode("utf-8", "surrogateescape")
    return "$'" + "".join(chr(byte) if chr(byte) in _AS_IT_IS else f"\\{byte:03o}" for byte in given) + "'"


_NO_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Surrogates that stand for no byte of a file's name."""
_AS_IT_IS = frozenset(string.ascii_letters + string.digits + string.punctuation + " ") - set("'\\")


def spell_out() -> None:
    """Have a character that the terminal's encoding lacks written as its escape, where it would end the command.

    `±`, `−` and `·` stand in most tables; under LC_ALL=C none can be written, nor the name of a folder with an umlaut.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
