"""A section of the instrument's own test, with its outcome."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from lora_bench.reports.section import Section


@dataclass(kw_only=True)
class CalibrationSection(Section):
    """What one part of the test found."""

    part: str  # its name in the summary
    says: str  # holds, fails, missing, or shown where there is nothing to pass
    outcome: pd.DataFrame  # one row per kind of sweep, contrast, cell or student
