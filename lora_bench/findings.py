"""What the scripts of analysis/ find in a set of runs: for the run that ends a sweep on W&B, and for the dashboard.

The scripts stay the one place that computes tables and figures; here they are only found and called.
"""

from __future__ import annotations

import importlib.util
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from lora_bench import cells, tuning
from lora_bench.config import resource_root
from lora_bench.reporting import Section

SCRIPTS = ("weight_types", "rank", "learning_rate", "pareto")


def sections(frame: Any, *, store: Path, scripts: Sequence[str] = SCRIPTS) -> dict[str, list[Section]]:
    """Tables, figures and sentences by script, for every LoRA method of the frame; scripts without any are left out."""
    try:
        runs = cells.prepare(frame)
    except cells.NothingToShow:
        return {}
    found: dict[str, list[Section]] = {}
    for method in [one for one in cells.LORA_METHODS if one in set(runs["method"])]:
        options = Namespace(store=store, task=None, model=None, metric=None, margin=None, mix_environments=False)
        options.method, options.budget = method, None
        for name in scripts:
            try:
                found.setdefault(name, []).extend(_script(name).sections(runs, options))
            except cells.NothingToShow:
                continue
    return found


def chosen_cells(frame: Any) -> list[dict[str, Any]]:
    """Each arm at the learning rate that `select` chose for it, as values of the columns that tell it apart."""
    try:
        runs: Any = cells.prepare(frame)
    except cells.NothingToShow:
        return []
    chosen = []
    for (model, task), of_pair in runs.groupby(["model", "task"], sort=True):
        for method, group in of_pair.groupby("method", sort=True):
            named = cells.name_arms(group)
            rates = tuning.choose_rates(named).to_dict("index")
            for arm, points in named.groupby("arm", sort=False):
                first, rate = points.iloc[0], rates[arm]
                if rate["certificate"] == "none":
                    continue
                cell = {"model": model, "task": task, "method": method}
                if first["targets"]:
                    cell |= {"targets": first["targets"], "ranks": first["ranks"], "lr": float(rate["lr"])}
                chosen.append(cell)
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
