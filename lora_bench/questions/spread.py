"""What makes a score vary: the adapter's start, all else that a seed draws, or the learning rate?

Reads runs of several starts within a seed (`+sweeps=variance`: `adapter.replicate` draws A anew and nothing else). For
each cell and rate the spread over seeds (the head, the order of rows) is told from that over starts, as in
`verdicts.components`; seeds whose model predicts one class are set aside, as everywhere.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from lora_bench import wording
from lora_bench.reports.figures import style
from lora_bench.reports.figures.draws import draws
from lora_bench.reports.scope import Scope, gather
from lora_bench.reports.section import Column, SettingSection, Table
from lora_bench.verdicts import settings
from lora_bench.verdicts.arms import name_arms
from lora_bench.verdicts.components import START, cells
from lora_bench.verdicts.note import Note

_COUNTED = ("cell", "lr", "n_failed", "n_runs")
ABSENT = "no seed has two starts of the adapter; lora-bench +sweeps=variance makes them"


def sections(runs: pd.DataFrame, scope: Scope) -> list[SettingSection]:
    """One section per setting in which a seed has several starts.

    Raises:
        NothingToShow: when there is none.
    """
    if START not in runs:
        raise settings.NothingToShow(ABSENT)
    made, refused = gather(scope.settings(scope.within(runs), free=(START,)), lambda setting: [section(setting)])
    made[-1].refused.extend(refused)
    return made


def section(setting: settings.Setting) -> SettingSection:
    """The table, the figure and the sentence for one setting.

    Raises:
        NothingToShow: when no seed of it has two starts.
    """
    runs = name_arms(setting.runs[setting.runs["targets"] != ""])
    frame = cells(runs)
    if frame.empty:
        raise settings.NothingToShow(f"{setting.title}: {ABSENT}")
    name = f"spread_{setting.slug}"
    drawn = runs[runs["scored"]].merge(frame[["cell", "lr"]], left_on=["arm", "lr"], right_on=["cell", "lr"])
    return SettingSection(
        title=f"Spread: {setting.title}",
        sentence=sentence(setting, frame),
        tables=[_table(name, setting, frame)],
        figures={name: draws(drawn.rename(columns={START: "start"}), metric=setting.metric)},
        captions={
            name: "Score on report of every run: a column a seed, a dot a start of the adapter, hollow where the model "
            "predicts one class; dashes are the means of a seed's runs that learn. Starts spread the dots of a column, "
            "seeds its dash."
        },
        notes=_notes(setting, frame),
        setting=setting,
    )


def sentence(setting: settings.Setting, frame: pd.DataFrame) -> str:
    """What was found here, in one sentence."""
    best = frame[frame["is_best"] & frame["share"].notna()]
    if best.empty:
        return f"On {setting.title} too few runs learn to tell the spread of starts from that of seeds."
    parts = [
        f"{row.cell} by {wording.points(row.start_sd)} with another start of the adapter and by "
        f"{wording.points(row.seed_sd)} with another seed"
        for row in best.itertuples()
    ]
    return f"On {setting.title} one run varies (standard deviations, points): {'; '.join(parts)}."


def _notes(setting: settings.Setting, frame: pd.DataFrame) -> list[Note]:
    notes = list(setting.notes)
    failed = frame[frame["n_failed"] > 0]
    notes += [
        Note(f"{cell} at {lr:g}: {lost} of {lost + learned} runs failed or predict one class")
        for cell, lr, lost, learned in zip(*(failed[name].tolist() for name in _COUNTED), strict=True)
    ]
    few = int(frame["n_seeds"].max())
    return [
        *notes,
        Note(f"{wording.counted(few, 'seed')} at most: the intervals say how little that tells of a spread"),
    ]


def _table(name: str, setting: settings.Setting, frame: pd.DataFrame) -> Table:
    def spread(which: str) -> list[str]:
        return [
            "" if math.isnan(sd) else f"{wording.points(sd)} ({wording.points(low)} to {wording.points(high)})"
            for sd, low, high in frame[[which, f"{which}_low", f"{which}_high"]].to_numpy(float)
        ]

    changes = [
        "" if math.isnan(change) else f"{wording.signed(change)} ({wording.signed(low)} to {wording.signed(high)})"
        for change, low, high in frame[["change", "change_low", "change_high"]].to_numpy(float)
    ]
    shown = frame.assign(
        rate=[f"{lr:g}{'*' if is_best else ''}" for lr, is_best in zip(frame["lr"], frame["is_best"], strict=True)],
        starts=spread("start_sd"),
        seeds=spread("seed_sd"),
        part=["" if np.isnan(share) else f"{100 * share:.0f} %" for share in frame["share"]],
        changed=changes,
    )
    columns = [
        Column("cell", "cell", wording.text, is_number=False, is_name=True),
        Column("rate", "lr", wording.text),
        Column("n_seeds", "seeds", wording.count, on_screen=False),
        Column("n_runs", "runs", wording.count),
        Column("n_failed", "failed", wording.count, on_screen=False),
        Column("mean", style.short_metric(setting.metric), wording.points),
        Column("starts", "start, sd", wording.text),
        Column("seeds", "seed, sd", wording.text),
        Column("part", "of start", wording.text),
        Column("changed", "− best rate", wording.text, on_screen=False),
    ]
    title = f"{setting.title}: where the spread comes from (* the best rate on select)"
    return Table(name, title, shown, columns)
