"""How small may the rank be? The design of the paper's Table 6, on any finished sweep.

Each cell is shown at its own learning rate, chosen on `select`; within a placement, every rank is contrasted with the
lowest one, paired by seed and Holm-corrected. Source: Hu et al. 2021, arXiv:2106.09685, section 7.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from lora_bench import wording
from lora_bench.questions import more_seeds
from lora_bench.questions.beside import beside
from lora_bench.reports import tables
from lora_bench.reports.figures import style, verdicts
from lora_bench.reports.scope import Scope, each_setting
from lora_bench.reports.section import Column, JudgedSection, Table
from lora_bench.verdicts import gaps, settings
from lora_bench.verdicts import paper as published
from lora_bench.verdicts.arms import Arm, Judgement, judge, name_arms, sort_arms
from lora_bench.verdicts.looks import LESS_OFTEN, MORE_OFTEN, NOT_LEARNED
from lora_bench.verdicts.note import Note, gap

PAPER_RANKS = (1, 2, 4, 8, 64)
PAPER_TARGETS = ("q", "qv", "qkvo")


def sections(runs: pd.DataFrame, scope: Scope) -> list[JudgedSection]:
    """One section per setting.

    Raises:
        NothingToShow: when no placement was run at two ranks.
    """
    pinned = settings.varied_factors(runs)

    def of(setting: settings.Setting) -> list[JudgedSection]:
        margin, name = scope.margin_of(setting.metric), f"rank_{setting.slug}"
        asked = {"store": scope.store, "pinned": pinned, "with_paper": scope.with_paper}
        return [section(setting, margin=margin, name=name, **asked)]

    return each_setting(runs, scope, of)


def section(
    setting: settings.Setting,
    *,
    margin: float,
    name: str,
    store: Path,
    pinned: Mapping[str, Sequence[str]],
    with_paper: bool = False,
) -> JudgedSection:
    """The table, the figure and the sentence for one setting.

    Args:
        pinned: as `more_seeds.notes` has it.
        with_paper: show the paper's scores beside, and say what of its design is not here.

    Raises:
        NothingToShow: when no placement was run at two ranks.
    """
    runs = setting.runs[(setting.runs["targets"] != "") & setting.runs["rank"].notna()]
    n_ranks = runs.groupby("targets")["rank"].nunique()
    curves = [targets for targets in n_ranks.index if n_ranks[targets] > 1]
    if not curves:
        run_at = ", ".join(
            f"{targets} at rank {rank:g}" for targets, rank in runs.groupby("targets")["rank"].first().items()
        )
        raise settings.NothingToShow(
            f"{setting.title}: no placement was run at two ranks ({run_at or 'no run has one rank'}); "
            "start with: lora-bench +sweeps=rank"
        )
    curves.sort(key=lambda t: (PAPER_TARGETS.index(t) if t in PAPER_TARGETS else len(PAPER_TARGETS), t))
    runs = runs[runs["targets"].isin(curves)]
    arms = {t: [str(Arm(t, int(r))) for r in sorted(runs.loc[runs["targets"] == t, "rank"].unique())] for t in curves}
    runs = sort_arms(name_arms(runs), [arm for of_curve in arms.values() for arm in of_curve])
    settings.refuse_duplicates(setting, runs)
    judged = judge(runs, [(other, lowest) for lowest, *others in arms.values() for other in others], margin=margin)
    estimates, table = judged.estimates, judged.contrasts
    estimates["rank"] = [arm.rank for arm in estimates["arm"]]
    ends = {(ranks[-1], ranks[0]) for ranks in arms.values()}  # what the sentence tells
    ends_judged = replace(
        judged, contrasts=table[[pair in ends for pair in zip(table["first"], table["second"], strict=True)]]
    )
    beside_tables, beside_notes = beside(f"{name}_beside", judged, runs, store)
    paper = published.rank() if with_paper else published.rank().iloc[:0]
    return JudgedSection(
        title=f"Rank: {setting.title}",
        sentence=sentence(setting, estimates, table, margin),
        tables=[
            _cells(name, setting, judged, paper),
            tables.contrast_table(f"{name}_contrasts", table, margin),
            *beside_tables,
        ],
        figures=_figures(name, setting, estimates, paper if with_paper else None),
        captions=_captions(name, with_paper),
        notes=notes(setting, runs, judged, curves, with_paper=with_paper)
        + beside_notes
        + more_seeds.notes(runs, ends_judged, store, pinned=pinned),
        setting=setting,
        judged=judged,
    )


def sentence(setting: settings.Setting, estimates: pd.DataFrame, table: pd.DataFrame, margin: float) -> str:
    """What was found here, in one sentence: for each placement, the highest rank against the lowest."""
    parts = []
    for targets, curve in estimates.groupby("targets", sort=False):
        low, high = curve.index[0], curve.index[-1]
        pair = table[(table["first"] == high) & (table["second"] == low)].iloc[0]
        if pair["n_seeds"] == 0:
            parts.append(
                f"{targets} has no seed at both rank {curve['rank'].iloc[0]} and rank {curve['rank'].iloc[-1]}"
            )
            continue
        gain = f"{wording.signed(pair['difference'])} points"
        words = {
            "better": "is better",
            "worse": "is worse",
            "tied": f"is tied within {100 * margin:g}",
            "unresolved": "is unresolved",
            MORE_OFTEN: "learns more often",
            LESS_OFTEN: "learns less often",
            NOT_LEARNED: "did not learn at any rate tried, or the other did not,",
        }[pair["verdict"]]
        needed = tables.seeds_needed(pair.to_dict())
        needs = f", {needed} seeds needed" if needed else ""
        parts.append(
            f"{targets} at rank {curve['rank'].iloc[-1]} {words} against rank {curve['rank'].iloc[0]} ({gain}{needs})"
        )
    return f"On {setting.title}: {'; '.join(parts)}."


def notes(
    setting: settings.Setting, runs: pd.DataFrame, judged: Judgement, curves: list[str], *, with_paper: bool
) -> list[Note]:
    """What a reader must know beside the table."""
    lines = list(setting.notes)
    policy = setting.facts.get("alpha_policy")
    scales = {
        "fixed": "alpha/rank, so the update is damped as the rank grows",
        "ratio": "alpha, whatever the rank",
        "rslora": "alpha/sqrt(rank)",
    }
    if policy in scales:
        alpha = f"alpha {setting.facts.get('alpha'):g}, policy {policy}"
        lines.append(Note(f"{alpha}: the update is scaled by {scales[policy]}"))
    here = sorted({int(rank) for rank in runs["rank"]})
    n_curves = runs.groupby("rank")["targets"].nunique()
    expected = [str(Arm(t, r)) for t in curves for r in here if n_curves[r] > 1 or len(curves) == 1]
    absent = gaps.missing(runs, expected)
    if absent:
        lines.append(gap(f"missing from the store: {absent}"))
    lacking = [t for t in PAPER_TARGETS if t not in curves]
    ranks = [r for r in PAPER_RANKS if r not in here]
    if with_paper and (lacking or ranks):
        absent = wording.listed(lacking + [f"rank {r}" for r in ranks])
        lines.append(gap(f"of the paper's Table 6 the store lacks {absent}"))
    return lines + tables.run_notes(runs, judged.rates, judged.estimates)


def _captions(name: str, with_paper: bool) -> dict[str, str]:
    below = " Below: the paper's Table 6 (GPT-3 175B) with the spread that it prints." if with_paper else ""
    return {
        name: "Score on the report split against the rank, each cell at its own learning rate chosen on select. "
        f"Marks: means over seeds with 95 % t intervals; small marks: seeds.{below}",
        f"{name}_gap": "Generalisation gap: the score on a fixed sample of train rows minus that on report, "
        "with 95 % t intervals.",
    }


def _cells(name: str, setting: settings.Setting, judged: Judgement, paper: pd.DataFrame) -> Table:
    frame = tables.cell_frame(setting, judged.estimates, judged.rates)
    frame = tables.with_contrasts(frame, judged.contrasts, side="first", prefix="lowest")
    printed = paper.pivot(index=["targets", "rank"], columns="dataset", values="score")
    for dataset in map(str, printed):
        frame[f"paper_{dataset.lower()}"] = [
            printed[dataset].get((targets, rank), np.nan)
            for targets, rank in zip(frame["targets"], frame["rank"], strict=True)
        ]
    columns = [
        Column("cell", "cell", wording.text, is_number=False, is_name=True),
        Column("adapter_parameters", "parameters", wording.count, on_screen=False),
        Column("rate_shown", "lr", wording.text),
        Column("seeds_shown", "seeds", wording.text),
        Column("score_shown", style.short_metric(setting.metric), wording.text, best_of=tables.BEST_OF),
        Column("lowest_difference", "− lowest", wording.signed),
        Column("lowest_verdict", "it is", wording.text, is_number=False),
        Column("gap", "train − report", wording.signed, on_screen=False),
        *(
            Column(f"paper_{d.lower()}", f"paper {short}", wording.points, in_paper=False)
            for d, short in published.SHORT.items()
            if d in printed
        ),
    ]
    return Table(name, f"{setting.title}: report score ± 95 % against rank", frame, columns)


def _figures(name: str, setting: settings.Setting, estimates: pd.DataFrame, paper: pd.DataFrame | None) -> dict:
    if not np.isfinite(estimates["mean"]).any():
        return {}
    made = {name: verdicts.ranks(estimates, metric=setting.metric, published=paper)}
    if np.isfinite(estimates["gap"]).any():
        made[f"{name}_gap"] = verdicts.gaps(estimates)
    return made
