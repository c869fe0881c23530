"""Estimates in, figures out: one visual language for the page and for print. Computes nothing.

Widths are those of print (`compose`), so text keeps its size when placed.
Colours are the Okabe-Ito set as seaborn ships it, and no meaning rests on colour alone.
"""

from __future__ import annotations

import logging
import math
import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.colors
import matplotlib.lines
import matplotlib.patches
import matplotlib.patheffects
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lora_bench.reports.figures import compose, font
from lora_bench.wording import visible

log = logging.getLogger(__name__)

_PALETTE = sns.color_palette("colorblind")
BLUE, ORANGE, GREEN, RED, PURPLE, BROWN, PINK, GREY, _, SKY = _PALETTE
OLIVE = "#9c8a00"  # in place of the set's yellow, which is hard to see on white
FORMATS = ("pdf", "svg", "png")
UNDATED = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
INK = "#222222"
FAINT = "#8a8a8a"
LIGHT = "#c4c4c4"

VERDICTS = {  # said of the first cell: colour, marker
    "better": (BLUE, "o"),
    "worse": (RED, "s"),
    "tied": (GREEN, "D"),
    "learns more often": (BLUE, "^"),
    "learns less often": (RED, "v"),
    "unresolved": (FAINT, "o"),
    "open": (FAINT, "o"),
    "did not learn": (FAINT, "X"),
    "not told from the head alone": (FAINT, "X"),
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

RANKS = [  # colour and marker of the ranks in a panel, lowest first
    *((INK, "o"), (SKY, "s"), (BLUE, "D"), (GREEN, "^"), (OLIVE, "v"), (ORANGE, "P"), (RED, "X"), (PURPLE, "*")),
]

METRIC_NAMES = {
    "accuracy": "accuracy (%)",
    "balanced_accuracy": "balanced accuracy (%)",
    "matthews": "Matthews correlation (×100)",
    "f1": "F1 (%)",
    "pearson": "Pearson correlation (×100)",
    "spearman": "Spearman correlation (×100)",
}

STYLE: dict[Any, Any] = {  # matplotlib's own type of the keys is a list of their names
    "text.usetex": False,
    "text.parse_math": False,  # two $ in a name are no formula
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
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
    """Draw under the package's style only, whatever the caller's matplotlib settings; never through pyplot.

    A figure that cannot be drawn says so in its place (`undrawn`): the tables beside it have the same numbers.
    """

    def wrapped(*args, **kwargs) -> Figure:
        if compose.is_blank():
            return Figure()
        with _dressed(**sns.axes_style("whitegrid")):
            try:
                return draw(*args, **kwargs)
            except Exception as error:
                return undrawn(error)

    wrapped.__doc__, wrapped.__name__ = draw.__doc__, draw.__name__
    return wrapped


def undrawn(error: Exception) -> Figure:
    """What stands for a figure that could not be drawn; its label is the reason, that of any other figure empty."""
    reason = f"{type(error).__name__}: {visible(str(error)).partition(chr(10))[0]}"
    log.warning("a figure could not be drawn (%s)", reason, exc_info=log.isEnabledFor(logging.DEBUG))
    figure = Figure(figsize=(compose.column(), 0.6), label=reason)
    figure.text(0.5, 0.5, "\n".join(textwrap.wrap(f"could not be drawn ({reason})", 60)[:3]), ha="center", va="center")
    return figure


def save(figure: Figure, folder: Path, name: str, *, formats: Sequence[str] = FORMATS) -> Path:
    """NAME.pdf, NAME.svg and NAME.png (300 dpi), without dates, so that equal results give equal files.

    A figure that cannot be rendered is replaced (`undrawn`), and gets the reason as its label.

    Args:
        formats: of FORMATS, those that are written.

    Returns:
        The path of the last.

    Raises:
        OSError: when the files cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return _save(figure, folder, name, formats)
    except OSError:
        raise
    except Exception as error:
        with _dressed():
            replacement = undrawn(error)
        figure.set_label(replacement.get_label())
        return _save(replacement, folder, name, formats)


def _save(figure: Figure, folder: Path, name: str, formats: Sequence[str]) -> Path:
    with _dressed():
        if (engine := figure.get_layout_engine()) is not None:
            engine.execute(figure)
        figure.set_layout_engine(None)  # laid out once, not once per format
        for suffix in formats:
            figure.savefig(folder / f"{name}.{suffix}", dpi=300, metadata=UNDATED.get(suffix))
    return folder / f"{name}.{formats[-1]}"


def name(figure: Figure, text: str) -> None:
    """`compose.name` in the package's style, whatever the caller's."""
    with _dressed():
        compose.name(figure, text)


def series(targets: str, place: int = 0) -> tuple:
    """The colour and marker that a placement keeps in every figure."""
    if targets in SERIES:
        return SERIES[targets]
    spare = [(PINK, "h"), (OLIVE, ">"), (INK, "<"), (GREY, "*"), (RED, "p"), (PURPLE, "d")]
    return spare[place % len(spare)]


# ---------------------------------------------------------------- helpers


def _dressed(**below: Any) -> AbstractContextManager[None]:
    """Inside, matplotlib's settings are the package's.

    Args:
        below: settings that hold where the package has none of its own.
    """
    settings: dict[Any, Any] = {**below, **STYLE, "font.family": font.family()}
    return matplotlib.rc_context(settings)


def error_bars(
    axis: Axes, mean: float, low: float, high: float, row: float, colour, marker: str, *, hollow: bool = False
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


def hide_spare(axes: np.ndarray, n_used: int) -> None:
    """Hide the panels of a grid that hold nothing; the ones above them get their tick labels back."""
    n_columns = axes.shape[1]
    panels: list[Axes] = list(axes.flat)
    for place, axis in enumerate(panels):
        if place >= n_used:
            axis.set_visible(False)
            if place >= n_columns:
                panels[place - n_columns].tick_params(labelbottom=True)


def tidy(axis: Axes, *, locate: bool = True) -> None:
    axis.grid(axis="y", visible=False)
    axis.grid(axis="x", visible=True)
    sns.despine(ax=axis, left=True)
    axis.tick_params(axis="x", bottom=True)
    if locate:
        axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def darker(colour) -> tuple:
    return tuple(0.7 * part for part in matplotlib.colors.to_rgb(colour))
