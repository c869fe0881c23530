"""Is each placement and rank shown at a fair learning rate? Score against rate, with the certificate of every choice.

The rate of a cell is chosen on `select`; the table puts its report score at its own best rate beside that at one rate
shared by all, which is what a sweep with one fixed rate would have reported. Where the store holds full fine-tuning,
the tenfold rule is put to the test: best LoRA rate = 10 x best rate of full fine-tuning.
Source: Schulman et al. 2025, LoRA Without Regret (the rule); Lee et al. 2026, arXiv:2602.04998 (tuned rates).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from lora_bench import wording
from lora_bench.reports import tables
from lora_bench.reports.figures.curves import learning_rates
from lora_bench.reports.scope import Scope, each_setting
from lora_bench.reports.section import Column, SettingSection, Table
from lora_bench.reports.started import Started, told_seeds
from lora_bench.verdicts import arms, power, settings, tuning
from lora_bench.verdicts.note import Note, gap


def sections(runs: pd.DataFrame, scope: Scope) -> list[SettingSection]:
    """One section per setting."""
    pinned = settings.varied_factors(runs)
    return each_setting(
        runs,
        scope,
        lambda setting: [section(setting, name=f"learning_rate_{setting.slug}", store=scope.store, pinned=pinned)],
    )


def section(
    setting: settings.Setting, *, name: str, store: Path, pinned: Mapping[str, Sequence[str]]
) -> SettingSection:
    """The table, the figure and the sentence for one setting.

    Args:
        pinned: as `paste_line` has it.
    """
    runs = arms.name_arms(setting.runs)
    settings.refuse_duplicates(setting, runs)
    rates = tuning.choose_rates(runs)
    own = arms.estimate(runs, rates["lr"])
    shared = tuning.shared_rate(runs)
    adapted = runs[runs["targets"] != ""]
    at_shared = arms.estimate(adapted, dict.fromkeys(adapted["arm"].unique(), shared))
    curves = _curves(adapted, rates)
    rule, _ = tenfold(runs)
    table = _table(name, setting, rates, own, at_shared, shared)
    return SettingSection(
        title=f"Learning rate: {setting.title}",
        sentence=sentence(setting, rates.loc[adapted["arm"].unique()], own, at_shared, shared, rule),
        tables=[table],
        figures={name: learning_rates(curves, metric=setting.metric, split="select")} if len(curves) else {},
        captions={
            name: "Score on select against the learning rate: means over seeds with 95 % t intervals, or, below three "
            "seeds, the seeds as dashes. The ringed rate is the one at which the cell's report score is shown "
            "everywhere else; rates with fewer seeds (hollow) do not compete. Numbers: means below the axis."
        },
        notes=_notes(setting, runs, rates, store, pinned) + _shared_notes(own, at_shared, shared),
        setting=setting,
    )


def tenfold(runs: pd.DataFrame) -> tuple[str, pd.Series]:
    """The rule as a claim about seeds: is log10(best LoRA rate / best full rate) within a step of a grid of 1?

    Returns:
        what was found, in words, and the log10 ratio of every seed (`tuning.over_full`).
    """
    per_seed = tuning.over_full(runs)
    if per_seed.empty:
        return "", per_seed
    verdict, share, _ = tuning.judge_log_ratios(per_seed.to_numpy(), 1.0)
    factor = 10 ** per_seed.mean()
    words = (
        f"the tenfold rule is {verdict} here: the best LoRA rate is {factor:.2g} times that of full fine-tuning "
        f"(geometric mean; {share:.0%} of {wording.counted(len(per_seed), 'seed')} "
        f"within a factor of {10**tuning.A_STEP:.1f} of ten)"
    )
    return words, per_seed


def sentence(
    setting: settings.Setting, rates: pd.DataFrame, own: pd.DataFrame, at_shared: pd.DataFrame, shared: float, rule: str
) -> str:
    """What was found here, in one sentence."""
    scored = rates[~rates["certificate"].isin(["none", tuning.FLAT])]
    if scored.empty:
        return f"On {setting.title} no cell has a score above that of the head alone, so no rate could be chosen."
    sure = scored["certificate"].isin(["inside", "inside*"])
    low, high = scored["lr"].min(), scored["lr"].max()
    span = f"at {low:g}" if low == high else f"between {low:g} and {high:g}"
    parts = [
        f"On {setting.title} the best rates lie {span}; {sure.sum()} of {len(scored)} are certified inside their grid"
    ]
    if math.isfinite(shared):
        loss = -_shared_difference(own, at_shared).reindex(scored.index).dropna()
        if len(loss):
            worst = loss.idxmax()
            parts.append(
                f"one shared rate of {shared:g} would move report scores by {wording.signed(-loss.max())} points "
                f"at worst ({worst})"
                if loss.max() > 0
                else f"one shared rate of {shared:g} would have cost no cell anything on report"
            )
    if rule:
        parts.append(rule)
    return "; ".join(parts) + "."


def paste_line(
    runs: pd.DataFrame, arm: str, add: list[float], store: Path, *, pinned: Mapping[str, Sequence[str]]
) -> str:
    """The command that runs an arm at the rates that its certificate lacks, from the way that its runs were started.

    Args:
        pinned: sweep -> the factors that it varies (`settings.varied_factors`), which the line holds at the arm's own.
    """
    of_arm = runs[runs["arm"] == arm]
    started = Started.of(of_arm.iloc[0], store, pinned=pinned)
    placement = [f"{key}={value}" for key, value in started.placement.items()]
    rates, seeds = ",".join(f"{rate:g}" for rate in add), told_seeds(sorted({int(seed) for seed in of_arm["seed"]}))
    return wording.command_line([*started.command, *placement, f"train.lr={rates}", f"seed={seeds}", *started.store])


def _notes(
    setting: settings.Setting, runs: pd.DataFrame, rates: pd.DataFrame, store: Path, pinned: Mapping[str, Sequence[str]]
) -> list[Note]:
    notes = list(setting.notes)
    adapted = [arm for arm in rates.index if arm != settings.FLOOR]
    notes.extend(tables.rate_notes(rates.loc[adapted]))
    notes.extend(
        Note(f"to settle {arm}: {paste_line(runs, arm, rates['add'][arm], store, pinned=pinned)}")
        for arm in adapted
        if rates.loc[arm, "certificate"] in tuning.UNCERTIFIED and runs.loc[runs["arm"] == arm, "targets"].iloc[0]
    )
    notes.extend(tables.failure_notes(runs))
    n_full = runs.loc[runs["arm"] == tuning.FULL, "lr"].nunique()
    if n_full < 3:
        kind = gap if n_full else Note  # a sweep without any never meant to
        notes.append(
            kind(
                "the tenfold rule needs full fine-tuning beside LoRA (adapter=full) at three rates or more; "
                f"the store has {n_full or 'none'}"
            )
        )
    return notes


def _shared_notes(own: pd.DataFrame, at_shared: pd.DataFrame, shared: float) -> list[Note]:
    """That the shared rate was run on fewer seeds, as in a staged search, where it was."""
    n_own, n_shared = (curve["n_seeds"].reindex(at_shared.index) for curve in (own, at_shared))
    if not (n_shared < n_own).any():
        return []
    return [
        Note(
            f"at the shared rate of {shared:g} some cells have fewer seeds than at their own "
            f"({n_shared.min()} at least); the change is on the seeds that both have"
        )
    ]


def _shared_difference(own: pd.DataFrame, at_shared: pd.DataFrame) -> pd.Series:
    """Score at the shared rate minus that at the cell's own, on the seeds that both have; nan where there is none."""
    differences = {}
    own_scores = own["scores"].to_dict()
    for arm, scores in at_shared["scores"].items():
        at_own = own_scores[arm]
        common = scores.keys() & at_own.keys()
        differences[arm] = np.mean([scores[seed] - at_own[seed] for seed in common]) if common else math.nan
    return pd.Series(differences, dtype=float)


