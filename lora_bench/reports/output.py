"""A section on the screen and on the disk: tables as CSV and LaTeX, figures as files."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from lora_bench.reports.figures import style
from lora_bench.reports.section import Column, Section, Table


def print_section(section: Section, console: Console) -> None:
    """The section on the terminal."""
    console.rule(Text(section.title, style="bold"))
    for table in section.tables:
        if not any(column.on_screen for column in table.columns):
            continue
        shown = RichTable(
            title=table.title,
            title_justify="left",
            header_style="bold",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        for column in table.columns:
            if column.on_screen:
                shown.add_column(
                    column.title, justify="right" if column.is_number else "left", no_wrap=not wraps(table, column)
                )
        for row in table.shown():
            shown.add_row(*(cell for cell, column in zip(row, table.columns, strict=True) if column.on_screen))
        console.print(shown)
    console.print(section.sentence, style="bold", soft_wrap=True)
    for note in section.notes:
        console.print(f"- {note}", soft_wrap=True)


def wraps(table: Table, column: Column) -> bool:
    """Whether a column holds prose, which may run over several lines."""
    return not column.is_number and any(len(column.show(value)) > 30 for value in table.frame[column.name])


def write_section(section: Section, out: Path) -> list[Path]:
    """Tables as CSV and LaTeX, figures as PDF, PNG and SVG; returns the main paths."""
    written = [write_table(table, out / "tables") for table in section.tables]
    for name, figure in section.figures.items():
        written.append(style.save(figure, out / "figures", name))
    return written


def write_table(table: Table, folder: Path) -> Path:
    """NAME.csv with the full numbers and NAME.tex (booktabs) with the shown ones; returns the CSV's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{table.name}.csv"
    tidy = table.frame.loc[:, [name for name in table.frame if not str(name).endswith("_shown")]]
    tidy.to_csv(path, index=False, lineterminator="\n")
    if table.columns:
        path.with_suffix(".tex").write_text(latex(table), encoding="utf-8")
    return path


def latex(table: Table) -> str:
    """A booktabs tabular; needs \\usepackage{booktabs}."""
    align = "".join("r" if column.is_number else "l" for column in table.columns)
    head = " & ".join(escape_latex(column.title) for column in table.columns)
    body = "\n".join(" & ".join(escape_latex(cell) for cell in row) + r" \\" for row in table.shown())
    return (
        f"% {table.title}\n\\begin{{tabular}}{{{align}}}\n\\toprule\n{head} \\\\\n\\midrule\n{body}\n"
        "\\bottomrule\n\\end{tabular}\n"
    )


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$", "−": r"$-$",
    "Δ": r"$\Delta$", "φ": r"$\phi$", "·": r"$\cdot$", "≥": r"$\geq$", "≤": r"$\leq$", "<": r"$<$", ">": r"$>$",
    "–": "--", "‖": r"$\Vert$", "α": r"$\alpha$",
}  # fmt: skip


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    return "".join(_LATEX.get(letter, letter) for letter in text)
