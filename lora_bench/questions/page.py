"""One page that answers: which matrices, at which rank, and how sure? Built from the store alone.

Runs the other scripts over every setting of a store and writes OUT/index.html (self-contained: no external resource),
OUT/figures (PDF, PNG, SVG) and OUT/tables (CSV, LaTeX). Of more than 12 tasks and backbones in all, each stays folded
until it is opened, and only what verdicts rest on is drawn, as SVG; --task draws one in full.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import multiprocessing
import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import jinja2
import pandas as pd

from lora_bench.questions import QUESTIONS, claims, families, shown, studies, weight_types
from lora_bench.questions.across import across
from lora_bench.questions.drill import Drill, Texts
from lora_bench.reports import output
from lora_bench.reports.figures import compose, style, verdicts
from lora_bench.reports.scope import Scope
from lora_bench.reports.section import SettingSection, Table
from lora_bench.store import StoreReader, open_store
from lora_bench.store.environment import ENVIRONMENT_KEYS
from lora_bench.store.errors import StoreError
from lora_bench.verdicts.settings import NothingToShow, short_name
from lora_bench.wording import counted, duration, size

TEMPLATE, SCRIPT = (Path(__file__).with_name(name) for name in ("page.html.j2", "page.js"))
MOST_WHOLE = 12
"""Pairs of a backbone and a task that a page shows in full: one of more is crowded, and keeps them folded."""
OF_CROWDED = ("svg",)
"""How a crowded page's figures are written."""
TextsOf = Callable[[pd.DataFrame], Texts]
"""Finds the report rows of the tasks of these runs; other processes call it, so it is a function of a module."""


@dataclass
class Part:
    """A setting on the page: its design and its sections."""

    title: str
    anchor: str
    design: list[tuple[str, str]] = field(default_factory=list)
    sections: list[dict] = field(default_factory=list)
    backbone: str = ""
    task: str = ""

    @property
    def findings(self) -> list[str]:
        """The sentences of its verdicts, else of all."""
        kinds = {question.title for question in QUESTIONS.values() if question.is_verdict}
        sentences = [section["sentence"] for section in self.sections if section["kind"] in kinds]
        return sentences or [section["sentence"] for section in self.sections]

    @property
    def methods(self) -> str:
        """What its sections are about, for the page's filter."""
        return " ".join(sorted({method for section in self.sections for method in section["methods"].split()}))


def build(runs: pd.DataFrame, scope: Scope, *, out: Path, title: str, texts: TextsOf | None = None) -> dict:
    """Make every section, write tables and figures, and render the page.

    Args:
        texts: finds the report rows on which two cells differ; without it a row is a number.

    Raises:
        NothingToShow: when no analysis has anything to show.
    """
    parts: dict[str, Part] = {}
    sections: list[tuple[str, SettingSection]] = []
    cards, absent = [], []
    groups = _groups(runs, scope, out, texts)
    is_crowded = len(groups) > MOST_WHOLE
    for group in groups:
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
        part.sections.append(shown.shown_claims(str(setting), of_setting, f"{part.anchor}-claims"))
    output.write_section(card, out)
    placements = [section for _, section in sections if isinstance(section, weight_types.PlacementSection)]
    matrix = _write_matrix(verdict_table(placements), scope, out, OF_CROWDED if is_crowded else style.FORMATS)
    declared = studies.sections(scope.store)
    of_all = counted_words(matrix) if is_crowded else []
    verdict = [study.sentence for study in declared]
    verdict += [*of_all, card.sentence] if of_all else verdict_sentences(sections, card)
    context = {
        "title": title,
        "script": SCRIPT.read_text(encoding="utf-8"),
        "state": state_of(runs),
        "question": "Which weight matrices should LoRA adapt, at which rank, and how sure can we be?",
        "verdict": verdict,
        "numbers": numbers(runs),
        "matrix": shown.shown_matrix(matrix, parts),
        "parts": list(parts.values()),
        "crowded": is_crowded,
        "filters": filters(parts.values()),
        "claims": shown.claims_matrix(card, parts),
        "studies": [
            shown.shown_section("Study", study, out) for study in (*families.side_by_side(declared), *declared)
        ],
        "overview": [shown.shown_section("Across tasks", tasks, out) for tasks in across(placements)],
        "environments": environments(runs, open_store(scope.store)),
        "missing": gaps(sections),
        "unasked": absent,
        "mixed": scope.mix_environments,
        "cost": cost(runs),
    }
    n_figures = sum(len(section["figures"]) for part in parts.values() for section in part.sections)
    return {"html": rendered(context), "verdict": verdict, "n_figures": n_figures}


def rendered(context: dict) -> str:
    """The page, with every text of the context escaped."""
    loader = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    loader.filters["packed"] = packed
    return loader.from_string(TEMPLATE.read_text(encoding="utf-8")).render(context)


def packed(html: str) -> str:
    """HTML for the page's script to open: compressed, as text."""
    return base64.b64encode(gzip.compress(html.encode(), mtime=0)).decode()


