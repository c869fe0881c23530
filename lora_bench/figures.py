"""Estimates in, figures out: one visual language for the page and for print. Computes nothing.

Widths are those of a column (3.4 in) or a page (7 in) of a two-column paper, so text keeps its size when placed.
Colours are the Okabe-Ito set as seaborn ships it, and no meaning rests on colour alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from matplotlib.image import AxesImage
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

COLUMN = 3.4  # inches
PAGE = 7.0
WRITTEN_CELLS = 36  # of a heatmap, up to which each holds its number

_PALETTE = sns.color_palette("colorblind")
BLUE, ORANGE, GREEN, RED, PURPLE, BROWN, PINK, GREY, YELLOW, SKY = _PALETTE
INK = "#222222"
FAINT = "#8a8a8a"
LIGHT = "#c4c4c4"

VERDICTS = {  # said of the first cell: colour, marker
    "better": (BLUE, "o"),
    "worse": (RED, "s"),
    "tied": (GREEN, "D"),
    "unresolved": (FAINT, "o"),
}
SERIES = {
    "q": (BLUE, "o"),
    "qv": (ORANGE, "s"),
    "qkvo": (GREEN, "D"),
    "k": (RED, "^"),
    "v": (PURPLE, "v"),
    "o": (BROWN, "P"),
    "qk": (SKY, "X"),
}

METRIC_NAMES = {
    "accuracy": "accuracy (%)",
    "balanced_accuracy": "balanced accuracy (%)",
    "matthews": "Matthews correlation (×100)",
    "f1": "F1 (%)",
    "pearson": "Pearson correlation (×100)",
    "spearman": "Spearman correlation (×100)",
}

STYLE: dict[Any, Any] = {  # matplotlib's own type of the keys is a list of their names
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 6.5,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.6,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": "#444444",
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 0,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "figure.dpi": 100,
    "figure.constrained_layout.w_pad": 0.03,
    "figure.constrained_layout.h_pad": 0.03,
    "svg.fonttype": "path",
    "svg.hashsalt": "lora_bench",
    "pdf.fonttype": 42,
}


def metric_label(metric: str) -> str:
    """The name of a score with its unit, as shown on axes (scores are multiplied by 100)."""
    return METRIC_NAMES.get(metric, f"{metric} (×100)")


def short_metric(metric: str) -> str:
    """The name of a score for a sentence or a table's head."""
    return metric_label(metric).split(" (")[0].removesuffix(" correlation")


def styled(draw):
    """Draw under the package's style only, whatever the caller's matplotlib settings; never through pyplot."""

    def wrapped(*args, **kwargs) -> Figure:
        style: dict[Any, Any] = {**sns.axes_style("whitegrid"), **STYLE}
        with matplotlib.rc_context(style):
            return draw(*args, **kwargs)

    wrapped.__doc__, wrapped.__name__ = draw.__doc__, draw.__name__
    return wrapped


def save(figure: Figure, folder: Path, name: str) -> Path:
    """NAME.pdf, NAME.png (300 dpi) and NAME.svg, without dates, so that equal results give equal files."""
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once, not once per format
        for suffix, metadata in (("pdf", {"CreationDate": None}), ("svg", {"Date": None}), ("png", None)):
            figure.savefig(folder / f"{name}.{suffix}", dpi=300, metadata=metadata)
    return folder / f"{name}.png"


@styled
def placements(estimates: pd.DataFrame, *, metric: str, published: pd.DataFrame | None = None) -> Figure:
    """Scores of placements at one budget: mean, 95 % interval, seeds as points; the paper's values in panels beside.

    Args:
        estimates: one row per placement, in the order to be drawn from the top: label, targets, mean, low, high,
            scores ({seed: score}), is_floor (drawn grey, with a line through the figure; a number at the edge where it
            lies so far off that the others' intervals would hide behind their marks).
        published: dataset, targets, score, sd; rows are matched by `targets`.
    """
    n = len(estimates)
    paper = _by_dataset(published)
    figure = Figure(figsize=(COLUMN, 0.75 + 0.225 * n), layout="constrained")
    axes = figure.subplots(1, 1 + len(paper), sharey=True, width_ratios=[3.0, *[1.15] * len(paper)], squeeze=False)[0]
    ours, rows = axes[0], range(n)
    for row, (_, one) in zip(rows, estimates.iterrows(), strict=True):
        seeds = 100 * np.array(list(one["scores"].values()))
        dots, colour = (LIGHT, FAINT) if one["is_floor"] else (SKY, BLUE)
        ours.scatter(seeds, np.full(seeds.size, row) + _spread(seeds.size), s=7, color=dots, lw=0, zorder=2)
        _interval(ours, one["mean"], one["low"], one["high"], row, colour, "s" if one["is_floor"] else "o")
        if one["is_floor"] and math.isfinite(one["mean"]):
            ours.axvline(100 * one["mean"], color=FAINT, lw=0.8, ls=(0, (4, 2)), zorder=1)
    ours.set_yticks(rows, list(estimates["label"]))
    ours.set_ylim(n - 0.4, -0.6)
    ours.set_xlabel(metric_label(metric))
    ours.set_title("measured", loc="left", color=INK)
    _tidy(ours)
    _leave_far_floor(ours, estimates)
    for axis, (name, of_set) in zip(axes[1:], paper.items(), strict=True):
        printed = of_set.set_index("targets").to_dict("index")
        for row, targets in zip(rows, estimates["targets"], strict=True):
            if targets in printed:
                axis.errorbar(
                    100 * printed[targets]["score"],
                    row,
                    xerr=100 * printed[targets]["sd"],
                    fmt="D",
                    ms=3.2,
                    mfc="white",
                    mec=INK,
                    mew=0.8,
                    ecolor=FAINT,
                    elinewidth=0.8,
                )
        axis.set_title(name, loc="left", color=INK)
        axis.tick_params(axis="y", labelleft=False)
        axis.margins(x=0.2)
        axis.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10], min_n_ticks=2))
        axis.set_xlabel("paper (%)")
        _tidy(axis, locate=False)
    return figure


