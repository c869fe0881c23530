"""One page that answers: which matrices, at which rank, and how sure? Built from the store alone.

Runs the other scripts over every setting of a store and writes OUT/index.html (self-contained: no external resource),
OUT/figures (PDF, PNG, SVG) and OUT/tables (CSV, LaTeX).
"""

from __future__ import annotations

import base64
import hashlib
import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd

from lora_bench import wording
from lora_bench.questions import QUESTIONS, claims, studies, weight_types
from lora_bench.questions.across import across
from lora_bench.questions.drill import Drill, Texts
from lora_bench.reports import output
from lora_bench.reports.figures import compose, style, verdicts
from lora_bench.reports.scope import Scope
from lora_bench.reports.section import JudgedSection, Section, SettingSection, Table
from lora_bench.store import StoreReader, open_store
from lora_bench.store.environment import ENVIRONMENT_KEYS
from lora_bench.store.errors import StoreError
from lora_bench.verdicts import stats
from lora_bench.verdicts.settings import OF_ADAPTER, OF_FIELD, SHARED, NothingToShow, Setting, short_name
from lora_bench.wording import duration, size

TEMPLATE, SCRIPT = (Path(__file__).with_name(name) for name in ("page.html.j2", "page.js"))
FACTS = {  # what a setting's design box tells, in order
    "train_rows": "train rows",
    **{name: OF_FIELD[name].label for name in (*SHARED, *OF_ADAPTER) if name in OF_FIELD and OF_FIELD[name].label},
    "environment": "environment",
}


@dataclass
class Part:
    """A setting on the page: its design and its sections."""

    title: str
    anchor: str
    design: list[tuple[str, str]] = field(default_factory=list)
    sections: list[dict] = field(default_factory=list)


def build(runs: pd.DataFrame, scope: Scope, *, out: Path, title: str, texts: Texts | None = None) -> dict:
    """Make every section, write tables and figures, and render the page.

    Args:
        texts: of the report rows, to show those on which two cells differ; without them a row is a number.

    Raises:
        NothingToShow: when no analysis has anything to show.
    """
    parts: dict[str, Part] = {}
    sections: list[tuple[str, SettingSection]] = []
    cards, absent = [], []
    for group in _groups(runs, scope, out, texts or {}):
        for part in group.parts:
            part.anchor = f"setting-{len(parts)}"
            parts[part.title] = part
        sections += group.sections
        cards.append(group.card)
        absent += group.absent
    if not sections:
        raise NothingToShow("\n".join(absent))
    judged = [card for card in cards if len(card)]
    table = pd.concat(judged, ignore_index=True) if judged else pd.DataFrame(columns=list(claims.CARD))
    card = claims.card_section(table, claims.read_claims(claims.SHIPPED), several=len(parts) > 1)
    for setting, of_setting in table.groupby("setting", sort=False):
        part = parts.setdefault(str(setting), Part(str(setting), f"setting-{len(parts)}"))
        part.sections.append(shown_claims(str(setting), of_setting, f"{part.anchor}-claims"))
    output.write_section(card, out)
    placements = [section for _, section in sections if isinstance(section, weight_types.PlacementSection)]
    matrix = verdict_table(placements)
    if len(matrix):
        with compose.printed(scope.width):
            style.save(verdicts.verdict_matrix(matrix), out / "figures", "verdict_matrix")
        output.write_table(Table("verdicts", "every contrast", matrix), out / "tables")
    declared = studies.sections(scope.store)
    verdict = [*(study.sentence for study in declared), *verdict_sentences(sections, card)]
    context = {
        "title": title,
        "script": SCRIPT.read_text(encoding="utf-8"),
        "state": state_of(runs),
        "question": "Which weight matrices should LoRA adapt, at which rank, and how sure can we be?",
        "verdict": verdict,
        "numbers": numbers(runs),
        "matrix": shown_matrix(matrix),
        "parts": list(parts.values()),
        "claims": claims_matrix(card),
        "studies": [shown_section("Study", study, out) for study in declared],
        "overview": [shown_section("Across tasks", tasks, out) for tasks in across(placements)],
        "environments": environments(runs, open_store(scope.store)),
        "missing": [*absent, *gaps(sections)],
        "mixed": scope.mix_environments,
        "cost": cost(runs),
    }
    loader = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    html = loader.from_string(TEMPLATE.read_text(encoding="utf-8")).render(context)
    n_figures = sum(len(section["figures"]) for part in parts.values() for section in part.sections)
    return {"html": html, "verdict": verdict, "n_figures": n_figures}


@dataclass
class Group:
    """All that one backbone and task give: what the page shows, and the results that its overview is made of."""

    parts: list[Part]
    sections: list[tuple[str, SettingSection]]  # without figures, tables and runs, which are written by now
    card: pd.DataFrame
    absent: list[str]


