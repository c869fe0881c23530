"""Sweeps with a known effect, through the code that judges real ones: power, and how errors are shown."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from lora_bench import wording
from lora_bench.calibration import simulate
from lora_bench.calibration.section import CalibrationSection
from lora_bench.calibration.simulate import ERROR, PAIRS, SHIFTED, Trials
from lora_bench.reports.figures import instrument
from lora_bench.reports.section import Column, Table
from lora_bench.wording import percent

SEEDS = (4, 5, 8)  # below four pairs no verdict is given, and nothing promised
EFFECTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)  # in standard deviations of a paired difference


def error_row(errors: simulate.Errors) -> dict[str, float]:
    low, high = errors.verdict.interval()
    other_low, other_high = errors.uncorrected.interval()
    return {
        "n_sweeps": errors.verdict.n,
        "share": errors.verdict.value,
        "low": low,
        "high": high,
        "other": errors.uncorrected.value,
        "other_low": other_low,
        "other_high": other_high,
        "missed": errors.missed.value,
    }


def null_table(name: str, table: pd.DataFrame) -> Table:
    shown = table.assign(
        interval_shown=[wording.interval(a, b, percent) for a, b in zip(table["low"], table["high"], strict=True)]
    )
    return Table(
        name,
        "No effect: sweeps with any false verdict (nominal 5 %)",
        shown,
        [
            Column("label", "sweeps", wording.text, is_number=False),
            Column("n_sweeps", "n", wording.count),
            Column("share", "false verdict %", percent),
            Column("interval_shown", "95 % interval", is_number=False),
            Column("other", "before Holm %", percent),
            Column("missed", "interval misses %", percent),
        ],
    )  # fmt: skip


# ---------------------------------------------------------------- known effect


def power(trials: Trials) -> list[CalibrationSection]:
    """Simulated sweeps in which one placement is worse by a known difference."""
    sd = trials.sd

    def draw(rng: np.random.Generator, n_seeds: int, effect: float) -> pd.DataFrame:
        return simulate.simulate(rng, sd=sd, n_seeds=n_seeds, effects={SHIFTED: -effect * sd})

    table = power_rows(trials, sd, draw)
    return [
        CalibrationSection(
            title="Calibration: known effect",
            sentence=f"Simulated sweeps: {power_sentence(table)}",
            tables=[power_table("calibration_power", table)],
            figures={"calibration_power": instrument.power_curves(table)},
            captions={
                "calibration_power": "How often qv is called better than a placement that is worse by a known "
                f"difference: marks, {trials.n_power_sweeps:,} simulated sweeps with 95 % binomial intervals; dashed, "
                f"the power that the plan promises for one of {len(PAIRS)} contrasts."
            },
            part="known effect",
            says=power_says(table),
            outcome=table,
        )
    ]


def power_rows(
    trials: Trials, sd: float, draw: Callable[[np.random.Generator, int, float], pd.DataFrame]
) -> pd.DataFrame:
    rows = []
    for n_seeds in SEEDS:
        for effect in EFFECTS:
            stream = 1_000 * n_seeds + round(100 * effect)
            label = f"effect {effect:g} sd, {n_seeds} seeds"
            sweeps = trials.generators(stream, trials.n_power_sweeps, label)
            detected = simulate.detections(draw(rng, n_seeds, effect) for rng in sweeps)
            low, high = detected.interval()
            # All points together are to hold at 95 %.
            _, most = detected.interval(1 - 2 * ERROR / (len(SEEDS) * len(EFFECTS)))
            promised = simulate.promised_power(effect * sd, sd, n_seeds)
            rows.append(
                {
                    "n_seeds": n_seeds,
                    "effect": effect,
                    "difference": effect * sd,
                    "n_sweeps": detected.n,
                    "found": detected.value,
                    "low": low,
                    "high": high,
                    # One direction of a two-sided test is half of the error where there is no effect.
                    "promised": promised if effect else promised / 2,
                    "is_kept": most >= promised if effect else True,
                }
            )
    return pd.DataFrame(rows)


def power_says(table: pd.DataFrame) -> str:
    return "holds" if table["is_kept"].all() else "fails"


def power_sentence(table: pd.DataFrame) -> str:
    real = table[table["effect"] > 0]
    gaps = real["found"] - real["promised"]
    kept = int(real["is_kept"].sum())
    return (
        f"the promised power is kept at {kept} of {len(real)} points (found minus promised: "
        f"{wording.signed(gaps.min(), 0)} to {wording.signed(gaps.max(), 0)} points)."
    )


def power_table(name: str, table: pd.DataFrame) -> Table:
    shown = table.assign(
        interval_shown=[wording.interval(a, b, percent) for a, b in zip(table["low"], table["high"], strict=True)]
    )
    return Table(
        name,
        "Known effect: how often it is found, and what the plan promises",
        shown,
        [
            Column("n_seeds", "seeds", wording.count),
            Column("effect", "effect (sd)", wording.plain),
            Column("difference", "points", wording.points),
            Column("n_sweeps", "n", wording.count),
            Column("found", "found %", percent),
            Column("interval_shown", "95 % interval", is_number=False),
            Column("promised", "promised %", percent),
        ],
    )  # fmt: skip
