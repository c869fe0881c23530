"""The paper's section 7: overlaps of subspaces, and amplification."""

from __future__ import annotations

import math

import matplotlib
import matplotlib.colors
import matplotlib.lines
import matplotlib.patches
import matplotlib.patheffects
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from lora_bench.reports.figures import compose
from lora_bench.reports.figures.style import BLUE, FAINT, INK, RANKS, hide_spare, series, styled

WRITTEN_CELLS = 36  # of a heatmap, up to which each holds its number


@styled
def overlaps(panels: list[dict], *, title: str) -> Figure:
    """Heatmaps of phi(i, j), one column per matrix, measured above and random below, on one scale.

    Args:
        panels: label, phi (n, m), null (n, m), first and second (axis labels).
    """
    n = len(panels)
    width, per_band = compose.across(n, panel=1.3)
    n_bands = math.ceil(n / per_band)
    figure = Figure(figsize=(width, 0.3 + 3.0 * n_bands), layout="constrained")
    axes = figure.subplots(2 * n_bands, per_band, squeeze=False)
    is_wide = 72 * (width - 1.1) / per_band > 15 * max(
        panel["phi"].shape[1] for panel in panels
    )  # for numbers in cells
    images: list[AxesImage] = []
    for place, panel in enumerate(panels):
        band, column = divmod(place, per_band)
        for row, (name, values) in enumerate((("measured", panel["phi"]), ("random", panel["null"]))):
            axis = axes[2 * band + row][column]
            extent = (0.5, values.shape[1] + 0.5, 0.5, values.shape[0] + 0.5)
            image = axis.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto", origin="lower",
                                interpolation="nearest", extent=extent)  # fmt: skip
            images.append(image)
            if values.size <= WRITTEN_CELLS and is_wide:
                for (i, j), value in np.ndenumerate(values):
                    axis.text(j + 1, i + 1, f"{value:.2f}"[-3:], ha="center", va="center", fontsize=compose.SIZE,
                              color="white" if value < 0.6 else INK)  # fmt: skip
            axis.grid(visible=False)
            axis.set_title(f"{panel['label']} {name}", loc="left", color=INK)
            axis.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
            axis.yaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
            axis.tick_params(axis="both", bottom=True, left=True, length=2)
            if row == 1:
                axis.set_xlabel(panel["second"])
            if column == 0:
                axis.set_ylabel(panel["first"])
    for spare in axes.flat:
        spare.set_visible(bool(spare.images))
    bar = figure.colorbar(images[-1], ax=list(axes.flat), shrink=0.7, pad=0.02)
    bar.set_label("φ(i, j): 0 orthogonal, 1 contained")
    bar.outline.set_linewidth(0.4)
    compose.below(figure, title)
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
    figure = Figure(figsize=(compose.column(), 0.5 + 1.5 * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False)
    roles = list(dict.fromkeys(profiles["role"]))
    for axis, name in zip(axes.flat, panels, strict=False):
        of_panel = profiles[profiles["panel"] == name]
        first = of_panel[of_panel["role"] == of_panel["role"].iloc[0]].sort_values("j")
        axis.fill_between(first["j"], first["null_low"], first["null_high"], color=FAINT, alpha=0.25, lw=0)
        axis.plot(first["j"], first["null_mean"], color=FAINT, lw=0.8, ls=(0, (4, 2)))
        for role in roles:
            of_role = of_panel[of_panel["role"] == role].sort_values("j")
            if len(of_role):
                colour, marker = series(role, roles.index(role))
                every = max(1, len(of_role) // 8)
                axis.plot(
                    of_role["j"], of_role["phi"], color=colour, marker=marker, ms=2.8, lw=1, label=role, markevery=every
                )
        axis.set_title(compose.wrapped(name, compose.column() / n_columns - 0.35), loc="left", color=INK)
        axis.set_ylim(0, 1.02)
        axis.set_xlabel("directions compared")
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        axis.grid(axis="x", visible=False)
        axis.tick_params(axis="both", bottom=True)
        sns.despine(ax=axis)
    hide_spare(axes, len(panels))
    for row in axes:
        row[0].set_ylabel("overlap φ")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    band = matplotlib.patches.Patch(color=FAINT, alpha=0.25, lw=0)
    compose.header(figure, [*handles, band], [*labels, "random, 95 %"])
    return figure


@styled
def amplifications(table: pd.DataFrame) -> Figure:
    """The amplification factor by layer, one panel per matrix, one line per rank, with 95 % intervals over seeds.

    Dashed: what random directions give, at the lowest and the highest rank; those between would run into their lines.

    Args:
        table: targets (one placement), role, layer, rank, mean, low, high, amplification_random.
    """
    roles = list(dict.fromkeys(table["role"]))
    width, n_columns = compose.across(len(roles))
    n_rows = math.ceil(len(roles) / n_columns)
    figure = Figure(figsize=(width, 0.55 + 1.5 * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, sharey=True, sharex=True, squeeze=False)
    ranks, targets = sorted(set(table["rank"])), table["targets"].iloc[0]
    looks = [RANKS[i % len(RANKS)] for i in range(len(ranks))] if len(ranks) > 1 else [(BLUE, "o")]
    for axis, role in zip(axes.flat, roles, strict=False):
        for i, rank in enumerate(ranks):
            of_rank = table[(table["role"] == role) & (table["rank"] == rank)].sort_values("layer")
            if len(of_rank):
                axis.plot(
                    of_rank["layer"],
                    of_rank["mean"],
                    color=looks[i][0],
                    marker=looks[i][1],
                    ms=3,
                    lw=1,
                    label=f"r={rank}",
                )
                axis.vlines(of_rank["layer"], of_rank["low"], of_rank["high"], color=looks[i][0], lw=0.8)
                if rank in (ranks[0], ranks[-1]):
                    axis.plot(
                        of_rank["layer"],
                        of_rank["amplification_random"],
                        color=looks[i][0],
                        lw=0.8,
                        ls=(0, (3, 2)),
                        zorder=1,
                    )
        of = f"{role} of {targets}" if role != targets else role
        axis.set_title(of if len(ranks) > 1 else f"{of}  r={ranks[0]}", loc="left", color=INK)
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
    hide_spare(axes, len(roles))
    handles, labels = axes.flat[0].get_legend_handles_labels() if len(ranks) > 1 else ([], [])
    handles.append(matplotlib.lines.Line2D([], [], color=FAINT, lw=0.8, ls=(0, (3, 2))))
    dashed = f"random, r={ranks[0]}, {ranks[-1]}" if len(ranks) > 1 else "random U, V"
    compose.header(figure, handles, [*labels, dashed])
    figure.supxlabel("layer", fontsize=7)
    figure.supylabel("‖ΔW‖ / ‖UᵀWV‖", fontsize=7)
    return figure


@styled
def over_random(table: pd.DataFrame) -> Figure:
    """Weight in the update's directions over that in random ones, by rank, one panel per matrix: of the leading
    direction and of the whole subspace, with 95 % intervals over seeds.

    Args:
        table: role, rank, and over_random and leading_over_random, each with _low and _high.
    """
    roles = list(dict.fromkeys(table["role"]))
    ranks = sorted(set(table["rank"]))
    width, n_columns = compose.across(len(roles))
    n_rows = math.ceil(len(roles) / n_columns)
    figure = Figure(figsize=(width, 0.55 + 1.5 * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, sharey=True, sharex=True, squeeze=False)
    looks = {"leading_over_random": (RANKS[0], "leading direction"), "over_random": (RANKS[-1], "whole subspace")}
    for axis, role in zip(axes.flat, roles, strict=False):
        of_role = table[table["role"] == role].sort_values("rank")
        for (name, ((colour, marker), label)), shift in zip(looks.items(), (-0.1, 0.1), strict=True):
            known = of_role[of_role[name].notna()]
            at = [ranks.index(rank) + shift for rank in known["rank"]]
            axis.plot(at, known[name], color=colour, marker=marker, ms=3.5, lw=0, label=label)
            axis.vlines(at, known[f"{name}_low"], known[f"{name}_high"], color=colour, lw=0.9)
        axis.axhline(1, color=FAINT, lw=0.8, ls=(0, (3, 2)), zorder=1)
        axis.set_title(role, loc="left", color=INK)
        axis.set_xticks(range(len(ranks)), [str(rank) for rank in ranks])
        axis.set_xlim(-0.5, len(ranks) - 0.5)
        axis.grid(axis="x", visible=False)
        sns.despine(ax=axis)
    axes.flat[0].set_ylim(bottom=0)  # of all panels, once each has its intervals
    hide_spare(axes, len(roles))
    compose.header(figure, *axes.flat[0].get_legend_handles_labels())
    figure.supxlabel("rank", fontsize=7)
    figure.supylabel("‖UᵀWV‖ over random", fontsize=7)
    return figure