def _groups(runs: pd.DataFrame, scope: Scope, out: Path, texts: Texts) -> list[Group]:
    """Each backbone and task by itself, in processes of their own where there are many: drawing takes the time."""
    runs = scope.within(runs)
    names = runs["model"].map(short_name)
    work = [group for _, group in runs.groupby([names, runs["task"]], sort=True)]
    workers = min(len(work), os.cpu_count() or 1)
    if workers < 2 or len(work) < 4:
        return [make_group(group, scope, out, texts) for group in work]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(make_group, work, [scope] * len(work), [out] * len(work), [texts] * len(work)))


def make_group(runs: pd.DataFrame, scope: Scope, out: Path, texts: Texts) -> Group:
    """Run every analysis on the runs of one backbone and task, and write its tables and figures."""
    parts: dict[str, Part] = {}
    kept: list[tuple[str, SettingSection]] = []
    absent: list[str] = []
    drill = Drill(scope.store, texts)
    try:
        card = claims.sections(runs, scope)[0].rows
    except NothingToShow:
        card = pd.DataFrame()
    for question in QUESTIONS.values():
        kind = question.title
        try:
            with compose.printed(scope.width):
                sections = question.sections(runs, scope)
        except NothingToShow as error:
            absent += [f"{kind}: {line}" for line in str(error).splitlines()]
            continue
        for section in sections:
            setting = section.setting
            part = parts.setdefault(setting.title, Part(setting.title, "", design(setting)))
            part.sections.append(shown_section(kind, section, out) | drilled(section, drill))
            empty = replace(setting, runs=setting.runs.iloc[:0])
            kept.append((kind, replace(section, tables=[], figures={}, captions={}, setting=empty)))
    return Group(list(parts.values()), kept, card, absent)


# ---------------------------------------------------------------- what the page says over all settings


def verdict_sentences(sections: list[tuple[str, SettingSection]], card: claims.Card) -> list[str]:
    """The sentence of every section on weight types, ranks and factors, and that of the claims card."""
    kinds = {question.title for question in QUESTIONS.values() if question.is_verdict}
    sentences = [section.sentence for kind, section in sections if kind in kinds]
    sentences = sentences or [section.sentence for _, section in sections]
    return [*sentences, card.sentence] if len(card.rows) else sentences


def verdict_table(sections: list[weight_types.PlacementSection]) -> pd.DataFrame:
    """One row per setting, budget and contrast: setting, contrast, verdict, difference, p_holm, n_pairs."""
    rows = []
    titles = [section.setting.title for section in sections]
    for section, title in zip(sections, titles, strict=True):
        name = f"{title}, {section.budget:,}" if titles.count(title) > 1 else title
        rows += [
            {
                "setting": name, "contrast": f"{row['first']} − {row['second']}", "verdict": row["verdict"],
                "difference": row["difference"], "p_holm": row["p_holm"], "n_pairs": row["n_pairs"],
            }
            for row in section.judged.contrasts.to_dict("records")
        ]  # fmt: skip
    return pd.DataFrame(rows)


def state_of(runs: pd.DataFrame) -> str:
    """What the page was made of: links to a contrast carry it, and one from another state of the store says so."""
    rows = sorted(f"{run_id} {score!r}" for run_id, score in zip(runs["run_id"], runs["report"], strict=True))
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:8]


