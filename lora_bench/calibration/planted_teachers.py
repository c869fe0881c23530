"""Teachers of known placement and rank: does the instrument find them?"""

from __future__ import annotations

import numpy as np
import pandas as pd

from lora_bench import wording
from lora_bench.calibration.measured import notes_of_missing, settings_of
from lora_bench.calibration.section import CalibrationSection
from lora_bench.reports.figures import instrument
from lora_bench.reports.figures.verdicts import ranks
from lora_bench.reports.scope import Scope
from lora_bench.reports.section import Column, Table
from lora_bench.store import StoreReader, open_store
from lora_bench.verdicts import arms, settings, stats, tuning
from lora_bench.verdicts.note import Note, gap


def planted(scope: Scope) -> list[CalibrationSection]:
    """Teachers of known placement and rank: which students learn them?

    Raises:
        NothingToShow: when the store has no planted task.
    """
    runs = scope.read()
    teachers = _teachers(runs, open_store(scope.store))
    if not teachers:
        raise settings.NothingToShow("no run has a planted task; start with: lora-bench +sweeps=calibration_planted")
    runs = runs[runs["task_fingerprint"].isin(list(teachers))]
    groups: dict[tuple, list[settings.Setting]] = {}
    for setting in settings_of(runs, scope):
        rest = [(key, str(value)) for key, value in setting.facts.items() if key not in ("task", "task_fingerprint")]
        about = teachers[setting.facts["task_fingerprint"]]
        groups.setdefault((*rest, about["seed"], about["noise"], about["texts"]), []).append(setting)
    return [
        _planted(group, teachers, f"calibration_planted{f'_{i}' if len(groups) > 1 else ''}", scope)
        for i, group in enumerate(groups.values())
    ]


def _teachers(runs: pd.DataFrame, store: StoreReader) -> dict[str, dict]:
    """Task fingerprint -> what the records say of the teacher."""
    teachers = {}
    names = runs["task"].astype(str)
    for fingerprint, of_task in runs[names.str.startswith("planted")].groupby("task_fingerprint"):
        about = store.record(of_task["run_id"].iloc[0]).get("data", {}).get("planted")
        if about:
            teachers[str(fingerprint)] = about
    return teachers


def _planted(group: list[settings.Setting], teachers: dict[str, dict], name: str, scope: Scope) -> CalibrationSection:
    metric = group[0].metric
    model, margin = settings.short_name(group[0].facts["model"]), scope.margin_of(metric)
    rows, parts, notes, curves = [], [], [], []
    for setting in sorted(group, key=lambda member: _place(teachers[member.facts["task_fingerprint"]]["targets"])):
        about = teachers[setting.facts["task_fingerprint"]]
        settings.refuse_duplicates(setting, arms.name_arms(setting.runs))
        try:
            ((_, runs), *_) = settings.at_budgets(setting)
        except settings.NothingToShow as error:
            notes.append(gap(str(error)))
        else:
            matrix = _matrix_rows(about, runs, margin)
            rows += matrix
            parts.append(_teacher_sentence(about, pd.DataFrame(matrix)))
            notes += notes_of_missing(setting, runs.assign(arm=_student_arms(runs)))
            notes += _uncertified(about, matrix)
        curve = _rank_curve(setting, about)
        if curve is not None:
            curves.append((about, curve))
    section = CalibrationSection(
        title=f"Calibration: planted teachers on {model}",
        sentence=_planted_sentence(parts, rows, curves),
        notes=list(dict.fromkeys([*group[0].notes, *notes])),
        part=f"planted teachers on {model}",
        says="shown",
        outcome=pd.DataFrame(rows),
    )
    if rows:
        section.tables.append(_matrix_table(name, pd.DataFrame(rows)))
        section.figures[name] = instrument.planted_matrix(_in_order(pd.DataFrame(rows)), metric=metric)
        section.captions[name] = (
            "Mean score on the teacher's own labels (report) of students at one budget, each at its own rate chosen on "
            "select. Signs: the student against the teacher's own placement, paired by seed, Holm-corrected within the "
            "row."
        )
    for i, (about, curve) in enumerate(curves):
        label = f"{name}_rank{f'_{i}' if len(curves) > 1 else ''}"
        section.tables.append(_curve_table(label, about, curve))
        section.figures[label] = ranks(curve, metric=metric, marked=int(about["rank"]))
        section.captions[label] = (
            f"Students on {about['targets']} against their rank; the teacher, on {about['targets']} too, has rank "
            f"{about['rank']}. Means over seeds with 95 % t intervals; small marks: seeds."
        )
    return section


def _uncertified(about: dict, rows: list[dict]) -> list[Note]:
    doubtful = [
        row["student"] for row in rows if row["certificate"] in tuning.UNCERTIFIED and row["student"] != "head only"
    ]
    doubt = f"teacher on {about['targets']}: the rate of {wording.listed(doubtful)} is not certified"
    return [gap(f"{doubt}; another may be better")] if doubtful else []


def _student_arms(runs: pd.DataFrame) -> pd.Series:
    return runs["targets"].where(runs["method"] != settings.FLOOR, settings.FLOOR)


