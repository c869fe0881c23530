"""Scores of arms, and what their contrasts say."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

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
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from lora_bench.reports.figures import compose
from lora_bench.reports.figures.style import (
    BLUE,
    FAINT,
    INK,
    LIGHT,
    SKY,
    VERDICTS,
    darker,
    error_bars,
    hide_spare,
    metric_label,
    series,
    styled,
    tidy,
)

LETTERS_BESIDE = 28
"""The longest line of words beside a row, which `learns more often, 16 seeds` still is."""


@styled
def placements(estimates: pd.DataFrame, *, metric: str, published: pd.DataFrame | None = None) -> Figure:
    """Scores of placements at one budget: mean, 95 % interval, seeds as points; the paper's values in panels beside.

    Args:
        estimates: one row per placement, in the order to be drawn from the top: label, targets, mean, low, high,
            scores ({seed: score}), learns ({seed: whether it does}; hollow where not), is_floor (drawn grey, with a
            line through the figure; a number at the edge where it lies so far off that the others' intervals would hide
            behind their marks).
        published: dataset, targets, score, sd; rows are matched by `targets`.
    """
    n = len(estimates)
    paper = _by_dataset(published)
    figure = Figure(figsize=(compose.column(), 0.75 + 0.225 * n), layout="constrained")
    axes = figure.subplots(1, 1 + len(paper), sharey=True, width_ratios=[2.2, *[1.15] * len(paper)], squeeze=False)[0]
    ours, rows = axes[0], range(n)
    for row, (_, arm) in zip(rows, estimates.iterrows(), strict=True):
        seeds = 100 * np.array(list(arm["scores"].values()))
        dots, colour = (LIGHT, FAINT) if arm["is_floor"] else (SKY, BLUE)
        at, is_stuck = row + _spread(seeds.size), _is_stuck(arm)
        ours.scatter(seeds[~is_stuck], at[~is_stuck], s=7, color=dots, lw=0, zorder=2)
        if is_stuck.any():
            ours.scatter(seeds[is_stuck], at[is_stuck], s=9, facecolor="white", edgecolor=INK, lw=0.7, zorder=3.5)
        error_bars(ours, arm["mean"], arm["low"], arm["high"], row, colour, "s" if arm["is_floor"] else "o")
        if arm["is_floor"] and math.isfinite(arm["mean"]):
            ours.axvline(100 * arm["mean"], color=FAINT, lw=0.8, ls=(0, (4, 2)), zorder=1)
    ours.set_yticks(rows, list(estimates["label"]))
    ours.set_ylim(n - 0.4, -0.6)
    ours.set_xlabel(metric_label(metric).replace(" (", "\n(") if paper else metric_label(metric))
    if paper:
        ours.set_title("measured", loc="left", color=INK)
    tidy(ours)
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
        axis.xaxis.set_major_locator(MaxNLocator(2, steps=[1, 2, 5, 10], min_n_ticks=2))
        axis.set_xlabel("paper\n(%)")
        tidy(axis, locate=False)
    if any(_is_stuck(arm).any() for _, arm in estimates.iterrows()):
        line = matplotlib.lines.Line2D
        stuck = line([], [], ls="", marker="o", ms=3, mfc="white", mec=INK, mew=0.7, label="a seed that did not learn")
        compose.header(figure, [line([], [], ls="", marker="o", ms=3, color=SKY, mew=0, label="a seed"), stuck])
    return figure


@styled
def contrasts(
    table: pd.DataFrame, *, margin: float, published: pd.DataFrame | None = None, is_corrected: bool = False
) -> Figure:
    """Paired differences, first minus second, with 95 % intervals, the margin as a band, and the verdict in words.

    Args:
        table: label, difference, low, high, verdict, extra (text after the verdict), in the order to be drawn.
        published: label, dataset, difference: the paper's differences, as hollow marks.
        is_corrected: whether the intervals hold over all contrasts, as the words do.
    """
    n = len(table)
    figure = Figure(figsize=(compose.column(), 0.8 + 0.3 * n), layout="constrained")
    axis = figure.subplots()
    _draw_contrasts(axis, table, margin=margin)
    if published is not None and not published.empty:
        rows = {label: row for row, label in enumerate(table["label"])}
        for (name, of_set), mark in zip(published.groupby("dataset", sort=False), ("^", "v"), strict=True):
            kept = of_set[of_set["label"].isin(list(rows))]
            axis.scatter(100 * kept["difference"], kept["label"].map(rows) + 0.3, marker=mark, s=9, facecolor="white",
                         edgecolor=INK, lw=0.6, label=f"paper, {name}", zorder=3)  # fmt: skip
        compose.header(figure, *axis.get_legend_handles_labels())
    scope = "" if is_corrected else "; words Holm-corrected, intervals not"
    compose.below(figure, f"paired difference (points, 95 %); shaded: a tie, ±{100 * margin:g}{scope}")
    tidy(axis)
    return figure


@styled
def contrasts_beside(families: Mapping[str, tuple[pd.DataFrame, float]]) -> Figure:
    """The same contrasts of several studies, a panel each, all on one scale.

    Args:
        families: name -> a table as `contrasts` takes it, and the margin; all with the same labels in the same order.
    """
    n = max(len(table) for table, _ in families.values())
    width, across = compose.across(len(families), most=2, panel=2.9)
    down = math.ceil(len(families) / across)
    figure = Figure(figsize=(width, 0.3 + (0.55 + 0.27 * n) * down), layout="constrained")
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for axis, (name, (table, margin)) in zip(axes.flat, families.items(), strict=False):
        _draw_contrasts(axis, table, margin=margin)
        axis.set_title(compose.wrapped(name, 0.8 * width / across), loc="left", color=INK)
        tidy(axis)
    hide_spare(axes, len(families))
    compose.below(figure, "paired difference (points, 95 %); shaded: a tie")
    return figure


def _draw_contrasts(axis: Axes, table: pd.DataFrame, *, margin: float) -> None:
    """A row for each contrast, its word at the right."""
    axis.axvspan(-100 * margin, 100 * margin, color=FAINT, alpha=0.13, lw=0, zorder=0)
    axis.axvline(0, color=INK, lw=0.7, zorder=1)
    for row, (_, contrast) in enumerate(table.iterrows()):
        colour, marker = VERDICTS[contrast["verdict"]]
        error_bars(
            axis,
            contrast["difference"],
            contrast["low"],
            contrast["high"],
            row,
            colour,
            marker,
            hollow=contrast["verdict"] == "unresolved",
        )
        words = f"{contrast['verdict']}{contrast['extra']}"
        axis.annotate(_in_lines(words), (1.02, row), xycoords=("axes fraction", "data"), va="center",
                      fontsize=compose.SIZE, color=darker(colour), annotation_clip=False)  # fmt: skip
    axis.set_yticks(range(len(table)), [textwrap.fill(label, 18) for label in table["label"]])
    axis.set_ylim(len(table) - 0.4, -0.6)


def _in_lines(words: str) -> str:
    """Words beside a row as they stand, or where one of their lines would take the panel's room, in shorter ones."""
    is_long = max(map(len, words.split("\n"))) > LETTERS_BESIDE
    return textwrap.fill(words.replace("\n", ", "), LETTERS_BESIDE) if is_long else words


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
    figure = Figure(figsize=(compose.column(), height), layout="constrained")
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
        of_targets = estimates[estimates["targets"] == targets].sort_values("rank")
        x = compose.dodge(of_targets["rank"], i, len(names))
        for at, scores in zip(x, of_targets["scores"], strict=True):
            seeds = 100 * np.array(list(scores.values()))
            top.scatter(np.full(seeds.size, at), seeds, s=5, color=colour, alpha=0.35, lw=0, zorder=2)
        mean, low, high = (100 * of_targets[name].to_numpy(float) for name in ("mean", "low", "high"))
        top.plot(x, mean, color=colour, marker=marker, ms=3.8, lw=1.2, label=targets, zorder=3)
        top.vlines(x, low, high, color=colour, lw=1.2, zorder=3)
    if marked:
        top.axvline(marked, color=INK, lw=0.8, ls=(0, (4, 2)), zorder=1)
    top.set_ylabel(metric_label(metric))
    if paper or marked is not None:
        text = "measured" if marked is None else f"dashed: the teacher's rank, {marked}"
        top.set_title(text, loc="left", color=INK)
    compose.header(figure, *top.get_legend_handles_labels())
    _rank_axis(top, all_ranks)
    for axis, (name, of_set) in zip(small, paper.items(), strict=True):
        for i, targets in enumerate(names):
            colour, marker = series(targets, i)
            of_targets = of_set[of_set["targets"] == targets]
            if len(of_targets):
                axis.errorbar(of_targets["rank"], 100 * of_targets["score"], yerr=100 * of_targets["sd"],
                              color=colour, marker=marker, ms=2.8, mfc="white", lw=0.9, elinewidth=0.6)  # fmt: skip
        axis.set_title(f"paper, {name}", loc="left", color=INK)
        axis.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        _rank_axis(axis, sorted(set(of_set["rank"])))
    if small:
        small[0].set_ylabel("accuracy (%)")
    return figure


