"""The instrument's test on real runs: what differs in nothing (A/A), and the intervals of few seeds against many."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from lora_bench import wording
from lora_bench.calibration import simulate
from lora_bench.calibration.section import CalibrationSection
from lora_bench.calibration.simulate import ERROR, Trials
from lora_bench.calibration.simulated import (
    SEEDS,
    error_row,
    null_table,
    power_rows,
    power_says,
    power_sentence,
    power_table,
)
from lora_bench.config.schema import LORA_METHODS
from lora_bench.reports import tables
from lora_bench.reports.figures import instrument, verdicts
from lora_bench.reports.scope import Scope
from lora_bench.reports.section import Column, Table
from lora_bench.verdicts import arms, gaps, settings, stats
from lora_bench.verdicts.note import Note, gap
from lora_bench.wording import percent

COVERAGE_SEEDS = 24  # a reference needs several times the seeds that are tested against it
COVERAGE_DRAWS = 2_000


# ---------------------------------------------------------------- real A/A


def replicates(scope: Scope, trials: Trials) -> list[CalibrationSection]:
    """Runs that differ in the adapter's init alone, and what their differences do to simulated verdicts.

    Raises:
        NothingToShow: when the store has no such pair.
    """
    runs = scope.read()
    runs = arms.name_arms(runs[runs["method"].isin(LORA_METHODS)])
    runs = runs[runs["replicate"].isin([0, 1])]
    # Two draws of one cell are two arms of one setting.
    runs = runs.assign(cell=runs["arm"], draw=runs["replicate"], replicate=0)
    runs = runs.assign(arm=[_arm(cell, draw) for cell, draw in zip(runs["cell"], runs["draw"], strict=True)])
    made = []
    for setting in settings_of(runs, scope):
        both = setting.runs.groupby("cell", sort=False)["draw"].nunique()
        paired = list(both.index[both == 2])
        if paired:
            runs = setting.runs[setting.runs["cell"].isin(paired)]
            is_pair = runs.groupby(["cell", "lr", "seed"])["draw"].transform("nunique") == 2  # others are no A/A runs
            made.append(_replicates(setting, runs[is_pair], paired, scope, trials))
    if not made:
        raise settings.NothingToShow(
            "no cell was run with adapter.replicate=0 and 1; start with: lora-bench +sweeps=calibration_aa"
        )
    return made


def _arm(cell: str, draw: float) -> str:
    return f"{cell} {'AB'[int(draw)]}"


def _replicates(
    setting: settings.Setting, runs: pd.DataFrame, paired: list[str], scope: Scope, trials: Trials
) -> CalibrationSection:
    settings.refuse_duplicates(setting, runs)
    margin = scope.margin_of(setting.metric)
    judged = arms.judge(runs, [(_arm(cell, 0), _arm(cell, 1)) for cell in paired], margin=margin)
    contrasts = judged.contrasts
    scored = runs[runs["scored"]]
    table = scored.pivot_table(index=["cell", "lr", "seed"], columns="draw", values="report").dropna()
    residuals = (table[0] - table[1]).to_numpy() if {0, 1} <= set(table.columns) else np.empty(0)
    sd = float(np.sqrt((residuals**2).mean())) if residuals.size else float("nan")
    cell_of = {_arm(cell, 0): cell for cell in paired}
    called = contrasts[contrasts["verdict"].isin(["better", "worse"])]
    tested = contrasts[contrasts["n_pairs"] >= stats.MIN_PAIRS]
    false_words = f"{wording.listed([cell_of[arm] for arm in called['first']])} falsely" if len(called) else "none"
    sentence = (
        f"A/A on {setting.title}: two draws of the adapter's init, all else shared, in {len(tested)} cells of "
        f"{int(contrasts['n_pairs'].max())} seeds; called different: {false_words}. The sd of such a difference is "
        f"{wording.points(sd, 2)} points."
    )
    name = f"calibration_aa_{setting.slug}"
    section = CalibrationSection(
        title=f"Calibration: A/A on {setting.title}",
        sentence=sentence,
        tables=[tables.contrast_table(name, contrasts, margin)],
        notes=[*setting.notes, *notes_of_missing(setting, runs)],
        part=f"A/A on {setting.title}",
        says="fails" if len(called) else "holds" if len(tested) else "missing",
        outcome=contrasts,
    )
    shown = contrasts[contrasts["n_pairs"] > 0]
    if len(shown):
        labels = shown["first"].map(cell_of) + ": A − B"
        section.figures[name] = verdicts.contrasts(shown.assign(label=labels, extra=""), margin=margin)
        section.captions[name] = (
            "Two draws of the adapter's init (A, B) under shared head, data order and dropout: paired differences on "
            f"report with {tables.UNCORRECTED}. There is nothing to find."
        )
    if residuals.size >= stats.MIN_PAIRS and sd > 0:
        _add_resampled(section, name, residuals, sd, trials)
    else:
        section.notes.append(Note("too few differences that vary: they are not resampled"))
    return section


def _add_resampled(section: CalibrationSection, name: str, residuals: np.ndarray, sd: float, trials: Trials) -> None:
    """Put false verdicts and power on the real differences into the section."""
    rows = []
    for n_seeds in SEEDS:
        sweeps = trials.generators(200 + n_seeds, trials.n_sweeps, f"A/A residuals, {n_seeds} seeds")
        counts = simulate.errors(simulate.resample(rng, residuals, n_seeds=n_seeds) for rng in sweeps)
        rows.append({"label": f"A/A residuals, {n_seeds} seeds", "n_seeds": n_seeds} | error_row(counts))
    errors = pd.DataFrame(rows)

    def draw(rng: np.random.Generator, n_seeds: int, effect: float) -> pd.DataFrame:
        return simulate.resample(rng, residuals, n_seeds=n_seeds, shift=effect * sd)

    table = power_rows(trials, sd, draw)
    worst = arms.highest(errors, "share")
    section.sentence += (
        f" Sweeps made of the {residuals.size} real differences, with random signs, gave a false verdict in at most "
        f"{percent(worst['share'])} % ({percent(worst['low'])} to {percent(worst['high'])}); with a shift put on "
        f"one placement, {power_sentence(table)}"
    )
    section.tables += [
        null_table(f"{name}_null", errors.drop(columns="missed").assign(missed=np.nan)),
        power_table(f"{name}_power", table),
    ]
    section.figures[f"{name}_power"] = instrument.power_curves(table)
    section.captions[f"{name}_power"] = (
        f"Real A/A differences (sd {wording.points(sd, 2)} points) with a shift put on one placement: how often qv "
        "is called better than it, with 95 % binomial intervals; dashed, the promised power at that sd."
    )
    if (errors["low"] > ERROR).any() or power_says(table) == "fails":
        section.says = "fails"


# ---------------------------------------------------------------- coverage


def reference(scope: Scope, trials: Trials) -> list[CalibrationSection]:
    """Intervals of few seeds against the mean of many, for cells and for their paired differences.

    Raises:
        NothingToShow: when no cell has enough seeds.
    """
    runs = arms.name_arms(scope.read())
    made = []
    for setting in settings_of(runs[runs["method"].isin(LORA_METHODS)], scope):
        settings.refuse_duplicates(setting, setting.runs)
        scores = _scores(setting.runs)
        if scores:
            made.append(_reference(setting, scores, trials))
    if not made:
        raise settings.NothingToShow(
            f"no cell has {COVERAGE_SEEDS} seeds or more; start with: lora-bench +sweeps=calibration_reference"
        )
    return made


def _scores(runs: pd.DataFrame) -> dict[str, np.ndarray]:
    """Scores of cells with many seeds, at the rate with the most of them, and differences of neighbouring cells."""
    by_seed: dict[str, pd.Series] = {}
    for arm, of_arm in runs[runs["scored"]].groupby("arm", sort=False):
        counts = of_arm["lr"].value_counts()
        if counts.max() >= COVERAGE_SEEDS:
            by_seed[str(arm)] = of_arm[of_arm["lr"] == counts.idxmax()].set_index("seed")["report"]
    scores = {arm: of_cell.to_numpy(float) for arm, of_cell in by_seed.items()}
    names = list(by_seed)
    for first, second in itertools.pairwise(names):
        differences = (by_seed[first] - by_seed[second]).dropna()
        if len(differences) >= COVERAGE_SEEDS:
            scores[f"{first} − {second}"] = differences.to_numpy(float)
    return scores


def _reference(setting: settings.Setting, scores: dict[str, np.ndarray], trials: Trials) -> CalibrationSection:
    rng = np.random.default_rng([trials.seed, 300])
    rows = []
    for name, values in scores.items():
        for n_seeds in SEEDS:
            low, high = simulate.coverage_band(n_seeds, values.size, rng=rng)
            rows.append(
                {
                    "cell": name,
                    "label": f"{name}, {n_seeds} seeds",
                    "n_seeds": n_seeds,
                    "n_all": values.size,
                    "mean": values.mean(),
                    "sd": values.std(ddof=1),
                    "coverage": simulate.coverage(values, n_seeds, n_draws=COVERAGE_DRAWS, rng=rng),
                    "expected": simulate.expected_coverage(n_seeds, values.size),
                    "band_low": low,
                    "band_high": high,
                }
            )
    table = pd.DataFrame(rows)
    holds = bool((table["coverage"] >= table["band_low"]).all())
    eight = table[table["n_seeds"] == SEEDS[-1]]
    most = int(table["n_all"].max())
    sentence = (
        f"On {setting.title}, 95 % intervals of {SEEDS[-1]} seeds hold the mean of {most} seeds in "
        f"{percent(eight['coverage'].min())} to {percent(eight['coverage'].max())} % of draws; normal scores would "
        f"give {percent(eight['expected'].iloc[0])} % ({percent(eight['band_low'].min())} to "
        f"{percent(eight['band_high'].max())} for sets of that size): "
        + ("as they should." if holds else "too rarely somewhere, see the table.")
    )
    name = f"calibration_coverage_{setting.slug}"
    columns = [
        Column("cell", "cell", wording.text, is_number=False, is_name=True),
        Column("n_seeds", "seeds", wording.count),
        Column("n_all", "of", wording.count),
        Column("mean", "mean", wording.points),
        Column("sd", "sd", wording.points),
        Column("coverage", "coverage %", percent),
        Column("expected", "normal scores %", percent),
        Column("band_low", "from", percent),
        Column("band_high", "to", percent),
    ]
    return CalibrationSection(
        title=f"Calibration: coverage on {setting.title}",
        sentence=sentence,
        tables=[Table(name, "How often intervals of few seeds hold the mean of many", table, columns)],
        figures={name: instrument.coverages(table)},
        captions={
            name: f"Share of {COVERAGE_DRAWS:,} draws of some seeds whose 95 % t interval holds the mean of all "
            f"{most}; grey: where 95 % of sets of normal scores lie. The few are part of the many, so more than 95 % "
            "is expected."
        },
        notes=[*setting.notes, *notes_of_missing(setting, setting.runs[setting.runs["arm"].isin(list(scores))])],
        part=f"coverage on {setting.title}",
        says="holds" if holds else "fails",
        outcome=table,
    )


def settings_of(runs: pd.DataFrame, scope: Scope) -> list[settings.Setting]:
    """The settings of these runs; none of none, which each part tells in its own words."""
    return [] if runs.empty else scope.settings(runs)


def notes_of_missing(setting: settings.Setting, runs: pd.DataFrame) -> list[Note]:
    """What a full grid would hold and the store does not, and which runs failed."""
    notes = []
    absent = gaps.missing(runs, [])
    if absent:
        notes.append(gap(f"{setting.title}: missing from the store: {absent}"))
    failed = gaps.failures(runs)
    if failed:
        notes.append(gap(f"{setting.title}: runs without a score, kept out and counted: {'; '.join(failed)}"))
    return notes
