"""A section: one question answered for one setting, as a sentence, tables, figures and notes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd

from lora_bench.verdicts.arms import Judgement
from lora_bench.verdicts.note import Note
from lora_bench.verdicts.settings import Setting
from lora_bench.wording import counted


@dataclass(frozen=True)
class Column:
    """How one column of a tidy table is shown."""

    name: str
    title: str
    show: Callable[[object], str] = str
    is_number: bool = True
    on_screen: bool = True  # a terminal has 80 columns; CSV and the page show all
    in_paper: bool | None = None  # a column of a paper is narrower still; None: as on the screen
    is_name: bool = False  # of a cell, a placement or a method, which papers write in their own way
    best_of: str | None = None  # the column of the frame of which a paper prints the highest in bold

    @property
    def on_paper(self) -> bool:
        """Whether LaTeX shows it."""
        return self.on_screen if self.in_paper is None else self.in_paper


@dataclass(frozen=True)
class Table:
    """A tidy frame (full precision, goes to CSV) and how it is shown to people (screen, LaTeX, page)."""

    name: str  # of its files
    title: str
    frame: pd.DataFrame
    columns: list[Column] = field(default_factory=list)  # none: for the CSV alone
    parted_by: str | None = None  # a column of the frame: a paper gets a table of each of its values

    def shown(self) -> list[list[str]]:
        """The cells as text, row by row."""
        rows = self.frame.to_dict("records")
        return [[column.show(row[column.name]) for column in self.columns] for row in rows]


@dataclass
class Section:
    """One question answered; what it found for a machine to read is in the subclasses."""

    title: str
    sentence: str
    tables: list[Table] = field(default_factory=list)
    figures: dict = field(default_factory=dict)  # file name -> matplotlib Figure
    captions: dict[str, str] = field(default_factory=dict)  # file name -> what the figure shows
    notes: list[Note] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # why other settings have no such section, each with its name
    about: str = ""  # what its figures are of, such as backbone and task; empty where they are of no one setting

    @property
    def figure_title(self) -> str:
        """What its figures say above everything."""
        return self.about

    @property
    def remarks(self) -> list[str]:
        """What stands under the section: its notes, then what other settings lack."""
        return [*map(str, self.notes), *self.refused]


@dataclass(kw_only=True)
class SettingSection(Section):
    """A section about one setting."""

    setting: Setting

    @property
    def figure_title(self) -> str:
        """Backbone and task, and what else tells the setting apart."""
        return self.setting.title


@dataclass(kw_only=True)
class JudgedSection(SettingSection):
    """A section of cells and their contrasts."""

    judged: Judgement

    @property
    def remarks(self) -> list[str]:
        """The section's, and that its words are for one look."""
        look = one_look(self.judged.contrasts)
        return [*super().remarks, f"words are for {look}: more seeds and another look would err more often; {AGAIN}"]


AGAIN = "study=NAME may look again, at a smaller error each"


def one_look(contrasts: pd.DataFrame) -> str:
    """`one look, 8 seeds`: what the words of a fixed design rest on."""
    n_seeds = contrasts.loc[contrasts["n_seeds"] > 0, "n_seeds"]
    if n_seeds.empty:
        return "one look"
    low, high = int(n_seeds.min()), int(n_seeds.max())
    return f"one look, {counted(high, 'seed')}" if low == high else f"one look, {low} to {high} seeds"
