"""The line that trains what an unresolved contrast lacks: its two arms at their chosen rates, at further seeds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from lora_bench.config.overrides import quote
from lora_bench.reports.started import Started, told_seeds
from lora_bench.verdicts import settings
from lora_bench.verdicts.arms import Judgement
from lora_bench.verdicts.note import Note
from lora_bench.wording import command_line, counted

MOST_SEEDS = 100
"""Seeds in all that a line is printed for: whoever needs more needs another design."""


def notes(runs: pd.DataFrame, judged: Judgement, store: Path, *, pinned: Mapping[str, Sequence[str]]) -> list[Note]:
    """A line to paste for each contrast that needs more seeds, of which it takes `MOST_SEEDS` at most.

    Args:
        runs: of the setting, with the column `arm`.
        pinned: sweep -> the factors that it varies (`settings.varied_factors`), which the lines hold at the arm's own.
    """
    lines = []
    for row in judged.contrasts.to_dict("records"):
        n_pairs, needed = row["n_pairs"], row["seeds_needed"]
        if row["verdict"] != "unresolved" or pd.isna(needed) or not n_pairs < needed <= MOST_SEEDS:
            continue
        pair = (row["first"], row["second"])
        at_rates = [runs[(runs["arm"] == arm) & (runs["lr"] == judged.rates.at[arm, "lr"])] for arm in pair]
        seeds = further_seeds(at_rates, judged, pair, n_more=int(needed) - int(n_pairs))
        n_runs = sum(len(set(seeds) - set(of_arm["seed"])) for of_arm in at_rates)
        line = paste_line(at_rates, seeds, store, pinned=pinned)
        lines.append(Note(f"{counted(n_runs, 'run')} for the {needed} seeds that {' − '.join(pair)} needs: {line}"))
    return lines


def further_seeds(
    at_rates: Sequence[pd.DataFrame], judged: Judgement, arms: Sequence[str], *, n_more: int
) -> list[int]:
    """The seeds to come, those first that one of the arms has: neither scored by both nor failed in one."""
    scores = judged.estimates["scores"].to_dict()
    paired = set(scores[arms[0]]) & set(scores[arms[1]])
    failed = {int(seed) for of_arm in at_rates for seed in of_arm.loc[of_arm["status"] == "failed", "seed"]}
    seed = min(int(of_arm["seed"].min()) for of_arm in at_rates)
    seeds: list[int] = []
    while len(seeds) < n_more:
        if seed not in paired and seed not in failed:
            seeds.append(seed)
        seed += 1
    return seeds


def paste_line(
    at_rates: Sequence[pd.DataFrame], seeds: Sequence[int], store: Path, *, pinned: Mapping[str, Sequence[str]]
) -> str:
    """One command for both arms where they were started alike, else one for each.

    Args:
        at_rates: runs of each arm at its chosen rate.
    """
    grids: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for run in _alike(*at_rates):
        started = Started.of(run, store, pinned=pinned)
        grid = {**started.placement, "train.lr": f"{run['lr']:.12g}"}
        if run["method"] == settings.FLOOR:
            grid = {"adapter": settings.FLOOR}
        factors = ",".join(f"{key}:{_within(value)}" for key, value in grid.items())
        grids.setdefault((started.command, started.store), []).append(f"{{{factors}}}")
    return " && ".join(
        command_line([*command, f"hydra.sweeper.grids=[{','.join(of_command)}]", f"seed={told_seeds(seeds)}", *where])
        for (command, where), of_command in grids.items()
    )


def _alike(first: pd.DataFrame, second: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """A run of each arm, of the largest sweep that had both; the first ones where none had."""
    sweeps = pd.concat([first["sweep"], second["sweep"]]).value_counts()
    for sweep in sweeps.index:
        ours, theirs = (of_arm[of_arm["sweep"] == sweep] for of_arm in (first, second))
        if len(ours) and len(theirs):
            return ours.iloc[0], theirs.iloc[0]
    return first.iloc[0], second.iloc[0]


def _within(value: str) -> str:
    """A value of the command line inside a list of grids: what is not plain is a text there, read again as a value."""
    return value if re.fullmatch(r"[\w.+@-]+", value, flags=re.ASCII) else quote(value)
