"""What a task's rows come to, in figures that people are told and records keep."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
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
        given: for each text the share of train rows of which it gives the label away, 0 to 1; see `_share_given`.
        same: share of train rows whose two texts are one, 0 to 1.
        n_empty: rows of all splits one of whose two texts is empty.
    """

    counts: dict[str, list[int]]
    repeats: dict[str, dict[str, int]]
    n_select_repeats: int
    n_empty: int
    given: tuple[float, ...]
    same: float

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
    train = task.splits["train"]
    letters = [name for name in ("text_a", "text_b") if name in train]
    given = tuple(_share_given(train[name].tolist(), train["label"].tolist(), task.n_labels) for name in letters)
    same = float((train["text_a"] == train["text_b"]).mean()) if "text_b" in train else 0.0
    return Summary(counts, repeats, n_select_repeats, n_empty, given, same)


def _share_given(texts: Sequence[str], labels: Sequence[float], n_labels: int) -> float:
    """Share of rows whose label a text gives away, as a copy of the label column does, whatever it calls them.

    Of classes: rows of the texts that are there most often, one for each label, and that have the label which is usual
    for their text; 0 where all of these have one label. Of numbers (`n_labels` 1): rows whose text
    is the label.
    """
    if n_labels == 1:
        return float(np.mean([_is_number(text, label) for text, label in zip(texts, labels, strict=True)]))
    usual = {}
    for text, n_rows in Counter(texts).most_common(n_labels):
        if n_rows > 1:
            usual[text] = Counter()
    for text, label in zip(texts, labels, strict=True):
        if text in usual:
            usual[text][label] += 1
    best = [counts.most_common(1)[0] for counts in usual.values()]
    return sum(n_rows for _, n_rows in best) / len(texts) if len({label for label, _ in best}) > 1 else 0.0


def _is_number(text: str, label: float) -> bool:
    try:
        return np.float32(text) == label
    except ValueError:
        return False


def _n_repeated(rows: pd.DataFrame, others: pd.DataFrame) -> int:
    """Rows whose texts, all of them, are those of a row of `others`. Labels do not count."""
    texts = _texts(rows)
    wanted = set(texts)
    there = {text for text in _texts(others) if text in wanted}
    return sum(text in there for text in texts)


def _texts(rows: pd.DataFrame) -> list[tuple[str, ...]]:
    return list(zip(*(rows[name].tolist() for name in ("text_a", "text_b") if name in rows), strict=True))
