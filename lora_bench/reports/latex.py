"""A table as LaTeX that fits a column of a two-column paper: caption, label, the names that papers use, best in bold.

Needs booktabs, graphicx and array. What does not fit is made to in three steps: a smaller size of type, wrapped texts,
and last a box that shrinks what is still too wide. Widths are estimated; the box makes up for what they miss.
"""

from __future__ import annotations

import itertools
import math
import re

from lora_bench.reports.section import Column, Table
from lora_bench.wording import METHODS, visible

COLUMN = 219.0  # points (3.03 in): ACL's, the narrowest that conferences print
GAP = 3.0  # points on either side of a cell
SIZES = {"small": 9.0, "footnotesize": 8.0, "scriptsize": 7.0}  # points
LONG = 26  # letters from which a text is prose that may run over several lines

_ROLE = "up|down|gate|[qkvo]"
_CELL = re.compile(rf"(?P<roles>[qkvo]{{1,4}}|(?:{_ROLE})(?:\+(?:{_ROLE}))*)(?: r=(?P<rank>\d+))?(?P<rest>[*†]*)")
_LETTERS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$", "−": r"$-$",
    "Δ": r"$\Delta$", "φ": r"$\phi$", "·": r"$\cdot$", "≥": r"$\geq$", "≤": r"$\leq$", "<": r"$<$", ">": r"$>$",
    "–": "--", "‖": r"$\Vert$", "α": r"$\alpha$", "†": r"\dag{}",
}  # fmt: skip


def latex(table: Table) -> str:
    """A table environment to \\input: `\\caption`, `\\label{tab:NAME}` and the columns that go into a paper; all of a
    table that has none."""
    every = list(enumerate(table.columns))
    columns = [(place, column) for place, column in every if column.on_paper] or every
    rows = [[cells[place] for place, _ in columns] for cells in table.shown()]
    shown = [column for _, column in columns]
    size, align, prose = _layout(shown, rows)
    best = _best(table, shown)
    body = [
        [
            _bold(
                paper_name(cell) if column.is_name else _breakable(cell) if wraps else escape_latex(cell),
                (i, j) in best,
            )
            for j, (column, cell, wraps) in enumerate(zip(shown, row, prose, strict=True))
        ]
        for i, row in enumerate(rows)
    ]
    head = _row([escape_latex(column.title) for column in shown])
    lines = "\n".join(_row(row) for row in body)
    label = re.sub(r"[^A-Za-z0-9:.-]+", "-", table.name)
    return (
        "\\begin{table}[t]\n\\centering\n"
        f"\\caption{{{escape_latex(table.title)}.}}\n\\label{{tab:{label}}}\n"
        f"\\{size}\\setlength{{\\tabcolsep}}{{{GAP:g}pt}}%\n"
        "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%\n"
        f"\\begin{{tabular}}{{@{{}}{align}@{{}}}}\n\\toprule\n{head}\n\\midrule\n{lines}\n"
        "\\bottomrule\n\\end{tabular}}\n\\end{table}\n"
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


def _layout(columns: list[Column], rows: list[list[str]]) -> tuple[str, str, list[bool]]:
    """The size of type, the columns' alignment, and which of them wrap, at the width that the others leave them."""
    texts = [[column.title, *cells] for column, cells in zip(columns, zip(*rows, strict=True), strict=False)]
    texts = texts or [[column.title] for column in columns]
    prose = [_is_prose(column, cells) for column, cells in zip(columns, texts, strict=True)]
    gaps = 2 * GAP * (len(columns) - 1)
    for size in SIZES:
        widths = [max(width(cell, SIZES[size]) for cell in cells) for cells in texts]
        left = COLUMN - gaps - sum(itertools.compress(widths, [not is_long for is_long in prose]))
        if (sum(widths) + gaps <= COLUMN) or (any(prose) and left >= 55 * sum(prose)):
            break
    if sum(widths) + gaps <= COLUMN:
        prose = [False] * len(prose)
    weights = [math.sqrt(wide) if is_long else 0.0 for wide, is_long in zip(widths, prose, strict=True)]
    spans = [max(left, 55.0 * sum(prose)) * weight / (sum(weights) or 1.0) for weight in weights]
    align = "".join(
        rf">{{\raggedright\arraybackslash\hspace{{0pt}}}}p{{{span:.0f}pt}}"
        if is_long
        else "r"
        if column.is_number
        else "l"
        for column, is_long, span in zip(columns, prose, spans, strict=True)
    )
    return size, align, prose


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


def _is_prose(column: Column, cells: list[str]) -> bool:
    return not column.is_number and not column.is_name and max(map(len, cells)) >= LONG


def _breakable(text: str) -> str:
    """Prose; words that hyphenation cannot help, such as paths, may end a line anywhere in between."""
    words = (word if len(word) > 18 else [word] for word in text.split())
    return " ".join(r"\allowbreak{}".join(map(escape_latex, word)) for word in words)


def _bold(cell: str, is_best: bool) -> str:
    return rf"\textbf{{\boldmath {cell}}}" if is_best else cell


def _row(cells: list[str]) -> str:
    """A row of a tabular. To the rule or `\\\\` before it a star or a bracket would belong."""
    is_taken = cells and cells[0].startswith(("*", "["))
    return ("{}" if is_taken else "") + " & ".join(cells) + r" \\"
