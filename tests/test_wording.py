import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from lora_bench import wording


@pytest.mark.parametrize(("n", "told"), [(0, "0 finished runs"), (1, "1 finished run"), (2, "2 finished runs")])
def test_only_one_of_a_thing_is_singular(n, told):
    """Every message counts with this function: a condition of its own per message had called none `0 run`."""
    assert wording.counted(n, "finished run") == told


@pytest.mark.parametrize("columns", [40, 60, 80, 140])
def test_a_table_never_cuts_a_number(columns):
    """`0.0...` is no rate."""
    headings = ["cell", "lr", "on select", "95 % interval", "seeds needed", "parameters", "module"]
    numbers = ("0.00316", "83.7", "−12.6 to 83.8", "17 (10 to 61)", "36,864")
    grid = wording.Grid(headings, texts=["cell", "module"])
    grid.add_row("q+v+up+down r=8 adapter.dropout=0.1", *numbers, "x." * 30)
    grid.add_row("qv", "1e-05", "–", "–", "72 (33 to 287)", "1,024", "日本語" * 9)
    out = Console(file=io.StringIO(), width=columns, force_terminal=True, no_color=True)
    out.print(grid)
    said = re.sub(r"\x1b\[[0-9;]*m", "", out.file.getvalue())
    assert "…" not in said and "..." not in said
    assert all(cell_len(line) <= columns for line in said.splitlines())
    assert all(number in said for number in numbers)
    assert said.count("日") == 9 and said.count("x") == 30
    assert all(word in said for heading in headings for word in heading.split())


def test_columns_without_room_stand_behind_the_names_of_their_rows_below_a_title_on_one_line():
    """`qv`, `qv`, `qv` tell no row apart, and a title needs no more lines because its table is narrow."""
    grid = wording.Grid(["cell", "against", "difference", "seeds needed"], texts=["cell", "against"], title="so " * 9)
    grid.add_row("qv", "qkvo", "+16.3 ± 6.6", "65 (43 to 112)")
    out = Console(file=io.StringIO(), width=30, no_color=True)
    out.print(grid)
    said = [line.split() for line in out.file.getvalue().splitlines()]
    assert said[0] == ["so"] * 9
    assert ["qv", "qkvo", "+16.3", "±", "6.6"] in said and ["qv", "qkvo", "65", "(43", "to", "112)"] in said


@pytest.mark.parametrize("columns", [20, 80])
def test_prose_folds_at_words_and_lines_to_paste_stay_whole(columns):
    """A word that the terminal breaks reads badly, and a command with a line break in it does something else."""
    command = "lora-bench weight_types store=" + "a folder with blanks/" * 9
    text = f"  of 1,000 report rows none of train or select; all is well. Next:\n  {command}"
    folded = wording.folded(text, columns).split("\n")
    assert folded[-1] == f"  {command}"
    assert " ".join(line.strip() for line in folded) == " ".join(line.strip() for line in text.split("\n"))
    assert all(cell_len(line) <= columns for line in folded[:-1])
    assert all(line.startswith("    ") for line in folded[1:-1])
