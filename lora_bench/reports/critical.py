"""The critical-difference line: cells at their means, and a bar over those that no pair of them is told apart of.

Words are those of every pair, a family of its own (`beside.every_pair`): two cells are joined where their pair is tied
or unresolved. A bar is as long as it can be: it spans neighbours of which every pair is joined. Source: Demsar 2006,
JMLR 7, section 3.2.3, with paired differences over seeds in place of ranks over data sets.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from lora_bench import wording
from lora_bench.verdicts.looks import TIED

JOINED = (TIED, "unresolved")
LEFT, RIGHT = 22.0, 78.0  # of a picture 100 wide: where the lowest and the highest mean stand; names stand beside
TOP, STEP = 8.0, 4.4  # the axis, and the height of a line of text


def groups(cells: list[str], words: dict[frozenset[str], str]) -> list[tuple[int, int]]:
    """First and last place of each bar over cells in the order of their means; none within another, none of one cell.

    Args:
        words: of every pair of cells that has one.
    """

    def is_joined(start: int, end: int) -> bool:
        return all(words.get(frozenset((cells[i], cells[end]))) in JOINED for i in range(start, end))

    spans: list[tuple[int, int]] = []
    for start in range(len(cells)):
        end = start
        while end + 1 < len(cells) and is_joined(start, end + 1):
            end += 1
        if end > start and not any(first <= start and end <= last for first, last in spans):
            spans.append((start, end))
    return spans


def line_of(estimates: pd.DataFrame, pairs: pd.DataFrame) -> dict[str, Any] | None:
    """Where names, ticks and bars stand in a picture 100 wide, and what it shows in words; None below three cells.

    Args:
        estimates: as `arms.estimate` gives them.
        pairs: every pair's first, second and verdict. Cells of which no pair was tested have no place on the line.
    """
    tested = pairs[pairs["p_holm"].notna()]
    known = {*tested["first"], *tested["second"]}
    means = {str(cell): 100 * mean for cell, mean in estimates["mean"].items() if cell in known and math.isfinite(mean)}
    if len(means) < 3:
        return None
    cells = sorted(means, key=lambda cell: means[cell])
    low, high = means[cells[0]], means[cells[-1]]
    words = {frozenset((row["first"], row["second"])): row["verdict"] for row in tested.to_dict("records")}
    spans = groups(cells, words)

    def across(cell: str) -> float:
        return round(LEFT + (RIGHT - LEFT) * (means[cell] - low) / ((high - low) or 1.0), 2)

    n_left = len(cells) // 2
    base = TOP + 2.2 * len(spans) + 2.0
    marks = []
    for place, cell in enumerate(cells):
        is_left = place < n_left
        row = place if is_left else len(cells) - 1 - place
        marks.append(
            {
                "name": cell, "mean": f"{means[cell]:.1f}", "x": across(cell), "y": round(base + STEP * (row + 1), 2),
                "end": LEFT - 2 if is_left else RIGHT + 2, "is_left": is_left,
            }
        )  # fmt: skip
    bars = [
        {"x1": across(cells[start]) - 0.6, "x2": across(cells[end]) + 0.6, "y": round(TOP + 2.2 * (place + 1), 2)}
        for place, (start, end) in enumerate(spans)
    ]
    alike = [wording.listed(list(reversed(cells[start : end + 1]))) for start, end in spans]
    return {
        "marks": marks, "bars": bars, "top": TOP, "left": LEFT, "right": RIGHT,
        "height": round(base + STEP * (max(n_left, len(cells) - n_left) + 1), 2),
        "words": f"Not told apart, pair by pair: {'; '.join(alike)}" if alike else "Every pair is told apart",
    }  # fmt: skip
