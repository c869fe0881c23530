"""What a run kept of its model's answers: a table with the columns split, idx, label and logit_0, logit_1, ...

A regression has logit_0 alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd  # a fifth of a second: imported where predictions are read


def logit_names(table: pd.DataFrame) -> list[str]:
    """The columns of logits, in the order of the labels."""
    names = [name for name in map(str, table) if name.startswith("logit_")]
    return sorted(names, key=lambda name: int(name.removeprefix("logit_")))


def answers(table: pd.DataFrame, split: str = "report") -> tuple[np.ndarray, np.ndarray]:
    """A split's labels, (n_rows,), and the model's logits, (n_rows, n_labels), in the table's order of rows."""
    rows = table[table["split"] == split]
    return rows["label"].to_numpy(), rows[logit_names(table)].to_numpy(dtype=float)
