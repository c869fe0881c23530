"""Every run of cells that were drawn in two ways: seeds side by side, starts of the adapter within each."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lora_bench.reports.figures import compose
from lora_bench.reports.figures.style import INK, hide_spare, metric_label, series, styled


@styled
def draws(runs: pd.DataFrame, *, metric: str) -> Figure:
    """A panel for each cell and rate, on one scale.

    Args:
        runs: cell, targets, lr, seed, start, report (a fraction) and learns, a row a run.
    """
    panels = list(runs.groupby(["cell", "lr"], sort=False))
    rates = runs["lr"].nunique()
    width, n_columns = compose.across(len(panels), most=max(2, rates) if rates <= 4 else 4)
    n_rows = -(-len(panels) // n_columns)
    figure = Figure(figsize=(width, 0.35 + 1.15 * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True)
    seeds = sorted(runs["seed"].unique())
    for axis, ((cell, lr), at) in zip(axes.flat, panels, strict=False):
        colour, marker = series(str(at["targets"].iloc[0]))
        for place, seed in enumerate(seeds):
            of_seed = at[at["seed"] == seed].sort_values("start")
            scores, learns = 100 * of_seed["report"].to_numpy(float), of_seed["learns"].to_numpy(bool)
            aside = np.linspace(-0.22, 0.22, len(of_seed)) if len(of_seed) > 1 else np.zeros(len(of_seed))
            for kept, face in ((learns, colour), (~learns, "white")):
                axis.plot(place + aside[kept], scores[kept], marker, ms=3, color=colour, mfc=face, mew=0.8, ls="")
            if learns.any():
                axis.hlines(scores[learns].mean(), place - 0.36, place + 0.36, color=INK, lw=1, zorder=4)
        axis.set_title(f"{cell}, lr {lr:g}", loc="left")
        axis.set_xticks(range(len(seeds)), [f"{seed}" for seed in seeds])
        axis.margins(y=0.1)
        axis.grid(axis="x", visible=False)
    hide_spare(axes, len(panels))
    for row in axes:
        row[0].set_ylabel(metric_label(metric))
    for axis in axes[-1]:
        axis.set_xlabel("seed")
    return figure
