"""Simulated studies followed to their end: how often they say what is not so, and what their words cost."""

from __future__ import annotations

import pandas as pd

from lora_bench import wording
from lora_bench.calibration import protocol
from lora_bench.calibration.protocol import ERROR, STAGED_SEEDS
from lora_bench.calibration.section import CalibrationSection
from lora_bench.calibration.simulate import Trials
from lora_bench.reports.figures import instrument
from lora_bench.reports.section import Column, Table
from lora_bench.verdicts import arms
from lora_bench.verdicts.note import Note
from lora_bench.wording import percent

NAME = "calibration_study"


def study(trials: Trials) -> list[CalibrationSection]:
    """Studies of every pattern, from the first rate to the last look."""
    said = protocol.outcomes(
        protocol.PATTERNS, n_studies=trials.n_studies, seed=trials.seed, n_processes=trials.n_processes
    )
    return [section(protocol.table_of(protocol.PATTERNS, said))]


def section(table: pd.DataFrame) -> CalibrationSection:
    """What the outcomes say; see `protocol.table_of`."""
    own, worst = table[table["saved"].notna()], arms.highest(table, "share")
    broken = table[table["low"] > ERROR]
    is_silent = bool((own["words"] == 0).any())
    n = int(table["n_studies"].min())
    sentence = (
        f"Of {n:,} simulated studies of each kind, rates included, at most {percent(worst['share'])} % say anything "
        f"false ({worst['label']}; 95 % binomial interval {_range(worst)}): "
        + (f"more than the nominal 5 % in {len(broken)} of {len(table)}." if len(broken) else "within the nominal 5 %.")
    )
    if len(own):
        sentence += (
            f" A staged search with {STAGED_SEEDS} seeds at the chosen rate says something false in "
            f"{percent(own['other'].min())} to {percent(own['other'].max())} %; of the runs that one look with the "
            f"same rule for rates takes for as many words, looks save {wording.points(own['saved'].min(), 0)} to "
            f"{wording.points(own['saved'].max(), 0)} %."
        )
    notes = [
        Note(
            f"{row['label']}: {percent(row['share'])} % ({_range(row)}). Where the score falls steeply between the "
            "rates tried, none is at the peak: words are of the rates tried"
        )
        for _, row in broken.iterrows()
    ]
    return CalibrationSection(
        title="Calibration: studies",
        sentence=sentence,
        tables=[_table(table)],
        figures={NAME: instrument.error_rates(table, nominal=ERROR)},
        captions={
            NAME: f"Share of {n:,} simulated studies with any false word, with 95 % binomial intervals: placements "
            "peak at rates of their own, noise and curves as measured on results/study. Hollow: a staged search, then "
            f"{STAGED_SEEDS} seeds at the chosen rate."
        },
        notes=notes,
        part="studies",
        says="fails" if len(broken) or is_silent else "holds",
        outcome=table,
    )


def _range(row: pd.Series) -> str:
    return f"{percent(row['low'])} to {percent(row['high'])}"


def _table(table: pd.DataFrame) -> Table:
    shown = table.assign(interval_shown=[_range(row) for _, row in table.iterrows()])
    columns = [
        Column("label", "studies", wording.text, is_number=False),
        Column("n_studies", "n", wording.count, on_screen=False),
        Column("share", "false %", percent),
        Column("interval_shown", "95 % interval", is_number=False),
        Column("differences", "differences %", percent, on_screen=False),
        Column("ties", "ties %", percent, on_screen=False),
        Column("words", "words of 6", _mean),
        Column("runs", "runs", wording.count),
        Column("n_looks", "looks", _mean, on_screen=False),
        Column("fixed_runs", "one look", wording.count),
        Column("saved", "saved %", percent),
        Column("other", "staged: false %", percent),
        Column("staged_words", "words", _mean),
    ]
    return Table(NAME, "Simulated studies: false words (nominal 5 %), and what as many words cost", shown, columns)


def _mean(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) and value == value else "–"
