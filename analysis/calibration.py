"""Can the verdicts be trusted? The instrument's own test: sweeps with known truth through the code that judges real
ones.

Parts that need no store: `null` (simulated sweeps without an effect: how often is one claimed?) and `power` (known
effects: how often are they found, against what the plan promises?). Parts that read a store: `aa` (runs that differ in
nothing but the adapter's init; sweeps/calibration_aa.yaml), `coverage` (do the intervals of few seeds hold the mean of
many? calibration_reference.yaml) and `planted` (teachers of known placement and rank; calibration_planted.yaml).
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from rich.progress import track

from lora_bench import calibration, cells, figures, reporting, stats, tuning
from lora_bench.calibration import ERROR, NOISES, PAIRS, SHIFTED, Share
from lora_bench.reporting import Column, Section, Table
from lora_bench.store import Store, StoreError

PARTS = ("null", "power", "aa", "coverage", "planted")
SEEDS = (3, 5, 8)
NULLS = [("normal", 3), ("normal", 5), ("normal", 8), ("heavy", 3), ("heavy", 8), ("coarse", 3), ("coarse", 8)]
EFFECTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)  # in standard deviations of a paired difference
TIE_SD = 0.25  # noise over margin, at which eight seeds can show a tie
COVERAGE_SEEDS = 24  # a reference needs several times the seeds that are tested against it
COVERAGE_DRAWS = 2_000

Sweeps = Callable[[str, int, Callable[[np.random.Generator], pd.DataFrame]], Iterator[pd.DataFrame]]


def main(argv: list[str] | None = None) -> int:
    options = _parse(argv)
    wanted = options.parts or PARTS
    made: list[Section] = []
    absent: list[tuple[str, str]] = []
    for part in wanted:
        try:
            made += _section_makers()[part](options)
        except (cells.NothingToShow, StoreError) as error:
            absent.append((part, str(error)))
    made.append(_summary(made, absent))
    out = reporting.console()
    for section in made:
        reporting.show_and_write(section, options.out, out)
    for part, why in absent:
        print(f"{part}: {why}", file=sys.stderr)
    is_all_absent = len(absent) == len(wanted)
    return 2 if is_all_absent or (options.parts and absent) else 0


def _section_makers() -> dict[str, Callable[[argparse.Namespace], list[Section]]]:
    return {"null": null, "power": power, "aa": replicates, "coverage": reference, "planted": planted}


# ---------------------------------------------------------------- no effect


def null(options: argparse.Namespace) -> list[Section]:
    """Simulated sweeps whose placements are all alike."""
    rows = []
    for noise, n_seeds in NULLS:
        sweeps = _sweeps(options, f"no effect, {noise}, {n_seeds} seeds", n_seeds, options.sweeps)
        drawn = (calibration.simulate(rng, sd=options.sd / 100, n_seeds=n_seeds, noise=noise) for rng in sweeps)
        found = calibration.errors(drawn)
        label = f"{noise}, {n_seeds} seeds"
        rows.append({"label": label, "noise": NOISES[noise], "n_seeds": n_seeds} | _error_row(found))
    table = pd.DataFrame(rows)
    tied = _false_ties(options)
    low, high = tied.interval()
    worst = cells.highest(table, "share")
    holds = bool((table["low"] <= ERROR).all() and low <= ERROR)
    sentence = (
        f"Without an effect, {options.sweeps:,} simulated sweeps of each kind gave a false verdict in at most "
        f"{_percent(worst['share'])} % ({worst['label']}; 95 % binomial interval {_percent(worst['low'])} to "
        f"{_percent(worst['high'])}): " + ("within the nominal 5 %." if holds else "more than the nominal 5 %.")
    )
    return [
        Section(
            title="Calibration: no effect",
            sentence=sentence,
            tables=[_null_table("calibration_null", table)],
            figures={"calibration_null": figures.error_rates(table, nominal=ERROR)},
            captions={
                "calibration_null": f"Share of {options.sweeps:,} simulated sweeps (7 equal placements, 5 rates) in "
                "which any of the six contrasts is called better or worse, with 95 % binomial intervals; hollow: "
                "before Holm's correction."
            },
            notes=[
                f"placements that differ by exactly the margin were called tied in {_percent(tied.value)} % of "
                f"{tied.n:,} sweeps ({_percent(low)} to {_percent(high)}; nominal: at most 5), {SEEDS[-1]} seeds, "
                "noise a quarter of the margin",
                "the 95 % interval of qv at its chosen rate missed its true mean in "
                f"{_percent(table['missed'].min())} to {_percent(table['missed'].max())} % of the sweeps: the rate is "
                "chosen on select, whose luck report half shares",
                f"noise: {options.sd:g} points (sd of a difference between two cells of one seed)",
            ],
            facts={"says": "holds" if holds else "fails", "table": table, "ties": tied},
        )
    ]


def _false_ties(options: argparse.Namespace) -> Share:
    """Sweeps in which qv beats all others by exactly the margin: a tie would be false."""
    n_seeds, margin = SEEDS[-1], calibration.MARGIN
    sweeps = _sweeps(options, f"a difference of one margin, {n_seeds} seeds", 100 + n_seeds, options.sweeps)
    drawn = (calibration.simulate(rng, sd=TIE_SD * margin, n_seeds=n_seeds, effects={"qv": margin}) for rng in sweeps)
    return calibration.ties(drawn)


def _error_row(found: calibration.Errors) -> dict[str, float]:
    low, high = found.verdict.interval()
    other_low, other_high = found.uncorrected.interval()
    return {
        "n_sweeps": found.verdict.n,
        "share": found.verdict.value,
        "low": low,
        "high": high,
        "other": found.uncorrected.value,
        "other_low": other_low,
        "other_high": other_high,
        "missed": found.missed.value,
    }


def _null_table(name: str, table: pd.DataFrame) -> Table:
    shown = table.assign(
        interval_shown=[reporting.interval(a, b, _percent) for a, b in zip(table["low"], table["high"], strict=True)]
    )
    return Table(
        name,
        "No effect: sweeps with any false verdict (nominal 5 %)",
        shown,
        [
            Column("label", "sweeps", reporting.text, is_number=False),
            Column("n_sweeps", "n", reporting.count),
            Column("share", "false verdict %", _percent),
            Column("interval_shown", "95 % interval", is_number=False),
            Column("other", "before Holm %", _percent),
            Column("missed", "interval misses %", _percent),
        ],
    )  # fmt: skip


# ---------------------------------------------------------------- known effect


def power(options: argparse.Namespace) -> list[Section]:
    """Simulated sweeps in which one placement is worse by a known difference."""
    sd = options.sd / 100

    def draw(rng: np.random.Generator, n_seeds: int, effect: float) -> pd.DataFrame:
        return calibration.simulate(rng, sd=sd, n_seeds=n_seeds, effects={SHIFTED: -effect * sd})

    table = _power_rows(options, sd, draw)
    return [
        Section(
            title="Calibration: known effect",
            sentence=f"Simulated sweeps: {_power_sentence(table)}",
            tables=[_power_table("calibration_power", table)],
            figures={"calibration_power": figures.power_curves(table)},
            captions={
                "calibration_power": "How often qv is called better than a placement that is worse by a known "
                f"difference: marks, {options.power_sweeps:,} simulated sweeps with 95 % binomial intervals; dashed, "
                f"the power that the plan promises for one of {len(PAIRS)} contrasts."
            },
            facts={"says": _power_says(table), "table": table},
        )
    ]


def _power_rows(
    options: argparse.Namespace, sd: float, draw: Callable[[np.random.Generator, int, float], pd.DataFrame]
) -> pd.DataFrame:
    rows = []
    for n_seeds in SEEDS:
        for effect in EFFECTS:
            stream = 1_000 * n_seeds + round(100 * effect)
            sweeps = _sweeps(options, f"effect {effect:g} sd, {n_seeds} seeds", stream, options.power_sweeps)
            found = calibration.detections(draw(rng, n_seeds, effect) for rng in sweeps)
            low, high = found.interval()
            # All points together are to hold at 95 %.
            _, most = found.interval(1 - 2 * ERROR / (len(SEEDS) * len(EFFECTS)))
            promised = calibration.promised_power(effect * sd, sd, n_seeds)
            rows.append(
                {
                    "n_seeds": n_seeds,
                    "effect": effect,
                    "difference": effect * sd,
                    "n_sweeps": found.n,
                    "found": found.value,
                    "low": low,
                    "high": high,
                    # One direction of a two-sided test is half of the error where there is no effect.
                    "promised": promised if effect else promised / 2,
                    "is_kept": most >= promised if effect else True,
                }
            )
    return pd.DataFrame(rows)


def _power_says(table: pd.DataFrame) -> str:
    return "holds" if table["is_kept"].all() else "fails"


def _power_sentence(table: pd.DataFrame) -> str:
    real = table[table["effect"] > 0]
    gaps = real["found"] - real["promised"]
    kept = int(real["is_kept"].sum())
    return (
        f"the promised power is kept at {kept} of {len(real)} points (found minus promised: "
        f"{reporting.signed(gaps.min(), 0)} to {reporting.signed(gaps.max(), 0)} points)."
    )


def _power_table(name: str, table: pd.DataFrame) -> Table:
    shown = table.assign(
        interval_shown=[reporting.interval(a, b, _percent) for a, b in zip(table["low"], table["high"], strict=True)]
    )
    return Table(
        name,
        "Known effect: how often it is found, and what the plan promises",
        shown,
        [
            Column("n_seeds", "seeds", reporting.count),
            Column("effect", "effect (sd)", reporting.plain),
            Column("difference", "points", reporting.points),
            Column("n_sweeps", "n", reporting.count),
            Column("found", "found %", _percent),
            Column("interval_shown", "95 % interval", is_number=False),
            Column("promised", "promised %", _percent),
        ],
    )  # fmt: skip


# ---------------------------------------------------------------- real A/A


def replicates(options: argparse.Namespace) -> list[Section]:
    """Runs that differ in the adapter's init alone, and what their differences do to simulated verdicts.

    Raises:
        NothingToShow: when the store has no such pair.
    """
    runs = _prepared(options)
    runs = cells.name_arms(runs[runs["method"].isin(cells.LORA_METHODS)])
    runs = runs[runs["replicate"].isin([0, 1])]
    # Two draws of one cell are two arms of one setting.
    runs = runs.assign(cell=runs["arm"], draw=runs["replicate"], replicate=0)
    runs = runs.assign(arm=[_arm(cell, draw) for cell, draw in zip(runs["cell"], runs["draw"], strict=True)])
    made = []
    for setting in _settings(runs, options):
        both = setting.runs.groupby("cell", sort=False)["draw"].nunique()
        paired = list(both.index[both == 2])
        if paired:
            runs = setting.runs[setting.runs["cell"].isin(paired)]
            is_pair = runs.groupby(["cell", "lr", "seed"])["draw"].transform("nunique") == 2  # others are no A/A runs
            made.append(_replicates(setting, runs[is_pair], paired, options))
    if not made:
        raise cells.NothingToShow(
            "no cell was run with adapter.replicate=0 and 1; start with: lora-bench +sweeps=calibration_aa"
        )
    return made


def _arm(cell: str, draw: float) -> str:
    return f"{cell} {'AB'[int(draw)]}"


def _replicates(setting: cells.Setting, runs: pd.DataFrame, paired: list[str], options: argparse.Namespace) -> Section:
    cells.refuse_duplicates(setting, runs)
    margin = reporting.margin(options, setting.metric)
    judged = cells.judge(runs, [(_arm(cell, 0), _arm(cell, 1)) for cell in paired], margin=margin)
    contrasts = judged.contrasts
    scored = runs[runs["scored"]]
    table = scored.pivot_table(index=["cell", "lr", "seed"], columns="draw", values="report").dropna()
    residuals = (table[0] - table[1]).to_numpy() if {0, 1} <= set(table.columns) else np.empty(0)
    sd = float(np.sqrt((residuals**2).mean())) if residuals.size else float("nan")
    called = contrasts[contrasts["verdict"].isin(["better", "worse"])]
    tested = contrasts[contrasts["n_pairs"] >= stats.MIN_PAIRS]
    told = f"{reporting.listed(list(called['first'].str.removesuffix(' A')))} falsely" if len(called) else "none"
    sentence = (
        f"A/A on {setting.title}: two draws of the adapter's init, all else shared, in {len(tested)} cells of "
        f"{int(contrasts['n_pairs'].max())} seeds; called different: {told}. The sd of such a difference is "
        f"{reporting.points(sd, 2)} points."
    )
    name = f"calibration_aa_{setting.slug}"
    section = Section(
        title=f"Calibration: A/A on {setting.title}",
        sentence=sentence,
        tables=[reporting.contrast_table(name, contrasts, margin)],
        notes=[*setting.notes, *_missing(setting, runs)],
        facts={"says": "fails" if len(called) else "holds" if len(tested) else "missing", "contrasts": contrasts},
    )
    shown = contrasts[contrasts["n_pairs"] > 0]
    if len(shown):
        labels = shown["first"].str.removesuffix(" A") + ": A − B"
        section.figures[name] = figures.contrasts(shown.assign(label=labels, extra=""), margin=margin)
        section.captions[name] = (
            "Two draws of the adapter's init (A, B) under shared head, data order and dropout: paired differences on "
            "report with 95 % intervals and verdicts, Holm-corrected over the cells. There is nothing to find."
        )
    if residuals.size >= stats.MIN_PAIRS and sd > 0:
        _add_resampled(section, name, residuals, sd, options)
    else:
        section.notes.append("too few differences that vary: they are not resampled")
    return section


def _add_resampled(section: Section, name: str, residuals: np.ndarray, sd: float, options: argparse.Namespace) -> None:
    """Put false verdicts and power on the real differences into the section."""
    rows = []
    for n_seeds in SEEDS:
        sweeps = _sweeps(options, f"A/A residuals, {n_seeds} seeds", 200 + n_seeds, options.sweeps)
        found = calibration.errors(calibration.resample(rng, residuals, n_seeds=n_seeds) for rng in sweeps)
        rows.append({"label": f"A/A residuals, {n_seeds} seeds", "n_seeds": n_seeds} | _error_row(found))
    errors = pd.DataFrame(rows)

    def draw(rng: np.random.Generator, n_seeds: int, effect: float) -> pd.DataFrame:
        return calibration.resample(rng, residuals, n_seeds=n_seeds, shift=effect * sd)

    table = _power_rows(options, sd, draw)
    worst = cells.highest(errors, "share")
    section.sentence += (
        f" Sweeps made of the {residuals.size} real differences, with random signs, gave a false verdict in at most "
        f"{_percent(worst['share'])} % ({_percent(worst['low'])} to {_percent(worst['high'])}); with a shift put on "
        f"one placement, {_power_sentence(table)}"
    )
    section.tables += [
        _null_table(f"{name}_null", errors.drop(columns="missed").assign(missed=np.nan)),
        _power_table(f"{name}_power", table),
    ]
    section.figures[f"{name}_power"] = figures.power_curves(table)
    section.captions[f"{name}_power"] = (
        f"Real A/A differences (sd {reporting.points(sd, 2)} points) with a shift put on one placement: how often qv "
        "is called better than it, with 95 % binomial intervals; dashed, the promised power at that sd."
    )
    section.facts |= {"errors": errors, "power": table}
    if (errors["low"] > ERROR).any() or _power_says(table) == "fails":
        section.facts["says"] = "fails"


# ---------------------------------------------------------------- coverage


def reference(options: argparse.Namespace) -> list[Section]:
    """Intervals of few seeds against the mean of many, for cells and for their paired differences.

    Raises:
        NothingToShow: when no cell has enough seeds.
    """
    runs = cells.name_arms(_prepared(options))
    made = []
    for setting in _settings(runs[runs["method"].isin(cells.LORA_METHODS)], options):
        cells.refuse_duplicates(setting, setting.runs)
        scores = _scores(setting.runs)
        if scores:
            made.append(_reference(setting, scores, options))
    if not made:
        raise cells.NothingToShow(
            f"no cell has {COVERAGE_SEEDS} seeds or more; start with: lora-bench +sweeps=calibration_reference"
        )
    return made


def _scores(runs: pd.DataFrame) -> dict[str, np.ndarray]:
    """Scores of cells with many seeds, at the rate with the most of them, and differences of neighbouring cells."""
    found: dict[str, pd.Series] = {}
    for arm, mine in runs[runs["scored"]].groupby("arm", sort=False):
        counts = mine["lr"].value_counts()
        if counts.max() >= COVERAGE_SEEDS:
            found[str(arm)] = mine[mine["lr"] == counts.idxmax()].set_index("seed")["report"]
    scores = {arm: each.to_numpy(float) for arm, each in found.items()}
    names = list(found)
    for first, second in itertools.pairwise(names):
        differences = (found[first] - found[second]).dropna()
        if len(differences) >= COVERAGE_SEEDS:
            scores[f"{first} − {second}"] = differences.to_numpy(float)
    return scores


def _reference(setting: cells.Setting, scores: dict[str, np.ndarray], options: argparse.Namespace) -> Section:
    rng = np.random.default_rng([options.seed, 300])
    rows = []
    for name, values in scores.items():
        for n_seeds in SEEDS:
            low, high = calibration.coverage_band(n_seeds, values.size, rng=rng)
            rows.append(
                {
                    "cell": name,
                    "label": f"{name}, {n_seeds} seeds",
                    "n_seeds": n_seeds,
                    "n_all": values.size,
                    "mean": values.mean(),
                    "sd": values.std(ddof=1),
                    "coverage": calibration.coverage(values, n_seeds, n_draws=COVERAGE_DRAWS, rng=rng),
                    "expected": calibration.expected_coverage(n_seeds, values.size),
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
        f"{_percent(eight['coverage'].min())} to {_percent(eight['coverage'].max())} % of draws; normal scores would "
        f"give {_percent(eight['expected'].iloc[0])} % ({_percent(eight['band_low'].min())} to "
        f"{_percent(eight['band_high'].max())} for sets of that size): "
        + ("as they should." if holds else "too rarely somewhere, see the table.")
    )
    name = f"calibration_coverage_{setting.slug}"
    columns = [
        Column("cell", "cell", reporting.text, is_number=False),
        Column("n_seeds", "seeds", reporting.count),
        Column("n_all", "of", reporting.count),
        Column("mean", "mean", reporting.points),
        Column("sd", "sd", reporting.points),
        Column("coverage", "coverage %", _percent),
        Column("expected", "normal scores %", _percent),
        Column("band_low", "from", _percent),
        Column("band_high", "to", _percent),
    ]
    return Section(
        title=f"Calibration: coverage on {setting.title}",
        sentence=sentence,
        tables=[Table(name, "How often intervals of few seeds hold the mean of many", table, columns)],
        figures={name: figures.coverages(table)},
        captions={
            name: f"Share of {COVERAGE_DRAWS:,} draws of some seeds whose 95 % t interval holds the mean of all "
            f"{most}; grey: where 95 % of sets of normal scores lie. The few are part of the many, so more than 95 % "
            "is expected."
        },
        notes=[*setting.notes, *_missing(setting, setting.runs[setting.runs["arm"].isin(list(scores))])],
        facts={"says": "holds" if holds else "fails", "table": table},
    )


# ---------------------------------------------------------------- planted teachers


def planted(options: argparse.Namespace) -> list[Section]:
    """Teachers of known placement and rank: which students learn them?

    Raises:
        NothingToShow: when the store has no planted task.
    """
    runs = _prepared(options)
    teachers = _teachers(runs, Store(options.store))
    if not teachers:
        raise cells.NothingToShow("no run has a planted task; start with: lora-bench +sweeps=calibration_planted")
    runs = runs[runs["task_fingerprint"].isin(list(teachers))]
    groups: dict[tuple, list[cells.Setting]] = {}
    for setting in _settings(runs, options):
        rest = [(key, str(value)) for key, value in setting.facts.items() if key not in ("task", "task_fingerprint")]
        about = teachers[setting.facts["task_fingerprint"]]
        groups.setdefault((*rest, about["seed"], about["noise"], about["texts"]), []).append(setting)
    return [
        _planted(group, teachers, f"calibration_planted{f'_{i}' if len(groups) > 1 else ''}", options)
        for i, group in enumerate(groups.values())
    ]


def _teachers(runs: pd.DataFrame, store: Store) -> dict[str, dict]:
    """Task fingerprint -> what the records say of the teacher."""
    found = {}
    names = runs["task"].astype(str)
    for fingerprint, of_task in runs[names.str.startswith("planted")].groupby("task_fingerprint"):
        about = store.record(of_task["run_id"].iloc[0]).get("data", {}).get("planted")
        if about:
            found[str(fingerprint)] = about
    return found


def _planted(group: list[cells.Setting], teachers: dict[str, dict], name: str, options: argparse.Namespace) -> Section:
    metric = group[0].metric
    margin = reporting.margin(options, metric)
    rows, parts, notes, curves = [], [], [], []
    for setting in sorted(group, key=lambda one: _place(teachers[one.facts["task_fingerprint"]]["targets"])):
        about = teachers[setting.facts["task_fingerprint"]]
        cells.refuse_duplicates(setting, cells.name_arms(setting.runs))
        try:
            ((_, runs), *_) = cells.at_budgets(setting)
        except cells.NothingToShow as error:
            notes.append(str(error))
        else:
            mine = _matrix_rows(about, runs, margin)
            rows += mine
            parts.append(_teacher_sentence(about, pd.DataFrame(mine)))
            notes += _missing(setting, runs.assign(arm=_student_arms(runs)))
            notes += _uncertified(about, mine)
        curve = _rank_curve(setting, about)
        if curve is not None:
            curves.append((about, curve))
    section = Section(
        title=f"Calibration: planted teachers on {group[0].title.split(' · ')[0]}",
        sentence=_planted_sentence(parts, rows, curves),
        notes=list(dict.fromkeys([*group[0].notes, *notes])),
        facts={"says": "shown", "matrix": pd.DataFrame(rows)},
    )
    if rows:
        section.tables.append(_matrix_table(name, pd.DataFrame(rows)))
        section.figures[name] = figures.planted_matrix(_in_order(pd.DataFrame(rows)), metric=metric)
        section.captions[name] = (
            "Mean score on the teacher's own labels (report) of students at one budget, each at its own rate chosen on "
            "select. Signs: the student against the teacher's own placement, paired by seed, Holm-corrected within the "
            "row."
        )
    for i, (about, curve) in enumerate(curves):
        label = f"{name}_rank{f'_{i}' if len(curves) > 1 else ''}"
        section.tables.append(_curve_table(label, about, curve))
        section.figures[label] = figures.ranks(curve, metric=metric, marked=int(about["rank"]))
        section.captions[label] = (
            f"Students on {about['targets']} against their rank; the teacher, on {about['targets']} too, has rank "
            f"{about['rank']}. Means over seeds with 95 % t intervals; small marks: seeds."
        )
    return section


def _uncertified(about: dict, rows: list[dict]) -> list[str]:
    doubtful = [
        one["student"] for one in rows if one["certificate"] in tuning.UNCERTIFIED and one["student"] != "head only"
    ]
    told = f"teacher on {about['targets']}: the rate of {reporting.listed(doubtful)} is not certified"
    return [f"{told}; another may be better"] if doubtful else []


def _student_arms(runs: pd.DataFrame) -> pd.Series:
    return runs["targets"].where(runs["method"] != cells.FLOOR, cells.FLOOR)


def _matrix_rows(about: dict, runs: pd.DataFrame, margin: float) -> list[dict]:
    own = about["targets"]
    runs = cells.sort_arms(runs.assign(arm=_student_arms(runs)))
    students = [arm for arm in runs["arm"].unique() if arm not in (own, cells.FLOOR)]
    judged = cells.judge(runs, [(arm, own) for arm in students], margin=margin)
    verdicts = judged.contrasts.set_index("first").to_dict("index")
    certificates = judged.rates["certificate"].to_dict()
    rows = []
    for arm, one in judged.estimates.to_dict("index").items():
        pair = verdicts.get(arm)
        rows.append(
            {
                "teacher": _teacher_name(about),
                "student": "head only" if arm == cells.FLOOR else arm,
                "lr": one["lr"],
                "certificate": certificates[arm],
                "n_seeds": one["n_seeds"],
                "mean": one["mean"],
                "low": one["low"],
                "high": one["high"],
                "difference": pair["difference"] if pair is not None else np.nan,
                "p_holm": pair["p_holm"] if pair is not None else np.nan,
                "verdict": str(pair["verdict"]) if pair is not None else "",
                "is_own": arm == own,
            }
        )
    return rows


def _teacher_name(about: dict) -> str:
    return f"{about['targets']} r={about['rank']}"


def _teacher_sentence(about: dict, rows: pd.DataFrame) -> str:
    scored = rows[(rows["student"] != "head only") & np.isfinite(rows["mean"])]
    if scored.empty:
        return f"teacher on {about['targets']}: no student has a score"
    best = cells.highest(scored, "mean")
    if best["is_own"]:
        return (
            f"the teacher on {about['targets']} is learned best on its own placement ({reporting.points(best['mean'])})"
        )
    if not scored["is_own"].any():
        return f"the teacher on {about['targets']} is learned best on {best['student']}; its own placement was not run"
    own = scored[scored["is_own"]].iloc[0]
    return (
        f"the teacher on {about['targets']} is learned best on {best['student']} ({reporting.points(best['mean'])}, "
        f"which is {best['verdict']} against its own placement's {reporting.points(own['mean'])})"
    )


def _planted_sentence(parts: list[str], rows: list[dict], curves: list[tuple[dict, pd.DataFrame]]) -> str:
    table = pd.DataFrame(rows)
    told = []
    if parts:
        adapted = table[table["student"] != "head only"]
        best = adapted.loc[adapted.dropna(subset="mean").groupby("teacher")["mean"].idxmax()]
        told.append(
            f"Of {len(best)} teachers, {int(best['is_own'].sum())} have the highest mean on their own placement: "
            f"{'; '.join(parts)}."
        )
    for about, curve in curves:
        best = cells.highest(curve, "mean")
        at = curve[curve["rank"] == about["rank"]]
        own = f"; its own rank {about['rank']} scores {reporting.points(at['mean'].iloc[0])}" if len(at) else ""
        told.append(
            f"On the teacher of {_teacher_name(about)}, students on {about['targets']} do best at rank "
            f"{int(best['rank'])} ({reporting.points(best['mean'])}){own}."
        )
    return " ".join(told) or "No placement or rank can be compared on the planted tasks of this store."


def _rank_curve(setting: cells.Setting, about: dict) -> pd.DataFrame | None:
    """Students on the teacher's own placement at several ranks."""
    runs = setting.runs[(setting.runs["targets"] == about["targets"]) & setting.runs["rank"].notna()]
    if runs["rank"].nunique() < 2:
        return None
    runs = cells.name_arms(runs)
    judged = cells.judge(runs, [], margin=stats.margin_of(setting.metric))
    estimates = judged.estimates
    first = runs.drop_duplicates("arm").set_index("arm")["rank"]
    return estimates.assign(rank=first.loc[estimates.index].astype(int)).dropna(subset="mean")


