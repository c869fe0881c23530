"""What the template of the page gets: sections, tables, contrasts and claims as texts, numbers and places."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from lora_bench import wording
from lora_bench.config.schema import LORA_METHODS
from lora_bench.questions import claim_sides, claims, weight_types
from lora_bench.questions.drill import Drill, cells_of
from lora_bench.reports import output
from lora_bench.reports.critical import line_of
from lora_bench.reports.figures import style
from lora_bench.reports.latex import escape_latex
from lora_bench.reports.section import JudgedSection, Section, SettingSection, Table
from lora_bench.verdicts import stats
from lora_bench.verdicts.settings import OF_ADAPTER, OF_FIELD, SHARED, Setting

FACTS = {  # what a setting's design box tells, in order
    "train_rows": "train rows",
    **{name: OF_FIELD[name].label for name in (*SHARED, *OF_ADAPTER) if name in OF_FIELD and OF_FIELD[name].label},
    "environment": "environment",
}

EMPTY: dict[str, Any] = {  # what a section has only where its question gives it
    "contrasts": [], "claims": [], "figures": [], "tables": [], "notes": [], "line": None, "any_two": None,
    "methods": "",
}  # fmt: skip


def design(setting: Setting) -> list[tuple[str, str]]:
    """The facts that all runs of a setting share."""
    fields = []
    for key, name in FACTS.items():
        value = setting.facts.get(key)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            continue
        fields.append((name, f"{value:g}" if isinstance(value, float) else str(value)))
    adapted = setting.runs[setting.runs["targets"] != ""]
    rates = " ".join(f"{rate:g}" for rate in sorted(adapted["lr"].dropna().unique()))
    return [("seeds", str(adapted["seed"].nunique())), ("learning rates", rates), *fields]


def shown_section(kind: str, section: Section, out: Path, *, formats: Sequence[str] = style.FORMATS) -> dict:
    """Write a section's files and give the template its text, tables and figures.

    Args:
        formats: of figures; svg is among them.
    """
    output.write_section(section, out, formats=formats)
    return {
        **EMPTY,
        "kind": kind,
        "methods": " ".join(methods_of(section)),
        "title": section.title,
        "anchor": anchor_of(section.title),
        "sentence": section.sentence,
        "notes": section.remarks,
        "tables": [shown_table(table) for table in section.tables if table.columns],
        "figures": [
            {
                "name": name,
                "caption": section.captions.get(name, ""),
                "alt": f"{(section.captions.get(name) or name).partition('.')[0]}. {section.sentence}",
                "uri": data_uri(out / "figures" / f"{name}.svg"),
                "wide": figure.get_figwidth() > 5,
            }
            for name, figure in section.figures.items()
        ],
    }


def drilled(section: Section, drill: Drill) -> dict:
    """The contrasts of a section, each down to its seeds; those of placements down to report rows too, and a line."""
    if not isinstance(section, JudgedSection):
        return {}
    is_placements = isinstance(section, weight_types.PlacementSection)
    contrasts = drill.pairs(section, anchor_of(section.title), with_rows=is_placements)
    pairs = [
        {"first": shown["scores"][0], "second": shown["scores"][1], "fixed": shown["fixed"]} for shown in contrasts
    ]
    n_absent = len(section.judged.contrasts) - len(contrasts)  # they count in the family
    pairs += [{"first": [], "second": [], "fixed": "missing"}] * n_absent
    margin = 100 * float(section.judged.contrasts["margin"].iloc[0]) if len(contrasts) else math.nan
    cells = cells_of(section.judged)
    rules = {"margin": margin, "level": stats.LEVEL, "minPairs": stats.MIN_PAIRS}
    about = {"title": section.setting.title, "metric": style.short_metric(section.setting.metric)}
    return {
        "contrasts": contrasts,
        "family": {"pairs": pairs, **rules},
        "any_two": {**about, **rules, "cells": cells} if contrasts and len(cells) > 2 else None,
        "line": line_of(section.judged.estimates, section.pairs) if is_placements else None,
    }


def methods_of(section: Section) -> list[str]:
    """The LoRA methods that a section is about, for the page's filter; none where it is of no one setting."""
    if not isinstance(section, SettingSection):
        return []
    return sorted(set(section.setting.runs["method"]) & set(LORA_METHODS))


def anchor_of(title: str) -> str:
    """A title as the name of a place on the page."""
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower())


def shown_table(table: Table) -> dict:
    """Heads, and rows of (text, sort key, is_number, is_prose)."""
    rows = []
    for row, cells_ in zip(table.frame.to_dict("records"), table.shown(), strict=True):
        rows.append(
            [
                {
                    "text": text,
                    "key": sort_key(row[column.name], text),
                    "number": column.is_number,
                    "prose": len(text) > 40,
                }
                for column, text in zip(table.columns, cells_, strict=True)
            ]
        )
    heads = [{"text": column.title, "number": column.is_number} for column in table.columns]
    return {"name": table.name, "title": table.title, "heads": heads, "rows": rows}


def sort_key(value: object, text: str) -> str:
    """What a column is sorted by: the number behind a cell, or its text."""
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        return "" if math.isnan(float(value)) else repr(float(value))
    head = text.replace("−", "-").split(" ")[0].rstrip("*")
    try:
        return repr(float(head))
    except ValueError:
        return text


