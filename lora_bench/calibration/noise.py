"""What scores vary by and how they fall off the best rate, measured on a store: what simulated studies are made of.

    score[p, rate] = top[p] - curve (log10 rate - peak[p])^2        one curve below the peaks, one above, for all p

Seeds that collapse are counted, and left out of everything else.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize

from lora_bench import wording
from lora_bench.calibration.section import CalibrationSection
from lora_bench.calibration.studies import Noise
from lora_bench.reports.scope import Scope
from lora_bench.reports.section import Column, Table
from lora_bench.store import StoreReader, open_store
from lora_bench.store.predictions import answers
from lora_bench.verdicts import settings
from lora_bench.verdicts.collapse import has_collapsed
from lora_bench.verdicts.note import Note
from lora_bench.verdicts.settings import FLOOR, PLACEMENTS, REFERENCE_TARGETS
from lora_bench.verdicts.tuning import HALF_DECADE

SPLITS = ("select", "report")
MIN_SEEDS = 6
"""Seeds of a placement from which on it tells how placements vary together."""
NEAR = 0.3
"""Decades from the best rate to those beside it that a search compares."""
MIN_RATES = 3
"""Rates near the best one, below which a placement says nothing of the curve."""


@dataclass(frozen=True)
class Measured:
    """A study's noise, and what its placements came to.

    Attributes:
        placements: indexed by placement: rate (with the most seeds, the best of them on `select`), n_seeds, collapse
            (share of these), learned and difference (`report`, of the seeds that learn and of all, minus the
            reference's), peak and cliff (rates; nan where the curve is not known, inf where nothing collapsed).
        middle: of the rates that the search began with.
    """

    noise: Noise
    placements: pd.DataFrame
    middle: float


def measure(runs: pd.DataFrame, collapsed: pd.Series, *, middle: float) -> Measured:
    """Fit one setting's runs.

    Args:
        runs: prepared runs of PLACEMENTS at one budget, and of head-only.
        collapsed: whether a run predicts one class, by its id.
        middle: of the rates that the search began with.

    Raises:
        NothingToShow: when no two seeds of a rate learn, no two placements share seeds, or no placement has MIN_RATES.
    """
    adapted = runs[runs["scored"] & (runs["method"] != FLOOR)]
    adapted = adapted.assign(collapsed=adapted["run_id"].map(collapsed), x=np.log10(adapted["lr"].astype(float)))
    learning = adapted[~adapted["collapsed"]]
    residuals = learning[[*SPLITS]] - learning.groupby(["targets", "lr"])[[*SPLITS]].transform("mean")
    freedom = len(learning) - learning.groupby(["targets", "lr"]).ngroups
    if freedom == 0:
        raise settings.NothingToShow("no two seeds of a rate learn")
    squares: Any = (residuals**2).sum()
    placements = _placements(adapted)
    best: Any = np.log10(placements["rate"].astype(float))
    below, above, peaks = _fit_curves(learning, best)
    cliffs = {name: _cliff(adapted[adapted["targets"] == name], peak) for name, peak in peaks.items()}
    head = float(runs.loc[runs["method"] == FLOOR, "report"].mean())
    noise = Noise(
        select=math.sqrt(squares["select"] / freedom),
        report=math.sqrt(squares["report"] / freedom),
        correlation=float((residuals["select"] * residuals["report"]).sum() / math.sqrt(squares.prod())),
        shared=_shared(learning[learning["lr"] == learning["targets"].map(placements["rate"])]),
        below=below,
        above=above,
        middle=float(np.mean(list(peaks.values())) - math.log10(middle)),
        spread=float(np.std(list(peaks.values()), ddof=1)),
        floor=float(placements["mean"][REFERENCE_TARGETS]) - head,
        cliffs=tuple(sorted(cliffs.values())),
    )
    placements["peak"] = 10 ** pd.Series(peaks, dtype=float)
    placements["cliff"] = placements["peak"] * 10 ** pd.Series(cliffs, dtype=float)
    return Measured(noise, placements, middle)


def _placements(adapted: pd.DataFrame) -> pd.DataFrame:
    rows = {}
    for name in PLACEMENTS:
        own = adapted[adapted["targets"] == name]
        of_rate = own.groupby("lr").agg(n=("seed", "size"), score=("select", "mean"))
        rate = of_rate["score"][of_rate["n"] == of_rate["n"].max()].idxmax()
        chosen = own[own["lr"] == rate]
        rows[name] = {
            "rate": rate,
            "n_seeds": len(chosen),
            "collapse": chosen["collapsed"].mean(),
            "mean": chosen["report"].mean(),
            "learned": chosen.loc[~chosen["collapsed"], "report"].mean(),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table["difference"] = table["mean"] - table["mean"][REFERENCE_TARGETS]
    table["learned"] -= table["learned"][REFERENCE_TARGETS]
    return table


def _shared(chosen: pd.DataFrame) -> float:
    """Correlation over seeds of `report` of two placements, each at one rate, pooled over pairs."""
    table = chosen.pivot_table(index="seed", columns="targets", values="report")
    products = squares = 0.0
    for pair in itertools.combinations(table.columns[table.notna().sum() >= MIN_SEEDS], 2):
        both = table[[*pair]].dropna()
        both = (both - both.mean()).to_numpy()
        products += float(both.prod(axis=1).sum())
        squares += math.sqrt(float((both**2).sum(axis=0).prod()))
    if not squares:
        raise settings.NothingToShow(f"no two placements share {MIN_SEEDS} seeds that learn")
    return products / squares


def _fit_curves(learning: pd.DataFrame, best: pd.Series) -> tuple[float, float, dict[str, float]]:
    """Curvatures below and above, and the placements' peaks, by least squares over both splits.

    Only rates as near to a placement's best as those that a search compares tell the curvatures: further off the score
    falls off a cliff, which says nothing of rates that stay alive. Peaks are told by all within half a decade.
    """
    near, wide = (_cells(learning, best, within) for within in (NEAR, HALF_DECADE))
    if len(near) < 2:
        raise settings.NothingToShow(f"fewer than two placements learn at {MIN_RATES} rates near their best")
    starts = itertools.product((0.03, 0.3), (0.2, 1.0))
    fits = [
        optimize.minimize(lambda curves: _lost(curves, near)[0], np.log(start), method="Nelder-Mead")
        for start in starts
    ]
    curves = min(fits, key=lambda fit: fit.fun).x
    below, above = np.exp(curves)
    return float(below), float(above), _lost(curves, wide)[1]


def _cells(learning: pd.DataFrame, best: pd.Series, within: float) -> dict[str, pd.DataFrame]:
    """Mean scores by rate of the placements with MIN_RATES so near to their best, in decades."""
    near = learning[(learning["x"] - learning["targets"].map(best)).abs() <= within + 0.01]
    cells = near.groupby(["targets", "x"]).agg(n=("seed", "size"), select=("select", "mean"), report=("report", "mean"))
    return {str(name): cell.reset_index() for name, cell in cells.groupby("targets") if len(cell) >= MIN_RATES}


def _lost(log_curves: np.ndarray, cells: Mapping[str, pd.DataFrame]) -> tuple[float, dict[str, float]]:
    """Squares that the best peaks leave, a cell weighing as many seeds as it has, and these peaks in log10."""
    below, above = np.exp(log_curves)
    total, peaks = 0.0, {}
    for name, table in cells.items():
        x, n = table["x"].to_numpy(), table["n"].to_numpy()
        tried = np.linspace(x.min(), x.max(), 201)
        off = x[None] - tried[:, None]
        squares = np.zeros(len(tried))
        for split in SPLITS:
            tops = table[split].to_numpy()[None] + np.where(off > 0, above, below) * off**2
            squares += (n * (tops - (n * tops).sum(axis=1, keepdims=True) / n.sum()) ** 2).sum(axis=1)
        peaks[name] = float(tried[squares.argmin()])
        total += float(squares.min())
    return total, peaks


def _cliff(own: pd.DataFrame, peak: float) -> float:
    """Decades above its peak at which a placement was seen to collapse in every seed; inf where it was not."""
    off = own.loc[own["x"] > peak, "x"][own.groupby("lr")["collapsed"].transform("all")] - peak
    return float(off.min()) if len(off) else math.inf


# ---------------------------------------------------------------- from a store


def collapsed_runs(runs: pd.DataFrame, store: StoreReader) -> pd.Series:
    """Whether each run predicts one class, by its id: from its predictions, or where the store kept none, from its
    score, which is that of one class for all rows of the split."""
    constants = {task: _constant_scores(str(own["metric"].iloc[0]), own, store) for task, own in runs.groupby("task")}
    is_collapsed = {}
    for run_id, task, report in zip(runs["run_id"], runs["task"], runs["report"], strict=True):
        predictions = store.predictions(run_id)
        is_collapsed[run_id] = (
            bool(np.isclose(constants[task], report, atol=1e-9).any())
            if predictions is None
            else has_collapsed(*answers(predictions))
        )
    return pd.Series(is_collapsed)


def _constant_scores(metric: str, runs: pd.DataFrame, store: StoreReader) -> list[float]:
    """What predicting one class scores on `report`: each label's share, or no correlation."""
    if metric != "accuracy":
        return [0.0]
    kept = (store.predictions(run_id) for run_id in runs["run_id"])
    predictions = next((table for table in kept if table is not None), None)
    if predictions is None:
        return []
    report = predictions[predictions["split"] == "report"]
    return report["label"].value_counts(normalize=True).tolist()


def noise(scope: Scope) -> list[CalibrationSection]:
    """What the placements of each setting vary by, at the budget that most runs have.

    Raises:
        NothingToShow: when no setting has all placements and what the fit needs.
    """
    runs = scope.read()
    store, refused = open_store(scope.store), []
    made: list[CalibrationSection] = []
    runs = runs[runs["targets"].isin(PLACEMENTS) | (runs["method"] == FLOOR)]
    for setting in [] if runs.empty else scope.settings(runs):
        adapted = setting.runs[setting.runs["method"] != FLOOR]
        budget: Any = adapted.groupby("adapter_parameters")["targets"].nunique().idxmax()
        own = setting.runs[setting.runs["adapter_parameters"].isin([0, budget])]
        if set(own["targets"]) >= set(PLACEMENTS):
            try:
                measured = measure(own, collapsed_runs(own, store), middle=_middle(own))
            except settings.NothingToShow as error:
                refused.append(f"{setting.title}: {error}")
                continue
            made.append(_section(setting, measured, int(budget)))
    if not made:
        why = "; ".join(refused) or "no setting has all seven placements at one budget"
        raise settings.NothingToShow(f"{why}; --store results/study has what is needed")
    return made


def _middle(runs: pd.DataFrame) -> float:
    """Of the rates that every placement was tried at: where the search began."""
    adapted = runs[runs["method"] != FLOOR]
    n_placements = adapted.groupby("lr")["targets"].nunique()
    shared = sorted(n_placements.index[n_placements == adapted["targets"].nunique()])
    return shared[len(shared) // 2] if shared else float(adapted["lr"].median())


def _section(setting: settings.Setting, measured: Measured, budget: int) -> CalibrationSection:
    about, table = measured.noise, measured.placements.rename_axis("placement").reset_index()
    constants = "; ".join(f"{field.name} {_shown(getattr(about, field.name))}" for field in _measured_fields())
    sentence = (
        f"On {setting.title} at {budget:,} parameters, scores vary over seeds by {wording.points(about.select, 2)} "
        f"points on select and {wording.points(about.report, 2)} on report, with a correlation of "
        f"{about.correlation:.2f}; those of two placements by {about.shared:+.2f}. A decade below its best rate a "
        f"placement would lose {wording.points(about.below)} points, a decade above {wording.points(about.above)}; "
        f"best rates spread by {about.spread:.2f} decades."
    )
    name = f"calibration_noise_{setting.slug}"
    columns = [
        Column("placement", "placement", wording.text, is_number=False),
        Column("rate", "rate", wording.plain),
        Column("n_seeds", "seeds", wording.count),
        Column("collapse", "collapsed %", wording.percent),
        Column("difference", f"minus {REFERENCE_TARGETS}", wording.signed),
        Column("learned", "of seeds that learn", wording.signed),
        Column("peak", "best rate", _rate),
        Column("cliff", "collapses from", _rate),
    ]
    constants_table = pd.DataFrame([_plain(about)])
    return CalibrationSection(
        title=f"Calibration: noise on {setting.title}",
        sentence=sentence,
        tables=[
            Table(name, "What placements came to at the rate with the most seeds", table, columns),
            Table(f"{name}_constants", "What simulated studies are made of", constants_table),
        ],
        notes=[Note(f"measured: {constants}"), *setting.notes],
        part=f"noise on {setting.title}",
        says="shown",
        outcome=table,
    )


def _measured_fields() -> list:
    return [field for field in fields(Noise) if field.name not in ("tails", "step")]


def _plain(about: Noise) -> Mapping[str, object]:
    return {field.name: _shown(getattr(about, field.name)) for field in _measured_fields()}


def _shown(value: float | tuple[float, ...]) -> str:
    return ", ".join(f"{part:.2g}" for part in value) if isinstance(value, tuple) else f"{value:.3g}"


def _rate(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) and math.isfinite(value) else "–"
