"""Quotes that spoil rows in silence: by two rules in the splits of one task, or by an open one that swallows rows.

CSV reads swallowed rows as one text of several lines, and nothing else tells.

    text,label
    "good film,1          <- a quote that nobody closes
    bad film,0
    so so",1              <- and one that nobody opened: three rows are one

A text of several lines is suspect where its lines, with the cells beside it, are rows themselves: each has all fields,
and a label that rows without a line break have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lora_bench.config.errors import ConfigError
from lora_bench.tasks.readers import Columns

_LINE_END = re.compile(r"\r\n|\n|\r")


def refuse_two_rules(read_in: Mapping[Path, Columns], *, key: str) -> None:
    """Refuse TSV files of one task in which quotes are letters here and marks around texts there.

    Each file's rows say which they are. A split whose quotes happen to stand around whole texts alone is read without
    them, and the texts of another keep theirs: the two would differ in what nobody wrote.

    Raises:
        ConfigError: with a file of each rule.
    """
    files = {columns.quotes: path for path, columns in read_in.items()}
    if {"letters", "marks"} <= files.keys():
        raise ConfigError(
            f"{key}: in {str(files['letters'])!r} quotes are letters, since some stand within a text, and in "
            f"{str(files['marks'])!r} they stand around texts; write both in one way: as RFC 4180 does, or as JSONL"
        )


def refuse_swallowed(columns: Columns, label: str, *, where: Path, key: str) -> None:
    """Refuse a delimited file of which a text is rows; `label` names the column that tells a row from a line of text.

    Raises:
        ConfigError: with the row that holds others.
    """
    delimiter, labels = columns.delimiter, columns.of(label)
    if delimiter is None:
        return
    place = next(number for number, values in enumerate(columns.values.values()) if values is labels)
    unnamed = ("",) * columns.n_unnamed
    rows = [(*cells, *unnamed) for cells in zip(*columns.values.values(), strict=True)]
    broken = {number for number, cells in enumerate(rows) if any(map(_is_broken, cells))}
    if not broken:
        return
    known = {cells[place].strip() for number, cells in enumerate(rows) if number not in broken} - {""}
    for number in sorted(broken):
        n_inside = _rows_inside(rows[number], delimiter, lambda cells: cells[place].strip() in known)
        if n_inside:
            raise ConfigError(
                f"{key}: row {number + 1} of {str(where)!r} holds a text of which the lines are {n_inside} rows with "
                "labels of their own; a quote that is not closed takes in the rows behind it: close it, or double it "
                "inside a text; where the text is meant so, write the file as JSONL"
            )


def _is_broken(cell: str) -> bool:
    return _LINE_END.search(cell) is not None


def _rows_inside(cells: Sequence[str], delimiter: str, is_row: Callable[[Sequence[str]], bool]) -> int:
    """How many rows a row would be, were the quotes of one of its texts plain letters; 0 where it would be none."""
    for place, cell in enumerate(cells):
        first, *others = _LINE_END.split(cell)
        if not others:
            continue
        *middle, last = others
        rows = [
            [*cells[:place], *first.split(delimiter)],
            *(line.split(delimiter) for line in middle),
            [*last.split(delimiter), *cells[place + 1 :]],
        ]
        if all(len(row) == len(cells) and is_row(row) for row in rows):
            return len(rows)
    return 0
