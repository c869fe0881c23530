"""A section: one question answered for one setting, as a sentence, tables, figures and notes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd


@dataclass(frozen=True)
class Column:
    """How one column of a tidy table is shown."""

    name: str
    title: str
    show: Callable[[object], str] = str
    is_number: bool = True
    on_screen: bool = True  # a terminal has 80 columns; files and the page show all


@dataclass(frozen=True)
class Table:
    """A tidy frame (full precision, goes to CSV) and how it is shown to people (screen, LaTeX, page)."""

    name: str  # of its files
    title: str
    frame: pd.DataFrame
    columns: list[Column] = field(default_factory=list)  # none: for the CSV alone

    def shown(self) -> list[list[str]]:
        """The cells as text, row by row."""
        rows = self.frame.to_dict("records")
        return [[one.show(row[one.name]) for one in self.columns] for row in rows]


@dataclass
class Section:
    """One question answered for one setting."""

    title: str
    sentence: str
    tables: list[Table] = field(default_factory=list)
    figures: dict = field(default_factory=dict)  # file name -> matplotlib Figure
    captions: dict[str, str] = field(default_factory=dict)  # file name -> what the figure shows
    notes: list[str] = field(default_factory=list)
    facts: dict = field(default_factory=dict)  # machine-readable results: what the page's overview is made of