def _write_matrix(matrix: pd.DataFrame, scope: Scope, out: Path, formats: Sequence[str]) -> pd.DataFrame:
    """The figure and the CSV of every contrast, where there is one; the matrix as it came."""
    if len(matrix):
        with compose.printed(scope.width):
            style.save(verdicts.verdict_matrix(matrix), out / "figures", "verdict_matrix", formats=formats)
        rows = matrix.drop(columns=["title", "anchor"])
        output.write_table(Table("verdicts", "every contrast", rows), out / "tables")
    return matrix


@dataclass
class Group:
    """All that one backbone and task give: what the page shows, and the results that its overview is made of."""

    parts: list[Part]
    sections: list[tuple[str, SettingSection]]  # without figures, tables and runs, which are written by now
    card: pd.DataFrame
    absent: list[str]


def _groups(runs: pd.DataFrame, scope: Scope, out: Path, texts: TextsOf | None) -> list[Group]:
    """Each backbone and task by itself, in processes of their own where there are many: drawing takes the time."""
    runs = scope.within(runs)
    names = runs["model"].map(short_name)
    work = [group for _, group in runs.groupby([names, runs["task"]], sort=True)]
    workers = min(len(work), os.cpu_count() or 1)
    make = functools.partial(make_group, scope=scope, out=out, texts=texts, is_crowded=len(work) > MOST_WHOLE)
    if workers < 2 or len(work) < 4:
        return list(map(make, work))
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(make, work))


def make_group(
    runs: pd.DataFrame, scope: Scope, out: Path, texts: TextsOf | None, *, is_crowded: bool = False
) -> Group:
    """Run every analysis on the runs of one backbone and task, and write its tables and figures.

    Args:
        is_crowded: whether the page has so many that figures are drawn as SVG alone, of verdicts alone.
    """
    parts: dict[str, Part] = {}
    kept: list[tuple[str, SettingSection]] = []
    absent: list[str] = []
    drill = Drill(scope.store, texts(runs) if texts else {})
    formats = OF_CROWDED if is_crowded else style.FORMATS
    try:
        card = claims.sections(runs, scope)[0].rows
    except NothingToShow:
        card = pd.DataFrame()
    for question in QUESTIONS.values():
        kind = question.title
        is_blank = is_crowded and not question.is_verdict
        try:
            with compose.printed(scope.width, is_blank=is_blank):
                sections = question.sections(runs, scope)
        except NothingToShow as error:
            absent += [f"{kind}: {line}" for line in str(error).splitlines()]
            continue
        for section in sections:
            if is_blank:
                section = replace(section, figures={}, captions={})
            setting = section.setting
            part = parts.setdefault(setting.title, Part(setting.title, "", shown.design(setting)))
            part.backbone, part.task = short_name(str(setting.facts["model"])), str(setting.facts["task"])
            part.sections.append(
                shown.shown_section(kind, section, out, formats=formats) | shown.drilled(section, drill)
            )
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


def counted_words(matrix: pd.DataFrame) -> list[str]:
    """Of each contrast, in how many settings and budgets it has each word; those without it are not counted."""
    sentences = []
    for contrast, of_contrast in matrix.groupby("contrast", sort=False):
        counts = of_contrast["verdict"].value_counts()
        (first, n), *rest = counts.items()
        words = [
            f"{first} in {n} of {counted(len(of_contrast), 'comparison')}",
            *(f"{word} in {n}" for word, n in rest),
        ]
        sentences.append(f"{contrast}: {', '.join(words)}.")
    return sentences


def verdict_table(sections: list[weight_types.PlacementSection]) -> pd.DataFrame:
    """One row per setting, budget and contrast: setting, contrast, verdict, difference, low, high, p_holm, n_pairs.

    And where the contrast stands on the page: title (of its setting) and anchor, none where it has no seeds to show.
    """
    rows = []
    titles = [section.setting.title for section in sections]
    for section, title in zip(sections, titles, strict=True):
        name = f"{title}, {section.budget:,}" if titles.count(title) > 1 else title
        rows += [
            {
                "setting": name, "contrast": f"{row['first']} − {row['second']}", "verdict": row["verdict"],
                "difference": row["difference"], "low": row["low"], "high": row["high"], "p_holm": row["p_holm"],
                "n_pairs": row["n_pairs"], "title": title,
                "anchor": f"{shown.anchor_of(section.title)}-{place}" if row["n_seeds"] else None,
            }
            for place, row in enumerate(section.judged.contrasts.to_dict("records"))
        ]  # fmt: skip
    return pd.DataFrame(rows)


def filters(parts: Collection[Part]) -> list[dict]:
    """What the page may be narrowed to: backbones, tasks and methods, where there are several."""
    values = {
        "backbone": [part.backbone for part in parts],
        "task": [part.task for part in parts],
        "method": [method for part in parts for method in part.methods.split()],
    }
    choices = {name: sorted({value for value in of_name if value}) for name, of_name in values.items()}
    return [{"name": name, "values": several} for name, several in choices.items() if len(several) > 1]


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
