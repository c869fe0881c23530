"""Pooled questions: what several cells say together of v and o, of spending on rank or on matrices, and of rank.

The contrasts are fixed here, before any store is read, and are one family of their own at Holm: whoever adds one
after a look has not declared it. What a setting cannot answer still counts in the family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from lora_bench import wording
from lora_bench.questions.rank import PAPER_TARGETS
from lora_bench.reports.scope import Scope, each_setting
from lora_bench.reports.section import Column, SettingSection, Table
from lora_bench.verdicts import arms, pooled, settings, stats, tuning
from lora_bench.verdicts.note import Note, gap

WITH = tuple(targets for targets in settings.PLACEMENTS if {"v", "o"} & set(targets))
WITHOUT = tuple(targets for targets in settings.PLACEMENTS if targets not in WITH)
MIN_RANKS = 3  # of a slope: two ranks are a contrast


@dataclass(frozen=True)
class Cells:
    """What the contrasts read: each cell's scores by seed at its own rate."""

    at_budget: Mapping[str, pooled.Scores]  # placement -> scores, at the budget where most placements meet
    by_rank: Mapping[str, Mapping[int, pooled.Scores]]  # placement -> rank -> scores, ranks rising
    spent: Mapping[tuple[str, int], float]  # (placement, rank) -> adapter parameters


@dataclass(frozen=True)
class Declared:
    """A pooled contrast that is fixed before its data."""

    name: str
    values: Callable[[Cells], dict[int, float]]  # {seed: value}; empty where the store cannot say
    words: Mapping[str, str]  # verdict -> what it means here


def _with_or_without(cells: Cells) -> dict[int, float]:
    if not set(settings.PLACEMENTS) <= cells.at_budget.keys():
        return {}
    return pooled.difference_of_means(*([cells.at_budget[name] for name in side] for side in (WITH, WITHOUT)))


