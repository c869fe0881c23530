"""Scores against the learning rate, and against what they cost."""

from __future__ import annotations

import math
from collections import Counter

import matplotlib
import matplotlib.colors
import matplotlib.lines
import matplotlib.patches
import matplotlib.patheffects
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from lora_bench.reports.figures import compose
from lora_bench.reports.figures.style import (
    BLUE,
    FAINT,
    INK,
    RANKS,
    darker,
    hide_spare,
    metric_label,
    series,
    styled,
)

HALO = [matplotlib.patheffects.withStroke(linewidth=1.6, foreground="white")]  # keeps text clear of what it lies on


@styled
def learning_rates(curves: pd.DataFrame, *, metric: str, split: str) -> Figure:
    """Score against learning rate, one panel per placement, one line per rank, the chosen rate ringed.

    Args:
        curves: targets, rank (text), lr, mean, low, high, is_chosen, is_full (has as many seeds as the chosen rate;
            hollow where not), scores (a list, of the seeds; drawn where there is no interval); one row per cell.
    """
    panels = list(dict.fromkeys(curves["targets"]))
    width, n_columns = compose.across(len(panels))
    n_rows = math.ceil(len(panels) / n_columns)
    figure = Figure(figsize=(width, 0.55 + 1.45 * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    ranks = list(dict.fromkeys(curves.sort_values("rank_order")["rank"]))
    looks = [RANKS[place % len(RANKS)] for place in range(len(ranks))]
    several = curves.groupby("targets")["rank"].nunique().max() > 1
    lowest, top = 100 * curves["mean"].min(), 100 * curves["mean"].max()
    chosen = 100 * curves.loc[curves["is_chosen"], "mean"].min()
    bottom = max(lowest, chosen - max(top - chosen, 3.0))  # a rate that learned nothing would flatten all others
    bottom = min([bottom, *(100 * curves.loc[curves["is_chosen"], "low"].dropna())])
    for axis, targets in zip(axes.flat, panels, strict=False):
        of_targets = curves[curves["targets"] == targets]
        n_sunk: Counter[float] = Counter()
        for rank, of_rank in of_targets.groupby("rank", sort=False):
            place = ranks.index(rank)
            colour, marker = looks[place] if several else (BLUE, "o")
            of_rank = of_rank.sort_values("lr")
            axis.plot(of_rank["lr"], 100 * of_rank["mean"], color=colour, lw=1)
            for is_full, points in of_rank.groupby("is_full"):
                fill = colour if is_full else "white"
                axis.plot(points["lr"], 100 * points["mean"], marker, color=colour, mfc=fill, ms=2.8, mew=0.8)
            axis.vlines(of_rank["lr"], 100 * of_rank["low"], 100 * of_rank["high"], color=colour, lw=0.8, alpha=0.7)
            few = of_rank[of_rank["low"].isna()]
            for rate, scores in zip(few["lr"], few["scores"], strict=True):
                axis.plot([rate] * len(scores), 100 * np.array(scores), "_", color=colour, ms=3, mew=0.7)
            sunk = of_rank[100 * of_rank["mean"] < bottom]
            for rate, mean in zip(sunk["lr"], sunk["mean"], strict=True):
                above = 1 + 7.5 * n_sunk[rate]  # numbers of one rate are stacked
                n_sunk[rate] += 1
                axis.annotate(f"{100 * mean:.0f}", (rate, bottom), (0, above), textcoords="offset points", ha="center",
                              fontsize=compose.SIZE, color=colour, zorder=5, path_effects=HALO)  # fmt: skip
            best = of_rank[of_rank["is_chosen"]]
            ring = darker(colour) if several else INK
            axis.plot(best["lr"], 100 * best["mean"], marker="o", ms=7, mfc="none", mec=ring, mew=0.8, ls="")
        label = targets if several or not targets else f"{targets}  r={of_targets['rank'].iloc[0]}"
        _rate_axis(axis, label)
    spare = 0.08 * (top - bottom) + 0.5
    drawn = [
        top,
        *(100 * curves["high"].dropna()),
        *(100 * max(scores) for scores in curves["scores"] if len(scores) < 3),
    ]
    axes.flat[0].set_ylim(bottom - (0.1 if bottom > lowest else spare), min(max(drawn), 100.0) + spare)
    hide_spare(axes, len(panels))
    keys = _rate_keys(curves, dict(zip(ranks, looks, strict=True)) if several else {})
    compose.header(figure, keys)
    compose.below(figure, "learning rate" + ("; numbers: means below the axis" if bottom > lowest else ""))
    figure.supylabel(f"{metric_label(metric)}, {split}", fontsize=7)
    return figure


def _rate_keys(curves: pd.DataFrame, looks: dict) -> list[matplotlib.lines.Line2D]:
    """What the key of `learning_rates` explains: the ranks, where there are several, and the marks that are drawn."""
    line = matplotlib.lines.Line2D
    keys = [line([], [], color=colour, marker=mark, ms=3, label=f"r={rank}") for rank, (colour, mark) in looks.items()]
    keys.append(line([], [], ls="", marker="o", ms=7, mfc="none", mec=INK, label="chosen on select"))
    if not curves["is_full"].all():
        keys.append(line([], [], ls="", marker="o", ms=3, mfc="white", mec=INK, label="fewer seeds"))
    if curves["low"].isna().any():
        keys.append(line([], [], ls="", marker="_", ms=5, color=INK, label="a seed (of two)"))
    return keys


def _rate_axis(axis: Axes, title: str) -> None:
    axis.set_title(title, loc="left", color=INK)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(10, subs=(1, 3)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-")))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.grid(axis="x", visible=False)
    axis.tick_params(axis="both", bottom=True)
    sns.despine(ax=axis)


@styled
def pareto(points: pd.DataFrame, costs: list[tuple[str, str]], *, metric: str) -> Figure:
    """Score against what a cell costs, one panel per cost; the front is drawn, and its cells are named.

    Args:
        points: label, targets, mean, low, high, one column per cost, and `front_<cost>`.
        costs: (column, axis label).
    """
    width, n_columns = compose.across(len(costs), most=3, panel=1.9)
    n_rows = math.ceil(len(costs) / n_columns)
    figure = Figure(figsize=(width, 0.4 + 2.1 * n_rows), layout="constrained")
    grid = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False)
    axes = list(grid.flat)[: len(costs)]
    names = list(dict.fromkeys(points["targets"]))
    fronts: list[pd.DataFrame] = []
    beside = points.assign(**{column: _side_by_side(points[column]) for column, _ in costs})
    for axis, (column, label) in zip(axes, costs, strict=True):
        for i, targets in enumerate(names):
            of_targets = beside[beside["targets"] == targets]
            colour, marker = series(targets, i) if targets != "head only" else (FAINT, "s")
            x = of_targets[column].to_numpy(float)
            axis.vlines(x, 100 * of_targets["low"], 100 * of_targets["high"], color=colour, lw=0.8, alpha=0.6)
            axis.plot(x, 100 * of_targets["mean"], marker=marker, ms=3.6, color=colour, ls="", label=targets)
        front = beside[beside[f"front_{column}"]].sort_values(column)
        fronts.append(front)
        axis.step(front[column], 100 * front["mean"], where="post", color=INK, lw=0.7, zorder=1)
        axis.set_xlabel(label)
        if _is_wide(points[column]):
            axis.set_xscale("log")
        axis.margins(x=0.3, y=0.1)
        axis.xaxis.set_major_locator(LogLocator(10) if _is_wide(points[column]) else MaxNLocator(4))
        axis.xaxis.set_major_formatter(FuncFormatter(_short))
        axis.tick_params(axis="both", bottom=True)
        axis.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
        axis.grid(axis="x", visible=False)
        sns.despine(ax=axis)
    hide_spare(grid, len(costs))
    figure.supylabel(metric_label(metric), fontsize=compose.SIZE)
    compose.header(figure, *axes[0].get_legend_handles_labels())
    figure.draw_without_rendering()  # now the panels have their places
    for axis, front, (column, _) in zip(axes, fronts, costs, strict=True):
        _name_front(axis, front, column)
    return figure


def _short(value: float, _: object = None) -> str:
    """`36k`, `1.2M`: a cost on a tick."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale:
            return f"{value / scale:g}{unit}"
    return f"{value:g}"


def _side_by_side(costs: pd.Series) -> pd.Series:
    """Equal costs moved apart a little, so that their marks can be seen."""
    place = costs.groupby(costs).cumcount() - (costs.groupby(costs).transform("size") - 1) / 2
    return costs * 1.04**place if _is_wide(costs) else costs + 0.008 * place * (costs.max() - costs.min())


def _is_wide(costs: pd.Series) -> bool:
    """Whether costs need a logarithmic axis."""
    return bool(costs.max() / costs.min() > 8)


def _name_front(axis: Axes, front: pd.DataFrame, column: str) -> None:
    """Names up and left of the cells on a front, where no cell can be; pushed up where two would touch."""
    height = 8.0  # points: a line of text
    from_its_end = {"relpos": (1.0, 0.4)}  # a leader from the middle of a name struck it through
    leader = {"arrowstyle": "-", "lw": 0.4, "color": FAINT, "shrinkA": 0, "shrinkB": 2, **from_its_end}
    scale = 72 / axis.figure.dpi
    last = -math.inf
    for _, best in front.sort_values("mean").iterrows():
        point = (best[column], 100 * best["mean"])
        y = axis.transData.transform(point)[1] * scale
        shift = max(3.0, last + height - y)
        last = y + shift
        far = shift > height
        axis.annotate(best["label"], point, (-7 if far else -3, shift), textcoords="offset points", ha="right",
                      fontsize=compose.SIZE, zorder=5, annotation_clip=False,
                      arrowprops=leader if far else None,
                      path_effects=HALO)  # fmt: skip
