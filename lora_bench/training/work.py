"""How much of a pack's work is behind it, by operations: the steps, and the tokens that are scored between and after
them.

With few rows of train and many of report most of a run's time is scoring: a bar of steps alone stands for minutes.
"""

from collections.abc import Callable, Mapping
from typing import Any

from lora_bench.tasks.tokens import Tokens
from lora_bench.training.cost import run_flops, scoring_flops
from lora_bench.training.resolve import Run
from lora_bench.training.scored import scored_tokens

Notify = Callable[[dict[str, Any]], None]

CHECKING = 0.05
"""Of a pack's time, what checking and saving its runs takes, about; each record then says itself that it is there."""


def operations(run: Run, n_tokens: Mapping[str, int]) -> tuple[int, int]:
    """Floating-point operations of training a run, and of scoring it.

    Args:
        n_tokens: of each split, those of the rows that the run reads, added up.
    """
    trained = round(n_tokens["train"] * run.config.train.epochs)
    n_select = len(run.task.splits["select"])
    n_scored = scored_tokens(n_tokens, run.config.train, n_train=run.n_train, n_select=n_select)
    training = run_flops(run.blueprint, run.config, run.matrices, trained)
    return training, scoring_flops(run.blueprint, n_scored)


class Work:
    """Counts what a pack has done, and tells it as {"event": "work", "share": of all, "runs": n_wanted}.

    Args:
        run: one of the pack; the runs of a pack differ little in their operations.
        tokens: of each split, those of the rows that the run reads.
    """

    def __init__(self, run: Run, tokens: Mapping[str, Tokens], n_wanted: int, notify: Notify) -> None:
        training, scoring = operations(run, {name: int(split.lengths.sum()) for name, split in tokens.items()})
        an_operation = (1 - CHECKING) / (training + scoring)
        self._a_step = an_operation * training / run.steps
        self._a_token = an_operation * scoring_flops(run.blueprint, 1)
        self._n_wanted, self._notify = n_wanted, notify
        self._steps = self._tokens = 0

    @property
    def share(self) -> float:
        """Of the pack's time, what is behind it; what is left is for checking."""
        return min(1 - CHECKING, self._a_step * self._steps + self._a_token * self._tokens)

    def has_trained(self, steps: int) -> None:
        """So many steps are done in all."""
        self._steps = steps
        self._tell()

    def has_scored(self, n_tokens: int) -> None:
        """So many more tokens are scored, by every run."""
        self._tokens += n_tokens
        self._tell()

    def _tell(self) -> None:
        self._notify({"event": "work", "share": self.share, "runs": self._n_wanted})
