"""A table as LaTeX that fits a column of a two-column paper: caption, label, the names that papers use, best in bold.

Needs booktabs, graphicx and array. What is too wide is made to fit in three steps: a smaller type, wrapped texts,
and last a box that shrinks it. What is too tall goes on in further tables. Widths are estimated; the box makes up for
what they miss.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from lora_bench.reports.section import Column, Table
from lora_bench.wording import METHODS, visible

COLUMN = 219.0  # points (3.03 in): ACL's, the narrowest that conferences print
TALLEST = 540.0  # points of rows in one table; a column of ACL has 702, of ICML and NeurIPS 650, less a caption
GAP = 3.0  # points on either side of a cell
SIZES = {"small": 10.0, "footnotesize": 9.0, "scriptsize": 8.0}  # points, in the 11 pt documents of ACL
LEADING = {"small": 12.0, "footnotesize": 11.0, "scriptsize": 9.5}  # points from line to line
BETWEEN = 2.0  # points more between rows of several lines
NARROWEST = 55.0  # points of a column that wraps
LONG = 26  # letters from which a text is prose that may run over several lines

_ROLE = "up|down|gate|[qkvo]"
_CELL = re.compile(rf"(?P<roles>(?:[qkvo]{{1,4}}|up|down|gate)(?:\+(?:{_ROLE}))*)(?: r=(?P<rank>\d+))?(?P<rest>[*†]*)")
_LETTERS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$", "−": r"$-$",
    "Δ": r"$\Delta$", "φ": r"$\phi$", "·": r"$\cdot$", "≥": r"$\geq$", "≤": r"$\leq$", "<": r"$<$", ">": r"$>$",
    "–": "--", "‖": r"$\Vert$", "α": r"$\alpha$", "†": r"\dag{}",
}  # fmt: skip


def latex(table: Table) -> str:
    """Table environments to \\input: `\\caption`, `\\label{tab:NAME}` and the columns that go into a paper; all of a
    table that has none. One for each value of `table.parted_by`, which its caption says, and each as many as its rows
    need to fit a page: the second is `tab:NAME-2`, and so on."""
    pieces = [piece for part in _parted(table) for piece in _pieces(part)]
    label = re.sub(r"[^A-Za-z0-9:.-]+", "-", table.name)
    labels = [label, *(f"{label}-{place}" for place in range(2, len(pieces) + 1))]
    return "\n".join(
        f"\\begin{{table}}[t]\n\\centering\n\\caption{{{escape_latex(title)}.}}\n\\label{{tab:{name}}}\n{tabular}\\end{{table}}\n"
        for name, (title, tabular) in zip(labels, pieces, strict=True)
    )


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it stands, on one line; control characters are spelled out, since it takes none."""
    return "".join(_LETTERS.get(letter, letter) for letter in visible(" ".join(text.split())))


def paper_name(cell: str) -> str:
    """A method or a placement and its rank as papers write them: `qv r=8` is W_{q,v} and r = 8; others as they are."""
    if cell in METHODS:
        return METHODS[cell]
    if (match := _CELL.fullmatch(cell)) is None:
        return escape_latex(cell)
    roles = [role if len(role) == 1 else rf"\mathrm{{{role}}}" for role in re.findall(_ROLE, match["roles"])]
    rank = f", $r={match['rank']}$" if match["rank"] else ""
    return f"$W_{{{','.join(roles)}}}${rank}{escape_latex(match['rest'])}"


def width(text: str, size: float = 10.0) -> float:
    """About how wide a line of text is, in points, at a size in points; a little more than in Computer Modern."""
    narrow, wide = sum(letter in "ijlt.,:;'|()[] -" for letter in text), sum(letter in "mwMW±−×&%" for letter in text)
    return size * (0.33 * narrow + 0.82 * wide + 0.54 * (len(text) - narrow - wide))


# ---------------------------------------------------------------- helpers


@dataclass(frozen=True)
class _Layout:
    """How the columns of a table are set."""

    size: str  # of the type, a key of SIZES
    align: str
    spans: list[int | None]  # points of each column that wraps; None where a cell is one line
    heads: list[list[str]]  # the lines of each column's head
    heights: list[float]  # points of each row


def _parted(table: Table) -> list[Table]:
    """A table for each value of the column that parts it, without that column."""
    if table.parted_by is None or table.frame.empty:
        return [table]
    columns = [column for column in table.columns if column.name != table.parted_by]
    return [
        replace(table, title=f"{table.title}: {value}", frame=part, columns=columns)
        for value, part in table.frame.groupby(table.parted_by, sort=False)
    ]


def _pieces(table: Table) -> list[tuple[str, str]]:
    """(title, tabular) of as many tables, about equally tall, as fit a page each."""
    every = list(enumerate(table.columns))
    columns = [(place, column) for place, column in every if column.on_paper] or every
    shown = [column for _, column in columns]
    rows = [[cells[place] for place, _ in columns] for cells in table.shown()]
    layout = _layout(shown, rows)
    best = _best(table, shown)
    body = [
        _row(
            [
                _bold(_set(cell, column, span, layout.size), (i, j) in best)
                for j, (cell, column, span) in enumerate(cells)
            ]
        )
        for i, cells in enumerate(zip(row, shown, layout.spans, strict=True) for row in rows)
    ]
    head = _row([_stacked(lines, column) for lines, column in zip(layout.heads, shown, strict=True)])
    rule = f"\n\\addlinespace[{BETWEEN:g}pt]\n" if any(layout.spans) else "\n"
    n_pieces = max(math.ceil(sum(layout.heights) / TALLEST), 1)
    pieces: list[list[str]] = [[] for _ in range(n_pieces)]
    for line, height, below in zip(body, layout.heights, itertools.accumulate(layout.heights), strict=True):
        pieces[int(n_pieces * (below - height / 2) / sum(layout.heights))].append(line)
    pieces = [piece for piece in pieces if piece] or [[]]
    return [
        (
            table.title + (f" ({place} of {len(pieces)})" if len(pieces) > 1 else ""),
            f"\\{layout.size}\\setlength{{\\tabcolsep}}{{{GAP:g}pt}}%\n"
            "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%\n"
            f"\\begin{{tabular}}{{@{{}}{layout.align}@{{}}}}\n\\toprule\n{head}\n\\midrule\n{rule.join(piece)}\n"
            "\\bottomrule\n\\end{tabular}}\n",
        )
        for place, piece in enumerate(pieces, start=1)
    ]


