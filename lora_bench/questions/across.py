"""Which placement is best over all tasks of one backbone?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from lora_bench import wording
from lora_bench.questions.weight_types import PlacementSection
from lora_bench.reports.section import Column, Section, Table
from lora_bench.verdicts import settings
from lora_bench.verdicts.across import across_tasks
from lora_bench.verdicts.best import chances_of_best
from lora_bench.verdicts.note import Note, gap

OF_TASK = (  # what may differ where tasks are pooled: presets such as train=paper_roberta_base set the recipe by task
    *("task", "task_fingerprint", "metric", "train_rows", "max_length", "epochs", "batch_size", "grad_accumulation"),
    *("schedule", "warmup_ratio", "head_rate"),
)


def across(sections: Iterable[PlacementSection]) -> list[Section]:
    """Placements over all tasks of one backbone and adapter policy, where two or more hold the same placements and
    seeds. A task with several settings of two seeds or more among them is left out, and named."""
    groups: dict[tuple, list[PlacementSection]] = {}
    for section in sections:
        estimates = [section.judged.estimates]
        if len(_common_seeds(estimates, _placements(estimates))) > 1:
            alike = tuple((key, str(value)) for key, value in section.setting.facts.items() if key not in OF_TASK)
            groups.setdefault((section.budget, alike), []).append(section)
    shown: list[Section] = []
    for (budget, alike), group in groups.items():
        model = dict(alike)["model"]
        tasks = [section.setting.facts["task"] for section in group]
        by_task = {
            task: section.judged.estimates for task, section in zip(tasks, group, strict=True) if tasks.count(task) == 1
        }
        left_out = sorted({task for task in tasks if task not in by_task})
        if len(by_task) < 2:
            continue
        arms = _placements(by_task.values())
        seeds = _common_seeds(by_task.values(), arms)
        if len(arms) < 2 or len(seeds) < 2:
            continue
        scores_of = [estimates["scores"].to_dict() for estimates in by_task.values()]
        scores = np.array([[[of_task[arm][seed] for seed in seeds] for arm in arms] for of_task in scores_of])
        made = _across_section(settings.short_name(model), budget, list(by_task), arms, scores)
        made.notes.extend(gap(f"{task} has several settings and is left out; see each by itself") for task in left_out)
        shown.append(made)
    names = [part.tables[0].name for part in shown]
    for place, part in enumerate(shown):
        if names.count(names[place]) > 1:
            part.tables[0] = replace(part.tables[0], name=f"{names[place]}_{names[:place].count(names[place]) + 1}")
    return shown


def _placements(estimates: Collection[pd.DataFrame]) -> list[str]:
    """Those of all these tables."""
    return [arm for arm in settings.PLACEMENTS if all(arm in table.index for table in estimates)]


def _common_seeds(estimates: Collection[pd.DataFrame], arms: Sequence[str]) -> list[int]:
    """The seeds that these cells of all these tables have."""
    seeds_of = [set(scores) for table in estimates for scores in table.loc[list(arms), "scores"]]
    return sorted(set.intersection(*seeds_of)) if seeds_of else []


def _across_section(model: str, budget: int, tasks: list[str], arms: list[str], scores: np.ndarray) -> Section:
    result = across_tasks(scores, rng=np.random.default_rng(0))
    best_on = {task: chances_of_best(list(of_task)) for task, of_task in zip(tasks, scores, strict=True)}
    reference = arms.index(settings.REFERENCE_TARGETS) if settings.REFERENCE_TARGETS in arms else None
    rows = []
    for k, arm in enumerate(arms):
        row = {
            "placement": arm, "mean_rank": result.mean_rank[k], "rank_low": result.mean_rank_interval[k, 0],
            "rank_high": result.mean_rank_interval[k, 1], "iqm": result.iqm[k], "iqm_low": result.iqm_interval[k, 0],
            "iqm_high": result.iqm_interval[k, 1],
            **{f"chance_of_best_{task}": chances[k] for task, chances in best_on.items()},
        }  # fmt: skip
        if reference is not None and k != reference:
            low, high = result.improvement_interval[reference, k]
            row |= {"improvement": result.improvement[reference, k], "improvement_low": low, "improvement_high": high}
        rows.append(row)
    frame = pd.DataFrame(rows)
    two: Callable = lambda x: "–" if pd.isna(x) else f"{x:.2f}"  # noqa: E731
    frame["rank_shown"] = [
        wording.interval(low, high, two) for low, high in zip(frame["rank_low"], frame["rank_high"], strict=True)
    ]
    frame["iqm_shown"] = [
        wording.interval(low, high) for low, high in zip(frame["iqm_low"], frame["iqm_high"], strict=True)
    ]
    columns = [
        Column("placement", "targets", wording.text, is_number=False, is_name=True),
        Column("mean_rank", "mean rank", two),
        Column("rank_shown", "95 %", wording.text),
        Column("iqm", "interquartile mean", wording.points),
        Column("iqm_shown", "95 %", wording.text),
    ]
    columns += [
        Column(f"chance_of_best_{task}", f"best on {task}, %", wording.percent, in_paper=False) for task in best_on
    ]
    if "improvement" in frame:
        pairs = zip(frame["improvement_low"], frame["improvement_high"], strict=True)
        frame["improvement_shown"] = [wording.interval(low, high, two) for low, high in pairs]
        columns += [Column("improvement", "P(qv beats it)", two), Column("improvement_shown", "95 %", wording.text)]
    best = frame.iloc[frame["mean_rank"].argmin()]
    band = "" if pd.isna(best["rank_low"]) else f"95 % {best['rank_shown']}, "
    return Section(
        title=f"Across tasks: {model}, {budget:,} adapter parameters",
        sentence=f"Over {wording.listed(tasks)}, {best['placement']} has the best mean rank: {best['mean_rank']:.2f} "
        f"({band}{scores.shape[2]} common seeds "
        "resampled within each task).",
        tables=[Table(f"across_{model}_{budget}", "placements over tasks", frame, columns)],
        notes=[
            Note(
                "scores of different tasks and metrics are pooled as they are in the interquartile mean: "
                "read the mean rank first"
            )
        ],
    )