def _half_the_rank(cells: Cells) -> dict[int, float]:
    ours, theirs = cells.by_rank.get("qv", {}), cells.by_rank.get("qkvo", {})
    ranks = [
        rank
        for rank in ours
        if rank / 2 in theirs
        and abs(cells.spent["qv", rank] - cells.spent["qkvo", rank // 2])
        <= settings.SAME_BUDGET * cells.spent["qv", rank]
    ]
    return pooled.difference_of_means([ours[rank] for rank in ranks], [theirs[rank // 2] for rank in ranks])


def _slope(targets: str) -> Callable[[Cells], dict[int, float]]:
    def slope(cells: Cells) -> dict[int, float]:
        by_rank = cells.by_rank.get(targets, {})
        return pooled.slopes_per_doubling(by_rank) if len(by_rank) >= MIN_RANKS else {}

    return slope


_SIDES = {"better": "better", "worse": "worse", "tied": "tied"}
_SLOPES = {"better": "rises", "worse": "falls", "tied": "flat"}
DECLARED = (
    Declared(f"{', '.join(WITH)} (with v or o) − {', '.join(WITHOUT)} (without)", _with_or_without, _SIDES),
    Declared("qv − qkvo at half the rank, all budgets", _half_the_rank, _SIDES),
    *(Declared(f"{targets}, per doubling of the rank", _slope(targets), _SLOPES) for targets in PAPER_TARGETS),
)


def sections(runs: pd.DataFrame, scope: Scope) -> list[SettingSection]:
    """One section per setting.

    Raises:
        NothingToShow: when no setting can answer one of the declared contrasts.
    """
    return each_setting(runs, scope, lambda setting: [section(setting, margin=scope.margin_of(setting.metric))])


def section(setting: settings.Setting, *, margin: float) -> SettingSection:
    """The table and the sentence for one setting.

    Raises:
        NothingToShow: when it can answer none of the declared contrasts.
    """
    cells = _cells(setting)
    values = [declared.values(cells) for declared in DECLARED]
    if not any(values):
        raise settings.NothingToShow(
            f"{setting.title}: none of the {len(DECLARED)} pooled contrasts has its cells; "
            "start with: lora-bench +sweeps=weight_types"
        )
    rng = np.random.default_rng(0)
    family = [
        stats.contrast(np.array(list(by_seed.values())), np.zeros(len(by_seed)), margin=margin, rng=rng)
        for by_seed in values
    ]
    rows = []
    for declared, contrast in zip(DECLARED, stats.judge(family), strict=True):
        word = declared.words.get(contrast.verdict, contrast.verdict) if contrast.n_pairs else "missing"
        rows.append({"contrast": declared.name, **vars(replace(contrast, verdict=word))})
    frame = pd.DataFrame(rows)
    return SettingSection(
        title=f"Pooled contrasts: {setting.title}",
        sentence=sentence(setting, frame),
        tables=[_table(f"pooled_{setting.slug}", frame, margin)],
        notes=_notes(frame),
        setting=setting,
    )


def sentence(setting: settings.Setting, frame: pd.DataFrame) -> str:
    """Every pooled contrast that the setting can answer, with its difference and its word."""
    parts = [
        f"{row['contrast']}: {difference} points, {row['verdict']}"
        for row, difference in zip(frame.to_dict("records"), _differences(frame), strict=True)
        if row["n_pairs"] > 0
    ]
    return f"On {setting.title}, pooled: {'; '.join(parts)}."


def _cells(setting: settings.Setting) -> Cells:
    runs = setting.runs[setting.runs["targets"] != ""]
    named = arms.name_arms(runs)
    estimates = arms.estimate(named, tuning.choose_rates(named)["lr"])
    by_rank: dict[str, dict[int, pooled.Scores]] = {}
    spent = {}
    for row in estimates.sort_values("arm").to_dict("records"):
        if isinstance(row["arm"].rank, int) and row["scores"]:
            by_rank.setdefault(row["targets"], {})[row["arm"].rank] = row["scores"]
            spent[row["targets"], row["arm"].rank] = row["adapter_parameters"]
    try:
        _, meeting = settings.at_budgets(setting)[0]
    except settings.NothingToShow:
        return Cells({}, by_rank, spent)
    meeting = meeting[meeting["targets"] != ""]
    meeting = meeting.assign(arm=meeting["targets"])
    at_budget = arms.estimate(meeting, tuning.choose_rates(meeting)["lr"])
    return Cells({str(arm): scores for arm, scores in at_budget["scores"].items()}, by_rank, spent)


def _two_digits(value: object) -> str:
    return wording.signed(value, digits=2)  # a slope per doubling is small


def _differences(frame: pd.DataFrame) -> list[str]:
    return [
        wording.plus_minus(mean, high, _two_digits)
        for mean, high in zip(frame["difference"], frame["high"], strict=True)
    ]


def _table(name: str, frame: pd.DataFrame, margin: float) -> Table:
    shown = frame.assign(difference_shown=_differences(frame))
    columns = [
        Column("contrast", "pooled contrast", wording.text, is_number=False),
        Column("n_pairs", "n", wording.count),
        Column("difference_shown", "difference", wording.text),
        Column("p_holm", "p Holm", wording.p_value),
        Column("p_equivalent_holm", "p tie", wording.p_value),
        Column("verdict", "verdict", wording.text, is_number=False),
    ]
    title = f"Pooled contrasts in points (± 95 %), declared beforehand; a tie is within {100 * margin:g}"
    return Table(name, title, shown, columns)


def _notes(frame: pd.DataFrame) -> list[Note]:
    notes = [
        Note(
            f"a family of its own: the {len(frame)} contrasts are fixed in lora_bench, and Holm counts those that the "
            "store cannot answer too; every seed with a score counts, learned or not"
        )
    ]
    missing = frame.loc[frame["n_pairs"] == 0, "contrast"]
    return notes + (
        [gap(f"pooled contrasts that the store cannot answer: {'; '.join(missing)}")] if len(missing) else []
    )
