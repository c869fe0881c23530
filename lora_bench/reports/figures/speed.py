"""How long a question takes, and where packing pays."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lora_bench import wording
from lora_bench.reports.figures import compose
from lora_bench.reports.figures.style import BLUE, INK, LIGHT, styled


@styled
def verdict_times(rows: pd.DataFrame) -> Figure:
    """Time to the words of one question, as bars; grey: other people's loops.

    Args:
        rows: arm (c and d are ours), name, n_seeds, seconds, over_study; one row per bar, drawn from the top.
    """
    figure = Figure(figsize=(compose.column(), 0.75 + 0.34 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for place, row in enumerate(rows.to_dict("records")):
        minutes = row["seconds"] / 60
        axis.barh(place, minutes, height=0.66, color=BLUE if row["arm"] in ("c", "d") else LIGHT)
        label = f" {wording.duration(row['seconds'])}" + ("" if row["arm"] == "d" else f" ({row['over_study']:.1f}×)")
        axis.text(minutes, place, label, va="center", fontsize=compose.SIZE, color=INK)
    names = [f"{row['name'].replace(', ', chr(10), 1)}, {row['n_seeds']} seeds" for row in rows.to_dict("records")]
    axis.set_yticks(range(len(rows)), names)
    axis.invert_yaxis()
    axis.set_xlim(0, 2.3 * float(rows["seconds"].max()) / 60)
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.set_xlabel("minutes to the words\n(in brackets: times the study's)")
    axis.grid(visible=False, axis="y")
    sns.despine(ax=axis, left=True)
    return figure