@styled
def contrasts(table: pd.DataFrame, *, margin: float, published: pd.DataFrame | None = None) -> Figure:
    """Paired differences, first minus second, with 95 % intervals, the margin as a band, and the verdict in words.

    Args:
        table: label, difference, low, high, verdict, extra (text after the verdict), in the order to be drawn.
        published: label, dataset, difference: the paper's differences, as hollow marks.
    """
    n = len(table)
    figure = Figure(figsize=(COLUMN, 0.8 + 0.235 * n), layout="constrained")
    axis = figure.subplots()
    axis.axvspan(-100 * margin, 100 * margin, color=FAINT, alpha=0.13, lw=0, zorder=0)
    axis.axvline(0, color=INK, lw=0.7, zorder=1)
    for row, (_, one) in enumerate(table.iterrows()):
        colour, marker = VERDICTS[one["verdict"]]
        _interval(
            axis, one["difference"], one["low"], one["high"], row, colour, marker, hollow=one["verdict"] == "unresolved"
        )
        axis.annotate(f"{one['verdict']}{one['extra']}", (1.02, row), xycoords=("axes fraction", "data"), va="center",
                      fontsize=6.5, color=_darker(colour), annotation_clip=False)  # fmt: skip
    if published is not None and not published.empty:
        rows = {label: row for row, label in enumerate(table["label"])}
        for (name, of_set), mark in zip(published.groupby("dataset", sort=False), ("^", "v"), strict=True):
            kept = of_set[of_set["label"].isin(list(rows))]
            axis.scatter(100 * kept["difference"], kept["label"].map(rows) + 0.3, marker=mark, s=9, facecolor="white",
                         edgecolor=INK, lw=0.6, label=f"paper, {name}", zorder=3)  # fmt: skip
        axis.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=2,
            frameon=False,
            borderaxespad=0.1,
            handletextpad=0.1,
            columnspacing=1,
        )
    axis.set_yticks(range(n), list(table["label"]))
    axis.set_ylim(n - 0.4, -0.6)
    axis.set_xlabel(f"paired difference (points, 95 %); shaded: a tie, ±{100 * margin:g}")
    _tidy(axis)
    return figure


@styled
def ranks(
    estimates: pd.DataFrame, *, metric: str, published: pd.DataFrame | None = None, marked: int | None = None
) -> Figure:
    """Score against rank for each placement, with intervals and seeds; the paper's curves in small panels below.

    Args:
        estimates: targets, rank, mean, low, high, scores; one row per cell.
        published: dataset, targets, rank, score, sd.
        marked: a rank to draw a line at, such as a teacher's.
    """
    paper = _by_dataset(published)
    height = 2.3 + (1.15 if paper else 0)
    figure = Figure(figsize=(COLUMN, height), layout="constrained")
    if paper:
        grid = figure.add_gridspec(2, len(paper), height_ratios=[2.0, 1.0])
        top = figure.add_subplot(grid[0, :])
        small = [figure.add_subplot(grid[1, i]) for i in range(len(paper))]
    else:
        top, small = figure.add_subplot(), []
    all_ranks = sorted({*estimates["rank"], *(rank for of_set in paper.values() for rank in of_set["rank"])})
    names = list(dict.fromkeys(estimates["targets"]))
    for i, targets in enumerate(names):
        colour, marker = series(targets, i)
        mine = estimates[estimates["targets"] == targets].sort_values("rank")
        x = mine["rank"].to_numpy(float) * 2 ** (0.16 * (i - (len(names) - 1) / 2))
        for at, scores in zip(x, mine["scores"], strict=True):
            seeds = 100 * np.array(list(scores.values()))
            top.scatter(np.full(seeds.size, at), seeds, s=5, color=colour, alpha=0.35, lw=0, zorder=2)
        mean, low, high = (100 * mine[name].to_numpy(float) for name in ("mean", "low", "high"))
        top.plot(x, mean, color=colour, marker=marker, ms=3.8, lw=1.2, label=targets, zorder=3)
        top.vlines(x, low, high, color=colour, lw=1.2, zorder=3)
    if marked:
        top.axvline(marked, color=INK, lw=0.8, ls=(0, (4, 2)), zorder=1)
    top.set_ylabel(metric_label(metric))
    top.set_title("measured" if marked is None else f"dashed: the teacher's rank, {marked}", loc="left", color=INK)
    top.legend(
        frameon=False,
        ncols=len(names),
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        borderaxespad=0.1,
        handlelength=1.6,
        columnspacing=1.0,
    )
    _rank_axis(top, all_ranks)
    for axis, (name, of_set) in zip(small, paper.items(), strict=True):
        for i, targets in enumerate(names):
            colour, marker = series(targets, i)
            mine = of_set[of_set["targets"] == targets]
            if len(mine):
                axis.errorbar(mine["rank"], 100 * mine["score"], yerr=100 * mine["sd"], color=colour, marker=marker,
                              ms=2.8, mfc="white", lw=0.9, elinewidth=0.6)  # fmt: skip
        axis.set_title(f"paper, {name}", loc="left", color=INK)
        axis.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        _rank_axis(axis, sorted(set(of_set["rank"])))
    if small:
        small[0].set_ylabel("accuracy (%)")
    return figure


