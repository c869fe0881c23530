"""Does one setting of the adapter or its training matter? Its levels contrasted, with everything else held equal.

`--by layers` reads the depth sweep, `--by method` the methods sweep; every other setting that a sweep can vary, such as
init, alpha or weight_decay, goes the same way. Levels are compared within one placement: at one budget of adapter
parameters, or, between methods, at one rank. Each level is shown at its own learning rate, chosen on `select`; the
contrasts against the reference level are paired by seed and Holm-corrected.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace

import numpy as np
import pandas as pd

from lora_bench import cells, figures, reporting
from lora_bench.reporting import Column, Section, Table

REFERENCES = {"method": "lora", "layers": "all", "init": "gaussian", "alpha_policy": "fixed", "replicate": "0"}


def main(argv: list[str] | None = None) -> int:
    parser = reporting.parser(__doc__, "factor", by_method=False)
    parser.add_argument(
        "--by", required=True, choices=list(cells.FACTORS), metavar="FACTOR", help=f"one of {', '.join(cells.FACTORS)}"
    )
    parser.add_argument(
        "--reference", metavar="LEVEL", help="the level that the others are held against (default: the usual one)"
    )
    options = parser.parse_args(argv)
    return reporting.run_script(lambda runs: sections(runs, options), options)


def sections(runs: pd.DataFrame, options) -> list[Section]:
    """One section per placement and setting in which the factor has two levels or more.

    Raises:
        NothingToShow: when it has one level everywhere.
    """
    by = options.by
    if by not in runs:
        raise cells.NothingToShow(f"the store's runs do not tell {by}")
    runs = runs.assign(level=_levels(runs, by), budget=cells.budget_of(runs))
    found = cells.settings(
        runs,
        model=options.model,
        task=options.task,
        method=None,
        mix_environments=options.mix_environments,
        free=cells.METHOD_SETTINGS if by == "method" else (by,),
        held=("targets", "ranks") if by == "method" else ("method", "targets", "budget"),
    )
    if by != "method":  # what has no targets has no such setting
        found = [replace(one, runs=one.runs[one.runs["targets"] != ""]) for one in found]
    several = [one for one in found if len(_without_floor(one.runs)) > 1]
    if not several:
        held = sorted({level for one in found for level in _without_floor(one.runs)})
        raise cells.NothingToShow(
            f"nowhere does {_words(by)} differ and all else agree; the store holds {reporting.listed(held)}; "
            f"sweep {cells.FACTORS[by]}"
        )

    def of(setting: cells.Setting) -> list[Section]:
        margin = reporting.margin(options, setting.metric)
        return [section(setting, by, margin=margin, reference=options.reference)]

    made, refused = reporting.gather(several, of)
    made[-1].notes.extend(refused)
    return made


def every(runs: pd.DataFrame, options) -> list[Section]:
    """The sections of every factor that the runs vary, for the page; what tells methods apart is told as the method."""
    found: list[Section] = []
    for by in (name for name in cells.FACTORS if name in runs and runs[name].nunique(dropna=False) > 1):
        if by in cells.METHOD_SETTINGS and any(section.facts["by"] == "method" for section in found):
            continue
        try:
            found += sections(runs, Namespace(**{**vars(options), "by": by, "reference": None}))
        except cells.NothingToShow:
            continue
    return found


def section(setting: cells.Setting, by: str, *, margin: float, reference: str | None) -> Section:
    """The table, the two figures and the sentence for one placement of one setting.

    Raises:
        NothingToShow: when the reference is none of the levels.
    """
    runs = setting.runs.assign(arm=setting.runs["level"])
    levels = sorted(_without_floor(runs), key=_order)
    wanted = str(reference or REFERENCES.get(by, levels[0]))
    if wanted not in levels:
        if reference:
            raise cells.NothingToShow(f"--reference: {by} is never {reference!r}; it is {reporting.listed(levels)}")
        wanted = levels[0]
    levels.sort(key=lambda level: level != wanted)
    runs = cells.sort_arms(runs, [*levels, cells.FLOOR])
    cells.refuse_duplicates(setting, runs)
    judged = cells.judge(runs, [(level, wanted) for level in levels[1:]], margin=margin)
    placement = _placement(runs, by)
    name = f"factor_{by}_{setting.slug}_{cells.slug_of(placement)}"
    return Section(
        title=f"{_words(by).capitalize()}: {setting.title} · {placement}",
        sentence=sentence(setting, by, placement, judged, margin, wanted),
        tables=[
            _table(name, setting, by, placement, judged),
            reporting.contrast_table(f"{name}_contrasts", judged.contrasts, margin),
        ],
        figures=_figures(name, setting, judged, margin),
        captions={
            name: f"Score on the report split by {_words(by)}, each at its own learning rate chosen on select. Large "
            "marks: means over seeds with 95 % t intervals; small marks: seeds.",
            f"{name}_contrasts": f"Each other level minus {wanted}, paired by seed, with 95 % intervals; the verdict "
            "is Holm-corrected.",
        },
        notes=notes(setting, runs, by, judged),
        facts={
            "setting": setting, "by": by, "estimates": judged.estimates, "contrasts": judged.contrasts,
            "rates": judged.rates, "margin": margin, "runs": runs,
        },
    )  # fmt: skip


def sentence(
    setting: cells.Setting, by: str, placement: str, judged: cells.Judgement, margin: float, reference: str
) -> str:
    """What was found here, in one sentence."""
    words = {
        "better": "better than",
        "worse": "worse than",
        "tied": f"tied within {100 * margin:g} with",
        "unresolved": "unresolved against",
    }
    parts = []
    for verdict, phrase in words.items():
        mine = judged.contrasts[judged.contrasts["verdict"] == verdict]
        if len(mine):
            told = [
                f"{first} ({reporting.signed(by_it)})"
                for first, by_it in zip(mine["first"], mine["difference"], strict=True)
            ]
            parts.append(f"{reporting.listed(told)} {'is' if len(mine) == 1 else 'are'} {phrase} {reference}")
    lost = list(judged.contrasts["first"][judged.contrasts["verdict"] == "missing"])
    if lost:
        parts.append(f"{reporting.listed(lost)} shares no seed with {reference}")
    return f"On {setting.title}, {placement}, by {_words(by)}: {'; '.join(parts)} (points)."


def notes(setting: cells.Setting, runs: pd.DataFrame, by: str, judged: cells.Judgement) -> list[str]:
    """What a reader must know beside the table."""
    told = list(setting.notes)
    adapted = judged.estimates[judged.estimates["method"] != cells.FLOOR]
    absent = cells.missing(runs, list(adapted.index))
    if absent and by != "method":  # methods have grids of rates of their own
        told.append(f"missing from the store: {absent}")
    spent = adapted["adapter_parameters"].dropna()
    if spent.nunique() > 1:
        told.append(f"the levels differ in adapter parameters: {spent.min():,.0f} to {spent.max():,.0f}")
    return told + reporting.run_notes(runs, judged.rates, adapted, setting.metric)


def _without_floor(runs: pd.DataFrame) -> list[str]:
    return [str(level) for level in runs["level"].unique() if level != cells.FLOOR]


def _levels(runs: pd.DataFrame, by: str) -> pd.Series:
    if by != "method":
        return runs[by].map(
            lambda value: "none" if pd.isna(value) else f"{value:g}" if _is_number(value) else str(value)
        )
    columns = [runs[name] if name in runs else pd.Series(None, index=runs.index) for name in cells.METHOD_SETTINGS]
    return pd.Series([method_name(*one) for one in zip(runs["method"], *columns, strict=True)], index=runs.index)


def method_name(method: str, init: object, alpha_policy: object, b_lr_ratio: object) -> str:
    """A method as its preset is called, with what it does otherwise than the preset: `pissa`, `lora kaiming`."""
    if method not in cells.LORA_METHODS:
        return method
    preset = cells.preset_of(method, init, alpha_policy)
    words = [preset]
    if init not in ("gaussian", preset):
        words.append(str(init))
    if alpha_policy not in ("fixed", preset):
        words.append(str(alpha_policy))
    if method == "lora_plus" and pd.notna(b_lr_ratio):  # type: ignore[call-overload]
        words.append(f"×{b_lr_ratio:g}")
    return " ".join(words)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _order(level: str) -> tuple[bool, float, str]:
    try:
        return False, float(level), ""
    except ValueError:
        return True, 0.0, level


def _words(by: str) -> str:
    return {"b_lr_ratio": "learning rate of B over A", "head_rate": "the head's rate"}.get(by, by.replace("_", " "))


def _placement(runs: pd.DataFrame, by: str) -> str:
    """`qv r=8`, `dora qv r=8`, or `qv at 36,864 parameters` where the rank goes with the level."""
    adapted = runs[runs["targets"] != ""]
    first, ranks = adapted.iloc[0], adapted["ranks"].dropna().unique()
    at = f"r={ranks[0]}" if len(ranks) == 1 else f"at {first['budget']:,.0f} parameters"
    return " ".join(
        [*([first["method"]] if by != "method" and first["method"] != "lora" else []), first["targets"], at]
    )


def _table(name: str, setting: cells.Setting, by: str, placement: str, judged: cells.Judgement) -> Table:
    frame = reporting.cell_frame(setting, judged.estimates, judged.rates)
    by_first = judged.contrasts.set_index("first")
    for column in ("difference", "p_holm", "verdict"):
        frame[f"reference_{column}"] = frame["cell"].map(by_first[column])
    reference = judged.contrasts["second"].iloc[0]
    columns = [
        Column("cell", _words(by), reporting.text, is_number=False),
        Column("ranks", "rank", reporting.text),
        Column("adapter_parameters", "parameters", reporting.count),
        Column("rate_shown", "lr", reporting.text),
        Column("seeds_shown", "seeds", reporting.text),
        Column("score_shown", figures.short_metric(setting.metric), reporting.text),
        Column("reference_difference", f"− {reference}", reporting.signed),
        Column("reference_verdict", "it is", reporting.text, is_number=False),
        Column("gap", "train − report", reporting.signed, on_screen=False),
        Column("seconds", "seconds", lambda x: reporting.plain(round(float(x), 1)) if pd.notna(x) else "–"),  # type: ignore[arg-type]
        Column("bytes", "bytes", reporting.count, on_screen=False),
    ]
    return Table(name, f"{setting.title}, {placement}: report score ± 95 % by {_words(by)}", frame, columns)


def _figures(name: str, setting: cells.Setting, judged: cells.Judgement, margin: float) -> dict:
    if not np.isfinite(judged.estimates["mean"]).any():
        return {}
    drawn = judged.estimates.assign(is_floor=judged.estimates["method"] == cells.FLOOR)
    marks = reporting.marks(drawn, judged.rates)
    drawn["label"] = [
        ("head only" if is_floor else str(level)) + mark
        for level, is_floor, mark in zip(drawn.index, drawn["is_floor"], marks, strict=True)
    ]
    made = {name: figures.placements(drawn, metric=setting.metric)}
    shown = judged.contrasts[judged.contrasts["n_pairs"] > 0]
    if len(shown):
        made[f"{name}_contrasts"] = figures.contrasts(reporting.labelled(shown), margin=margin)
    return made


if __name__ == "__main__":
    raise SystemExit(main())
