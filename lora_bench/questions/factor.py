"""Does one setting of the adapter or its training matter? Its levels contrasted, with everything else held equal.

`by=layers` reads the depth sweep, `by=method` the methods sweep; init, alpha, weight_decay and the other factors go
the same way. Levels are compared within one placement at one budget of low-rank parameters (DoRA's magnitudes and such
come on top), each at its own learning rate, chosen on `select`; the contrasts against the reference level are paired by
seed and Holm-corrected over all placements of a setting.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd

from lora_bench import wording
from lora_bench.config.schema import LORA_METHODS
from lora_bench.questions.depth import layer_levels
from lora_bench.reports import tables
from lora_bench.reports.figures import style
from lora_bench.reports.scope import Scope, gather
from lora_bench.reports.section import Column, JudgedSection, Table
from lora_bench.verdicts import gaps, settings
from lora_bench.verdicts.arms import Judgement, arms_of, judge, sort_arms
from lora_bench.verdicts.note import Note, gap

USUAL = {"method": "lora", "layers": "all", "init": "gaussian", "alpha_policy": "fixed"}


@dataclass(kw_only=True)
class FactorSection(JudgedSection):
    """The levels of a factor in one setting."""

    by: str  # one of `settings.FACTORS`


@dataclass(frozen=True)
class Compared:
    """A placement at one budget: its runs, with their levels, and the level that the others are held against."""

    name: str
    runs: pd.DataFrame
    levels: list[str]  # the reference first


def sections(runs: pd.DataFrame, scope: Scope, *, by: str, reference: str | None = None) -> list[FactorSection]:
    """One section per setting in which the factor has two levels or more at some placement and budget.

    Args:
        by: one of `settings.FACTORS`.
        reference: the level that the others are held against; None takes the usual one, or the lowest.

    Raises:
        NothingToShow: when there is none, with what differs beside the factor; or when no level is the reference.
    """
    runs = scope.within(runs)
    runs = runs.assign(level=factor_levels(runs, by, scope))
    if reference:  # as the records spell it, or as the levels do
        reference = next(iter(runs.loc[runs[by].astype(str) == reference, "level"]), reference)
    methods = [None] if by == "method" else [name for name in LORA_METHODS if name in set(runs["method"])]
    free = settings.METHOD_SETTINGS if by == "method" else (by,)
    comparables = [
        (setting, compared(setting, by, reference))
        for method in methods
        for setting in replace(scope, method=method).settings(runs, free=free)
    ]
    levels = sorted({str(level) for level in runs.loc[runs["targets"] != "", "level"]}, key=_order)
    if reference and reference not in levels:
        raise settings.NothingToShow(f"--reference: {by} is never {reference!r}; it is {wording.listed(levels)}")
    several = [(setting, placements) for setting, placements in comparables if placements]
    if not several:
        raise settings.NothingToShow(_nowhere(runs, by, levels))

    def of(comparable: tuple[settings.Setting, list[Compared]]) -> list[FactorSection]:
        setting, placements = comparable
        return [section(setting, by, placements, margin=scope.margin_of(setting.metric))]

    made, refused = gather(several, of)
    made[-1].refused.extend(refused)
    return made


def every(runs: pd.DataFrame, scope: Scope) -> list[FactorSection]:
    """The sections of every factor that the runs vary, for the page; what tells methods apart is told as the method."""
    shown: list[FactorSection] = []
    for by in (name for name in settings.FACTORS if name in runs and runs[name].nunique(dropna=False) > 1):
        if by in settings.METHOD_SETTINGS and any(section.by == "method" for section in shown):
            continue
        try:
            shown += sections(runs, scope, by=by)
        except settings.NothingToShow:
            continue
    return shown


def compared(setting: settings.Setting, by: str, reference: str | None = None) -> list[Compared]:
    """The placements of a setting at which the factor has two levels or more, by budget.

    Methods without targets are compared with those of the one placement that there is; of several, with none.
    """
    adapted = setting.runs[setting.runs["targets"] != ""]
    beside = setting.runs[setting.runs["targets"] == ""]
    budgets = settings.budget_of(adapted, column="low_rank_parameters")
    groups = [group for _, group in adapted.groupby([adapted["targets"], budgets], sort=False)]
    if by == "method" and len(groups) == 1:
        groups = [pd.concat([groups[0], beside])]
    names = [_placement(group) for group in groups]
    comparisons = []
    for name, group in zip(names, groups, strict=True):
        levels = sorted(_levels_of(group), key=_order)
        placed = sorted(_levels_of(group[group["targets"] != ""]), key=_order)  # what is adapted is the reference
        first = _reference(placed, by, reference)
        if len(levels) > 1 and first is not None:
            title = name if names.count(name) == 1 else f"{name} at {_spent(group)}"
            comparisons.append(Compared(title, group, [first, *(level for level in levels if level != first)]))
    return comparisons


def section(setting: settings.Setting, by: str, placements: list[Compared], *, margin: float) -> FactorSection:
    """The table, the two figures and the sentence for one setting."""
    alone = len(placements) == 1
    arms = [level if alone else f"{placed.name} {level}" for placed in placements for level in placed.levels]
    runs = pd.concat(
        placed.runs.assign(arm=placed.runs["level"] if alone else placed.name + " " + placed.runs["level"])
        for placed in placements
    )
    pairs = [
        (f"{at}{level}", f"{at}{placed.levels[0]}")
        for placed in placements
        for at in ["" if alone else f"{placed.name} "]
        for level in placed.levels[1:]
    ]
    runs = sort_arms(runs, [*arms, settings.FLOOR])
    settings.refuse_duplicates(setting, runs)
    judged = judge(runs, pairs, margin=margin)
    at = placements[0].name if alone else "by placement"
    method = "" if by == "method" or setting.runs["method"].iloc[0] == "lora" else setting.runs["method"].iloc[0]
    name = "_".join(word for word in ("factor", by, setting.slug, method) if word)
    title = " · ".join(word for word in (setting.title, method, at if alone else "") if word)
    return FactorSection(
        title=f"{_words(by)[0].upper()}{_words(by)[1:]}: {title}",
        sentence=sentence(title, by, judged.contrasts, margin),
        tables=[
            _table(name, setting, by, at, judged),
            tables.contrast_table(f"{name}_contrasts", judged.contrasts, margin),
        ],
        figures=tables.arm_figures(name, judged, metric=setting.metric, margin=margin),
        captions={
            name: f"Score on the report split by {_words(by)}, each at its own learning rate chosen on select. "
            f"{tables.marks_in_words(judged.estimates)} † failed seeds; * best at the edge of the rates tried.",
            f"{name}_contrasts": f"Each other level minus the reference, paired by seed, with {tables.UNCORRECTED}.",
        },
        notes=notes(setting, runs, by, judged),
        setting=setting,
        judged=judged,
        by=by,
    )


def sentence(title: str, by: str, contrasts: pd.DataFrame, margin: float) -> str:
    """What was found here, in one sentence."""
    parts = []
    for reference, against in contrasts.groupby("second", sort=False):
        for verdict, phrase in tables.verdict_phrases(margin).items():
            of_verdict = against[against["verdict"] == verdict]
            if len(of_verdict):
                pairs = zip(of_verdict["first"], of_verdict["difference"], strict=True)
                differences = [f"{first} ({wording.signed(difference)})" for first, difference in pairs]
                verb = "is" if len(of_verdict) == 1 else "are"
                parts.append(f"{wording.listed(differences)} {verb} {phrase.format(reference)}")
        lost = list(against["first"][against["verdict"] == "missing"])
        if lost:
            parts.append(f"{wording.listed(lost)} share{'s' if len(lost) == 1 else ''} no seed with {reference}")
    return f"On {title}, by {_words(by)} (points): {'; '.join(parts)}."


def notes(setting: settings.Setting, runs: pd.DataFrame, by: str, judged: Judgement) -> list[Note]:
    """What a reader must know beside the table."""
    lines = list(setting.notes)
    adapted = judged.estimates[judged.estimates["method"] != settings.FLOOR]
    outside = sorted(set(setting.runs["level"][setting.runs["targets"] == ""]) - {settings.FLOOR, *runs["level"]})
    if by == "method" and outside:
        lines.append(gap(f"{wording.listed(outside)} has no placement, and is left out where several are compared"))
    absent = gaps.missing(runs, list(adapted.index))
    if absent and by != "method":  # methods have grids of rates of their own
        lines.append(gap(f"missing from the store: {absent}"))
    return lines + tables.run_notes(runs, judged.rates, adapted)


def method_name(method: str, init: object, alpha_policy: object, b_lr_ratio: object) -> str:
    """A method as its preset is called, with what it does otherwise than the preset: `pissa`, `lora kaiming`."""
    if method not in LORA_METHODS:
        return method
    preset = settings.preset_of(method, init, alpha_policy)
    words = [preset]
    words += [str(word) for word, usual in ((init, "gaussian"), (alpha_policy, "fixed")) if word not in (usual, preset)]
    if method == "lora_plus":
        words.append(f"×{b_lr_ratio:g}")
    return " ".join(words)


# ---------------------------------------------------------------- helpers


def factor_levels(runs: pd.DataFrame, by: str, scope: Scope) -> pd.Series:
    """The level of each run, as tables call it, in the order of `runs`.

    Args:
        by: a column of the runs, or `layers` or `method`.
    """
    if by == "layers":
        return layer_levels(runs, scope.store)
    if by == "method":
        columns = [runs[name] for name in ("method", *settings.METHOD_SETTINGS)]
        return pd.Series([method_name(*setting) for setting in zip(*columns, strict=True)], index=runs.index)
    return runs[by].map(lambda value: value if isinstance(value, str) else "none" if pd.isna(value) else f"{value:g}")


def _levels_of(runs: pd.DataFrame) -> set[str]:
    return {str(level) for level in runs["level"]} - {settings.FLOOR}


def _reference(levels: list[str], by: str, asked: str | None) -> str | None:
    """What was asked for, if it is there; else the usual level, one that starts like it, or the lowest."""
    if asked:
        return asked if asked in levels else None
    usual = USUAL.get(by, "")
    like = [level for level in levels if level == usual or level.startswith(f"{usual} ")]
    return [*like, *levels][0]


def _order(level: str) -> tuple[bool, float, str]:
    try:
        return False, float(level), ""
    except ValueError:
        return True, 0.0, level


def plain_level(level: str) -> str:
    """A number as the levels have it: 1e-1 is 0.1."""
    is_text, number, _ = _order(level)
    return level if is_text else f"{number:g}"


def _words(by: str) -> str:
    return {"b_lr_ratio": "learning rate of B over A", "head_rate": "rate of the head"}.get(by, by.replace("_", " "))


def _placement(runs: pd.DataFrame) -> str:
    """`qv r=8`, or `qv at 36,864 parameters` where the rank goes with the level."""
    adapted = runs[runs["targets"] != ""]
    arms = set(arms_of(adapted))
    return str(arms.pop()) if len(arms) == 1 else f"{adapted['targets'].iloc[0]} at {_spent(adapted)}"


def _spent(runs: pd.DataFrame) -> str:
    return f"{runs['low_rank_parameters'].mode().iloc[0]:,.0f} parameters"


def _nowhere(runs: pd.DataFrame, by: str, there: list[str]) -> str:
    """Why no levels can be compared: there is one, or something else goes with it."""
    fault = f"nowhere does {_words(by)} differ and all else agree; the store holds {wording.listed(there)}"
    if len(there) < 2:
        return f"{fault}; sweep {settings.FACTORS[by]}"
    adapted = runs[runs["targets"] != ""]
    names = [name for name in (*settings.SHARED, *settings.OF_ADAPTER, "targets") if name in runs and name != by]
    if by == "method":
        names = [name for name in names if name not in settings.METHOD_SETTINGS]
    apart = [
        name.replace("_", " ")
        for name in names
        if not set.intersection(*(set(of_level[name].map(str)) for _, of_level in adapted.groupby("level")))
    ]
    if apart:
        return f"{fault}, which differ in {wording.listed(apart)} too"
    return f"{fault}, at different numbers of parameters; adapter.rank=null adapter.budget=q@8 gives all the same"


def _table(name: str, setting: settings.Setting, by: str, at: str, judged: Judgement) -> Table:
    frame = tables.cell_frame(setting, judged.estimates, judged.rates)
    frame = tables.with_contrasts(frame, judged.contrasts, side="first", prefix="reference")
    columns = [
        Column("cell", _words(by), wording.text, is_number=False, is_name=True),
        Column("ranks", "rank", wording.text),
        Column("adapter_parameters", "parameters", wording.count),
        Column("rate_shown", "lr", wording.text),
        Column("seeds_shown", "seeds", wording.text),
        Column("score_shown", style.short_metric(setting.metric), wording.text, best_of=tables.BEST_OF),
        Column("reference_difference", "− reference", wording.signed),
        Column("reference_verdict", "it is", wording.text, is_number=False),
        Column("gap", "train − report", wording.signed, on_screen=False),
        Column("seconds", "seconds", wording.seconds),
        Column("bytes", "bytes", wording.count, on_screen=False),
    ]
    return Table(name, f"{setting.title}, {at}: report score ± 95 % by {_words(by)}", frame, columns)