def numbers(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """The store in a few numbers."""
    failed = int((~runs["scored"]).sum())
    return [
        ("runs", f"{len(runs):,}"),
        ("without a score", f"{failed:,}"),
        ("backbones", str(runs["model"].nunique())),
        ("tasks", str(runs["task"].nunique())),
        ("seeds", str(runs["seed"].nunique())),
        ("environments", str(runs["environment"].nunique())),
    ]


def cost(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """What the store cost, over all runs that measured it."""
    totals = []
    for column, name, show in (
        ("attributed_seconds", "training time", duration),
        ("tokens", "tokens", lambda x: f"{x:,.0f}"),
        ("flops", "FLOPs", lambda x: f"{x:.2e}"),
        ("adapter_bytes", "adapters, if all are kept", size),
        ("peak_bytes", "highest peak memory", size),
    ):
        values = pd.to_numeric(runs[column], errors="coerce").dropna() if column in runs else pd.Series(dtype=float)
        if len(values):
            total = values.max() if column == "peak_bytes" else values.sum()
            unmeasured = len(runs) - len(values)
            totals.append((name, show(float(total)) + (f" ({unmeasured:,} runs not measured)" if unmeasured else "")))
    return totals


def environments(runs: pd.DataFrame, store: StoreReader) -> list[dict]:
    """One row per environment, read from one of its records."""
    rows = []
    for identity, of_environment in runs.groupby("environment", sort=True):
        try:
            about = store.record(str(of_environment["run_id"].iloc[0]))["environment"]
        except StoreError:
            about = {}
        kept = {key: about[key] for key in (*ENVIRONMENT_KEYS, "platform", "lora_bench") if about.get(key)}
        commits = sorted(set(of_environment["commit"].dropna().astype(str))) if "commit" in of_environment else []
        rows.append(
            {
                "id": str(identity),
                "runs": len(of_environment),
                "about": kept,
                "commits": [commit[:12] for commit in commits],
            }
        )
    return rows


def gaps(sections: list[tuple[str, SettingSection]]) -> list[str]:
    """Every note that says what is missing, failed or not certified, once, with its setting; and what others lack."""
    lines: dict[str, None] = {}
    for _, section in sections:
        lines |= dict.fromkeys(f"{section.setting.title}: {note}" for note in section.notes if note.is_gap)
        lines |= dict.fromkeys(section.refused)
    return list(lines)


# ---------------------------------------------------------------- what the template gets


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


def shown_section(kind: str, section: Section, out: Path) -> dict:
    """Write a section's files and give the template its text, tables and figures."""
    output.write_section(section, out)
    return {
        "kind": kind,
        "contrasts": [],
        "title": section.title,
        "anchor": anchor_of(section.title),
        "sentence": section.sentence,
        "notes": section.remarks,
        "tables": [shown_table(table) for table in section.tables if table.columns],
        "figures": [
            {
                "name": name,
                "caption": section.captions.get(name, ""),
                "uri": data_uri(out / "figures" / f"{name}.svg"),
                "wide": figure.get_figwidth() > 5,
            }
            for name, figure in section.figures.items()
        ],
    }


def drilled(section: Section, drill: Drill) -> dict:
    """The contrasts of a section, each down to its seeds; those of placements down to report rows too."""
    if not isinstance(section, JudgedSection):
        return {}
    contrasts = drill.pairs(
        section, anchor_of(section.title), with_rows=isinstance(section, weight_types.PlacementSection)
    )
    pairs = [
        {"first": shown["scores"][0], "second": shown["scores"][1], "fixed": shown["fixed"]} for shown in contrasts
    ]
    n_absent = len(section.judged.contrasts) - len(contrasts)  # they count in the family
    pairs += [{"first": [], "second": [], "fixed": "missing"}] * n_absent
    margin = 100 * float(section.judged.contrasts["margin"].iloc[0]) if len(contrasts) else math.nan
    family = {"pairs": pairs, "margin": margin, "level": stats.LEVEL, "minPairs": stats.MIN_PAIRS}
    return {"contrasts": contrasts, "family": family}


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


def shown_matrix(matrix: pd.DataFrame) -> dict:
    """The verdict matrix as heads and rows of cells."""
    if matrix.empty:
        return {"heads": [], "rows": []}
    heads = list(dict.fromkeys(matrix["contrast"]))
    rows = []
    for setting, of_setting in matrix.groupby("setting", sort=False):
        by_contrast = {cell["contrast"]: cell for cell in of_setting.to_dict("records")}
        rows.append(
            {
                "setting": setting,
                "cells": [
                    {
                        "verdict": by_contrast[head]["verdict"],
                        "difference": wording.signed(by_contrast[head]["difference"]),
                    }
                    if head in by_contrast
                    else {"verdict": "missing", "difference": "–"}
                    for head in heads
                ],
            }
        )
    return {"heads": heads, "rows": rows}


def claims_matrix(card: claims.Card) -> dict:
    """Claims down, settings across: status, with the evidence as a tooltip."""
    table = card.rows
    settings = list(dict.fromkeys(table["setting"]))
    by_cell = {(row["claim"], row["setting"]): row for row in table.to_dict("records")}
    rows = []
    for claim in card.claims:
        of_claim = [by_cell[claim["id"], setting] for setting in settings]
        cells_ = [{"status": row["status"], "evidence": row["evidence"], "runs": row["n_runs"]} for row in of_claim]
        rows.append({"text": claim["text"], "source": claim["source"], "cells": cells_})
    return {"settings": settings, "rows": rows, "sentence": card.sentence}


def shown_claims(title: str, card: pd.DataFrame, anchor: str) -> dict:
    """The evidence for every claim in one setting."""
    table = claims.evidence_table(card, several=False)
    return {
        "kind": "Claims", "title": f"Claims: {title}", "anchor": anchor, "sentence": claims.sentence(card), "notes": [],
        "contrasts": [],
        "tables": [shown_table(table) | {"name": anchor, "title": "Claims, judged by this setting"}], "figures": [],
    }  # fmt: skip


def data_uri(path: Path) -> str:
    """A file as a data URI."""
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
