"""The embedded tasks: rows from a grammar and a lexicon of our own, in any number, without a download.

    rows = generate("acceptability", "report", 1000)

The rows of a split are one long stream, fixed by (task, split): asking for more only appends. No row repeats in a
split, and the splits share no row. docs/embedded_tasks.md shows examples and says how hard each task is.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from lora_bench.tasks.generated import acceptability, entailment, sentiment, similarity
from lora_bench.tasks.generated.draws import Draws
from lora_bench.tasks.generated.lexicon import LEXICONS

GRAMMARS = {
    "acceptability": acceptability,
    "sentiment": sentiment,
    "entailment": entailment,
    "similarity": similarity,
}
LABEL_NAMES: dict[str, tuple[str, ...]] = {
    "acceptability": acceptability.LABELS,
    "sentiment": sentiment.LABELS,
    "entailment": entailment.LABELS,
    "similarity": (),
}
PATIENCE = 1000  # draws in a row that may repeat earlier rows before the grammar counts as exhausted


def generate(name: str, split: str, n_rows: int, phenomena: Sequence[str] = ()) -> pd.DataFrame:
    """The first `n_rows` rows of an embedded task's split.

    Args:
        name: acceptability, sentiment, entailment or similarity.
        split: train or report; they draw on lexicons that share no content word.
        n_rows: any number above 0, as far as the grammar reaches (over 100,000).
        phenomena: the constructions to draw on; empty takes all.

    Returns:
        Columns text_a, text_b (entailment and similarity only), label (int64 class number, or float64 score from 0
        to 5) and idx (int64, 0 to n_rows - 1).

    Raises:
        ValueError: for an unknown name, split or phenomenon, a number of rows below 1, or more rows than the grammar
            has.
    """
    if name not in GRAMMARS:
        raise ValueError(f"task.name: no embedded task {name!r}; embedded tasks are {', '.join(GRAMMARS)}")
    if split not in LEXICONS:
        raise ValueError(f"split: {name} has no split {split!r}; generated splits are {', '.join(LEXICONS)}")
    if n_rows < 1:
        raise ValueError(f"n_rows: must be at least 1, got {n_rows}")
    grammar, lexicon = GRAMMARS[name], LEXICONS[split]
    known = phenomena_of(name)
    if unknown := [phenomenon for phenomenon in phenomena if phenomenon not in known]:
        works = f"those of {name} are {', '.join(known)}" if known else f"{name} has none to choose from"
        raise ValueError(f"task.phenomena: no phenomenon {unknown[0]!r}; {works}")
    chosen = {"names": tuple(phenomena)} if phenomena else {}
    draw = Draws(f"lora_bench/{name}/{split}")
    is_scored = name == "similarity"
    n_labels = similarity.LEVELS if is_scored else len(LABEL_NAMES[name])
    seen: set[tuple[str, ...]] = set()
    texts: list[tuple[str, ...]] = []
    labels: list[float] = []
    order: list[int] = []
    while len(texts) < n_rows:
        if not order:  # each block of n_labels rows holds every label once, in random order
            order = permutation(draw, n_labels)
        level = order.pop()
        for _ in range(PATIENCE):
            text = grammar.row(draw, lexicon, level, **chosen)
            if text not in seen:
                break
        else:
            raise ValueError(f"n_rows: {name} {split} has about {len(texts):,} different rows, asked for {n_rows:,}")
        seen.add(text)
        texts.append(text)
        labels.append(level / 2 if is_scored else level)
    frame = pd.DataFrame(texts, columns=["text_a", "text_b"][: len(texts[0])])
    frame["label"] = pd.Series(labels, dtype="float64" if is_scored else "int64")
    frame["idx"] = pd.Series(range(n_rows), dtype="int64")
    return frame


def phenomena_of(name: str) -> tuple[str, ...]:
    """The constructions that an embedded task mixes; none for similarity."""
    return tuple(getattr(GRAMMARS[name], "PHENOMENA", ()))


def permutation(draw: Draws, n: int) -> list[int]:
    """The numbers 0 .. n - 1 in random order."""
    rest = list(range(n))
    return [rest.pop(draw.below(len(rest))) for _ in range(n)]