def _curve_table(name: str, about: dict, curve: pd.DataFrame) -> Table:
    frame = curve[["targets", "rank", "lr", "n_seeds", "mean", "low", "high"]].reset_index(drop=True)
    frame = frame.assign(
        score_shown=[reporting.plus_minus(a, b) for a, b in zip(frame["mean"], frame["high"], strict=True)]
    )
    columns = [
        Column("targets", "student", reporting.text, is_number=False),
        Column("rank", "rank", reporting.count),
        Column("lr", "lr", reporting.plain),
        Column("n_seeds", "seeds", reporting.count),
        Column("score_shown", "report", reporting.text),
    ]
    return Table(name, f"Score against rank on the teacher of {_teacher_name(about)}", frame, columns)


def _matrix_table(name: str, table: pd.DataFrame) -> Table:
    shown = table.assign(
        score_shown=[reporting.plus_minus(a, b) for a, b in zip(table["mean"], table["high"], strict=True)],
        own_shown=np.where(table["is_own"], "own", ""),
    )
    columns = [
        Column("teacher", "teacher", reporting.text, is_number=False),
        Column("student", "student", reporting.text, is_number=False),
        Column("own_shown", "", reporting.text, is_number=False),
        Column("lr", "lr", reporting.plain),
        Column("n_seeds", "seeds", reporting.count),
        Column("score_shown", "report", reporting.text),
        Column("difference", "− own", reporting.signed),
        Column("p_holm", "p Holm", reporting.p_value),
        Column("verdict", "it is", reporting.text, is_number=False),
    ]
    return Table(name, "Planted against adapted placement: score on the teacher's labels ± 95 %", shown, columns)


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Students in one order for all teachers, the head alone last."""
    key = table["student"].map(_place)
    return table.assign(_key=key).sort_values("_key", kind="stable").drop(columns="_key")


def _place(name: str) -> tuple[bool, int, str]:
    known = list(cells.PLACEMENTS)
    return name == "head only", known.index(name) if name in known else len(known), name


# ---------------------------------------------------------------- helpers


def _summary(made: list[Section], absent: list[tuple[str, str]]) -> Section:
    rows = [
        {"part": one.title.removeprefix("Calibration: "), "says": one.facts["says"], "found": one.sentence}
        for one in made
    ]
    rows += [{"part": part, "says": "missing", "found": why} for part, why in absent]
    table = pd.DataFrame(rows)
    failed = list(table["part"][table["says"] == "fails"])
    missing = list(table["part"][table["says"] == "missing"])
    sentence = (
        f"The instrument fails its own test: {reporting.listed(failed)}."
        if failed
        else "Nothing here speaks against the verdicts."
    )
    if missing:
        sentence += f" Not tested: {reporting.listed(missing)}."
    columns = [
        Column("part", "part", reporting.text, is_number=False),
        Column("says", "says", reporting.text, is_number=False),
        Column("found", "found", reporting.text, is_number=False),
    ]
    return Section("Calibration", sentence, [Table("calibration", "What the test says", table, columns)])


def _sweeps(options: argparse.Namespace, label: str, stream: int, n: int) -> Iterator[np.random.Generator]:
    """One generator a sweep, all of one stream; with a bar on the terminal."""
    rng = np.random.default_rng([options.seed, stream])
    for _ in track(range(n), label, transient=True, disable=not sys.stderr.isatty()):
        yield rng


def _prepared(options: argparse.Namespace) -> pd.DataFrame:
    return cells.prepare(reporting.read_frame(options.store), metric=options.metric)


def _settings(runs: pd.DataFrame, options: argparse.Namespace) -> list[cells.Setting]:
    if runs.empty:
        return []
    return cells.settings(runs, model=options.model, task=options.task, mix_environments=options.mix_environments)


def _missing(setting: cells.Setting, runs: pd.DataFrame) -> list[str]:
    told = []
    absent = cells.missing(runs, [])
    if absent:
        told.append(f"{setting.title}: missing from the store: {absent}")
    failed = cells.failures(runs)
    if failed:
        told.append(f"{setting.title}: runs without a score, kept out and counted: {'; '.join(failed)}")
    return told


def _percent(value: object) -> str:
    return reporting.points(value)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = reporting.parser(__doc__, "calibration", by_method=False)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument(
        "--sd", type=float, default=2.0, metavar="POINTS", help="simulated noise of a paired difference (default: 2)"
    )
    parser.add_argument(
        "--sweeps", type=int, default=2000, metavar="N", help="sweeps without an effect (default: 2000)"
    )
    parser.add_argument(
        "--power-sweeps", type=int, default=300, metavar="N", help="sweeps per effect and seeds (default: 300)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the simulation (default: 0)")
    options = parser.parse_args(argv)
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}; parts are {', '.join(PARTS)}")
    if not options.sd > 0 or min(options.sweeps, options.power_sweeps) < 1 or options.seed < 0:
        parser.error("--sd, --sweeps and --power-sweeps must be above 0, --seed not below")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
