"""The instrument itself: its speed, and whether its verdicts can be trusted."""

from __future__ import annotations

import math
import textwrap

import matplotlib
import matplotlib.colors
import matplotlib.lines
import matplotlib.patches
import matplotlib.patheffects
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from lora_bench.reports.figures import compose
from lora_bench.reports.figures.style import (
    BLUE,
    GREEN,
    INK,
    LIGHT,
    ORANGE,
    PURPLE,
    RED,
    error_bars,
    metric_label,
    styled,
    tidy,
)


@styled
def throughput(arms: pd.DataFrame) -> Figure:
    """Cell-examples per second of each arm, as bars, with the fraction of the machine's own GEMM rate written on them.

    Args:
        arms: arm, pack, precision, examples_per_second, fraction; one row per bar, drawn in this order from the top.
    """
    names = {"trainer": "HF Trainer + peft", "trainer_auto": "HF Trainer + peft, by length", "solo": "lora_bench, solo"}
    figure = Figure(figsize=(compose.column(), 0.6 + 0.22 * len(arms)), layout="constrained")
    axis = figure.subplots()
    labels = []
    for place, measured in enumerate(arms.to_dict("records")):
        arm, rate = measured["arm"], measured["examples_per_second"]
        axis.barh(place, rate, height=0.66, color=LIGHT if arm in ("trainer", "trainer_auto") else BLUE)
        label = f" {rate:,.0f}  ({measured['fraction']:.0%})"
        axis.text(rate, place, label, va="center", fontsize=compose.SIZE, color=INK)
        pack = "" if arm in names else f" {measured['pack']}"
        name = names.get(arm) or f"lora_bench, {arm.replace('_', ' ')}"
        labels.append(f"{name}{pack}, {measured['precision']}")
    axis.set_yticks(range(len(arms)), labels)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.7 * float(arms["examples_per_second"].max()))
    axis.set_xlabel("cell-examples per second\n(share of the GEMM rate)")
    axis.grid(visible=False, axis="y")
    sns.despine(ax=axis, left=True)
    return figure


@styled
def error_rates(table: pd.DataFrame, *, nominal: float) -> Figure:
    """How often studies say what is not so, as dots with binomial intervals; hollow: staged search and fixed seeds.

    Args:
        table: label, share, low, high, other, other_low, other_high (nan: not drawn); one row per kind of study, drawn
            from the top.
        nominal: the share that is allowed, drawn as a line.
    """
    figure = Figure(figsize=(compose.column(), 0.85 + 0.2 * len(table)), layout="constrained")
    axis = figure.subplots()
    axis.axvline(100 * nominal, color=INK, lw=0.8, ls=(0, (4, 2)), zorder=1)
    for row, (_, study) in enumerate(table.iterrows()):
        error_bars(axis, study["share"], study["low"], study["high"], row, BLUE, "o")
        error_bars(axis, study["other"], study["other_low"], study["other_high"], row, RED, "s", hollow=True)
    axis.set_yticks(range(len(table)), list(table["label"]))
    axis.set_ylim(len(table) - 0.4, -0.6)
    axis.set_xlim(left=0)
    axis.set_xlabel(f"studies with a false word (%)\ndashed: {100 * nominal:g} %")
    handles = [
        matplotlib.lines.Line2D([], [], color=BLUE, marker="o", ms=4.2, lw=1.4, label="looks"),
        matplotlib.lines.Line2D(
            [], [], color=RED, marker="s", ms=4.2, mfc="white", lw=1.4, label="staged search, one rate"
        ),
    ]
    compose.header(figure, handles)
    tidy(axis)
    return figure


@styled
def power_curves(table: pd.DataFrame) -> Figure:
    """How often an effect of known size is found: marks, with binomial intervals; lines: the power that was promised.

    Args:
        table: n_seeds, effect (in standard deviations of a paired difference), found, low, high, promised.
    """
    figure = Figure(figsize=(compose.column(), 2.5), layout="constrained")
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
    compose.header(figure, handles)
    sns.despine(ax=axis)
    return figure


