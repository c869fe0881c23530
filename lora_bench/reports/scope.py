"""What a question is asked of: a store, which of its runs, and by which measure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pandas as pd

from lora_bench.reports.leading import Weights
from lora_bench.reports.learned import with_learning
from lora_bench.reports.section import Section
from lora_bench.store import existing, holds_no_run
from lora_bench.verdicts import settings, stats
from lora_bench.verdicts.settings import NothingToShow, Setting

T = TypeVar("T")
U = TypeVar("U")
S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Scope:
    """A store and what is read of it; None leaves a choice open."""

    store: Path  # a folder of records, or an archive
    model: str | None = None
    task: str | None = None
    method: str | None = "lora"  # None: all LoRA methods together
    metric: str | None = None  # None: each task's primary one
    margin: float | None = None  # the largest difference that counts as a tie, as a fraction; None: the metric's
    mix_environments: bool = False
    with_paper: bool = False  # whether the scores that the LoRA paper prints for GPT-3 stand beside ours
    width: float | None = None  # of figures, in inches; None: a column or a page, by what they show
    home: Path | None = None  # the store that printed commands write to, where `store` is a copy for the moment
    weights: Weights | None = None  # the backbone's, where claims compare saved weights with them; None: they do not

    def margin_of(self, metric: str) -> float:
        """The largest difference that counts as a tie, as a fraction: what was asked for, else the metric's."""
        return stats.margin_of(metric) if self.margin is None else self.margin

    def read(self) -> pd.DataFrame:
        """The store's runs, prepared, with whether each learns (`with_learning`).

        Raises:
            NothingToShow: when no run has the metric.
            StoreError: as `read_frame` does.
        """
        return with_learning(settings.prepare(read_frame(self.store), metric=self.metric), self.store)

    def within(self, runs: pd.DataFrame) -> pd.DataFrame:
        """The runs of the model and the task.

        Raises:
            NothingToShow: when there is none.
        """
        return settings.filter_runs(settings.filter_runs(runs, "model", self.model), "task", self.task)

    def settings(self, runs: pd.DataFrame, *, free: Collection[str] = ()) -> list[Setting]:
        """The settings of prepared runs, as `settings.settings` splits them.

        Raises:
            NothingToShow: when nothing is left.
        """
        return settings.settings(
            runs,
            model=self.model,
            task=self.task,
            method=self.method,
            mix_environments=self.mix_environments,
            free=free,
        )


def read_frame(root: Path) -> pd.DataFrame:
    """The store's frame.

    Raises:
        StoreError: when there is no such folder, it holds no run or cannot be read.
    """
    frame = existing(root).frame()
    if frame.empty:
        raise holds_no_run(root)
    return frame


def each_setting(runs: pd.DataFrame, scope: Scope, make: Callable[[Setting], list[S]]) -> list[S]:
    """The sections of every setting that has them; what the others lack stands under the last.

    Raises:
        NothingToShow: when none has any, with what each lacks.
    """
    sections, refused = gather(scope.settings(runs), make)
    sections[-1].refused.extend(refused)
    return sections


def gather(sources: Sequence[T], make: Callable[[T], list[U]]) -> tuple[list[U], list[str]]:
    """What settings (or pairs that hold one) give, in one list, and what those that give nothing lack.

    Raises:
        NothingToShow: when none gives anything, with what each lacks.
    """
    made: list[U] = []
    refused: list[str] = []
    for source in sources:
        try:
            made += make(source)
        except NothingToShow as error:
            refused.append(str(error))
    if not made:
        raise NothingToShow("\n".join(refused))
    return made, refused
