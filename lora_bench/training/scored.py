"""Which rows are scored: at the ends of which epochs select is, and how many of train are at the end.

The scores after the last epoch are the run's. Those before it only draw a curve, unless the best epoch is kept, and a
forward pass over select after each epoch costs a fifth of a short training: so a sparse curve scores at most one row
for `TRAINED_ROWS` that are trained on, all of select each time, so that its points compare.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lora_bench.config.schema import TrainConfig

TRAINED_ROWS = 20
TRAIN_SAMPLE_ROWS = 500
"""Train rows scored at the end, for the generalisation gap; the same rows for every run, at most as many as select
has."""


def scored_epochs(train: TrainConfig, *, n_train: int, n_select: int) -> frozenset[int]:
    """The epochs, counted from 1, at whose ends select is scored; evenly spread, the last among them."""
    last = max(1, int(_rounded_up(train.epochs)))
    count = int(count_scored(train, train.epochs, n_train=n_train, n_select=n_select))
    return frozenset(last * place // count for place in range(1, count + 1))


def count_scored(train: TrainConfig, epochs: Any, *, n_train: Any, n_select: int) -> Any:
    """How many they are, for so many epochs and train rows; numbers or arrays of them."""
    last = np.maximum(1, _rounded_up(epochs))
    if train.curve == "full" or train.checkpoint == "best":
        return last
    return 1 + np.minimum(last - 1, np.floor(n_train * epochs / (TRAINED_ROWS * max(1, n_select))))


def train_sample(n_train: int, n_select: int) -> int:
    """How many train rows are scored at the end."""
    return min(TRAIN_SAMPLE_ROWS, n_train, n_select)


def scored_tokens(n_tokens: Mapping[str, int], train: TrainConfig, *, n_train: int, n_select: int) -> int:
    """Tokens that a run scores in all: select as often as it does, some rows of train and every other split once.

    Args:
        n_tokens: of each split, added up.
    """
    n_passes = int(count_scored(train, train.epochs, n_train=n_train, n_select=n_select))
    n_passes += train.checkpoint == "best"  # whose state is scored again
    of_sample = round(n_tokens["train"] * train_sample(n_train, n_select) / n_train)
    others = sum(count for split, count in n_tokens.items() if split not in ("train", "select"))
    return n_tokens["select"] * n_passes + of_sample + others


def _rounded_up(epochs: Any) -> Any:
    return np.ceil(epochs - 1e-9)
