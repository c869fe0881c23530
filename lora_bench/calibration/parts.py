"""The parts of the instrument's test, and what they say together."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from lora_bench import wording
from lora_bench.calibration.followed import study
from lora_bench.calibration.measured import reference, replicates
from lora_bench.calibration.noise import noise
from lora_bench.calibration.planted_teachers import planted
from lora_bench.calibration.section import CalibrationSection
from lora_bench.calibration.simulate import Trials
from lora_bench.calibration.simulated import power
from lora_bench.reports.scope import Scope
from lora_bench.reports.section import Column, Section, Table

PARTS = ("study", "noise", "power", "aa", "coverage", "planted")


def sections(part: str, scope: Scope, trials: Trials) -> list[CalibrationSection]:
    """What one of PARTS finds.

    Raises:
        NothingToShow: when the store lacks the runs, naming the sweep that makes them.
        StoreError: when the store cannot be read.
    """
    makers: dict[str, Callable[[], list[CalibrationSection]]] = {
        "study": lambda: study(trials),
        "noise": lambda: noise(scope),
        "power": lambda: power(trials),
        "aa": lambda: replicates(scope, trials),
        "coverage": lambda: reference(scope, trials),
        "planted": lambda: planted(scope),
    }
    return makers[part]()


def summary(made: list[CalibrationSection], absent: list[tuple[str, str]]) -> Section:
    """What the parts say together; `absent` has those that the store lacks, and why."""
    rows = [{"part": section.part, "says": section.says, "found": section.sentence} for section in made]
    rows += [{"part": part, "says": "missing", "found": why} for part, why in absent]
    table = pd.DataFrame(rows)
    failed = list(table["part"][table["says"] == "fails"])
    missing = list(table["part"][table["says"] == "missing"])
    sentence = (
        f"The instrument fails its own test: {wording.listed(failed)}."
        if failed
        else "Nothing here speaks against the verdicts."
    )
    if missing:
        sentence += f" Not tested: {wording.listed(missing)}."
    columns = [
        Column("part", "part", wording.text, is_number=False),
        Column("says", "says", wording.text, is_number=False),
        Column("found", "found", wording.text, is_number=False),
    ]
    return Section("Calibration", sentence, [Table("calibration", "What the test says", table, columns)])