def shown_matrix(matrix: pd.DataFrame, parts: Mapping[str, Any]) -> dict:
    """The verdict matrix as heads and rows of cells.

    Args:
        parts: of the page, by the title of their setting: with what the filter knows of them.
    """
    if matrix.empty:
        return {"heads": [], "rows": []}
    heads = list(dict.fromkeys(matrix["contrast"]))
    rows = []
    for setting, of_setting in matrix.groupby("setting", sort=False):
        by_contrast = {cell["contrast"]: cell for cell in of_setting.to_dict("records")}
        rows.append(
            {
                "setting": setting,
                "part": parts.get(str(of_setting["title"].iloc[0])),
                "cells": [
                    {
                        "verdict": by_contrast[head]["verdict"],
                        "difference": wording.signed(by_contrast[head]["difference"]),
                        "interval": _interval(by_contrast[head]),
                        "anchor": by_contrast[head]["anchor"],
                    }
                    if head in by_contrast
                    else None
                    for head in heads
                ],
            }
        )
    return {"heads": heads, "rows": rows}


def _interval(contrast: Mapping[Any, Any]) -> str:
    is_known = math.isfinite(contrast["low"]) and math.isfinite(contrast["high"])
    return wording.interval(contrast["low"], contrast["high"], wording.signed) if is_known else ""


def claims_matrix(card: claims.Card, parts: Mapping[str, Any]) -> dict:
    """Claims down, settings across: status, each a link to its evidence; those that no setting ran by themselves."""
    table = card.rows
    settings = list(dict.fromkeys(table["setting"]))
    by_cell = {(row["claim"], row["setting"]): row for row in table.to_dict("records")}
    rows = []
    for claim in card.claims:
        of_claim = [by_cell[claim["id"], setting] for setting in settings]
        cells_ = [
            {
                "status": row["status"], "runs": row["n_runs"], "anchor": claim_anchor(row["setting"], row["claim"]),
                "part": parts.get(row["setting"]),
            }
            for row in of_claim
        ]  # fmt: skip
        is_run = any(row["status"] != claims.NOT_RUN for row in of_claim)
        rows.append({"text": claim["text"], "source": claim["source"], "cells": cells_, "is_run": is_run})
    heads = [{"title": setting, "part": parts.get(setting)} for setting in settings]
    contradictions = claim_sides.contradictions(table, card.claims)
    return {
        "settings": heads,
        "rows": [row for row in rows if row["is_run"]],
        "unrun": [row for row in rows if not row["is_run"]],
        "sentence": card.sentence,
        "decided": _decided(card),
        "unrun_sides": sum(not sides.is_run for sides in contradictions),
        "sides": [
            {
                "first": sides.first["text"],
                "second": sides.second["text"],
                "taken": [sides.taken[at] for at in settings],
            }
            for sides in contradictions
            if sides.is_run
        ],
    }


def _decided(card: claims.Card) -> list[dict]:
    """The claims that are supported or refuted somewhere, each a link to the first setting that says so."""
    n_settings = card.rows["setting"].nunique()
    return [
        {
            "status": status,
            "text": entry.claim["text"],
            "where": f"{len(entry.settings)} of {wording.counted(n_settings, 'setting')}" if n_settings > 1 else "",
            "anchor": claim_anchor(entry.settings[0], entry.claim["id"]),
        }
        for status in (claims.SUPPORTED, claims.REFUTED)
        for entry in claim_sides.decided(card.rows, card.claims, status)
    ]


def shown_claims(title: str, card: pd.DataFrame, anchor: str) -> dict:
    """The evidence for every claim in one setting, each with words to copy and a place of its own."""
    rows = [
        {
            **{key: row[key] for key in ("text", "source", "status", "evidence")},
            "runs": row["n_runs"],
            "anchor": claim_anchor(title, row["claim"]),
            "sentence": f"On {title}, the claim \u201c{row['text'].rstrip('.')}\u201d ({row['source']}) is "
            f"{row['status']}: {row['evidence']}.",
            "latex": " & ".join(escape_latex(str(row[key])) for key in ("text", "status", "evidence")) + r" \\",
        }
        for row in card.to_dict("records")
    ]
    return {
        **EMPTY, "kind": "Claims", "title": f"Claims: {title}", "anchor": anchor, "sentence": claims.sentence(card),
        "claims": rows,
    }  # fmt: skip


def claim_anchor(setting: str, claim: str) -> str:
    """The place of a claim in a setting; a permalink of it holds as long as both keep their names."""
    return anchor_of(f"claim {setting} {claim}")


def data_uri(path: Path) -> str:
    """An SVG as a data URI: as text, which is packed far smaller than base64, and to a hundredth of a point."""
    drawn = re.sub(r"\s*\n\s*", " ", path.read_text(encoding="utf-8"))
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :])
    return "data:image/svg+xml," + quote(_PLACES.sub(_rounded, drawn), safe=" !$*,-./:;=?@[]_{}~|'")


_PLACES = re.compile(r'(?<= (?:d|x|y)=")[^"]+|(?<=translate\()[^)]+')
"""Of an SVG by matplotlib, what stands in points: paths and places. Letters have a scale of their own."""


def _rounded(places: re.Match[str]) -> str:
    return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", places[0])
