"""What does a point of score cost? Score against adapter parameters, training time and adapter bytes.

A cell is on the front if no other cell is as cheap and better, or cheaper and as good. Each cell is shown at its own
learning rate, chosen on `select`; time is the cell's share of its pack, by FLOPs.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from lora_bench import cells, figures, reporting, tuning
from lora_bench.reporting import Column, Section, Table

COSTS = [
    ("adapter_parameters", "adapter parameters"),
    ("seconds", "training time per run (s)"),
    ("bytes", "adapter and head on disk (bytes)"),
]


def main(argv: list[str] | None = None) -> int:
    parser = reporting.parser(__doc__, "pareto")
    options = parser.parse_args(argv)
    return reporting.run_script(lambda runs: sections(runs, options), options)


def sections(runs: pd.DataFrame, options) -> list[Section]:
    """One section per setting."""
    return reporting.each_setting(runs, options, lambda one: [section(one, name=f"pareto_{one.slug}")])


def section(setting: cells.Setting, *, name: str) -> Section:
    """The table, the figure and the sentence for one setting."""
    runs = cells.name_arms(setting.runs)
    cells.refuse_duplicates(setting, runs)
    rates = tuning.choose_rates(runs)
    frame = reporting.cell_frame(setting, cells.estimate(runs, rates["lr"]), rates)
    untold = ~frame["method"].isin([*cells.LORA_METHODS, cells.FLOOR]) & (frame["adapter_parameters"] == 0)
    frame["adapter_parameters"] = frame["adapter_parameters"].mask(untold)  # full fine-tuning is not free
    measured = [(column, label) for column, label in COSTS if np.isfinite(frame[column]).any()]
    for column, _ in measured:
        frame[f"front_{column}"] = cells.on_front(frame[column].to_numpy(), frame["mean"].to_numpy())
    points = frame[(frame["targets"] != "") & np.isfinite(frame["mean"])]
    points = points.assign(label=points["cell"])
    lacking = [label for column, label in COSTS if (column, label) not in measured]
    notes = [*setting.notes, *([f"not measured in these runs: {', '.join(lacking)}"] if lacking else [])]
    return Section(
        title=f"Cost: {setting.title}",
        sentence=sentence(setting, frame, measured),
        tables=[_table(name, setting, frame)],
        figures={name: figures.pareto(points, measured, metric=setting.metric)} if len(points) and measured else {},
        captions={
            name: "Report score (mean and 95 % t interval over seeds) against cost; "
            "the line is the Pareto front of the means. Cells of equal cost are drawn side by side."
        },
        notes=notes,
        facts={"setting": setting, "frame": frame},
    )


def sentence(setting: cells.Setting, frame: pd.DataFrame, measured: list[tuple[str, str]]) -> str:
    """Which cells are on the front of score against parameters."""
    if ("adapter_parameters", COSTS[0][1]) not in measured:
        return f"On {setting.title} no run counts its adapter parameters."
    front = frame[frame["front_adapter_parameters"]].sort_values("adapter_parameters")
    steps = [
        f"{one.cell} ({reporting.points(one.mean)} at {reporting.count(one.adapter_parameters)})"
        for one in front.itertuples()
    ]
    return f"On {setting.title} the front of mean score against adapter parameters is {reporting.listed(steps)}."


def _table(name: str, setting: cells.Setting, frame: pd.DataFrame) -> Table:
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
        Column("cell", "cell", reporting.text, is_number=False),
        Column("adapter_parameters", "parameters", reporting.count),
        Column("seconds", "seconds", reporting.seconds),
        Column("bytes", "bytes", reporting.count),
        Column("score_shown", figures.short_metric(setting.metric), reporting.text),
        Column("front", "on the front of", reporting.text, is_number=False),
    ]
    return Table(name, f"{setting.title}: score and cost", frame, columns)


if __name__ == "__main__":
    raise SystemExit(main())
