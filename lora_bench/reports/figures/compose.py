"""How a figure is put together, whatever it shows: its width, its panels, its header with name and key, its dodge.

Venues print columns of 3.03 in (ACL), 3.25 in (ICML) and pages of 5.5 in (NeurIPS, ICLR) and 6.3 in (ACL). A figure is
drawn at the width at which it is printed, so that its letters have their size there (7 points at least).
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.legend import Legend

COLUMN, PAGE = 3.25, 6.3  # inches, where nothing else is asked for
LETTER = 0.6  # of the size of type: about as wide as a letter is, a little more than on average
SIZE = 7.0  # points; of the smallest letters too
PANEL = 1.45  # inches that a panel needs at least, with its tick labels

_asked: ContextVar[float | None] = ContextVar("width of figures", default=None)
_is_blank: ContextVar[bool] = ContextVar("whether figures stay blank", default=False)


@contextmanager
def printed(width: float | None, *, is_blank: bool = False) -> Iterator[None]:
    """Figures made inside are this wide, in inches; None leaves each its own width, a column or a page.

    Args:
        is_blank: whether they stay blank, where nobody will see them.
    """
    tokens = _asked.set(width), _is_blank.set(is_blank)
    try:
        yield
    finally:
        _asked.reset(tokens[0])
        _is_blank.reset(tokens[1])


def is_blank() -> bool:
    """Whether a figure is not to be drawn."""
    return _is_blank.get()


def column() -> float:
    """The width of a figure of one panel, in inches."""
    return _asked.get() or COLUMN


def page() -> float:
    """The width of a figure of many panels, in inches."""
    return _asked.get() or PAGE


def across(n_panels: int, *, most: int = 4, panel: float = PANEL) -> tuple[float, int]:
    """The width of a figure of so many panels, and how many of these stand side by side; rows are about as long as each
    other, so that nine are three rows of three and not two of four and one alone."""
    fits = [max(1, min(most, n_panels, int(width // panel))) for width in (column(), page())]
    if fits[0] >= n_panels:
        return column(), fits[0]
    return page(), math.ceil(n_panels / math.ceil(n_panels / fits[1]))


def dodge(values: Any, place: int, n: int) -> np.ndarray:
    """Values on an axis of base 2, moved aside by equal steps so that n series can be lines apart; by 5 % at most."""
    step = 0.0 if n < 2 else 0.14 / (n - 1)  # octaves
    return np.asarray(values, dtype=float) * 2.0 ** (step * (place - (n - 1) / 2))


def wrapped(text: str, width: float) -> str:
    """A text in lines that fit a width in inches; no line is a letter or two."""
    tied = re.sub(r" (\S{1,2})(?=\n|$)", "\u00a0\\1", text)
    lines = [line for part in tied.split("\n") for line in textwrap.wrap(part, _letters(width)) or [""]]
    return "\n".join(lines).replace("\u00a0", " ")


def header(figure: Figure, handles: Sequence[Any], labels: Sequence[str] | None = None) -> None:
    """The key above the panels, in as many lines as its names need; the figure grows by them."""
    names = [str(handle.get_label()) for handle in handles] if labels is None else list(map(str, labels))
    widest = max(map(len, names), default=0)
    n_columns = max(1, min(len(names), _letters(figure.get_figwidth()) // (widest + 5)))
    n_lines = math.ceil(len(names) / n_columns)
    figure.set_figheight(figure.get_figheight() + 0.15 * max(0, n_lines - 1))
    _legend(figure, handles, names, n_columns)


def name(figure: Figure, text: str) -> None:
    """Say above everything what the figure is of, such as its backbone and task; once."""
    if not figure.axes or not text:
        return
    lines = wrapped(text, figure.get_figwidth() - 0.1)
    key = figure.legends[0] if figure.legends else _legend(figure, [], [], 1)
    if key.get_title().get_text():
        return
    key.set_title(lines)
    key.get_title().set(fontsize=SIZE, multialignment="left", parse_math=False, usetex=False)
    figure.set_figheight(figure.get_figheight() + 0.15 * (1 + lines.count("\n")))


def below(figure: Figure, text: str) -> None:
    """What is said under the panels, in the middle."""
    lines = wrapped(text, figure.get_figwidth() - 0.2)
    figure.set_figheight(figure.get_figheight() + 0.13 * lines.count("\n"))
    figure.supxlabel(lines, fontsize=SIZE)


# ---------------------------------------------------------------- helpers


def _letters(width: float) -> int:
    """How many letters fit a width in inches."""
    return max(8, int(72 * width / (LETTER * SIZE)))


def _legend(figure: Figure, handles: Sequence[Any], names: Sequence[str], n_columns: int) -> Legend:
    return figure.legend(handles, names, loc="outside upper left", ncols=n_columns, frameon=False, alignment="left",
                         borderpad=0.1, borderaxespad=0.2, columnspacing=1.0, handlelength=1.6, handletextpad=0.4,
                         labelspacing=0.3)  # fmt: skip
