"""The texts of report rows, for the page: records hold scores and predictions, and no text of anyone's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from lora_bench.config.compose import compose, parse
from lora_bench.config.errors import ConfigError
from lora_bench.config.schema import TaskConfig
from lora_bench.questions.drill import Texts
from lora_bench.reports.explicit import has_file, task_words
from lora_bench.store import open_store
from lora_bench.store.errors import StoreError
from lora_bench.tasks.load import load_task


def texts_of(runs: pd.DataFrame, store: Path) -> Texts:
    """The report rows of every task whose rows are at hand, as its runs were told to find them, and are the same rows.

    Nothing is fetched: a task whose files are gone, or came from the Hub, is left out.
    """
    reader = open_store(store)
    by_task: dict[str, dict[int, str]] = {}
    for fingerprint, of_task in runs.groupby("task_fingerprint", sort=True):
        try:
            task = load_task(_here(reader.record(str(of_task["run_id"].iloc[0]))))
        except (ConfigError, StoreError, HydraException, OmegaConfBaseException, OSError):
            continue
        if task.fingerprint == fingerprint:
            report = task.splits["report"]
            parts = [report[name].astype(str) for name in ("text_a", "text_b") if name in report]
            texts = parts[0] if len(parts) == 1 else parts[0] + " ‖ " + parts[1]
            by_task[str(fingerprint)] = dict(zip(report["idx"].astype(int), texts, strict=True))
    return by_task


def _here(record: dict[str, Any]) -> TaskConfig:
    """What a run was told of its task.

    Raises:
        ConfigError: when it would have to be fetched, or the words no longer compose.
    """
    invocation = record["invocation"]
    words = [str(word) for word in invocation.get("overrides") or []]
    words = [word for word in words if word.partition("=")[0].lstrip("+").startswith(("task", "sweeps"))]
    sweep = invocation.get("sweep")
    if sweep and not has_file(sweep):
        words = [word for word in words if not word.startswith("+sweeps=")]
        words += task_words(record["config"]["task"]["name"], record, given=words)
    elif sweep and not any(word.startswith("+sweeps=") for word in words):
        words.insert(0, f"+sweeps={sweep}")
    config = parse(compose(words)).task
    if config.source == "glue" and not config.data_dir:
        raise ConfigError("task.data_dir: none, so the rows would have to be fetched")
    return config
