"""Which weight matrices should LoRA adapt, at one budget? The design of the paper's Table 5, on any finished sweep.

Each placement is shown at its own learning rate, chosen on `select`; contrasts of qv, or of another reference, against
every other placement are paired by seed and Holm-corrected. Source: Hu et al. 2021, arXiv:2106.09685, section 7.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from lora_bench import wording
from lora_bench.config.grammar import group_words
from lora_bench.questions import declared, more_seeds, studies
from lora_bench.questions.beside import beside, every_pair
from lora_bench.reports import tables
from lora_bench.reports.figures import style
from lora_bench.reports.scope import Scope, each_setting
from lora_bench.reports.section import Column, JudgedSection, Table, one_look
from lora_bench.verdicts import gaps, pairwise, settings, stats
from lora_bench.verdicts import paper as published
from lora_bench.verdicts.arms import Judgement, against_reference, highest, judge, learned, same_targets, sort_arms
from lora_bench.verdicts.best import chances_of_best
from lora_bench.verdicts.note import Note, gap

TOP = 0.98
"""A mean from which on a task may leave nothing to tell placements apart by (docs/embedded_tasks.md)."""


@dataclass(kw_only=True)
class PlacementSection(JudgedSection):
    """The placements of one setting at one budget."""

    budget: int  # adapter parameters
    pairs: pd.DataFrame  # every pair of placements, a family of its own


def sections(
    runs: pd.DataFrame, scope: Scope, *, budget: int | None = None, reference: str = settings.REFERENCE_TARGETS
) -> list[PlacementSection]:
    """One section per setting and budget.

    Args:
        budget: adapter parameters; None takes those at which most placements meet.
        reference: the placement that the others are held against.

    Raises:
        NothingToShow: when no setting has two placements at one budget.
    """

    pinned = settings.varied_factors(runs)

    def of(setting: settings.Setting) -> list[PlacementSection]:
        at = settings.at_budgets(setting, budget=budget)
        margin = scope.margin_of(setting.metric)
        name = f"weight_types_{setting.slug}"
        return [
            section(
                setting,
                count,
                at_budget,
                margin=margin,
                name=f"{name}_{count}" if len(at) > 1 else name,
                reference=reference,
                store=scope.store,
                pinned=pinned,
                with_paper=scope.with_paper,
            )
            for count, at_budget in at
        ]

    return each_setting(runs, scope, of)


def section(
    setting: settings.Setting,
    budget: int,
    runs: pd.DataFrame,
    *,
    margin: float,
    name: str,
    reference: str,
    store: Path,
    pinned: Mapping[str, Sequence[str]],
    with_paper: bool = False,
) -> PlacementSection:
    """The table, the two figures and the sentence for one budget of one setting.

    Args:
        pinned: as `more_seeds.notes` has it.
        with_paper: show the paper's scores beside placements that are its own.

    Raises:
        NothingToShow: when the reference is none of the placements.
    """
    runs = sort_arms(runs.assign(arm=runs["targets"].where(runs["method"] != settings.FLOOR, settings.FLOOR)))
    settings.refuse_duplicates(setting, runs)
    reference = _reference(reference, list(runs["arm"].unique()), budget)
    judged = judge(runs, against_reference(declared.placements(runs, store), reference), margin=margin)
    rates, estimates, table = judged.rates, judged.estimates, judged.contrasts
    pairs = every_pair(judged, margin=margin)
    of_studies = studies.looked_at(store, set(runs["run_id"].astype(str)))
    is_of_pairs = any(declaration["reference"] is None for declaration in of_studies)
    contrast_table = tables.contrast_table(f"{name}_contrasts", table, margin)
    beside_tables, beside_notes = beside(f"{name}_beside", judged, runs, store)
    paper = _paper(estimates) if with_paper else published.weight_types().iloc[:0]
    drawn = paper if setting.metric == "accuracy" else paper.iloc[:0]  # beside another metric in the table alone
    differences = _differences(drawn, reference) if len(drawn) else None
    return PlacementSection(
        title=f"Weight types: {setting.title}, {budget:,} adapter parameters",
        sentence=sentence(
            setting, budget, judged, margin, reference, pairs=pairs if is_of_pairs else None, has_study=bool(of_studies)
        ),
        tables=[
            _placements(name, setting, judged, reference, paper, is_of_pairs=is_of_pairs),
            _off_screen(contrast_table) if is_of_pairs else contrast_table,
            *beside_tables,
            *_every_pair(f"{name}_pairs", pairs, margin, is_asked=is_of_pairs),
        ],
        figures=tables.arm_figures(
            name, judged, metric=setting.metric, margin=margin, with_ranks=True, paper=drawn, differences=differences
        ),
        captions=_captions(name, budget, reference, judged, has_paper=len(drawn) > 0),
        notes=notes(setting, runs, rates, estimates, [reference, *table["second"]])
        + beside_notes
        + more_seeds.notes(runs, judged, store, pinned=pinned),
        setting=setting,
        judged=judged,
        budget=budget,
        pairs=pairs,
    )


def _reference(asked: str, arms: Sequence[str], budget: int) -> str:
    """The placement that was asked for, as the runs spell it."""
    named = next((targets for targets in arms if same_targets(asked, targets)), None)
    if named is None and asked != settings.REFERENCE_TARGETS:
        raise settings.NothingToShow(
            f"--reference: no run of {asked!r} at {budget:,} adapter parameters; there are {', '.join(arms)}"
        )
    return named or asked


def sentence(
    setting: settings.Setting,
    budget: int,
    judged: Judgement,
    margin: float,
    reference: str,
    *,
    pairs: pd.DataFrame | None = None,
    has_study: bool = False,
) -> str:
    """What was found here, in one sentence.

    Args:
        judged: with the contrasts of the reference.
        pairs: every pair, which the sentence then tells in their place.
        has_study: whether a study has words on these runs, beside which those of one look would contradict.
    """
    estimates, table = judged.estimates, judged.contrasts
    scored = estimates[(estimates["method"] != settings.FLOOR) & np.isfinite(estimates["mean"])]
    if scored.empty:
        return f"No placement has a score on {setting.title} at {budget:,} adapter parameters."
    is_learned = learned(scored, judged.rates)
    if not is_learned.any():
        return (
            f"On {setting.title} at {budget:,} adapter parameters no placement has learned in half of its seeds: "
            "their scores are those of a guess; train longer (train.epochs), or at other rates (train.lr)."
        )
    if len(scored) > 1 and np.ptp(scored["mean"]) == 0:
        shared = scored["mean"].iloc[0]
        why = "all may be at the top" if shared > TOP else "the training may have been too short to learn anything"
        return (
            f"On {setting.title} at {budget:,} adapter parameters every placement has the same mean "
            f"{style.short_metric(setting.metric)}, {wording.points(shared)}: nothing tells them apart, and {why}."
        )
    best = highest(scored[is_learned], "mean")
    among = "" if best["mean"] == scored["mean"].max() else " of those that learned"
    band = wording.interval(best["low"], best["high"])
    seeds = wording.counted(best["n_seeds"], "seed")
    if np.isfinite(best["low"]):
        spread = f"95 % interval {band}, {seeds}"
    else:
        spread = "no interval from one seed" if best["n_seeds"] == 1 else f"the same in all {seeds}"
    start = (
        f"On {setting.title} at {budget:,} adapter parameters, {best.name} has the highest mean "
        f"{style.short_metric(setting.metric)}{among}: {wording.points(best['mean'])}, {spread}"
    )
    if pairs is None:
        words = verdicts_in_words(table, margin, reference)
    else:
        words = pairwise.sentence(list(scored.index), _worded(pairs))
    return f"{start}; {words}{', at one look and these rates: the words of the study count' if has_study else ''}."


def verdicts_in_words(table: pd.DataFrame, margin: float, reference: str) -> str:
    """`qv is better than q, unresolved against o (about 24 (11 to 98) seeds would show a difference of 1, or none)`."""
    tested = table[table["n_seeds"] > 0]
    if tested.empty:
        return f"nothing can be said of {reference}: it shares no seed with another placement"
    parts = []
    small = set(tested["second"][tested["note"] == stats.SMALL])
    for verdict, phrase in tables.verdict_phrases(margin).items():
        rows = tested[tested["verdict"] == verdict]
        if len(rows):
            needing = rows[(rows["seeds_needed"] > rows["n_pairs"]).fillna(False).astype(bool)]
            extra = ""
            if len(needing):
                seeds = tables.seeds_needed(highest(needing, "seeds_needed").to_dict())
                extra = f" (about {seeds} seeds would show a difference of {100 * margin:g}, or none)"
            arms = [f"{arm} (by less than the margin)" if arm in small else arm for arm in rows["second"]]
            parts.append(phrase.format(wording.listed(arms)) + extra)
    return f"{reference} is " + ", ".join(parts)


def notes(
    setting: settings.Setting, runs: pd.DataFrame, rates: pd.DataFrame, estimates: pd.DataFrame, declared: list[str]
) -> list[Note]:
    """What a reader must know beside the table."""
    lines = list(setting.notes)
    adapted = estimates[estimates["method"] != settings.FLOOR]
    absent = gaps.missing(runs, declared)
    if absent:
        lines.append(gap(f"missing from the store: {absent}"))
    spent = adapted["adapter_parameters"].dropna()
    if spent.nunique() > 1:
        span = f"{spent.min():,.0f} to {spent.max():,.0f} adapter parameters"
        lines.append(Note(f"the budgets are not quite equal: {span}"))
    return lines + tables.run_notes(runs, rates, adapted)


def _captions(name: str, budget: int, reference: str, judged: Judgement, *, has_paper: bool) -> dict[str, str]:
    words = {} if has_paper else group_words(judged.estimates.index)
    spelled = "; ".join(f"{word}: {targets}" for targets, word in words.items())
    return {
        name: f"Score on the report split of each placement at {budget:,} adapter parameters, at its own learning "
        f"rate chosen on select. {tables.marks_in_words(judged.estimates)} "
        + ("Diamonds: the paper's Table 5 (GPT-3 175B) with the spread that it prints. " if has_paper else "")
        + "† failed seeds; * best at the edge of the rates tried."
        + (f" {spelled[0].upper()}{spelled[1:]}." if spelled else ""),
        f"{name}_contrasts": f"{words.get(reference, reference)} minus each other placement, paired by seed, with "
        f"{tables.UNCORRECTED}."
        + (" Small triangles: the same differences in the paper's Table 5." if has_paper else ""),
    }


def _every_pair(name: str, pairs: pd.DataFrame, margin: float, *, is_asked: bool) -> list[Table]:
    """Every pair, a family of its own; on the page and in the files alone, where a terminal's reader did not ask."""
    made = tables.contrast_table(name, pairs, margin)
    made = replace(made, title=f"Every pair, a family of its own at Holm: {made.title}")
    if not is_asked:
        return [_off_screen(made)]
    made = _off_screen(made, "seeds_needed_shown")
    cells = list(dict.fromkeys([*pairs["first"], *pairs["second"]]))
    title = f"Each placement against each other, of every pair at Holm; {one_look(pairs)}"
    return [made, tables.word_matrix(f"{name}_matrix", title, cells, _worded(pairs))]


