"""What a task's rows come to, in figures that people are told and records keep."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_bench.tasks.rows import Task

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Summary:
    """A task in figures.

    Attributes:
        counts: split -> rows of each label, in the labels' order; empty lists for regression.
        repeats: report split -> other split -> how many of its rows have all texts of a row there.
        n_select_repeats: select rows that have all texts of a train row.
        n_empty: rows of all splits one of whose two texts is empty.
    """

    counts: dict[str, list[int]]
    repeats: dict[str, dict[str, int]]
    n_select_repeats: int
    n_empty: int

    def as_facts(self, task: Task) -> dict[str, Any]:
        """The same as JSON values for the record, with the names of the labels (null for regression)."""
        return {"labels": list(task.label_names) or None, "label_counts": self.counts, "repeats": self.repeats}


@functools.lru_cache(maxsize=16)
def summarise(task: Task) -> Summary:
    """The figures of a task; remembered, since every record asks."""
    counts = {
        split: np.bincount(rows["label"], minlength=len(task.label_names)).tolist() if task.label_names else []
        for split, rows in task.splits.items()
    }
    repeats = {
        split: {other: _n_repeated(rows, task.splits[other]) for other in ("train", "select")}
        for split, rows in task.splits.items()
        if split.startswith("report")
    }
    n_select_repeats = _n_repeated(task.splits["select"], task.splits["train"])
    n_empty = sum(
        int((rows[["text_a", "text_b"]] == "").any(axis=1).sum()) for rows in task.splits.values() if "text_b" in rows
    )
    return Summary(counts, repeats, n_select_repeats, n_empty)


def _n_repeated(rows: pd.DataFrame, others: pd.DataFrame) -> int:
    """Rows whose texts, all of them, are those of a row of `others`. Labels do not count."""
    texts = _texts(rows)
    wanted = set(texts)
    there = {text for text in _texts(others) if text in wanted}
    return sum(text in there for text in texts)


def _texts(rows: pd.DataFrame) -> list[tuple[str, ...]]:
    return list(zip(*(rows[name].tolist() for name in ("text_a", "text_b") if name in rows), strict=True))
