"""A run as words of the command line, where the sweep file that started it is gone.

A sweep's file holds what its runs share, and a record of the run names that file. Where it no longer exists, the record
itself tells what the run was: each setting that differs from the shipped presets becomes a word of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import pandas as pd
import yaml

from lora_bench.config import overrides
from lora_bench.config.overrides import override
from lora_bench.paths import resource_root
from lora_bench.verdicts import settings

DEFAULTS = {"model": "minilm", "task": "acceptability", "train": "default"}
"""What conf/config.yaml chooses by itself."""
TOLD_APART = ("method", "targets", "rank")
"""Settings of an adapter that are its placement."""
OWN_FILES = (
    *("task", "task.name", "task.kind", "task.data_dir", "task.train_file", "task.report_file", "task.select_file"),
    *("task.text_columns", "task.label_column"),
)
"""Keys that say which files a task is of, and how they are read."""


def has_file(sweep: str) -> bool:
    """Whether a sweep of this name can be run from here."""
    return any((root / "sweeps" / f"{sweep}.yaml").is_file() for root in (Path(), resource_root()))


def shared_words(run: pd.Series, record: Mapping[str, Any], *, given: Sequence[str]) -> list[str]:
    """The words for backbone, task, rows and training.

    Args:
        run: a row of the store's frame, prepared.
        record: the run's.
        given: words that are there already, whose keys are left out.
    """
    words = [*preset_words("model", str(run["model"]), given), *task_words(str(run["task"]), record, given=given)]
    is_preset = not any(word.startswith("train=") for word in given)
    usual = _preset("train", DEFAULTS["train"]) if is_preset else {}
    trained = dict(record["config"]["train"])
    trained["head_lr"] = None if run["head_rate"] == "lr" else trained["head_lr"]
    words += [f"{key}={text}" for key, text in _differing("train", trained, usual, ("lr",))]
    return _further(words, given)


def task_words(task: str, record: Mapping[str, Any], *, given: Sequence[str]) -> list[str]:
    """Those of `shared_words` for the task and its rows."""
    rows = [f"{key}={n_rows}" for key, n_rows in _cut_rows(record).items()]
    draw = record["config"]["task"].get("train_draw", "fixed")
    rows += [] if draw == "fixed" else [f"task.train_draw={draw}"]
    return _further([*(_own_files(record) or preset_words("task", task, given)), *rows], given)


def _own_files(record: Mapping[str, Any]) -> list[str]:
    """What the run's command said of the user's own files, whose task may have the name of a shipped one."""
    typed = [str(word) for word in (record.get("invocation") or {}).get("overrides") or []]
    return [word for word in typed if overrides.key_of(word) in OWN_FILES] if "task=files" in typed else []


def placement_words(run: pd.Series, record: Mapping[str, Any], *, given: Sequence[str]) -> dict[str, str]:
    """Key -> value of what the adapter is beside its targets and its rank; a budget where ranks differ by matrix."""
    preset = settings.preset_of(run["method"], run["init"], run["alpha_policy"])
    is_preset = not any(word.startswith("train=") for word in given)  # a paper's preset sets its adapter, too
    usual = _preset("adapter", preset) if is_preset else {}
    words = {} if preset == "lora" else {"adapter": preset}
    words |= dict(_differing("adapter", record["config"]["adapter"], usual, TOLD_APART))
    if pd.isna(run["rank"]) and pd.notna(run["adapter_parameters"]):
        words |= {"adapter.rank": "null", "adapter.budget": f"{run['adapter_parameters']:.0f}"}
    return words


def _further(words: Sequence[str], given: Sequence[str]) -> list[str]:
    keys = set(map(overrides.key_of, given))
    return [word for word in words if overrides.key_of(word) not in keys]


def preset_words(group: str, name: str, given: Sequence[str]) -> list[str]:
    """The word that chooses what has this name; the name itself, or the file, for what no preset has."""
    if {group, f"{group}.name", f"{group}.gguf"} & set(map(overrides.key_of, given)):
        return []
    paths = sorted((resource_root() / "conf" / group).glob("*.yaml"))
    preset = next((path.stem for path in paths if _recorded_name(_preset(group, path.stem)) == name), None)
    if preset is None:
        return [override(f"{group}.{'gguf' if name.endswith('.gguf') else 'name'}", name)]
    return [] if preset == DEFAULTS[group] else [override(group, preset)]


@functools.cache  # a page asks for all of a group, contrast by contrast
def _preset(group: str, name: str) -> Mapping[str, Any]:
    """The values of conf/GROUP/NAME.yaml."""
    text = (resource_root() / "conf" / group / f"{name}.yaml").read_text(encoding="utf-8")
    return MappingProxyType(yaml.safe_load(text) or {})


def _recorded_name(preset: Mapping[str, Any]) -> str | None:
    """What records call it: a backbone of a GGUF file is that file, and not the model that was turned into it."""
    file = preset.get("gguf")
    return PurePosixPath(file).name if file else preset.get("name")


def _differing(
    section: str, values: Mapping[str, Any], usual: Mapping[str, Any], left_out: Sequence[str]
) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if name not in left_out and (name not in usual or usual[name] != value):
            yield f"{section}.{name}", text_of(value)


def text_of(value: Any) -> str:
    """A value of a record as the command line takes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(text_of, value))}]"
    if isinstance(value, str):
        return value if value.startswith(("first:", "last:")) else overrides.value(value)
    return f"{value:.12g}"


def _cut_rows(record: Mapping[str, Any]) -> dict[str, int]:
    """Key -> rows of the splits that were cut, or made to measure; empty where a record does not tell."""
    data = record["data"]
    splits = data.get("splits") or {}
    is_made = data.get("source") == "generated"
    n_select = splits["select"]["rows"] if "select" in splits and "source_rows" not in splits["select"] else 0
    cut = {"task.select_rows": n_select} if n_select else {}
    for name, beside in {"train": n_select, "report": 0}.items():
        split = splits.get(name)
        if split and (is_made or split["rows"] + beside != split["source_rows"]):
            cut[f"task.{name}_rows"] = split["rows"]
    return cut