@styled
def learning_rates(curves: pd.DataFrame, *, metric: str, split: str) -> Figure:
    """Score against learning rate, one panel per placement, one line per rank, the chosen rate ringed.

    Args:
        curves: targets, rank (text), lr, mean, low, high, is_chosen, is_full (has as many seeds as the chosen rate;
            hollow where not), scores (a list, of the seeds; drawn where there is no interval); one row per cell.
    """
    panels = list(dict.fromkeys(curves["targets"]))
    n_columns = min(len(panels), 4)
    n_rows = math.ceil(len(panels) / n_columns)
    width = COLUMN if n_columns <= 2 else PAGE
    figure = Figure(figsize=(width, 0.55 + 1.45 * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    ranks = list(dict.fromkeys(curves.sort_values("rank_order")["rank"]))
    shades = sns.color_palette("viridis", max(len(ranks), 2) + 1)[: len(ranks)] if len(ranks) > 1 else [BLUE]
    markers = "osD^vPX*"
    several = curves.groupby("targets")["rank"].nunique().max() > 1
    lowest, top = 100 * curves["mean"].min(), 100 * curves["mean"].max()
    chosen = 100 * curves.loc[curves["is_chosen"], "mean"].min()
    bottom = max(lowest, chosen - max(top - chosen, 3.0))  # a rate that learned nothing would flatten all others
    for axis, targets in zip(axes.flat, panels, strict=False):
        mine = curves[curves["targets"] == targets]
        n_sunk: Counter[float] = Counter()
        for rank, of_rank in mine.groupby("rank", sort=False):
            place = ranks.index(rank)
            colour, marker = (shades[place], markers[place % len(markers)]) if several else (BLUE, "o")
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
                above = 1 + 5.5 * n_sunk[rate]  # numbers of one rate are stacked
                n_sunk[rate] += 1
                axis.annotate(f"{100 * mean:.0f}", (rate, bottom), (0, above), textcoords="offset points", ha="center",
                              fontsize=5, color=colour)  # fmt: skip
            best = of_rank[of_rank["is_chosen"]]
            ring = _darker(colour) if several else INK
            axis.plot(best["lr"], 100 * best["mean"], marker="o", ms=7, mfc="none", mec=ring, mew=0.8, ls="")
        label = targets if several or not targets else f"{targets}  r={mine['rank'].iloc[0]}"
        axis.set_title(label, loc="left", color=INK)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(10, subs=(1, 3)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-")))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(axis="x", visible=False)
        axis.tick_params(axis="both", bottom=True)
        sns.despine(ax=axis)
    spare = 0.08 * (top - bottom) + 0.5
    axes.flat[0].set_ylim(bottom - (0.1 if bottom > lowest else spare), top + spare)
    _hide_spare(axes, len(panels))
    if several:
        handles = [
            matplotlib.lines.Line2D([], [], color=shades[i], marker=markers[i % len(markers)], ms=3, label=f"r={rank}")
            for i, rank in enumerate(ranks)
        ]
        figure.legend(handles=handles, loc="outside upper right", ncols=len(ranks), frameon=False)
    few = "" if curves["is_full"].all() else "; hollow: fewer seeds"
    sunk = "; numbers: below the axis" if bottom > lowest else ""
    figure.supxlabel(f"learning rate (ring: chosen on select{few}{sunk})", fontsize=7)
    figure.supylabel(f"{metric_label(metric)}, {split}", fontsize=7)
    return figure


@styled
def overlaps(panels: list[dict], *, title: str) -> Figure:
    """Heatmaps of phi(i, j), one column per matrix, measured above and random below, on one scale.

    Args:
        panels: label, phi (n, m), null (n, m), first and second (axis labels).
    """
    n = len(panels)
    figure = Figure(figsize=(min(PAGE, max(COLUMN, 0.9 + 1.6 * n)), 3.3), layout="constrained")
    axes = figure.subplots(2, n, squeeze=False)
    images: list[AxesImage] = []
    for column, one in enumerate(panels):
        for row, (name, values) in enumerate((("measured", one["phi"]), ("random", one["null"]))):
            axis = axes[row][column]
            extent = (0.5, values.shape[1] + 0.5, 0.5, values.shape[0] + 0.5)
            image = axis.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto", origin="lower",
                                interpolation="nearest", extent=extent)  # fmt: skip
            images.append(image)
            if values.size <= WRITTEN_CELLS:
                for (i, j), value in np.ndenumerate(values):
                    axis.text(j + 1, i + 1, f"{value:.2f}".removeprefix("0"), ha="center", va="center", fontsize=5.5,
                              color="white" if value < 0.6 else INK)  # fmt: skip
            axis.grid(visible=False)
            axis.set_title(f"{one['label']}, {name}" if n < 4 else f"{one['label']} {name}", loc="left", color=INK)
            axis.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
            axis.yaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
            axis.tick_params(axis="both", bottom=True, left=True, length=2)
            if row == 1:
                axis.set_xlabel(one["second"])
            if column == 0:
                axis.set_ylabel(one["first"])
    bar = figure.colorbar(images[-1], ax=list(axes.flat), shrink=0.7, pad=0.02)
    bar.set_label("φ(i, j): 0 orthogonal, 1 contained")
    bar.outline.set_linewidth(0.4)
    figure.suptitle(title, fontsize=7.5, x=0.01, ha="left")
    return figure


@styled
def overlap_profiles(profiles: pd.DataFrame) -> Figure:
    """phi against the number of directions, per matrix, with the band of random subspaces.

    Args:
        profiles: panel, role, j, phi, null_low, null_high, null_mean.
    """
    panels = list(dict.fromkeys(profiles["panel"]))
    n_columns = min(len(panels), 2)
    n_rows = math.ceil(len(panels) / n_columns)
    figure = Figure(figsize=(COLUMN, 0.5 + 1.5 * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False)
    roles = list(dict.fromkeys(profiles["role"]))
    for axis, name in zip(axes.flat, panels, strict=False):
        mine = profiles[profiles["panel"] == name]
        first = mine[mine["role"] == mine["role"].iloc[0]].sort_values("j")
        axis.fill_between(first["j"], first["null_low"], first["null_high"], color=FAINT, alpha=0.25, lw=0)
        axis.plot(first["j"], first["null_mean"], color=FAINT, lw=0.8, ls=(0, (4, 2)))
        for role in roles:
            of_role = mine[mine["role"] == role].sort_values("j")
            if len(of_role):
                colour, marker = series(role, roles.index(role))
                every = max(1, len(of_role) // 8)
                axis.plot(
                    of_role["j"], of_role["phi"], color=colour, marker=marker, ms=2.8, lw=1, label=role, markevery=every
                )
        axis.set_title(name, loc="left", color=INK)
        axis.set_ylim(0, 1.02)
        axis.set_xlabel("directions compared")
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        axis.grid(axis="x", visible=False)
        axis.tick_params(axis="both", bottom=True)
        sns.despine(ax=axis)
    _hide_spare(axes, len(panels))
    for row in axes:
        row[0].set_ylabel("overlap φ")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    band = matplotlib.patches.Patch(color=FAINT, alpha=0.25, lw=0)
    figure.legend(
        [*handles, band], [*labels, "random, 95 %"], loc="outside upper right", ncols=len(labels) + 1, frameon=False
    )
    return figure


@styled
def amplifications(table: pd.DataFrame) -> Figure:
    """The amplification factor by layer, one panel per matrix, one line per rank, with 95 % intervals over seeds.

    Args:
        table: role, layer, rank, mean, low, high, amplification_random (dashed: what random directions give).
    """
    roles = list(dict.fromkeys(table["role"]))
    n_columns = min(len(roles), 4)
    n_rows = math.ceil(len(roles) / n_columns)
    figure = Figure(figsize=(COLUMN if n_columns <= 2 else PAGE, 0.55 + 1.5 * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, sharey=True, sharex=True, squeeze=False)
    ranks = sorted(set(table["rank"]))
    shades = sns.color_palette("viridis", max(len(ranks), 2) + 1)[: len(ranks)] if len(ranks) > 1 else [BLUE]
    for axis, role in zip(axes.flat, roles, strict=False):
        for i, rank in enumerate(ranks):
            mine = table[(table["role"] == role) & (table["rank"] == rank)].sort_values("layer")
            if len(mine):
                axis.plot(
                    mine["layer"],
                    mine["mean"],
                    color=shades[i],
                    marker="osD^vPX*"[i % 8],
                    ms=3,
                    lw=1,
                    label=f"r={rank}",
                )
                axis.vlines(mine["layer"], mine["low"], mine["high"], color=shades[i], lw=0.8)
                axis.plot(
                    mine["layer"], mine["amplification_random"], color=shades[i], lw=0.8, ls=(0, (3, 2)), zorder=1
                )
        axis.set_title(role if len(ranks) > 1 else f"{role}  r={ranks[0]}", loc="left", color=INK)
        axis.set_yscale("log")
        finite = table["mean"][np.isfinite(table["mean"]) & (table["mean"] > 0)]
        span = finite.max() / finite.min() if len(finite) else math.inf
        marks = (1, 2, 3, 4, 5, 7) if span < 5 else (1, 2, 5) if span < 30 else (1,)
        axis.yaxis.set_major_locator(LogLocator(10, subs=marks))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axis.grid(axis="x", visible=False)
        axis.tick_params(axis="both", bottom=True)
        sns.despine(ax=axis)
    _hide_spare(axes, len(roles))
    handles, labels = axes.flat[0].get_legend_handles_labels() if len(ranks) > 1 else ([], [])
    handles.append(matplotlib.lines.Line2D([], [], color=FAINT, lw=0.8, ls=(0, (3, 2))))
    widest = 5 if n_columns <= 2 else 11  # names in one line of the legend
    figure.set_figheight(figure.get_figheight() + 0.15 * ((len(handles) - 1) // widest))
    figure.legend(handles, [*labels, "random U, V"], loc="outside upper right", ncols=widest, frameon=False,
                  columnspacing=0.9, handlelength=1.5, handletextpad=0.4)  # fmt: skip
    figure.supxlabel("layer", fontsize=7)
    figure.supylabel("‖ΔW‖ / ‖UᵀWV‖", fontsize=7)
    return figure


@styled
def pareto(points: pd.DataFrame, costs: list[tuple[str, str]], *, metric: str) -> Figure:
    """Score against what a cell costs, one panel per cost; the front is drawn, and its cells are named.

    Args:
        points: label, targets, mean, low, high, one column per cost, and `front_<cost>`.
        costs: (column, axis label).
    """
    figure = Figure(figsize=(PAGE, 2.5), layout="constrained")
    axes = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    names = list(dict.fromkeys(points["targets"]))
    fronts: list[pd.DataFrame] = []
    beside = points.assign(**{column: _side_by_side(points[column]) for column, _ in costs})
    for axis, (column, label) in zip(axes, costs, strict=True):
        for i, targets in enumerate(names):
            mine = beside[beside["targets"] == targets]
            colour, marker = series(targets, i) if targets != "head only" else (FAINT, "s")
            x = mine[column].to_numpy(float)
            axis.vlines(x, 100 * mine["low"], 100 * mine["high"], color=colour, lw=0.8, alpha=0.6)
            axis.plot(x, 100 * mine["mean"], marker=marker, ms=3.6, color=colour, ls="", label=targets)
        front = beside[beside[f"front_{column}"]].sort_values(column)
        fronts.append(front)
        axis.step(front[column], 100 * front["mean"], where="post", color=INK, lw=0.7, zorder=1)
        axis.set_xlabel(label)
        if _is_wide(points[column]):
            axis.set_xscale("log")
        axis.margins(x=0.26, y=0.08)
        axis.tick_params(axis="both", bottom=True)
        axis.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
        axis.grid(axis="x", visible=False)
        sns.despine(ax=axis)
    axes[0].set_ylabel(metric_label(metric))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper right",
        ncols=len(labels),
        frameon=False,
        columnspacing=0.9,
        handletextpad=0.2,
    )
    figure.draw_without_rendering()  # now the panels have their places
    for axis, front, (column, _) in zip(axes, fronts, costs, strict=True):
        _name_front(axis, front, column)
    return figure


@styled
def gaps(estimates: pd.DataFrame) -> Figure:
    """How much better a cell scores on train rows than on report rows, against its rank.

    Args:
        estimates: targets, rank, gap, gap_low, gap_high.
    """
    figure = Figure(figsize=(COLUMN, 2.0), layout="constrained")
    axis = figure.subplots()
    names = list(dict.fromkeys(estimates["targets"]))
    for i, targets in enumerate(names):
        colour, marker = series(targets, i)
        mine = estimates[estimates["targets"] == targets].sort_values("rank")
        x = mine["rank"].to_numpy(float) * 2 ** (0.16 * (i - (len(names) - 1) / 2))
        axis.plot(x, 100 * mine["gap"], color=colour, marker=marker, ms=3.4, lw=1, label=targets)
        axis.vlines(x, 100 * mine["gap_low"], 100 * mine["gap_high"], color=colour, lw=1)
    axis.axhline(0, color=INK, lw=0.6)
    axis.set_ylabel("train − report (points)")
    axis.legend(frameon=False, ncols=len(names), loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.1)
    _rank_axis(axis, sorted(set(estimates["rank"])))
    return figure


@styled
def verdict_matrix(table: pd.DataFrame) -> Figure:
    """Every contrast of the store: settings down, contrasts across; symbol, colour and number say the verdict.

    Args:
        table: setting, contrast, verdict, difference.
    """
    settings, contrasts_ = list(dict.fromkeys(table["setting"])), list(dict.fromkeys(table["contrast"]))
    label_width = 0.06 * max(map(len, settings))
    figure = Figure(
        figsize=(min(PAGE, label_width + 0.62 * len(contrasts_) + 0.2), 0.75 + 0.3 * len(settings)),
        layout="constrained",
    )
    axis = figure.subplots()
    fills = {"better": "#cfe3f3", "worse": "#f7d3c4", "tied": "#cdebe1", "unresolved": "#eeeeee", "missing": "#ffffff"}
    signs = {"better": "▲", "worse": "▼", "tied": "=", "unresolved": "?", "missing": "–"}
    for _, one in table.iterrows():
        x, y = contrasts_.index(one["contrast"]), settings.index(one["setting"])
        axis.add_patch(
            matplotlib.patches.Rectangle((x - 0.5, y - 0.5), 1, 1, fc=fills[one["verdict"]], ec="white", lw=1.5)
        )
        told = "" if one["verdict"] == "missing" else f" {100 * one['difference']:+.1f}".replace("-", "−")
        axis.text(x, y, f"{signs[one['verdict']]}{told}", ha="center", va="center", fontsize=6.5, color=INK)
    axis.set_xlim(-0.5, len(contrasts_) - 0.5)
    axis.set_ylim(len(settings) - 0.5, -0.5)
    axis.set_xticks(range(len(contrasts_)), contrasts_)
    axis.set_yticks(range(len(settings)), settings)
    axis.xaxis.tick_top()
    axis.grid(visible=False)
    axis.tick_params(length=0, top=False)
    sns.despine(ax=axis, left=True, bottom=True)
    key = "▲ better   ▼ worse   = tied   ? unresolved   – missing\ndifferences in points"
    figure.supxlabel(key, fontsize=6, x=0.01, ha="left")
    return figure


@styled
def throughput(arms: pd.DataFrame) -> Figure:
    """Cell-examples per second of each arm, as bars, with the fraction of the machine's own GEMM rate written on them.

    Args:
        arms: arm, pack, precision, examples_per_second, fraction; one row per bar, drawn in this order from the top.
    """
    names = {"trainer": "HF Trainer + peft", "trainer_auto": "HF Trainer + peft, by length", "solo": "lora_bench, solo"}
    figure = Figure(figsize=(COLUMN, 0.6 + 0.22 * len(arms)), layout="constrained")
    axis = figure.subplots()
    labels = []
    for place, one in enumerate(arms.to_dict("records")):
        arm, rate = one["arm"], one["examples_per_second"]
        axis.barh(place, rate, height=0.66, color=LIGHT if arm in ("trainer", "trainer_auto") else BLUE)
        told = f" {rate:,.0f}  ({one['fraction']:.0%})"
        axis.text(rate, place, told, va="center", fontsize=6.5, color=INK)
        pack = "" if arm in names else f" {one['pack']}"
        name = names.get(arm) or f"lora_bench, {arm.replace('_', ' ')}"
        labels.append(f"{name}{pack}, {one['precision']}")
    axis.set_yticks(range(len(arms)), labels)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.28 * float(arms["examples_per_second"].max()))
    axis.set_xlabel("cell-examples per second\n(share of the GEMM rate)")
    axis.grid(visible=False, axis="y")
    sns.despine(ax=axis, left=True)
    return figure


@styled
def error_rates(table: pd.DataFrame, *, nominal: float) -> Figure:
    """How often sweeps without an effect claim one, as dots with binomial intervals; hollow: before the correction.

    Args:
        table: label, share, low, high, other, other_low, other_high; one row per kind of sweep, drawn from the top.
        nominal: the share that is allowed, drawn as a line.
    """
    figure = Figure(figsize=(COLUMN, 0.85 + 0.2 * len(table)), layout="constrained")
    axis = figure.subplots()
    axis.axvline(100 * nominal, color=INK, lw=0.8, ls=(0, (4, 2)), zorder=1)
    for row, (_, one) in enumerate(table.iterrows()):
        _interval(axis, one["share"], one["low"], one["high"], row, BLUE, "o")
        _interval(axis, one["other"], one["other_low"], one["other_high"], row, RED, "s", hollow=True)
    axis.set_yticks(range(len(table)), list(table["label"]))
    axis.set_ylim(len(table) - 0.4, -0.6)
    axis.set_xlim(left=0)
    axis.set_xlabel(f"sweeps with a false verdict (%); dashed: {100 * nominal:g} %")
    handles = [
        matplotlib.lines.Line2D([], [], color=BLUE, marker="o", ms=4.2, lw=1.4, label="verdict"),
        matplotlib.lines.Line2D([], [], color=RED, marker="s", ms=4.2, mfc="white", lw=1.4, label="before Holm"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False)
    _tidy(axis)
    return figure


@styled
def power_curves(table: pd.DataFrame) -> Figure:
    """How often an effect of known size is found: marks, with binomial intervals; lines: the power that was promised.

    Args:
        table: n_seeds, effect (in standard deviations of a paired difference), found, low, high, promised.
    """
    figure = Figure(figsize=(COLUMN, 2.5), layout="constrained")
    axis = figure.subplots()
    looks = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "D"), (PURPLE, "v"))
    groups = list(table.groupby("n_seeds"))
    handles = []
    for i, (n_seeds, rows) in enumerate(groups):
        colour, marker = looks[i % len(looks)]
        rows = rows.sort_values("effect")
        axis.plot(rows["effect"], 100 * rows["promised"], color=colour, lw=1, ls=(0, (4, 2)), zorder=2)
        x = rows["effect"].to_numpy(float) + 0.03 * (i - (len(groups) - 1) / 2)
        axis.vlines(x, 100 * rows["low"], 100 * rows["high"], color=colour, lw=1.2, zorder=3)
        axis.plot(x, 100 * rows["found"], color=colour, marker=marker, ms=3.8, ls="", zorder=4)
        handles.append(
            matplotlib.lines.Line2D([], [], color=colour, marker=marker, ms=3.8, lw=1.2, label=f"{n_seeds} seeds")
        )
    handles.append(matplotlib.lines.Line2D([], [], color=INK, lw=1, ls=(0, (4, 2)), label="promised"))
    axis.set_xlabel("true difference (sd of a paired difference)")
    axis.set_ylabel("called better (%)")
    axis.set_ylim(-3, 103)
    axis.grid(axis="x", visible=False)
    axis.tick_params(axis="both", bottom=True)
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False, columnspacing=1.0)
    sns.despine(ax=axis)
    return figure


@styled
def coverages(table: pd.DataFrame) -> Figure:
    """How often intervals of few seeds hold the mean of many: marks; grey: where normal scores would put them.

    Args:
        table: label, coverage, band_low, band_high; one row per cell and number of seeds, drawn from the top.
    """
    figure = Figure(figsize=(COLUMN, 0.85 + 0.2 * len(table)), layout="constrained")
    axis = figure.subplots()
    axis.axvline(95, color=INK, lw=0.8, ls=(0, (4, 2)), zorder=1)
    for row, (_, one) in enumerate(table.iterrows()):
        axis.hlines(row, 100 * one["band_low"], 100 * one["band_high"], color=LIGHT, lw=5, zorder=2)
        is_inside = one["coverage"] >= one["band_low"]
        colour, marker = (BLUE, "o") if is_inside else (RED, "s")
        axis.plot(100 * one["coverage"], row, marker=marker, ms=4.2, color=colour, ls="", zorder=4)
    axis.set_yticks(range(len(table)), list(table["label"]))
    axis.set_ylim(len(table) - 0.4, -0.6)
    axis.set_xlabel("95 % intervals that hold\nthe mean of all seeds (%)")
    handles = [
        matplotlib.lines.Line2D([], [], color=BLUE, marker="o", ms=4.2, ls="", label="measured"),
        matplotlib.lines.Line2D([], [], color=LIGHT, lw=5, solid_capstyle="butt", label="normal scores, 95 %"),
    ]
    if (table["coverage"] < table["band_low"]).any():
        handles.insert(1, matplotlib.lines.Line2D([], [], color=RED, marker="s", ms=4.2, ls="", label="too low"))
    figure.legend(
        handles=handles, loc="outside upper right", ncols=3, frameon=False, columnspacing=1, handletextpad=0.5
    )
    _tidy(axis)
    return figure


@styled
def planted_matrix(table: pd.DataFrame, *, metric: str) -> Figure:
    """Scores of students (across) on the labels of teachers (down); framed: the teacher's own placement.

    Args:
        table: teacher, student, mean, verdict (of the student against the teacher's own placement; empty on the frame
            and for the head alone), is_own; teachers and students in the order to be drawn.
    """
    teachers, students = list(dict.fromkeys(table["teacher"])), list(dict.fromkeys(table["student"]))
    figure = Figure(figsize=(min(PAGE, 1.1 + 0.52 * len(students)), 1.0 + 0.28 * len(teachers)), layout="constrained")
    axis = figure.subplots()
    signs = {"better": " ▲", "worse": " ▼", "tied": " =", "unresolved": " ?"}
    shades = sns.light_palette(BLUE, as_cmap=True)
    finite = table["mean"][np.isfinite(table["mean"])]
    low, spread = (finite.min(), max(finite.max() - finite.min(), 1e-9)) if len(finite) else (0.0, 1.0)
    for _, one in table.iterrows():
        x, y = students.index(one["student"]), teachers.index(one["teacher"])
        known = math.isfinite(one["mean"])
        fill = shades(0.65 * (one["mean"] - low) / spread) if known else "white"
        axis.add_patch(matplotlib.patches.Rectangle((x - 0.5, y - 0.5), 1, 1, fc=fill, ec="white", lw=1.5))
        if one["is_own"]:
            axis.add_patch(
                matplotlib.patches.Rectangle((x - 0.45, y - 0.43), 0.9, 0.86, fc="none", ec=INK, lw=1.0, zorder=3)
            )
        told = f"{100 * one['mean']:.1f}{signs.get(one['verdict'], '')}" if known else "–"
        axis.text(x, y, told, ha="center", va="center", fontsize=6.5, color=INK)
    axis.set_xlim(-0.5, len(students) - 0.5)
    axis.set_ylim(len(teachers) - 0.5, -0.5)
    axis.set_xticks(range(len(students)), students)
    axis.set_yticks(range(len(teachers)), teachers)
    axis.xaxis.tick_top()
    axis.xaxis.set_label_position("top")
    axis.set_xlabel(f"student; {metric_label(metric)}")
    axis.set_ylabel("teacher")
    axis.grid(visible=False)
    axis.tick_params(length=0, top=False)
    sns.despine(ax=axis, left=True, bottom=True)
    key = "framed: the teacher's own placement; against it:\n▲ better   ▼ worse   = tied   ? unresolved"
    figure.supxlabel(key, fontsize=6, x=0.01, ha="left")
    return figure


def series(targets: str, place: int = 0) -> tuple:
    """The colour and marker that a placement keeps in every figure."""
    if targets in SERIES:
        return SERIES[targets]
    spare = [(PINK, "h"), (YELLOW, ">"), (INK, "<"), (GREY, "*"), (RED, "p"), (PURPLE, "d")]
    return spare[place % len(spare)]


# ---------------------------------------------------------------- helpers


def _interval(
    axis: Axes, mean: float, low: float, high: float, row: float, colour, marker: str, hollow: bool = False
) -> None:
    if math.isfinite(low) and math.isfinite(high):
        axis.hlines(row, 100 * low, 100 * high, color=colour, lw=1.4, zorder=3)
    if math.isfinite(mean):
        axis.plot(
            100 * mean,
            row,
            marker=marker,
            ms=4.2,
            color=colour,
            mfc="white" if hollow else colour,
            mew=1.0,
            ls="",
            zorder=4,
        )


def _side_by_side(costs: pd.Series) -> pd.Series:
    """Equal costs moved apart a little, so that their marks can be seen."""
    place = costs.groupby(costs).cumcount() - (costs.groupby(costs).transform("size") - 1) / 2
    return costs * 1.04**place if _is_wide(costs) else costs + 0.008 * place * (costs.max() - costs.min())


def _is_wide(costs: pd.Series) -> bool:
    """Whether costs need a logarithmic axis."""
    return bool(costs.max() / costs.min() > 8)


def _name_front(axis: Axes, front: pd.DataFrame, column: str) -> None:
    """Names up and left of the cells on a front, where no cell can be; pushed up where two would touch."""
    height = 6.5  # points: a line of text
    leader = {"arrowstyle": "-", "lw": 0.4, "color": FAINT, "shrinkA": 0, "shrinkB": 2}
    scale = 72 / axis.figure.dpi
    last = -math.inf
    for _, one in front.sort_values("mean").iterrows():
        point = (one[column], 100 * one["mean"])
        y = axis.transData.transform(point)[1] * scale
        shift = max(3.0, last + height - y)
        last = y + shift
        far = shift > height
        axis.annotate(one["label"], point, (-7 if far else -3, shift), textcoords="offset points", ha="right",
                      fontsize=5.5, zorder=5, annotation_clip=False,
                      arrowprops=leader if far else None,
                      path_effects=[matplotlib.patheffects.withStroke(linewidth=1.6, foreground="white")])  # fmt: skip


def _by_dataset(published: pd.DataFrame | None) -> dict[str, pd.DataFrame]:
    """The paper's rows of each data set, in order of appearance; none without `published`."""
    if published is None:
        return {}
    return {str(name): of_set for name, of_set in published.groupby("dataset", sort=False)}


def _leave_far_floor(axis: Axes, estimates: pd.DataFrame) -> None:
    """Cut the axis before a floor that is further from the placements than they are from each other, and write it."""
    is_floor = estimates["is_floor"].to_numpy(bool)
    shown = estimates[~is_floor]
    values = [value for scores in shown["scores"] for value in scores.values()]
    seen = 100 * np.array([*values, *shown["low"], *shown["high"]], dtype=float)
    seen = seen[np.isfinite(seen)]
    if not seen.size:
        return
    low, high = seen.min(), seen.max()
    span = high - low
    far = [row for row in np.flatnonzero(is_floor) if 100 * estimates["mean"].iloc[row] < low - max(span, 1.0)]
    if far:
        axis.set_xlim(low - 0.08 * span - 0.1, high + 0.05 * span + 0.1)
    for row in far:
        floor = f"← {100 * estimates['mean'].iloc[row]:.1f}"
        axis.annotate(floor, (0.02, row), xycoords=("axes fraction", "data"), va="center", color=FAINT)


def _hide_spare(axes: np.ndarray, n_used: int) -> None:
    """Hide the panels of a grid that hold nothing; the ones above them get their tick labels back."""
    n_columns = axes.shape[1]
    panels: list[Axes] = list(axes.flat)
    for place, axis in enumerate(panels):
        if place >= n_used:
            axis.set_visible(False)
            if place >= n_columns:
                panels[place - n_columns].tick_params(labelbottom=True)


def _spread(n: int) -> np.ndarray:
    """Small fixed offsets, so that equal seeds show as several points."""
    return 0.24 * (((np.arange(n) * 0.618034) % 1.0) - 0.5)


def _tidy(axis: Axes, *, locate: bool = True) -> None:
    axis.grid(axis="y", visible=False)
    axis.grid(axis="x", visible=True)
    sns.despine(ax=axis, left=True)
    axis.tick_params(axis="x", bottom=True)
    if locate:
        axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def _rank_axis(axis: Axes, values: Sequence[float]) -> None:
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator(list(values)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_xlabel("rank")
    axis.grid(axis="x", visible=False)
    axis.grid(axis="y", visible=True)
    axis.tick_params(axis="both", bottom=True)
    sns.despine(ax=axis)


def _darker(colour) -> tuple:
    return tuple(0.7 * part for part in matplotlib.colors.to_rgb(colour))
