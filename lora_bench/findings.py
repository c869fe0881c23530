"""What the scripts of analysis/ find in a set of runs: for the run that ends a sweep on W&B, and for the dashboard.

The scripts stay the one place that computes tables and figures; here they are only found and called.
"""

from __future__ import annotations

import importlib.util
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

from lora_bench import cells, tuning
from lora_bench.config import resource_root
from lora_bench.reporting import Section

COLUMN_OF = {"head_rate": "head_lr"}  # as the store, and so W&B, has it
SCRIPTS = ("weight_types", "rank", "learning_rate", "pareto")


def sections(frame: Any, *, store: Path) -> dict[str, list[Section]]:
    """Tables, figures and sentences by script, for every LoRA method of the frame; scripts without any are left out."""
    try:
        runs = cells.prepare(frame)
    except cells.NothingToShow:
        return {}
    found: dict[str, list[Section]] = {}
    options = Namespace(store=store, task=None, model=None, metric=None, margin=None, mix_environments=False)
    for method in [one for one in cells.LORA_METHODS if one in set(runs["method"])]:
        options.method, options.budget, options.reference = method, None, cells.REFERENCE_TARGETS
        for name in SCRIPTS:
            try:
                made = _script(name).sections(runs, options)
            except cells.NothingToShow:
                continue
            found.setdefault(name, []).extend(made)
    between = _script("factor").every(runs, options)
    return found | ({"factor": between} if between else {})


def chosen_cells(frame: Any) -> list[dict[str, Any]]:
    """Each arm at the learning rate that `select` chose for it, as values of the columns that tell it apart.

    Where runs of one backbone, task and method were trained in several ways, each way has its own rate and cell.
    """
    try:
        runs: Any = cells.prepare(frame)
    except cells.NothingToShow:
        return []
    chosen = []
    groups = [(tuple(group.iloc[0][["model", "task", "method"]]), group) for group in cells.comparable(runs)]
    for name, group in groups:
        rivals = [one for other, one in groups if other == name]
        apart = cells.differing(rivals, (one for one in (*cells.SHARED, *cells.OF_ADAPTER) if one in group))
        apart = [COLUMN_OF.get(one, one) for one in apart]
        named = cells.name_arms(group)
        for _, points in tuning.at_chosen_rates(named).groupby("arm", sort=False):
            first = points.iloc[0]
            cell = dict(zip(("model", "task", "method"), name, strict=True))
            told = ("targets", "ranks", "lr") if first["targets"] else ("head_lr" if name[2] == cells.FLOOR else "lr",)
            cell |= {one: first[one] for one in told}
            cell |= {one: first[one] for one in apart if pd.notna(first[one])}
            chosen.append({one: value.item() if hasattr(value, "item") else value for one, value in cell.items()})
    return chosen


def _script(name: str) -> ModuleType:
    """A script of analysis/, wherever it was installed."""
    module_name = f"lora_bench_analysis_{name}"
    if module_name not in sys.modules:
        path = resource_root() / "analysis" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"no analysis script {path}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        spec.loader.exec_module(module)
    return sys.modules[module_name]