def _matrix_rows(about: dict, runs: pd.DataFrame, margin: float) -> list[dict]:
    own = about["targets"]
    runs = arms.sort_arms(runs.assign(arm=_student_arms(runs)))
    students = [arm for arm in runs["arm"].unique() if arm not in (own, settings.FLOOR)]
    judged = arms.judge(runs, [(arm, own) for arm in students], margin=margin)
    verdicts = judged.contrasts.set_index("first").to_dict("index")
    certificates = judged.rates["certificate"].to_dict()
    rows = []
    for arm, estimate in judged.estimates.to_dict("index").items():
        pair = verdicts.get(arm)
        rows.append(
            {
                "teacher": _teacher_name(about),
                "student": "head only" if arm == settings.FLOOR else arm,
                "lr": estimate["lr"],
                "certificate": certificates[arm],
                "n_seeds": estimate["n_seeds"],
                "mean": estimate["mean"],
                "low": estimate["low"],
                "high": estimate["high"],
                "difference": pair["difference"] if pair is not None else np.nan,
                "p_holm": pair["p_holm"] if pair is not None else np.nan,
                "verdict": str(pair["verdict"]) if pair is not None else "",
                "is_own": arm == own,
            }
        )
    return rows


def _teacher_name(about: dict) -> str:
    return str(arms.Arm(about["targets"], int(about["rank"])))


def _teacher_sentence(about: dict, rows: pd.DataFrame) -> str:
    scored = rows[(rows["student"] != "head only") & np.isfinite(rows["mean"])]
    if scored.empty:
        return f"teacher on {about['targets']}: no student has a score"
    best = arms.highest(scored, "mean")
    if best["is_own"]:
        return (
            f"the teacher on {about['targets']} is learned best on its own placement ({wording.points(best['mean'])})"
        )
    if not scored["is_own"].any():
        return f"the teacher on {about['targets']} is learned best on {best['student']}; its own placement was not run"
    own = scored[scored["is_own"]].iloc[0]
    return (
        f"the teacher on {about['targets']} is learned best on {best['student']} ({wording.points(best['mean'])}, "
        f"which is {best['verdict']} against its own placement's {wording.points(own['mean'])})"
    )


def _planted_sentence(parts: list[str], rows: list[dict], curves: list[tuple[dict, pd.DataFrame]]) -> str:
    table = pd.DataFrame(rows)
    sentences = []
    if parts:
        adapted = table[table["student"] != "head only"]
        best = adapted.loc[adapted.dropna(subset="mean").groupby("teacher")["mean"].idxmax()]
        sentences.append(
            f"Of {len(best)} teachers, {int(best['is_own'].sum())} have the highest mean on their own placement: "
            f"{'; '.join(parts)}."
        )
    for about, curve in curves:
        best = arms.highest(curve, "mean")
        at = curve[curve["rank"] == about["rank"]]
        own = f"; its own rank {about['rank']} scores {wording.points(at['mean'].iloc[0])}" if len(at) else ""
        sentences.append(
            f"On the teacher of {_teacher_name(about)}, students on {about['targets']} do best at rank "
            f"{int(best['rank'])} ({wording.points(best['mean'])}){own}."
        )
    return " ".join(sentences) or "No placement or rank can be compared on the planted tasks of this store."


def _rank_curve(setting: settings.Setting, about: dict) -> pd.DataFrame | None:
    """Students on the teacher's own placement at several ranks."""
    runs = setting.runs[(setting.runs["targets"] == about["targets"]) & setting.runs["rank"].notna()]
    if runs["rank"].nunique() < 2:
        return None
    runs = arms.name_arms(runs)
    judged = arms.judge(runs, [], margin=stats.margin_of(setting.metric))
    estimates = judged.estimates
    first = runs.drop_duplicates("arm").set_index("arm")["rank"]
    return estimates.assign(rank=first.loc[estimates.index].astype(int)).dropna(subset="mean")


def _curve_table(name: str, about: dict, curve: pd.DataFrame) -> Table:
    frame = curve[["targets", "rank", "lr", "n_seeds", "mean", "low", "high"]].reset_index(drop=True)
    frame = frame.assign(
        score_shown=[wording.plus_minus(a, b) for a, b in zip(frame["mean"], frame["high"], strict=True)]
    )
    columns = [
        Column("targets", "student", wording.text, is_number=False, is_name=True),
        Column("rank", "rank", wording.count),
        Column("lr", "lr", wording.plain),
        Column("n_seeds", "seeds", wording.count),
        Column("score_shown", "report", wording.text),
    ]
    return Table(name, f"Score against rank on the teacher of {_teacher_name(about)}", frame, columns)


def _matrix_table(name: str, table: pd.DataFrame) -> Table:
    shown = table.assign(
        score_shown=[wording.plus_minus(a, b) for a, b in zip(table["mean"], table["high"], strict=True)],
        own_shown=np.where(table["is_own"], "own", ""),
    )
    columns = [
        Column("teacher", "teacher", wording.text, is_number=False),
        Column("student", "student", wording.text, is_number=False),
        Column("own_shown", "", wording.text, is_number=False),
        Column("lr", "lr", wording.plain),
        Column("n_seeds", "seeds", wording.count),
        Column("score_shown", "report", wording.text),
        Column("difference", "− own", wording.signed),
        Column("p_holm", "p Holm", wording.p_value),
        Column("verdict", "it is", wording.text, is_number=False),
    ]
    return Table(name, "Planted against adapted placement: score on the teacher's labels ± 95 %", shown, columns)


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Students in one order for all teachers, the head alone last."""
    key = table["student"].map(_place)
    return table.assign(_key=key).sort_values("_key", kind="stable").drop(columns="_key")


def _place(name: str) -> tuple[bool, int, str]:
    known = list(settings.PLACEMENTS)
    return name == "head only", known.index(name) if name in known else len(known), name
