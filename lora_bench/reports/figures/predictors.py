"""What placements that were predicted before training lose, and how their order agrees with the measured one."""

from __future__ import annotations

import matplotlib.lines
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from lora_bench.reports.figures import compose
from lora_bench.reports.figures.style import BLUE, FAINT, INK, styled


@styled
def predictors(table: pd.DataFrame, *, best: str) -> Figure:
    """Regret on the left, rank correlation on the right; a row a predictor, 95 % intervals.

    Args:
        table: predictor, is_null, and regret (in points), tau, each with _low and _high; nan is left out.
        best: the placement that regret is held against.
    """
    figure = Figure(figsize=(compose.column(), 0.75 + 0.17 * len(table)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.3, 1])
    places = np.arange(len(table))
    looks = {False: ("o", BLUE), True: ("D", FAINT)}
    for axis, name, title in ((left, "regret", f"regret, points\n(to {best})"), (right, "tau", "Kendall's τ,\nroles")):
        axis.axvline(0, color=FAINT, lw=0.8, zorder=1)
        for is_null, (marker, colour) in looks.items():
            kept = ((table["is_null"] == is_null) & table[name].notna()).to_numpy()
            axis.hlines(places[kept], table[f"{name}_low"][kept], table[f"{name}_high"][kept], color=colour, lw=1)
            axis.plot(table[name][kept], places[kept], marker, ms=3.5, color=colour)
        axis.set_xlabel(title)
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="x", bottom=True)
        sns.despine(ax=axis, left=True)
    right.set_xlim(-1.1, 1.1)
    right.set_xticks([-1, 0, 1])
    left.set_yticks(places, table["predictor"], color=INK)
    left.set_ylim(len(table) - 0.5, -0.5)
    handles = [
        matplotlib.lines.Line2D([], [], marker=marker, color=colour, lw=0, ms=3.5) for marker, colour in looks.values()
    ]
    compose.header(figure, handles, ["predictor", "nothing predicted"])
    return figure
