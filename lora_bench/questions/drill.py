"""From a contrast down to what it rests on: its seeds, and the report rows on which its two cells differ most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lora_bench import wording
from lora_bench.reports.figures import style
from lora_bench.reports.latex import escape_latex
from lora_bench.reports.section import JudgedSection
from lora_bench.store import StoreReader, open_store
from lora_bench.store.errors import StoreError
from lora_bench.store.predictions import logit_names
from lora_bench.verdicts.arms import Judgement
from lora_bench.verdicts.looks import NOT_LEARNED
from lora_bench.verdicts.settings import FLOOR
from lora_bench.verdicts.tuning import flat_arms

ROWS = 4
"""Rows that are shown of each side: those that the first gets right more often, and those that the second does."""
LETTERS = 240
"""Of a row's text, so that a page of many contrasts stays small."""
DRAWN = {"left": 8.0, "right": 92.0, "first": 26.0, "second": 74.0}
"""Places in a picture of 100 by 100: the two rows of dots, and where the lowest and the highest score stand."""

Texts = Mapping[str, Mapping[int, str]]
"""Of each task, by the fingerprint of its rows: the row's number in its source -> its text."""


@dataclass(frozen=True)
class Rights:
    """Which report rows a cell gets right, seed by seed."""

    rows: pd.DataFrame  # idx, label
    is_right: np.ndarray  # (n_seeds, n_rows)


class Drill:
    """Reads a store's predictions, each cell's once."""

    def __init__(self, store: Path, texts: Texts | None = None):
        self._store = open_store(store)
        self._texts = texts or {}
        self._rights: dict[tuple[str, ...], Rights | None] = {}

    def pairs(self, section: JudgedSection, anchor: str, *, with_rows: bool = True) -> list[dict[str, Any]]:
        """What the page shows of each contrast of a section that has a shared seed.

        Args:
            anchor: the section's place on the page; that of a contrast begins with it.
            with_rows: whether to look for the rows on which the cells differ.
        """
        estimates, contrasts = section.judged.estimates, section.judged.contrasts
        shown = []
        for place, contrast in enumerate(contrasts.to_dict("records")):
            first, second = str(contrast["first"]), str(contrast["second"])
            if not contrast["n_seeds"]:
                continue
            seeds, scores = _seeds(estimates.loc[first].to_dict(), estimates.loc[second].to_dict())
            sentence = sentence_of(contrast, section.setting.title, section.setting.metric)
            shown.append(
                {
                    "anchor": f"{anchor}-{place}",
                    "first": first,
                    "second": second,
                    "word": contrast["verdict"],
                    "difference": wording.signed(contrast["difference"]),
                    "interval": wording.interval(contrast["low"], contrast["high"], wording.signed),
                    "sentence": sentence,
                    "latex": latex_of(contrast, section.setting.metric),
                    "dots": dots(seeds, *scores),
                    "rows": self._apart(section, first, second) if with_rows else [],
                    "seeds": seeds,
                    "scores": scores,
                    "fixed": contrast["verdict"] if contrast["verdict"] == NOT_LEARNED else None,
                }
            )
        return shown

    def _apart(self, section: JudgedSection, first: str, second: str) -> list[dict[str, Any]]:
        runs = section.setting.runs
        ours, theirs = (self._rights_of(section, cell) for cell in (first, second))
        if ours is None or theirs is None or not ours.rows.equals(theirs.rows):
            return []
        shares = ours.is_right.mean(axis=0), theirs.is_right.mean(axis=0)
        gain = shares[0] - shares[1]
        order = np.argsort(-gain, kind="stable")
        places = [place for place in (*order[:ROWS], *order[-ROWS:]) if abs(gain[place]) > 0]
        names = label_names(self._store, runs)
        texts = self._texts.get(str(runs["task_fingerprint"].iloc[0]), {})
        return [
            {
                "idx": int(ours.rows["idx"].iloc[place]),
                "label": names.get(int(ours.rows["label"].iloc[place]), str(int(ours.rows["label"].iloc[place]))),
                "first": _of(ours.is_right[:, place]),
                "second": _of(theirs.is_right[:, place]),
                "text": shortened(texts.get(int(ours.rows["idx"].iloc[place]), "")),
            }
            for place in dict.fromkeys(places)
        ]

    def _rights_of(self, section: JudgedSection, cell: str) -> Rights | None:
        """Of the cell's seeds at its rate; None where they kept no predictions, or the labels are numbers."""
        runs = section.setting.runs
        at: dict[Any, Any] = section.judged.estimates.loc[cell].to_dict()
        is_cell = (runs["targets"] == at["targets"]) & (runs["method"] == at["method"]) & (runs["lr"] == at["lr"])
        if pd.notna(at["adapter_parameters"]):
            is_cell &= runs["adapter_parameters"] == at["adapter_parameters"]
        run_ids = tuple(runs.loc[is_cell & runs["scored"], "run_id"].astype(str))
        if run_ids not in self._rights:
            self._rights[run_ids] = self._read(run_ids)
        return self._rights[run_ids]

    def _read(self, run_ids: tuple[str, ...]) -> Rights | None:
        rows, is_right = None, []
        for run_id in run_ids:
            try:
                table = self._store.predictions(run_id)
            except StoreError:
                table = None
            if table is None:
                continue
            report = table[table["split"] == "report"]
            names = logit_names(report)
            if len(names) < 2:
                return None
            rows = report[["idx", "label"]].reset_index(drop=True) if rows is None else rows
            if len(report) == len(rows):
                is_right.append(report[names].to_numpy().argmax(axis=1) == report["label"].to_numpy())
        return None if rows is None or not is_right else Rights(rows, np.array(is_right))


