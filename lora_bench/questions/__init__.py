"""What is asked of a store. A new question is a module here and a line of QUESTIONS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from lora_bench.questions import (
    amplification,
    factor,
    learning_rate,
    pareto,
    pooled,
    predicted,
    rank,
    spread,
    subspaces,
    weight_types,
)
from lora_bench.reports.scope import Scope
from lora_bench.reports.section import SettingSection


@dataclass(frozen=True)
class Question:
    """A question of the page, in the order of QUESTIONS."""

    title: str
    sections: Callable[[pd.DataFrame, Scope], Sequence[SettingSection]]
    is_verdict: bool = False  # its sentences are the page's verdict
    ends_sweep: bool = False  # the run that ends a sweep on W&B has its tables and figures
    by_method: bool = True  # it is asked of one LoRA method at a time


QUESTIONS = {
    "weight_types": Question("Weight types", weight_types.sections, is_verdict=True, ends_sweep=True),
    "rank": Question("Rank", rank.sections, is_verdict=True, ends_sweep=True),
    "factor": Question("Factors", factor.every, is_verdict=True, ends_sweep=True, by_method=False),
    "pooled": Question("Pooled contrasts", pooled.sections),
    "learning_rate": Question("Learning rate", learning_rate.sections, ends_sweep=True),
    "pareto": Question("Cost", pareto.sections, ends_sweep=True),
    "spread": Question("Spread", spread.sections, ends_sweep=True),
    "predictors": Question("Predictors", predicted.sections),
    "subspace": Question("Subspaces", subspaces.sections),
    "amplification": Question("Amplification", amplification.sections),
}
