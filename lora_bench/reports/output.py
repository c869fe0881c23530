"""A section on the screen and on the disk: tables as CSV and LaTeX, figures as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.text import Text

from lora_bench.reports.figures import style
from lora_bench.reports.latex import latex
from lora_bench.reports.section import Section, Table
from lora_bench.verdicts.note import gap
from lora_bench.wording import Grid


def print_section(section: Section, console: Console) -> None:
    """The section on the terminal."""
    console.rule(Text(section.title, style="bold"))
    for table in section.tables:
        if not any(column.on_screen for column in table.columns):
            continue
        on_screen = [column for column in table.columns if column.on_screen]
        shown = Grid(
            [column.title for column in on_screen],
            texts=[column.title for column in on_screen if not column.is_number],
            title=table.title,
            title_style="bold",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            padding=(0, 1, 0, 0),
        )
        for row in table.shown():
            shown.add_row(*(cell for cell, column in zip(row, table.columns, strict=True) if column.on_screen))
        console.print(shown)
        console.print()
    console.print(section.sentence, style="bold", soft_wrap=True)
    for remark in section.remarks:
        console.print(f"- {remark}", soft_wrap=True)


def write_section(section: Section, out: Path, *, formats: Sequence[str] = style.FORMATS) -> list[Path]:
    """Tables as CSV and LaTeX, figures as PDF, PNG and SVG (`formats`); returns the main paths.

    A figure that cannot be drawn costs the others nothing; a note of the section names it.
    """
    written = [write_table(table, out / "tables") for table in section.tables]
    for name, figure in section.figures.items():
        style.name(figure, section.figure_title)
        written.append(style.save(figure, out / "figures", name, formats=formats))
        if reason := figure.get_label():
            section.notes.append(gap(f"figure {name} could not be drawn ({reason}); its numbers are in the tables"))
    return written


def write_table(table: Table, folder: Path) -> Path:
    """NAME.csv with the full numbers and NAME.tex (`latex`) with those that go into a paper; returns the CSV's path.

    A text in the CSV that a spreadsheet would run as a formula gets an apostrophe in front: one of several characters
    that begins with = + - @, a tab or a carriage return, and is no number. Numbers stay numbers. A carriage return
    becomes a space.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{table.name}.csv"
    tidy = table.frame.loc[:, [name for name in table.frame if not str(name).endswith("_shown")]]
    tidy = tidy.rename(columns=_inert).map(_inert)
    tidy.to_csv(path, index=False, lineterminator="\n")
    if table.columns:
        path.with_suffix(".tex").write_text(latex(table), encoding="utf-8")
    return path


def _inert(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    text = cell.replace("\r", " ")  # which readers take for the end of the row
    if len(cell) < 2 or cell[0] not in "=+-@\t\r":
        return text
    try:
        float(cell)
    except ValueError:
        return f"'{text}"
    return text
