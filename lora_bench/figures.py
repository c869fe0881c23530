"""Estimates in, figures out: one visual language for the page and for print. Computes nothing.

Widths are those of a column (3.4 in) or a page (7 in) of a two-column paper, so text keeps its size when placed. Colours
are the Okabe-Ito set as seaborn ships it, and no meaning rests on colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

COLUMN = 3.4  # inches
PAGE = 7.0

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

STYLE = {
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
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.04,
    "svg.fonttype": "none",
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
        with matplotlib.rc_context({**sns.axes_style("whitegrid"), **STYLE}):
            return draw(*args, **kwargs)

    wrapped.__doc__, wrapped.__name__ = draw.__doc__, draw.__name__
    return wrapped


def save(figure: Figure, folder: Path, name: str) -> Path:
    """NAME.pdf, NAME.png (300 dpi) and NAME.svg, without dates, so that equal results give equal files."""
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for suffix, metadata in (("pdf", {"CreationDate": None}), ("svg", {"Date": None}), ("png", None)):
            figure.savefig(folder / f"{name}.{suffix}", dpi=300, metadata=metadata)
    return folder / f"{name}.png"


@styled
def placements(estimates: pd.DataFrame, *, metric: str, published: pd.DataFrame | None = None) -> Figure:
    """Scores of placements at one budget: mean, 95 % interval, seeds as points; the paper's values in panels beside.

    Args:
        estimates: one row per placement, in the order to be drawn from the top: label, targets, mean, low, high,
            scores ({seed: score}), is_floor (drawn grey, with a line through the figure).
        published: dataset, targets, score, sd; rows are matched by `targets`.
    """
    n = len(estimates)
    datasets = list(published["dataset"].unique()) if published is not None else []
    figure = Figure(figsize=(COLUMN, 0.75 + 0.225 * n), layout="constrained")
    axes = figure.subplots(
        1, 1 + len(datasets), sharey=True, width_ratios=[3.0, *[1.15] * len(datasets)], squeeze=False
    )[0]
    ours, rows = axes[0], np.arange(n)
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
    for axis, name in zip(axes[1:], datasets, strict=True):
        of_set = published[published["dataset"] == name].set_index("targets")
        for row, targets in zip(rows, estimates["targets"], strict=True):
            if targets in of_set.index:
                score, sd = of_set.loc[targets, ["score", "sd"]]
                axis.errorbar(
                    100 * score,
                    row,
                    xerr=100 * sd,
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
        axis.xaxis.set_major_locator(MaxNLocator(2, steps=[1, 5, 10]))
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
        for (name, of_set), mark in zip(
            published.groupby("dataset", sort=False), ("$\\wedge$", "$\\vee$"), strict=True
        ):
            kept = of_set[of_set["label"].isin(list(rows))]
            axis.scatter(100 * kept["difference"], kept["label"].map(rows) + 0.28, marker=mark, s=14, color=INK, lw=0.3,
                         label=f"paper, {name}", zorder=3)  # fmt: skip
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
    axis.set_xlabel(f"paired difference (points); band: ±{100 * margin:g}")
    _tidy(axis)
    return figure


@styled
def ranks(estimates: pd.DataFrame, *, metric: str, published: pd.DataFrame | None = None) -> Figure:
    """Score against rank for each placement, with intervals and seeds; the paper's curves in small panels below.

    Args:
        estimates: targets, rank, mean, low, high, scores; one row per cell.
        published: dataset, targets, rank, score, sd.
    """
    datasets = list(published["dataset"].unique()) if published is not None and not published.empty else []
    height = 2.3 + (1.15 if datasets else 0)
    figure = Figure(figsize=(COLUMN, height), layout="constrained")
    if datasets:
        grid = figure.add_gridspec(2, len(datasets), height_ratios=[2.0, 1.0])
        top = figure.add_subplot(grid[0, :])
        small = [figure.add_subplot(grid[1, i]) for i in range(len(datasets))]
    else:
        top, small = figure.add_subplot(), []
    all_ranks = sorted({*estimates["rank"], *(published["rank"] if datasets else ())})
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
    top.set_ylabel(metric_label(metric))
    top.set_title("measured", loc="left", color=INK)
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
    for axis, name in zip(small, datasets, strict=True):
        of_set = published[published["dataset"] == name]
        for i, targets in enumerate(names):
            colour, marker = series(targets, i)
            mine = of_set[of_set["targets"] == targets]
            if len(mine):
                axis.errorbar(mine["rank"], 100 * mine["score"], yerr=100 * mine["sd"], color=colour, marker=marker, ms=2.8,
                              mfc="white", lw=0.9, elinewidth=0.6)  # fmt: skip
        axis.set_title(f"paper, {name}", loc="left", color=INK)
        axis.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        _rank_axis(axis, all_ranks)
    if small:
        small[0].set_ylabel("accuracy (%)")
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


def _spread(n: int) -> np.ndarray:
    """Small fixed offsets, so that equal seeds show as several points."""
    return 0.24 * (((np.arange(n) * 0.618034) % 1.0) - 0.5)


def _tidy(axis: Axes, *, locate: bool = True) -> None:
    axis.grid(axis="y", visible=False)
    axis.grid(axis="x", visible=True)
    sns.despine(ax=axis, left=True)
    axis.tick_params(axis="x", bottom=True)
    if locate:
        axis.xaxis.set_major_locator(MaxNLocator(5))


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
