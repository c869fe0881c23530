"""What studies said of the contrasts that claims are about, and the command that runs what is not there."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_bench import wording
from lora_bench.config import overrides
from lora_bench.config.overrides import override
from lora_bench.reports import explicit
from lora_bench.store import StoreReader
from lora_bench.store.journal import journals
from lora_bench.store.reader import is_archive
from lora_bench.verdicts import looks
from lora_bench.verdicts.arms import same_targets
from lora_bench.verdicts.settings import Setting

OPPOSITE = {looks.BETTER: looks.WORSE, looks.WORSE: looks.BETTER}
USUAL_STORE = Path("runs")
"""The folder that a command writes to by itself."""
BUDGETED = ("adapter.rank", "adapter.rank_pattern", "adapter.budget", "adapter.targets")
"""What a placement is, which every sweep says itself."""
VARIED = {
    "depth": ("adapter.layers",),
    "alpha": ("adapter", "adapter.alpha_policy"),
    "methods": ("adapter", "adapter.init", "adapter.alpha_policy", "adapter.b_lr_ratio"),
    "intruders": ("adapter", "adapter.init", "adapter.alpha_policy"),
}
"""What a sweep varies of the adapter beside targets and rank: its line does not hold it at the setting's own."""
FAMILIES = ("placement", "same_rank")
"""Kinds of claims whose contrast a study compares by the names of placements."""


def of_store(store: StoreReader | None) -> list[dict[str, Any]]:
    """The findings of all studies of a store, the latest word of each contrast, with the runs that were looked at.

    Raises:
        StoreError: when a journal cannot be read.
    """
    findings = []
    for content in (journal.read() for journal in journals(store.root)) if store else ():
        if content and content["looks"]:
            last = content["looks"][-1]
            of_study = {
                "n_looks": len(content["declaration"]["looks"]),
                "at": last["number"] + 1,
                "margin": content["declaration"]["margin"],
                "runs": frozenset(run_id for look in content["looks"] for run_id in look["runs"]),
            }
            findings += [finding | of_study for finding in last["findings"]]
    return findings


def word_on(
    claim: Mapping[str, Any], findings: Sequence[Mapping[str, Any]], runs: Sequence[Collection[str]]
) -> dict[str, Any] | None:
    """The word of a study on a claim's contrast, first minus second, with its evidence; None where none compares them.

    A study is about the contrast if it looked at runs of both sides: its placements have these names at other budgets,
    under other methods and in other settings as well. A word that was given counts before one that is open; where
    studies gave several, none of them is the claim's.

    Args:
        runs: ids of the first side's runs, and of the second's.

    Returns:
        `word`, `words` (the evidence) and `is_small`: whether the interval lies within the margin.
    """
    if claim["kind"] not in FAMILIES:
        return None
    said = []
    for finding in findings:
        if any(finding["runs"].isdisjoint(of_side) for of_side in runs):
            continue
        is_final = finding["look"] is not None
        for first, second, sign in ((*_pair(finding), 1), (*reversed(_pair(finding)), -1)):
            if same_targets(claim["first"], _roles(first)) and same_targets(claim["second"], _roles(second)):
                given = str(finding["word"])
                word = given if sign > 0 else OPPOSITE.get(given, given)
                is_small = all(abs(end) < finding["margin"] for end in looks.ends(finding))
                words = _in_words(finding, first, second, word, sign)
                said.append({"word": word, "words": words, "is_small": is_small, "is_final": is_final})
    final = [answer for answer in said if answer["is_final"]] or said[:1]
    if len({answer["word"] for answer in final}) > 1:
        words = "; ".join(answer["words"] for answer in final)
        return {"word": looks.OPEN, "words": f"{words}; the studies disagree", "is_small": False}
    return final[0] if final else None


def _pair(finding: Mapping[str, Any]) -> tuple[str, str]:
    return finding["first"], finding["second"]


def _roles(name: str) -> str:
    """A placement's name in a journal as records spell it: `attention` is `qkvo`."""
    return {"attention": "qkvo", "mlp": "up+down", "all": "qkvo+up+down"}.get(name, name)


def _in_words(finding: Mapping[str, Any], first: str, second: str, word: str, sign: int) -> str:
    ends = looks.ends(finding)
    low, high = (sign * end for end in (ends if sign > 0 else ends[::-1]))
    difference = math.nan if finding["difference"] is None else sign * finding["difference"]
    n_pairs, n_seeds = finding["n_pairs"], finding["n_seeds"]
    seeds = f"{n_seeds} seeds" if n_pairs == n_seeds else f"{n_pairs} of {n_seeds} seeds"
    return (
        f"study, look {finding['at']} of {finding['n_looks']}: {first} − {second} {wording.signed(difference)} points "
        f"({wording.interval(low, high, wording.signed)}), {seeds}: {word}"
    )


def mirrored(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A contrast's row, second minus first."""
    swapped = {**OPPOSITE, looks.MORE_OFTEN: looks.LESS_OFTEN, looks.LESS_OFTEN: looks.MORE_OFTEN}
    return {
        **row,
        "first": row["second"],
        "second": row["first"],
        "difference": -row["difference"],
        "low": -row["high"],
        "high": -row["low"],
        "verdict": swapped.get(row["verdict"], row["verdict"]),
    }


def command(study: str, setting: Setting, store: StoreReader | None, home: Path | None = None) -> str:
    """The line that runs a claim's study in a setting: on its backbone, layers and rows, trained as its runs are.

    Without a store the backbone and the task are all that is told.

    Args:
        home: the store that the line writes to, where `store` is a copy of it.
    """
    given, run = wording.words_of(study), setting.runs.iloc[0]
    if store is None:
        words = [
            *explicit.preset_words("model", str(run["model"]), given),
            *explicit.preset_words("task", str(run["task"]), given),
        ]
    else:
        record, root = store.record(str(run["run_id"])), home or store.root
        words = explicit.shared_words(run, record, given=given)
        adapted = explicit.placement_words(run, record, given=given)
        asked = set(map(overrides.key_of, given))
        free = {*BUDGETED, *VARIED.get(given[0].partition("=")[2], ()), *asked}
        free |= {"adapter"} if "adapter.alpha_policy" in asked else set()  # of which a policy is a preset
        words += [f"{key}={text}" for key, text in adapted.items() if key not in free]
        words += [] if is_archive(root) or root == USUAL_STORE else [override("store", str(root))]
    return wording.command_line(["lora-bench", *given, *words])