@styled
def gaps(estimates: pd.DataFrame) -> Figure:
    """How much better a cell scores on train rows than on report rows, against its rank.

    Args:
        estimates: targets, rank, gap, gap_low, gap_high.
    """
    figure = Figure(figsize=(compose.column(), 2.0), layout="constrained")
    axis = figure.subplots()
    names = list(dict.fromkeys(estimates["targets"]))
    for i, targets in enumerate(names):
        colour, marker = series(targets, i)
        of_targets = estimates[estimates["targets"] == targets].sort_values("rank")
        x = compose.dodge(of_targets["rank"], i, len(names))
        axis.plot(x, 100 * of_targets["gap"], color=colour, marker=marker, ms=3.4, lw=1, label=targets)
        axis.vlines(x, 100 * of_targets["gap_low"], 100 * of_targets["gap_high"], color=colour, lw=1)
    axis.axhline(0, color=INK, lw=0.6)
    axis.set_ylabel("train − report (points)")
    compose.header(figure, *axis.get_legend_handles_labels())
    _rank_axis(axis, sorted(set(estimates["rank"])))
    return figure


@styled
def verdict_matrix(table: pd.DataFrame) -> Figure:
    """Every contrast of the store: contrasts down, settings across; symbol, colour and number say the verdict.

    Args:
        table: setting, contrast, verdict, difference.
    """
    settings, contrasts_ = list(dict.fromkeys(table["setting"])), list(dict.fromkeys(table["contrast"]))
    labels = {name: textwrap.fill(name, 20) for name in contrasts_}
    label_width = 0.15 + 0.058 * max(len(line) for label in labels.values() for line in label.split("\n"))
    width = compose.column() if label_width + 0.8 * len(settings) <= compose.column() else compose.page()
    per_block = max(1, int((width - label_width) // 0.8))
    blocks = [settings[start : start + per_block] for start in range(0, len(settings), per_block)]
    wide = (width - label_width) / min(per_block, len(settings))
    heads = {setting: compose.wrapped(setting.replace(" · ", "\n"), wide - 0.1) for setting in settings}
    head_lines = max(head.count("\n") + 1 for head in heads.values())
    rows = [list(dict.fromkeys(table.loc[table["setting"].isin(block), "contrast"])) for block in blocks]
    heights = [sum(0.22 + 0.1 * labels[name].count("\n") for name in names) for names in rows]
    height = sum(heights) + len(blocks) * (0.2 + 0.13 * head_lines)
    figure = Figure(figsize=(width, 0.4 + height), layout="constrained")
    axes = figure.subplots(len(blocks), squeeze=False, height_ratios=heights)
    for axis, block, names in zip(axes.flat, blocks, rows, strict=True):
        _verdict_block(axis, table, block, names)
        axis.set_xlim(-0.5, per_block - 0.5 if len(blocks) > 1 else len(block) - 0.5)
        axis.set_xticks(range(len(block)), [heads[setting] for setting in block])
        axis.set_yticks(range(len(names)), [labels[name] for name in names])
    key = "▲ better   ▼ worse   = tied   ? unresolved   – missing   △ ▽ learns more, less often   × did not learn"
    compose.below(figure, f"{key}; differences in points".replace("   ", "  "))
    return figure


def _verdict_block(axis: Axes, table: pd.DataFrame, settings: list[str], contrasts_: list[str]) -> None:
    fills = {"better": "#cfe3f3", "worse": "#f7d3c4", "tied": "#cdebe1", "unresolved": "#eeeeee", "missing": "#ffffff"}
    fills |= {"learns more often": fills["better"], "learns less often": fills["worse"], "did not learn": "#ffffff"}
    signs = {"better": "▲", "worse": "▼", "tied": "=", "unresolved": "?", "missing": "–"}
    signs |= {"learns more often": "△", "learns less often": "▽", "did not learn": "×"}
    for row in table[table["setting"].isin(settings)].to_dict("records"):
        x, y = settings.index(row["setting"]), contrasts_.index(row["contrast"])
        fill = fills[row["verdict"]]
        axis.add_patch(matplotlib.patches.Rectangle((x - 0.5, y - 0.5), 1, 1, fc=fill, ec="white", lw=1.5))
        shown = "" if not np.isfinite(row["difference"]) else f" {100 * row['difference']:+.1f}".replace("-", "−")
        axis.text(x, y, f"{signs[row['verdict']]}{shown}", ha="center", va="center", color=INK)
    axis.set_ylim(len(contrasts_) - 0.5, -0.5)
    axis.xaxis.tick_top()
    axis.grid(visible=False)
    axis.tick_params(length=0, top=False)
    sns.despine(ax=axis, left=True, bottom=True)


def _is_stuck(arm: pd.Series) -> np.ndarray:
    """Of each seed that has a score, whether it did not learn; nothing is asked of the head alone."""
    return np.array([not arm["is_floor"] and not arm["learns"].get(seed, True) for seed in arm["scores"]], dtype=bool)


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


def _spread(n: int) -> np.ndarray:
    """Small fixed offsets, so that equal seeds show as several points."""
    return 0.24 * (((np.arange(n) * 0.618034) % 1.0) - 0.5)


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