def _worded(pairs: pd.DataFrame) -> list[pairwise.Worded]:
    return list(pairs[["first", "second", "verdict"]].itertuples(index=False, name=None))


def _off_screen(table: Table, *names: str) -> Table:
    """A table of which these columns, or all, are for the page and the files alone."""
    columns = [
        replace(
            column,
            on_screen=column.on_screen and bool(names) and column.name not in names,
            in_paper=column.on_paper,
        )
        for column in table.columns
    ]
    return replace(table, columns=columns)


def _paper(estimates: pd.DataFrame) -> pd.DataFrame:
    """The paper's Table 5; empty where the placements are not its own, and its ranks would be others."""
    table = published.weight_types()
    return (
        table if 2 * len(set(estimates.index) & set(settings.PLACEMENTS)) > len(settings.PLACEMENTS) else table.iloc[:0]
    )


def _differences(paper: pd.DataFrame, reference: str) -> pd.DataFrame:
    score = paper[paper["targets"] == reference].set_index("dataset")["score"]
    differences = paper.assign(difference=paper["dataset"].map(score) - paper["score"])
    return differences.assign(label=reference + " − " + differences["targets"])


def _placements(
    name: str,
    setting: settings.Setting,
    judged: Judgement,
    reference: str,
    paper: pd.DataFrame,
    *,
    is_of_pairs: bool,
) -> Table:
    """The placements with their scores, and beside these what they are against the reference; where all pairs were
    asked for, which of them may be best."""
    rates, estimates, table = judged.rates, judged.estimates, judged.contrasts
    frame = tables.cell_frame(setting, estimates, rates)
    frame["cell_shown"] = [str(arm) for arm in estimates["arm"]]
    frame = tables.with_contrasts(frame, table, side="second", prefix="reference")
    is_rival = ((frame["cell"] != settings.FLOOR) & frame[tables.BEST_OF].notna()).to_numpy()
    chances = chances_of_best([np.array(list(scores.values())) for scores in estimates["scores"][is_rival]])
    frame["chance_of_best"] = math.nan
    frame.loc[is_rival, "chance_of_best"] = chances
    printed = paper.pivot(index="targets", columns="dataset", values="score")
    for dataset in map(str, printed):
        frame[f"paper_{dataset.lower()}"] = frame["cell"].map(printed[dataset])
    columns = [
        Column("cell_shown", "targets", wording.text, is_number=False, is_name=True),
        Column("adapter_parameters", "parameters", wording.count, on_screen=False),
        Column("rate_shown", "lr", wording.text),
        Column("seeds_shown", "seeds", wording.text),
        Column("score_shown", style.short_metric(setting.metric), wording.text, best_of=tables.BEST_OF),
        Column("reference_difference", f"{reference} − it", wording.signed, on_screen=not is_of_pairs),
        Column("reference_verdict", f"{reference} is", wording.text, is_number=False, on_screen=not is_of_pairs),
        Column("chance_of_best", "chance of best, %", wording.percent, on_screen=is_of_pairs),
        Column("gap", "train − report", wording.signed, on_screen=False),
        *(
            Column(f"paper_{d.lower()}", f"paper {short}", wording.points, in_paper=False)
            for d, short in published.SHORT.items()
            if d in printed
        ),
    ]
    return Table(name, f"{setting.title}: placements at one budget, report score ± 95 %", frame, columns)
