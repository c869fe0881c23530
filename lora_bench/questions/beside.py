"""Beside the words: each contrast over seeds and rows, and without the threshold at work in the official metric.

The words of a contrast are about other seeds on these rows, by the official metric. Two questions stand beside them,
and change no word: would the difference hold on other rows of the task (`verdicts.crossed`), and is it one of
threshold (the area under the curve has none; the official metric at the threshold tuned on `select` has a better one)?
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lora_bench.reports.section import Column, Table
from lora_bench.store import StoreReader, open_store
from lora_bench.store.errors import StoreError
from lora_bench.store.predictions import answers
from lora_bench.verdicts import crossed, stats
from lora_bench.verdicts.arms import Judgement, compare
from lora_bench.verdicts.note import Note, gap
from lora_bench.verdicts.settings import FLOOR
from lora_bench.verdicts.tuning import flat_arms
from lora_bench.wording import count, p_value, plus_minus, signed, text

TUNED = ("matthews", "f1")  # official metrics that turn on the share of rows that get label 1


@dataclass(frozen=True)
class Scored:
    """One run read from its predictions."""

    shares: np.ndarray  # (n_rows,) pseudo-values of the official metric, by row
    auc: float = math.nan
    tuned: float = math.nan  # the official metric at select's threshold


def beside(name: str, judged: Judgement, runs: pd.DataFrame, store: Path) -> tuple[list[Table], list[Note]]:
    """The table that stands beside a section's contrasts, and what it lacks; none where no run kept predictions.

    Args:
        name: of the table's files.
        runs: those that were judged, with their arms.
    """
    metric = str(runs["metric"].iloc[0]) if "metric" in runs else ""
    table = judged.contrasts[judged.contrasts["n_seeds"] > 0]
    if metric not in crossed.OF_CLASSES or table.empty:
        return [], []
    by_arm = _read(runs, judged, sorted({*table["first"], *table["second"]}), metric, open_store(store))
    if not any(by_arm.values()):
        return [], [Note("no run kept its predictions: intervals are of seeds on these rows, by the official metric")]
    rows = [_row(contrast, judged.estimates, by_arm) for contrast in table.to_dict("records")]
    frame = pd.DataFrame(rows)
    for kind in ("auc", "tuned"):
        frame[f"{kind}_p_holm"] = stats.holm(frame[f"{kind}_p"].to_numpy(dtype=float))
    return [_table(name, frame, metric)], _notes(frame, metric)


def every_pair(judged: Judgement, *, margin: float) -> pd.DataFrame:
    """All pairs of cells as one family of their own, in the order of the cells: what no reference can hide."""
    cells = map(str, judged.estimates.index[judged.estimates["method"] != FLOOR])
    pairs = list(itertools.combinations(cells, 2))
    return compare(judged.estimates, pairs, margin=margin, flat=flat_arms(judged.rates))


def _read(
    runs: pd.DataFrame, judged: Judgement, cells: list[str], metric: str, store: StoreReader
) -> dict[str, dict[int, Scored]]:
    """Cell -> seed -> what its predictions give, of the runs at the chosen rates that kept them."""
    by_arm: dict[str, dict[int, Scored]] = {cell: {} for cell in cells}
    at_rate = runs["lr"] == runs["arm"].map(judged.rates["lr"])
    chosen = runs[at_rate & runs["scored"] & runs["arm"].isin(cells)]
    for run_id, cell, seed in chosen[["run_id", "arm", "seed"]].itertuples(index=False):
        try:
            predictions = store.predictions(str(run_id))
        except StoreError:
            continue
        if predictions is not None and (scored := _scored(predictions, metric)) is not None:
            by_arm[str(cell)][int(seed)] = scored
    return by_arm


def _scored(predictions: pd.DataFrame, metric: str) -> Scored | None:
    in_order = predictions.sort_values("idx", kind="stable")
    labels, logits = {}, {}
    for split in ("select", "report"):
        labels[split], logits[split] = answers(in_order, split)
    n_labels = logits["report"].shape[1]
    if n_labels < 2 or not labels["report"].size or not all(np.isfinite(values).all() for values in logits.values()):
        return None
    _, shares = crossed.shares_of_rows(metric, labels["report"], logits["report"].argmax(axis=1))
    if n_labels > 2:
        return Scored(shares)
    outputs = {split: values[:, 1] - values[:, 0] for split, values in logits.items()}
    auc, _ = crossed.shares_of_rows(crossed.AUC, labels["report"], outputs["report"])
    if not labels["select"].size or metric not in TUNED:
        return Scored(shares, auc)
    threshold = crossed.tuned_threshold(metric, labels["select"], outputs["select"])
    tuned, _ = crossed.shares_of_rows(metric, labels["report"], (outputs["report"] >= threshold).astype(int))
    return Scored(shares, auc, tuned)


def _row(contrast: dict, estimates: pd.DataFrame, by_arm: dict[str, dict[int, Scored]]) -> dict:
    """A contrast with its two intervals, and its difference by each of the other measures."""
    first, second = contrast["first"], contrast["second"]
    ours, theirs = by_arm[first], by_arm[second]
    learned = [{seed for seed, learns in estimates["learns"][arm].items() if learns} for arm in (first, second)]
    pairs = sorted(set.intersection(*learned))
    low = high = math.nan
    is_whole = set(pairs) <= ours.keys() & theirs.keys()
    if is_whole and len(pairs) == contrast["n_pairs"] > 0:
        shares = np.stack([ours[seed].shares - theirs[seed].shares for seed in pairs])
        low, high = crossed.interval(shares, contrast["difference"])
    row = {
        "first": first, "second": second, "n_pairs": contrast["n_pairs"], "difference": contrast["difference"],
        "low": contrast["low"], "high": contrast["high"], "rows_low": low, "rows_high": high, "is_whole": is_whole,
    }  # fmt: skip
    common = sorted(ours.keys() & theirs.keys())
    for kind in ("auc", "tuned"):
        differences = np.array([getattr(ours[seed], kind) - getattr(theirs[seed], kind) for seed in common])
        differences = differences[np.isfinite(differences)]
        low, high = stats.mean_interval(differences)
        p = float(stats.paired_t_p(differences)) if differences.size >= stats.MIN_PAIRS else math.nan
        row |= {
            f"{kind}_n": differences.size,
            f"{kind}_difference": float(differences.mean()) if differences.size else math.nan,
            f"{kind}_low": low, f"{kind}_high": high, f"{kind}_p": p,
        }  # fmt: skip
    return row


def _table(name: str, frame: pd.DataFrame, metric: str) -> Table:
    official = {"matthews": "Matthews", "f1": "F1"}.get(metric, metric.replace("_", " "))
    shown, columns = frame.drop(columns="is_whole"), []
    for kind, title in (("", f"{official}, seeds"), ("rows", "seeds and rows"), ("auc", "AUC"), ("tuned", "tuned")):
        place = f"{kind}_difference" if kind in ("auc", "tuned") else "difference"
        high = f"{kind}_high" if kind else "high"
        if not np.isfinite(shown[place]).any():
            continue
        shown[f"{kind}_words_shown"] = [
            plus_minus(mean, end, signed) for mean, end in zip(shown[place], shown[high], strict=True)
        ]
        columns.append(Column(f"{kind}_words_shown", title, text))
        if kind in ("auc", "tuned"):
            columns.append(Column(f"{kind}_n", "n", count, on_screen=False))
            columns.append(Column(f"{kind}_p_holm", "p Holm", p_value, on_screen=False))
    cells = [
        Column(name, title, text, is_number=False, is_name=True)
        for name, title in (("first", "cell"), ("second", "against"))
    ]
    title = "The same contrasts over seeds, over seeds and rows, and by AUC (± 95 %)"
    return Table(name, title, shown, [*cells, Column("n_pairs", "n", count), *columns])


def _notes(frame: pd.DataFrame, metric: str) -> list[Note]:
    notes = []
    if np.isfinite(frame["auc_difference"]).any():
        tuned = np.isfinite(frame["tuned_difference"]).any()
        extra = f", {metric} at the threshold that is best on select" if tuned else ""
        notes.append(
            Note(
                f"beside the words stand the area under the curve{extra}: of every seed with a score, since a model "
                "that predicts one class may still rank the rows"
            )
        )
        if metric in TUNED and not tuned:
            notes.append(
                gap(f"no logits of select were kept, so no threshold can be tuned for {metric}: the AUC stands alone")
            )
    if not frame["is_whole"].all():
        notes.append(gap("some seeds kept no predictions: their contrasts have an interval of seeds alone"))
    return notes
