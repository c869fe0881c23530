"""How long a question takes, where the time goes, and where packing pays."""

from __future__ import annotations

import itertools
import math

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from lora_bench import wording
from lora_bench.reports.figures import compose
from lora_bench.reports.figures.style import BLUE, BROWN, FAINT, GREEN, INK, LIGHT, ORANGE, PURPLE, RED, SKY, styled


@styled
def verdict_times(rows: pd.DataFrame) -> Figure:
    """Time to the words of one question, as bars; grey: other people's loops.

    Args:
        rows: arm (c and d are ours), name, n_seeds, seconds, over_study; one row per bar, drawn from the top.
    """
    figure = Figure(figsize=(compose.column(), 0.75 + 0.34 * len(rows)), layout="constrained")
    axis = figure.subplots()
    longest = float(rows["seconds"].max()) / 60
    for place, row in enumerate(rows.to_dict("records")):
        minutes = row["seconds"] / 60
        is_inside = minutes > 0.7 * longest  # where its bar has room for the text, and what is beside it has not
        axis.barh(place, minutes, height=0.66, color=BLUE if row["arm"] in ("c", "d") else LIGHT)
        label = f" {wording.duration(row['seconds'])}" + ("" if row["arm"] == "d" else f" ({row['over_study']:.1f}×)")
        side = "right" if is_inside else "left"
        axis.text(minutes, place, f"{label} ", ha=side, va="center", fontsize=compose.SIZE, color=INK)
    names = [f"{row['name'].replace(', ', chr(10), 1)}, {row['n_seeds']} seeds" for row in rows.to_dict("records")]
    axis.set_yticks(range(len(rows)), names)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.25 * longest)
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.set_xlabel("minutes to the words\n(in brackets: times the study's)")
    axis.grid(visible=False, axis="y")
    sns.despine(ax=axis, left=True)
    return figure


@styled
def crossover(points: pd.DataFrame) -> Figure:
    """The gain of a pack over its runs alone, against the tokens of one run's step; a panel for each backbone and
    precision, a line for each size of pack.

    Args:
        points: shape, precision, tokens, pack, gain; one row per point.
    """
    panels = list(points.groupby(["shape", "precision"], sort=False))
    packs = sorted(points["pack"].unique())
    marks = [(BLUE, "o"), (ORANGE, "s"), (GREEN, "D"), (PURPLE, "v"), (RED, "^")]
    width, n_columns = compose.across(len(panels), most=2)
    n_rows = math.ceil(len(panels) / n_columns)
    figure = Figure(figsize=(width, 0.6 + 1.3 * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True).flat
    for axis, ((shape, precision), panel) in zip(axes, panels, strict=False):
        for pack, (colour, marker) in zip(packs, itertools.cycle(marks), strict=False):
            line = panel[panel["pack"] == pack].sort_values("tokens")
            axis.plot(line["tokens"], line["gain"], color=colour, marker=marker, ms=3.4)
        axis.axhline(1, color=INK, lw=0.8, ls=(0, (4, 2)), zorder=1)
        axis.set_title(f"{shape}, {precision}")
        axis.set_ylim(0, 1.08 * points["gain"].max())  # of all panels, which share the axis
        axis.set_xscale("log", base=2)
        ticks = sorted(points["tokens"].unique())
        axis.set_xticks(ticks, [f"{count:g}" for count in ticks])
        axis.minorticks_off()
    for axis in list(figure.axes)[len(panels) :]:
        axis.set_visible(False)
    figure.supxlabel("tokens in a step of one run", fontsize=compose.SIZE)
    figure.supylabel("gain of the pack", fontsize=compose.SIZE)
    handles = [
        Line2D([], [], color=colour, marker=marker, ms=3.4, label=f"{pack} runs")
        for pack, (colour, marker) in zip(packs, itertools.cycle(marks), strict=False)
    ]
    compose.header(figure, handles)
    sns.despine(fig=figure)
    return figure


@styled
def where_time_goes(seconds: pd.DataFrame) -> Figure:
    """The wall time of whole commands as stacked bars, a bar for each, parts below one in fifty of every bar together.

    Args:
        seconds: of each part (index, in the order of the bar) and command (columns).
    """
    shares = seconds / seconds.sum()
    is_small = (shares < 0.02).all(axis=1)
    shown = shares[~is_small]
    palette = itertools.cycle([BLUE, ORANGE, GREEN, PURPLE, RED, BROWN, SKY, FAINT])
    colours = dict(zip(shown.index, palette, strict=False))
    figure = Figure(figsize=(compose.page(), 0.55 + 0.4 * shares.shape[1]), layout="constrained")
    axis = figure.subplots()
    for place, name in enumerate(shares.columns):
        left = 0.0
        pieces = [(colours[part], share) for part, share in shown[name].items()]
        for colour, share in [*pieces, (LIGHT, float(shares.loc[is_small, name].sum()))]:
            axis.barh(place, 100 * share, left=left, height=0.66, color=colour, edgecolor="white", lw=0.5)
            if share >= 0.045:
                middle, text = left + 50 * share, f"{100 * share:.0f}"
                axis.text(middle, place, text, ha="center", va="center", fontsize=compose.SIZE, color="white")
            left += 100 * share
    axis.set_yticks(range(shares.shape[1]), [f"{n}\n{wording.duration(s)}" for n, s in seconds.sum().items()])
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.set_xlabel("percent of the wall time")
    axis.grid(visible=False, axis="y")
    handles = [Patch(color=colour, label=part) for part, colour in colours.items()]
    compose.header(figure, [*handles, *([Patch(color=LIGHT, label="the rest")] if is_small.any() else [])])
    sns.despine(ax=axis, left=True)
    return figure