@styled
def coverages(table: pd.DataFrame) -> Figure:
    """How often intervals of few seeds hold the mean of many: marks; grey: where normal scores would put them.

    Args:
        table: label, coverage, band_low, band_high; one row per cell and number of seeds, drawn from the top.
    """
    figure = Figure(figsize=(compose.column(), 0.85 + 0.2 * len(table)), layout="constrained")
    axis = figure.subplots()
    axis.axvline(95, color=INK, lw=0.8, ls=(0, (4, 2)), zorder=1)
    for row, (_, cell) in enumerate(table.iterrows()):
        axis.hlines(row, 100 * cell["band_low"], 100 * cell["band_high"], color=LIGHT, lw=5, zorder=2)
        is_inside = cell["coverage"] >= cell["band_low"]
        colour, marker = (BLUE, "o") if is_inside else (RED, "s")
        axis.plot(100 * cell["coverage"], row, marker=marker, ms=4.2, color=colour, ls="", zorder=4)
    axis.set_yticks(range(len(table)), list(table["label"]))
    axis.set_ylim(len(table) - 0.4, -0.6)
    axis.set_xlabel("95 % intervals that hold\nthe mean of all seeds (%)")
    handles = [
        matplotlib.lines.Line2D([], [], color=BLUE, marker="o", ms=4.2, ls="", label="measured"),
        matplotlib.lines.Line2D([], [], color=LIGHT, lw=5, solid_capstyle="butt", label="normal scores, 95 %"),
    ]
    if (table["coverage"] < table["band_low"]).any():
        handles.insert(1, matplotlib.lines.Line2D([], [], color=RED, marker="s", ms=4.2, ls="", label="too low"))
    compose.header(figure, handles)
    tidy(axis)
    return figure


@styled
def planted_matrix(table: pd.DataFrame, *, metric: str) -> Figure:
    """Scores of students (across) on the labels of teachers (down); framed: the teacher's own placement.

    Args:
        table: teacher, student, mean, verdict (of the student against the teacher's own placement; empty on the frame
            and for the head alone), is_own; teachers and students in the order to be drawn.
    """
    teachers, students = list(dict.fromkeys(table["teacher"])), list(dict.fromkeys(table["student"]))
    figure = Figure(
        figsize=(min(compose.page(), 1.1 + 0.52 * len(students)), 1.0 + 0.28 * len(teachers)), layout="constrained"
    )
    axis = figure.subplots()
    signs = {"better": " ▲", "worse": " ▼", "tied": " =", "unresolved": " ?"}
    signs |= {"learns more often": " △", "learns less often": " ▽", "did not learn": " ×"}
    shades = sns.light_palette(BLUE, as_cmap=True)
    finite = table["mean"][np.isfinite(table["mean"])]
    low, spread = (finite.min(), max(finite.max() - finite.min(), 1e-9)) if len(finite) else (0.0, 1.0)
    for _, score in table.iterrows():
        x, y = students.index(score["student"]), teachers.index(score["teacher"])
        known = math.isfinite(score["mean"])
        fill = shades(0.65 * (score["mean"] - low) / spread) if known else "white"
        axis.add_patch(matplotlib.patches.Rectangle((x - 0.5, y - 0.5), 1, 1, fc=fill, ec="white", lw=1.5))
        if score["is_own"]:
            axis.add_patch(
                matplotlib.patches.Rectangle((x - 0.45, y - 0.43), 0.9, 0.86, fc="none", ec=INK, lw=1.0, zorder=3)
            )
        label = f"{100 * score['mean']:.1f}{signs.get(score['verdict'], '')}" if known else "–"
        axis.text(x, y, label, ha="center", va="center", fontsize=compose.SIZE, color=INK)
    axis.set_xlim(-0.5, len(students) - 0.5)
    axis.set_ylim(len(teachers) - 0.5, -0.5)
    axis.set_xticks(range(len(students)), [_narrow(student) for student in students])
    axis.set_yticks(range(len(teachers)), teachers)
    axis.xaxis.tick_top()
    axis.xaxis.set_label_position("top")
    axis.set_xlabel(f"student; {metric_label(metric)}")
    axis.set_ylabel("teacher")
    axis.grid(visible=False)
    axis.tick_params(length=0, top=False)
    sns.despine(ax=axis, left=True, bottom=True)
    key = "framed: the teacher's own placement; against it:\n▲ better   ▼ worse   = tied   ? unresolved"
    compose.below(figure, key)
    return figure


def _narrow(text: str) -> str:
    """A name in lines as wide as a cell of a matrix."""
    return textwrap.fill(text.replace("+", "+ "), 7).replace("+ ", "+")
