"""Write the next stage of a staged learning-rate search: a sweep file with each placement near its own best rate.

A wide grid of rates at 8 seeds is the price of a fair comparison. Staged, it costs a third: a coarse grid with a seed,
rates around each placement's winner with two, then the chosen rate and the second-best with all: two seeds often choose
the wrong one of these, and a word at both does not rest on that choice. Every choice is made on `select`.

    lora-bench next_stage store=runs sweep=coarse rates=3 seeds=2 out=sweeps/fine.yaml
    lora-bench next_stage store=runs sweep=fine rates=2 seeds=8 head_only=true out=sweeps/final.yaml
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lora_bench import wording
from lora_bench.config import sweep_file
from lora_bench.config.errors import ConfigError
from lora_bench.config.schema import LORA_METHODS
from lora_bench.paths import resource_root
from lora_bench.verdicts import arms, scheme, settings, tuning

COLUMNS = {"adapter.targets": "targets", "adapter.rank": "rank"}  # the axes of a sweep that tell its placements apart
OTHER_AXES = ("train.lr", "seed")


class StageError(ValueError):
    """The stage before does not say what the next one needs."""


def read_sweep(name: str) -> dict[str, Any]:
    """A sweep file by path, by name from ./sweeps, or by name from the shipped ones.

    Raises:
        StageError: when there is none, it cannot be read, or its axes are not those of a staged search.
    """
    places = [Path(name), Path("sweeps") / f"{name}.yaml", resource_root() / "sweeps" / f"{name}.yaml"]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise StageError(f"--sweep: no {name}; looked at {', '.join(map(str, places))}")
    try:
        with sweep_file.readable(str(path)):
            sweep = yaml.safe_load(path.read_text(encoding="utf-8"))
        sweep_file.check_sweep(str(path), sweep)
    except ConfigError as error:
        raise StageError(str(error)) from None
    grids = _grids(sweep)
    axes = {key for grid in grids for key, value in grid.items() if (key, value) != ("adapter", settings.FLOOR)}
    unknown = sorted(axes - {*COLUMNS, *OTHER_AXES})
    if unknown:
        raise StageError(f"{path}: cannot stage the axis {', '.join(unknown)}; known are {', '.join(COLUMNS)}")
    return sweep


@dataclass(frozen=True)
class Chosen:
    """A placement's rates, by `select`.

    Attributes:
        point: what places it: axis -> value.
        rate: the best.
        second: the next best of those with as many seeds; nan without one.
        certificate: as `tuning.choose_rates` gives it.
    """

    point: dict[str, str]
    rate: float
    second: float
    certificate: str

    def next_rates(self, n_rates: int) -> list[float]:
        """The rates of the next stage, ascending: the best; with the second-best; or between its neighbours, as a study
        tries them."""
        if n_rates == 3:
            return list(scheme.around(self.rate))
        return sorted({self.rate} if n_rates == 1 or math.isnan(self.second) else {self.rate, self.second})


def chosen_rates(frame: pd.DataFrame, sweep: dict, *, name: str) -> tuple[list[Chosen], str]:
    """Each placement of the sweep with its best rates on `select`, from all runs of the sweep's setting.

    Args:
        frame: the store's.
        sweep: as `read_sweep` gives it.
        name: of the sweep, as the records hold it.

    Returns:
        every placement's rates, and the id of a run of the sweep.

    Raises:
        StageError: when the sweep has no run or several settings, or a placement no run, no score or several ranks.
    """
    runs = settings.prepare(frame)
    before = runs[(runs["sweep"] == name) & runs["method"].isin(LORA_METHODS)]
    if before.empty:
        raise StageError(f"the store holds no LoRA run of +sweeps={name}")
    methods = sorted(set(before["method"]))
    if len(methods) > 1:
        raise StageError(f"+sweeps={name} holds runs of {wording.listed(methods)}; one method is wanted")
    matching = [
        setting
        for setting in settings.settings(runs.merge(before[["task", "model"]].drop_duplicates()), method=methods[0])
        if (setting.runs["sweep"] == name).any()
    ]
    if len(matching) > 1:
        raise StageError(
            f"the runs of +sweeps={name} are of {len(matching)} settings ({'; '.join(s.title for s in matching)})"
        )
    declared = {axis: axis_values(sweep, axis) for axis in COLUMNS}
    named = arms.name_arms(matching[0].runs[matching[0].runs["targets"] != ""])
    if not declared["adapter.rank"]:  # other sweeps may have a placement of this one at other ranks
        own = set(zip(before["targets"], before["rank"].map(_plain), strict=True))
        cells_of = list(zip(named["targets"], named["rank"].map(_plain), strict=True))
        ours = {targets for targets, _ in own}
        named = named[[cell in own or cell[0] not in ours for cell in cells_of]]
    named = named.assign(
        targets=[_word_of(targets, declared["adapter.targets"], set(before["targets"])) for targets in named["targets"]]
    )
    for axis, values in declared.items():
        if values:
            named = named[named[COLUMNS[axis]].map(_plain).isin(values)]
    absent = [value for value in declared["adapter.targets"] if value not in set(named["targets"])]
    if absent:
        raise StageError(f"the store holds no run of {wording.listed(absent)}; finish +sweeps={name} first")
    settings.refuse_duplicates(matching[0], named)
    axes = [axis for axis, values in declared.items() if values]
    points = named.drop_duplicates("arm").set_index("arm").to_dict("index")
    chosen = []
    for arm, row in tuning.choose_rates(named).to_dict("index").items():
        if row["certificate"] == "none":
            raise StageError(f"{arm}: no run has a score, so no rate can be chosen; see lora-bench show=store")
        point = {axis: _plain(points[arm][COLUMNS[axis]]) for axis in axes}
        chosen.append(Chosen(point, row["lr"], row["second"], row["certificate"]))
    if len({tuple(placement.point.values()) for placement in chosen}) < len(chosen):
        raise StageError(
            f"{', '.join(map(str, points))}: one placement at several ranks; keep them in stores of their own"
        )
    return chosen, str(before["run_id"].iloc[0])


def _word_of(targets: str, declared: list[str], own_targets: set[str]) -> str:
    """How the sweep writes the targets: `attention` for `qkvo`; as they are where it has no word for them.

    A word such as `mlp` stands for the targets of the sweep's own runs (`own_targets`), not for what others call so.
    """
    others = own_targets - {targets}
    for word in () if targets in declared else declared:
        if arms.same_targets(word, targets) and not any(arms.same_targets(word, other) for other in others):
            return word
    return targets


def next_stage(sweep: dict, chosen: list[Chosen], *, n_rates: int, n_seeds: int, head_only: bool) -> dict[str, Any]:
    """The sweep with each placement at its own rates.

    Args:
        sweep: of the stage before, as `read_sweep` gives it.
        chosen: as `chosen_rates` gives it.
    """
    grids = [{**placement.point, "train.lr": text_of(placement.next_rates(n_rates))} for placement in chosen]
    if head_only:
        grids.append({"adapter": settings.FLOOR})
    settled = {key: value for key, value in sweep.items() if key != "hydra"}
    sweeper = {"params": {"seed": f"range({n_seeds})"}, "grids": grids}
    return settled | {"hydra": {"mode": "MULTIRUN", "sweeper": sweeper}}


def told_as_file(stage: dict, *, before: str, command: str) -> str:
    """The sweep as YAML, with what it asks and how it was made."""
    sweeper = stage["hydra"]["sweeper"]
    n_points = sum(len(str(grid.get("train.lr", "")).split(",")) for grid in sweeper["grids"])
    return (
        "# @package _global_\n"
        f"# Question: that of {before}, each placement at rates chosen there on select; {n_points} cells.\n"
        f"# Written by: {command}\n"
    ) + yaml.safe_dump(stage, sort_keys=False, width=120)


def _grids(sweep: dict) -> list[dict]:
    sweeper = sweep.get("hydra", {}).get("sweeper", {})
    return [sweeper.get("params") or {}, *(sweeper.get("grids") or [])]


def axis_values(sweep: dict, axis: str) -> list[str]:
    """What an axis of the sweep goes over, in the order of the file; empty if it is none."""
    written = [str(grid[axis]) for grid in _grids(sweep) if axis in grid]
    return list(dict.fromkeys(value.strip().strip("'\"") for text in written for value in text.split(",")))


def _plain(value: Any) -> str:
    """A column's value as a sweep file writes it: a rank without its decimal point."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def text_of(rates: list[float]) -> str:
    return ",".join(f"{rate:g}" for rate in rates)