def cells_of(judged: Judgement) -> list[dict[str, Any]]:
    """Every cell but the head alone, by seed in points (None where a seed does not learn), for the page's own pairs.

    Cells that no rate tells from the head alone are `flat`: no pair of theirs is compared.
    """
    flat = flat_arms(judged.rates)
    cells = judged.estimates[judged.estimates["method"] != FLOOR]
    return [
        {
            "name": str(name),
            "flat": name in flat,
            "scores": {int(seed): round(100 * score, 9) if learns[seed] else None for seed, score in scores.items()},
        }
        for name, scores, learns in zip(cells.index, cells["scores"], cells["learns"], strict=True)
    ]


def sentence_of(contrast: Mapping[Any, Any], title: str, metric: str) -> str:
    """A contrast as a paper would say it, with all that a reader needs to check it."""
    first, second = contrast["first"], contrast["second"]
    start = f"On {title}, {first} minus {second} is {wording.signed(contrast['difference'])} points of"
    start = f"{start} {style.short_metric(metric)}"
    if math.isfinite(contrast["low"]):
        band = wording.interval(contrast["low"], contrast["high"], wording.signed)
        start += f" (95 % interval {band}, {wording.counted(contrast['n_pairs'], 'pair')} of seeds"
        start += f", Holm p {wording.p_value(contrast['p_holm'])})"
    return f"{start}: {contrast['verdict']}."


def latex_of(contrast: Mapping[Any, Any], metric: str) -> str:
    """The same as a row of a table: cells, difference with interval, pairs, corrected p, word."""
    band = wording.interval(contrast["low"], contrast["high"], wording.signed)
    cells = [
        contrast["first"], contrast["second"], style.short_metric(metric), wording.signed(contrast["difference"]), band,
        wording.count(contrast["n_pairs"]), wording.p_value(contrast["p_holm"]), contrast["verdict"],
    ]  # fmt: skip
    return " & ".join(escape_latex(str(cell)) for cell in cells) + r" \\"


def dots(seeds: list[int], ours: list[float | None], theirs: list[float | None]) -> dict[str, Any]:
    """Where the dots and the lines between them stand, in a picture of 100 by 100, and the scores at its two ends."""
    known = [score for score in (*ours, *theirs) if score is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    width = (high - low) or 1.0

    def across(score: float) -> float:
        return round(DRAWN["left"] + (DRAWN["right"] - DRAWN["left"]) * (score - low) / width, 2)

    lines = [
        {"seed": seed, "first": across(first), "second": across(second), "falls": second < first}
        for seed, first, second in zip(seeds, ours, theirs, strict=True)
        if first is not None and second is not None
    ]
    single = [
        {"seed": seed, "place": across(score), "is_first": first is not None}
        for seed, first, second in zip(seeds, ours, theirs, strict=True)
        for score in (first, second)
        if score is not None and (first is None or second is None)
    ]
    return {"lines": lines, "single": single, "low": f"{low:.1f}", "high": f"{high:.1f}"}


def label_names(store: StoreReader, runs: pd.DataFrame) -> dict[int, str]:
    """Names of the labels 0, 1, ... as a record tells them; records of before have none."""
    for run_id in runs.loc[runs["scored"], "run_id"].astype(str)[:1]:
        try:
            names = (store.record(run_id).get("task") or {}).get("labels") or []
        except StoreError:
            return {}
        return dict(enumerate(names))
    return {}


def shortened(text: str) -> str:
    """At most `LETTERS` of a text."""
    return text if len(text) <= LETTERS else f"{text[:LETTERS].rstrip()} …"


def _seeds(
    first: Mapping[Any, Any], second: Mapping[Any, Any]
) -> tuple[list[int], tuple[list[float | None], list[float | None]]]:
    """The seeds that two cells share, and the score of each in points; None where the seed does not learn."""
    seeds = sorted(set(first["learns"]) & set(second["learns"]))
    ours, theirs = (
        [round(100 * cell["scores"][seed], 9) if cell["learns"][seed] else None for seed in seeds]
        for cell in (first, second)
    )
    return seeds, (ours, theirs)


def _of(is_right: np.ndarray) -> str:
    """`7 of 8`: the seeds that get a row right."""
    return f"{int(is_right.sum())} of {is_right.size}"
