"""Can the verdicts be trusted? Sweeps with known truth, through the same code that judges real ones.

    python analysis/calibration.py --out report                        2,000 sweeps without an effect, and power
    python analysis/calibration.py --store runs --out report           with the noise of the runs in a store

A simulated sweep has the shape of sweeps/weight_types.yaml: 7 placements, 5 learning rates, some seeds. Every score is

    score[placement, rate, seed] = level + curve[rate] + shared[seed] + own[placement, rate, seed] + effect[placement]

and select and report see the same score, each with the noise of its own rows. The rate is chosen on select, the cells
are estimated and the contrasts of qv against the other six are judged, all by lora_bench/cells.py and stats.py.

*No effect*: how often is any of the six contrasts called better or worse (family-wise; nominal 5 %)? *Known effect*:
how often is qv called better than a placement, against the power that the plan promises? *Coverage*: how often does the
95 % interval of qv's mean hold the mean that its chosen rate has?
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from scipy.stats import binomtest

from lora_bench import cells, figures, reporting, stats
from lora_bench.cells import PLACEMENTS, REFERENCE_TARGETS
from lora_bench.reporting import Column, Section, Table

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
CURVE = np.array([-0.06, -0.015, 0.0, -0.01, -0.10])
LEVEL = 0.60
ERROR = 0.05
SEEDS = (3, 5, 8)
EFFECTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)  # in standard deviations of a difference between two cells of one seed
OTHERS = [name for name in PLACEMENTS if name != REFERENCE_TARGETS]


def main(argv: list[str] | None = None) -> int:
    options = _parse(argv)
    sd = options.sd
    if options.store:
        sd = cells.difference_sd(cells.name_arms(cells.prepare(reporting.read_frame(Path(options.store)))))
        if not sd > 0:
            raise SystemExit(
                f"{options.store}: no two placements with two common seeds, so no noise to read; give --sd"
            )
    section = calibration(sd, n_null=options.sweeps, n_power=options.power_sweeps, seed=options.seed)
    reporting.print_section(section, Console(highlight=False))
    for path in reporting.write_section(section, Path(options.out)):
        print(f"written: {path}")
    return 0


def calibration(sd: float, *, n_null: int, n_power: int, seed: int = 0) -> Section:
    """Tables and figure of the instrument's own test.

    Args:
        sd: standard deviation of the difference of two cells in one seed, as a share of 1.
        n_null, n_power: simulated sweeps without an effect, and per effect and number of seeds.
    """
    null = pd.DataFrame([null_row(sd, n, n_null, seed) for n in SEEDS])
    power = pd.DataFrame([power_row(sd, n, effect, n_power, seed) for n in SEEDS for effect in EFFECTS])
    worst = null.loc[null["false_positives"].idxmax()]
    holds = bool((null["low"] <= ERROR).all())
    sentence = (
        f"Without an effect, {n_null:,} sweeps gave a false verdict in at most {100 * worst['false_positives']:.1f} % "
        f"(95 % binomial interval {100 * worst['low']:.1f} to {100 * worst['high']:.1f}, {worst['n_seeds']:.0f} seeds): "
        + ("within the nominal 5 %." if holds else "more than the nominal 5 %.")
    )
    return Section(
        title="Calibration",
        sentence=sentence,
        tables=[_null_table(null), _power_table(power)],
        figures={"calibration_power": power_figure(power)},
        captions={
            "calibration_power": "How often a placement's effect is found: dots, simulated sweeps with 95 % binomial "
            "intervals; lines, the power that the plan promises (Bonferroni over six contrasts)."
        },
        notes=[f"sd of a difference between two cells of one seed: {100 * sd:.2f} points"],
    )


def simulate(rng: np.random.Generator, *, sd: float, n_seeds: int, effects: dict[str, float]) -> pd.DataFrame:
    """The runs of one sweep, prepared as `cells.prepare` leaves them.

    Args:
        sd: of the difference of two cells in one seed; half of its variance is each cell's own.
        effects: placement -> what is added to its score.
    """
    shape = (len(PLACEMENTS), len(RATES), n_seeds)
    shift = np.array([effects.get(name, 0.0) for name in PLACEMENTS])[:, None, None]
    own = sd / math.sqrt(2)
    shared = rng.normal(0, sd, n_seeds)
    truth = LEVEL + CURVE[None, :, None] + shared + shift
    # A run's own variance is two parts training, which both splits see, and one part rows, which each has alone.
    trained = truth + rng.normal(0, own * math.sqrt(2 / 3), shape)
    select, report = (trained + rng.normal(0, own * math.sqrt(1 / 3), shape) for _ in range(2))
    index = pd.MultiIndex.from_product([PLACEMENTS, RATES, range(n_seeds)], names=["arm", "lr", "seed"])
    runs = pd.DataFrame({"select": select.ravel(), "report": report.ravel()}, index=index).reset_index()
    return runs.assign(
        targets=runs["arm"], method="lora", status="finished", scored=True, train=np.nan, adapter_parameters=36_864
    ).assign(rank=8, rank_min=8, rank_max=8)


def judged(runs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series]:
    """What the analysis of a real sweep does: (verdicts, estimates, chosen rates)."""
    rates = cells.choose_rates(runs)["lr"]
    estimates = cells.estimate(runs, rates.to_dict())
    pairs = [(REFERENCE_TARGETS, other) for other in OTHERS]
    return cells.compare(estimates, pairs, margin=0.02), estimates, rates


def null_row(sd: float, n_seeds: int, n_sweeps: int, seed: int) -> dict[str, float]:
    """False verdicts and coverage over sweeps in which all placements are alike."""
    rng = np.random.default_rng([seed, n_seeds])
    false = covered = 0
    for _ in track(range(n_sweeps), f"no effect, {n_seeds} seeds", transient=True):
        verdicts, estimates, rates = judged(simulate(rng, sd=sd, n_seeds=n_seeds, effects={}))
        false += bool(verdicts["verdict"].isin(["better", "worse"]).any())
        at = estimates.loc[REFERENCE_TARGETS]
        covered += bool(at["low"] <= LEVEL + CURVE[RATES.index(rates[REFERENCE_TARGETS])] <= at["high"])
    low, high = _binomial(false, n_sweeps)
    return {
        "n_seeds": n_seeds,
        "n_sweeps": n_sweeps,
        "false_positives": false / n_sweeps,
        "low": low,
        "high": high,
        "coverage": covered / n_sweeps,
    }


def power_row(sd: float, n_seeds: int, effect: float, n_sweeps: int, seed: int) -> dict[str, float]:
    """How often qv, better by `effect` sd than all others, is called better than k; and what the plan promises."""
    rng = np.random.default_rng([seed, n_seeds, round(100 * effect), 1])
    found = 0
    for _ in track(range(n_sweeps), f"effect {effect:g} sd, {n_seeds} seeds", transient=True):
        verdicts, _, _ = judged(simulate(rng, sd=sd, n_seeds=n_seeds, effects={REFERENCE_TARGETS: effect * sd}))
        found += verdicts.loc[verdicts["second"] == "k", "verdict"].item() == "better"
    low, high = _binomial(found, n_sweeps)
    promised = float(stats.detection_power(effect * sd, sd, n_seeds, error=ERROR / len(OTHERS)))
    return {
        "n_seeds": n_seeds,
        "effect": effect,
        "found": found / n_sweeps,
        "low": low,
        "high": high,
        "promised": promised,
    }


@figures.styled
def power_figure(power: pd.DataFrame) -> Figure:
    """Power against effect, one colour per number of seeds."""
    figure = Figure(figsize=(3.4, 2.5), layout="constrained")
    axis = figure.subplots()
    colours = sns.color_palette("colorblind", len(SEEDS))
    for (n_seeds, rows), colour, marker in zip(power.groupby("n_seeds"), colours, "os^", strict=True):
        axis.plot(rows["effect"], 100 * rows["promised"], color=colour, linewidth=1)
        spread = 100 * np.abs(rows[["low", "high"]].to_numpy().T - rows["found"].to_numpy())
        axis.errorbar(
            rows["effect"],
            100 * rows["found"],
            spread,
            fmt=marker,
            color=colour,
            markersize=4,
            label=f"{n_seeds} seeds",
        )
    axis.set(xlabel="true difference (sd of a difference)", ylabel="found (%)", ylim=(-3, 103))
    axis.legend(frameon=False)
    return figure


def _binomial(count: int, n: int) -> tuple[float, float]:
    found = binomtest(count, n).proportion_ci(method="exact")
    return float(found.low), float(found.high)


def _percent(value: object) -> str:
    return f"{100 * float(str(value)):.1f}"


def _null_table(null: pd.DataFrame) -> Table:
    shown = null.assign(
        interval=[f"{_percent(a)} to {_percent(b)}" for a, b in zip(null["low"], null["high"], strict=True)]
    )
    return Table(
        name="calibration_null",
        title="No effect: sweeps with any false verdict (nominal 5 %), and coverage of 95 % intervals",
        frame=shown,
        columns=[
            Column("n_seeds", "seeds", reporting.count),
            Column("n_sweeps", "sweeps", reporting.count),
            Column("false_positives", "false verdict %", _percent),
            Column("interval", "95 % interval", is_number=False),
            Column("coverage", "coverage %", _percent),
        ],
    )


def _power_table(power: pd.DataFrame) -> Table:
    return Table(
        name="calibration_power",
        title="Known effect: how often it is found, and what the plan promises",
        frame=power,
        columns=[
            Column("n_seeds", "seeds", reporting.count),
            Column("effect", "effect (sd)", "{:g}".format),
            Column("found", "found %", _percent),
            Column("promised", "promised %", _percent),
        ],
    )


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", metavar="FOLDER", help="read the noise from the runs of a store")
    parser.add_argument("--sd", type=float, default=0.02, help="noise of a difference, as a share of 1 (default: 0.02)")
    parser.add_argument("--sweeps", type=int, default=2000, help="sweeps without an effect (default: 2000)")
    parser.add_argument("--power-sweeps", type=int, default=300, help="sweeps per effect and seeds (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation (default: 0)")
    parser.add_argument("--out", default="report", metavar="FOLDER")
    options = parser.parse_args(argv)
    if not options.sd > 0 or min(options.sweeps, options.power_sweeps) < 1:
        parser.error("--sd, --sweeps and --power-sweeps must be above 0")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
