"""What the scripts of analysis/ find in a set of runs: for the run that ends a sweep on W&B, and for the dashboard.

The questions stay the one place that computes tables and figures; here they are only called.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from lora_bench.config.schema import LORA_METHODS
from lora_bench.questions import QUESTIONS
from lora_bench.reports.learned import with_learning
from lora_bench.reports.scope import Scope
from lora_bench.reports.section import Section
from lora_bench.verdicts import arms, settings, tuning

COLUMN_OF = {"head_rate": "head_lr"}  # as the store, and so W&B, has it


def sections(frame: Any, *, store: Path) -> dict[str, list[Section]]:
    """Tables, figures and sentences by script, for every LoRA method of the frame; scripts without any are left out."""
    try:
        runs = with_learning(settings.prepare(frame), store)
    except settings.NothingToShow:
        return {}
    by_script: dict[str, list[Section]] = {}
    scope = Scope(store)
    methods = [method for method in LORA_METHODS if method in set(runs["method"])]
    for name, question in QUESTIONS.items():
        scopes = [replace(scope, method=method) for method in methods] if question.by_method else [scope]
        for asked in scopes if question.ends_sweep else ():
            try:
                made = question.sections(runs, asked)
            except settings.NothingToShow:
                continue
            if made:
                by_script.setdefault(name, []).extend(made)
    return by_script


def chosen_cells(frame: Any) -> list[dict[str, Any]]:
    """Each arm at the learning rate that `select` chose for it, as values of the columns that tell it apart.

    Where runs of one backbone, task and method were trained in several ways, each way has its own rate and cell.
    """
    try:
        runs: Any = settings.prepare(frame)
    except settings.NothingToShow:
        return []
    chosen = []
    groups = [(tuple(group.iloc[0][["model", "task", "method"]]), group) for group in settings.comparable(runs)]
    for name, group in groups:
        rivals = [alike for other, alike in groups if other == name]
        apart = settings.differing(
            rivals, (field for field in (*settings.SHARED, *settings.OF_ADAPTER) if field in group)
        )
        apart = [COLUMN_OF.get(field, field) for field in apart]
        named = arms.name_arms(group)
        for _, points in tuning.at_chosen_rates(named).groupby("arm", sort=False):
            first = points.iloc[0]
            cell = dict(zip(("model", "task", "method"), name, strict=True))
            always = (
                ("targets", "ranks", "lr") if first["targets"] else ("head_lr" if name[2] == settings.FLOOR else "lr",)
            )
            cell |= {field: first[field] for field in always}
            cell |= {field: first[field] for field in apart if pd.notna(first[field])}
            chosen.append({field: value.item() if hasattr(value, "item") else value for field, value in cell.items()})
    return chosen
