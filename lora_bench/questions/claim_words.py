"""What studies said of the contrasts that claims are about, and the command that runs what is not there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_bench import wording
from lora_bench.config.overrides import override
from lora_bench.questions import explicit
from lora_bench.store import StoreReader
from lora_bench.store.journal import journals
from lora_bench.store.reader import is_archive
from lora_bench.verdicts import looks
from lora_bench.verdicts.arms import same_targets
from lora_bench.verdicts.settings import Setting

OPPOSITE = {looks.BETTER: looks.WORSE, looks.WORSE: looks.BETTER}
USUAL_STORE = Path("runs")
"""The folder that a command writes to by itself."""
OF_LAYERS = "study=depth"
"""The study that varies the layers itself."""
FAMILIES = ("placement",)
"""Kinds of claims whose contrast a study compares by the names of placements."""


def of_setting(setting: Setting, store: StoreReader | None) -> list[dict[str, Any]]:
    """The findings of studies on this backbone and these rows, trained alike; the latest word of each contrast.

    Raises:
        StoreError: when a journal cannot be read.
    """
    findings = []
    for content in (journal.read() for journal in journals(store.root)) if store else ():
        if content and content["looks"] and _is_of(content["setting"], setting):
            n_looks = len(content["declaration"]["looks"])
            last = content["looks"][-1]
            findings += [finding | {"n_looks": n_looks, "at": last["number"] + 1} for finding in last["findings"]]
    return findings


def _is_of(declared: Mapping[str, Any], setting: Setting) -> bool:
    """Whether a family's runs are of a setting: the same backbone, rows, and adapter beside placement and rank."""
    task, adapter, train = declared["task"], declared["adapter"], declared["train"]
    fingerprint = task["fingerprint"] if isinstance(task, Mapping) else task
    if (declared["model"], fingerprint) != (setting.facts["model_fingerprint"], setting.facts["task_fingerprint"]):
        return False
    if isinstance(task, Mapping) and task["train_rows"] != setting.facts["train_rows"]:  # drawn from the same rows
        return False
    spelled = {  # layers as a store's frame has them
        name: ",".join(map(str, value)) if isinstance(value, list) else value
        for name, value in {**adapter, **train}.items()
    }
    values = [(setting.facts.get(name), value) for name, value in spelled.items() if name != "dropout"]
    return all(ours == theirs for ours, theirs in values if isinstance(ours, (int, float, str)) and ours == ours)


def word_on(claim: Mapping[str, Any], findings: Sequence[Mapping[str, Any]]) -> dict[str, str] | None:
    """The word of a study on a claim's contrast, first minus second, with its evidence; None where none compares them.

    A word that was given counts before one that is open.
    """
    if claim["kind"] not in FAMILIES:
        return None
    said: dict[str, str] | None = None
    for finding in sorted(findings, key=lambda finding: finding["look"] is not None):
        for first, second, sign in ((*_pair(finding), 1), (*reversed(_pair(finding)), -1)):
            if same_targets(claim["first"], _roles(first)) and same_targets(claim["second"], _roles(second)):
                given = str(finding["word"])
                word = given if sign > 0 else OPPOSITE.get(given, given)
                said = {"word": word, "words": _in_words(finding, first, second, word, sign)}
    return said


def _pair(finding: Mapping[str, Any]) -> tuple[str, str]:
    return finding["first"], finding["second"]


def _roles(name: str) -> str:
    """A placement's name in a journal as records spell it: `attention` is `qkvo`."""
    return {"attention": "qkvo", "mlp": "up+down", "all": "qkvo+up+down"}.get(name, name)


def _in_words(finding: Mapping[str, Any], first: str, second: str, word: str, sign: int) -> str:
    ends = looks.ends(finding)
    low, high = (sign * end for end in (ends if sign > 0 else ends[::-1]))
    difference = math.nan if finding["difference"] is None else sign * finding["difference"]
    return (
        f"study, look {finding['at']} of {finding['n_looks']}: {first} − {second} {wording.signed(difference)} points "
        f"({wording.interval(low, high, wording.signed)}), {finding['n_seeds']} seeds: {word}"
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
        layers = record["config"]["adapter"].get("layers", "all")
        words += [] if layers == "all" or study == OF_LAYERS else [f"adapter.layers={explicit.text_of(layers)}"]
        words += [] if is_archive(root) or root == USUAL_STORE else [override("store", str(root))]
    return wording.command_line(["lora-bench", *given, *words])
