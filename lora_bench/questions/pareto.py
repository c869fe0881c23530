"""What does a point of score cost? Score against adapter parameters, training time and adapter bytes.

A cell is on the front if no other cell is as cheap and better, or cheaper and as good. Each cell is shown at its own
learning rate, chosen on `select`; time is the cell's share of its pack, by FLOPs.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from lora_bench import wording
from lora_bench.config.schema import LORA_METHODS
from lora_bench.reports import tables
from lora_bench.reports.figures import curves, style
from lora_bench.reports.scope import Scope, each_setting
from lora_bench.reports.section import Column, SettingSection, Table
from lora_bench.verdicts import arms, settings, tuning
from lora_bench.verdicts.note import Note

COSTS = [
    ("adapter_parameters", "adapter parameters"),
    ("seconds", "training time per run (s)"),
    ("bytes", "adapter and head on disk (bytes)"),
]
NOISE = 0.05  # of a cost: times of equal work differ by about as much
TIMED = "seconds"  # the cost that is measured with noise; the others are counted


def sections(runs: pd.DataFrame, scope: Scope) -> list[SettingSection]:
    """One section per setting."""
    return each_setting(runs, scope, lambda setting: [section(setting, name=f"pareto_{setting.slug}")])


def section(setting: settings.Setting, *, name: str) -> SettingSection:
    """The table, the figure and the sentence for one setting."""
    runs = arms.name_arms(setting.runs)
    settings.refuse_duplicates(setting, runs)
    rates = tuning.choose_rates(runs)
    frame = tables.cell_frame(setting, arms.estimate(runs, rates["lr"]), rates)
    untold = ~frame["method"].isin([*LORA_METHODS, settings.FLOOR]) & (frame["adapter_parameters"] == 0)
    frame["adapter_parameters"] = frame["adapter_parameters"].mask(untold)  # full fine-tuning is not free
    measured = [(column, label) for column, label in COSTS if np.isfinite(frame[column]).any()]
    for column, _ in measured:
        costs = frame[column].to_numpy(float)
        costs = grouped(costs) if column == TIMED else costs
        frame[f"front_{column}"] = arms.on_front(costs, frame[tables.BEST_OF].to_numpy())
    points = frame[(frame["targets"] != "") & np.isfinite(frame["mean"])]
    points = points.assign(label=points["cell"])
    drawn = [(column, label) for column, label in measured if _differs(points[column])]
    lacking = [label for column, label in COSTS if (column, label) not in measured]
    notes = [*setting.notes, *([Note(f"not measured in these runs: {', '.join(lacking)}")] if lacking else [])]
    alike = [label for column, label in measured if (column, label) not in drawn]
    if alike:
        notes.append(
            Note(f"all cells cost the same within {100 * NOISE:g} %, so no figure shows {' and '.join(alike)}")
        )
    return SettingSection(
        title=f"Cost: {setting.title}",
        sentence=sentence(setting, frame, measured),
        tables=[_table(name, setting, frame)],
        figures={name: curves.pareto(points, drawn, metric=setting.metric)} if drawn else {},
        captions={
            name: "Report score (mean and 95 % t interval over seeds) against cost; "
            "the line is the Pareto front of the means. Cells of equal cost are drawn side by side; times within "
            f"{100 * NOISE:g} % of each other count as equal."
        },
        notes=notes,
        setting=setting,
    )


def grouped(costs: np.ndarray) -> np.ndarray:
    """Costs of which those within NOISE of the cheapest of them are one: a front over less would be one of noise.

    Args:
        costs: (n,), above zero; NaN where unmeasured, and there it stays.
    """
    shared, cheapest = np.array(costs, dtype=float), -np.inf
    for place in np.argsort(shared, kind="stable"):  # NaN last
        if shared[place] > (1 + NOISE) * cheapest:
            cheapest = shared[place]
        if np.isfinite(shared[place]):
            shared[place] = cheapest
    return shared


def _differs(costs: pd.Series) -> bool:
    """Whether cells differ in a cost by more than noise: at one budget a front would be drawn over that alone."""
    finite = costs[np.isfinite(costs)]
    return len(finite) > 1 and bool(finite.max() > (1 + NOISE) * finite.min())


def sentence(setting: settings.Setting, frame: pd.DataFrame, measured: list[tuple[str, str]]) -> str:
    """Which cells are on the front of score against parameters."""
    if ("adapter_parameters", COSTS[0][1]) not in measured:
        return f"On {setting.title} no run counts its adapter parameters."
    front = frame[frame["front_adapter_parameters"]].sort_values("adapter_parameters")
    if front.empty:
        return f"On {setting.title} no cell has learned, so none is on the front of score against adapter parameters."
    steps = [
        f"{row.cell} ({wording.points(row.mean)} at {wording.count(row.adapter_parameters)})"
        for row in front.itertuples()
    ]
    return f"On {setting.title} the front of mean score against adapter parameters is {wording.listed(steps)}."


def _table(name: str, setting: settings.Setting, frame: pd.DataFrame) -> Table:
    marks = [
        " ".join(
            word
            for word, (column, _) in zip(("parameters", "time", "bytes"), COSTS, strict=True)
            if row.get(f"front_{column}")
        )
        for row in frame.to_dict("records")
    ]
    frame = frame.assign(front=marks)
    columns = [
        Column("cell", "cell", wording.text, is_number=False, is_name=True),
        Column("adapter_parameters", "parameters", wording.count),
        Column("seconds", "seconds", wording.seconds),
        Column("bytes", "bytes", wording.count, in_paper=False),
        Column("score_shown", style.short_metric(setting.metric), wording.text, best_of=tables.BEST_OF),
        Column("front", "on the front of", wording.text, is_number=False),
    ]
    return Table(name, f"{setting.title}: score and cost", frame, columns)