def _curves(runs: pd.DataFrame, rates: pd.DataFrame) -> pd.DataFrame:
    scored = runs[runs["scored"]]
    by_cell = scored.groupby(["arm", "lr"], sort=False)["select"]
    curves = by_cell.agg(["mean", "std", "count"]).assign(scores=by_cell.agg(list)).reset_index()
    half = power.half_width(curves["std"], curves["count"])
    points = scored.drop_duplicates("arm")
    points = points.assign(ranks=[arm.ranks for arm in arms.arms_of(points)]).set_index("arm")
    most = curves.groupby("arm")["count"].transform("max")
    half = half.where(curves["count"] > 2)  # of two seeds it would be wider than the page
    return curves.assign(
        low=curves["mean"] - half,
        high=curves["mean"] + half,
        targets=curves["arm"].map(points["targets"]),
        rank=curves["arm"].map(points["ranks"]),
        rank_order=curves["arm"].map(points["rank_max"]),
        is_chosen=curves["lr"] == curves["arm"].map(rates["lr"]),
        is_full=curves["count"] == most,
    )


def _table(name: str, setting: settings.Setting, rates, own, at_shared, shared: float) -> Table:
    frame = tables.cell_frame(setting, own, rates)
    chosen = rates.loc[frame["cell"]]
    frame["rates_tried"] = [" ".join(f"{rate:g}" for rate in tried) for tried in chosen["rates"]]
    frame["add"] = [" ".join(f"{rate:g}" for rate in add) for add in chosen["add"]]
    frame["shared_lr"] = shared
    frame["shared_mean"] = frame["cell"].map(at_shared["mean"])
    frame["shared_difference"] = frame["cell"].map(_shared_difference(own, at_shared))
    words = {"inside": "inside", "inside*": "inside (1 se)", "single": "one rate", "none": "no score"}
    is_floor = frame["method"] == settings.FLOOR
    frame["certificate_shown"] = (
        frame["certificate"].replace(words).mask(is_floor & (frame["certificate"] == "single"), "fixed")
    )
    frame["add"] = frame["add"].mask(is_floor, "")
    columns = [
        Column("cell", "cell", wording.text, is_number=False, is_name=True),
        Column("lr", "lr", wording.plain),
        Column("certificate_shown", "certificate", wording.text, is_number=False, in_paper=False),
        Column("add", "add", wording.text, is_number=False, in_paper=False),
        Column("seeds_shown", "seeds", wording.text),
        Column("select", "select", wording.points),
        Column("score_shown", "report", wording.text, best_of=tables.BEST_OF),
        Column("shared_mean", f"at {shared:g}" if math.isfinite(shared) else "shared", wording.points),
        Column("shared_difference", "change", wording.signed),
        Column("rates_tried", "rates tried", wording.text, is_number=False, on_screen=False),
    ]
    return Table(name, f"{setting.title}: the rate of each cell, chosen on select", frame, columns)