def _layout(columns: list[Column], rows: list[list[str]]) -> _Layout:
    """The table in the largest type at which it is no wider than a column and no taller than a page, else the
    smallest."""
    for size in SIZES:
        layout, fits = _layout_in(size, columns, rows)
        if fits and sum(layout.heights) <= TALLEST:
            break
    return layout


def _layout_in(size: str, columns: list[Column], rows: list[list[str]]) -> tuple[_Layout, bool]:
    """The table in a type, and whether it is no wider than a column. What makes it narrower: heads of several lines,
    then prose that wraps at the width that the other columns leave it."""
    texts = list(zip(*rows, strict=True)) or [("",) for _ in columns]
    points, room = SIZES[size], COLUMN - 2 * GAP * (len(columns) - 1)
    filled = [max(width(cell, points) for cell in cells) for cells in texts]
    is_spacious = sum(map(max, filled, [width(column.title, points) for column in columns])) <= room
    heads = [
        _lines(column.title, COLUMN if is_spacious else wide, points)
        for column, wide in zip(columns, filled, strict=True)
    ]
    widths = [max(wide, *(width(line, points) for line in lines)) for wide, lines in zip(filled, heads, strict=True)]
    wraps = [sum(widths) > room and _is_prose(column, cells) for column, cells in zip(columns, texts, strict=True)]
    narrowest = NARROWEST * sum(wraps)
    left = room - sum(itertools.compress(widths, [not wrapped for wrapped in wraps]))
    weights = [math.sqrt(wide) * wrapped for wide, wrapped in zip(widths, wraps, strict=True)]
    spans = [math.floor(max(left, narrowest) * weight / sum(weights)) if weight else None for weight in weights]
    heights = [
        LEADING[size] * max(_n_lines(cell, span, points) for cell, span in zip(row, spans, strict=True))
        + BETWEEN * any(wraps)
        for row in rows
    ]
    align = "".join(
        ("r" if column.is_number else "l")
        if span is None
        else rf">{{\raggedright\arraybackslash\hspace{{0pt}}}}p{{{span}pt}}"
        for column, span in zip(columns, spans, strict=True)
    )
    return _Layout(size, align, spans, heads, heights), left >= narrowest


def _lines(text: str, room: float, size: float) -> list[str]:
    """A text as lines no wider than a room in points, a word at least."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and width(longer, size) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _n_lines(cell: str, span: float | None, size: float) -> int:
    """The lines that a cell takes, about: a word that is too long runs over several."""
    if span is None:
        return 1
    return sum(math.ceil(max(width(line, size), 1.0) / span) for line in _lines(cell, span, size))


def _stacked(lines: list[str], column: Column) -> str:
    """A head of several lines, so that it is about as narrow as its cells."""
    shown = r"\\{}".join(map(escape_latex, lines))
    return shown if len(lines) == 1 else rf"\shortstack[{'r' if column.is_number else 'l'}]{{{shown}}}"


def _set(cell: str, column: Column, span: float | None, size: str) -> str:
    if column.is_name:
        return paper_name(cell)
    return escape_latex(cell) if span is None else _breakable(cell, 0.9 * span / SIZES[size])


def _best(table: Table, columns: list[Column]) -> set[tuple[int, int]]:
    """(row, column) of the highest mean in each column of scores; none where all are equal."""
    best = set()
    for place, column in enumerate(columns):
        if column.best_of is None or column.best_of not in table.frame:
            continue
        values = table.frame[column.best_of].to_numpy(float)
        finite = values[[math.isfinite(value) for value in values]]
        if len(finite) > 1 and finite.min() < finite.max():
            best |= {(int(row), place) for row in (values == finite.max()).nonzero()[0]}
    return best


def _is_prose(column: Column, cells: Iterable[str]) -> bool:
    return not column.is_number and not column.is_name and max(map(len, cells)) >= LONG


def _breakable(text: str, ems: float) -> str:
    """Prose; words that are wider than their column, such as paths, may end a line anywhere in between.

    Args:
        ems: width of the column in sizes of its type.
    """
    words = (word if width(word, 1.0) > ems else [word] for word in text.split())
    return " ".join(r"\allowbreak{}".join(map(escape_latex, word)) for word in words)


def _bold(cell: str, is_best: bool) -> str:
    return rf"\textbf{{\boldmath {cell}}}" if is_best else cell


def _row(cells: list[str]) -> str:
    """A row of a tabular. To the rule or `\\\\` before it a star or a bracket would belong."""
    is_taken = cells and cells[0].startswith(("*", "["))
    return ("{}" if is_taken else "") + " & ".join(cells) + r" \\"
