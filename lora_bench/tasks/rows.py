"""Tasks: rows to learn from, rows to choose on, rows to report, and the metrics that score them.

A source (GLUE, files, the embedded grammars) gives an official train split and an official report split. What is common
to all of them happens here: the cut into splits, and the fingerprint.

    shuffled = permutation(train, data seed 0)      select = shuffled[:s]      train = shuffled[s:][:task.train_rows]
    s = 10 % of train, at least 1 and at most 1,000 rows

`select` is cut first and the data seed never changes, so every run of a task chooses on the same rows, and a smaller
`train_rows` is a prefix of a larger one. `report` is the official validation split, in its own order.

With `task.train_draw=seed` the train split stays whole, and each run draws `train_rows` of it by its seed
(`training.resolve.Run.tokens`): the cells of a seed share their rows, so their contrast stays paired.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_bench.config.errors import ConfigError
from lora_bench.config.schema import TaskConfig

if TYPE_CHECKING:
    import pandas as pd  # a fifth of a second: imported where a table is made, behind what is refused


DATA_SEED = 0
SELECT_ONE_IN = 10
SELECT_MOST_ROWS = 1_000
SPLITS = ("train", "select", "report", "report_mismatched")


@dataclass(frozen=True, eq=False)  # tables do not compare to one truth value
class Task:
    """A task that is ready to run. Instances are shared within a process: read the tables, do not change them.

    Attributes:
        kind: classification | regression.
        label_names: names of the labels 0, 1, ...; empty for regression.
        metrics: the first is the primary one; higher is better in all of them.
        splits: `train`, `select`, `report` (and `report_mismatched`) to tables with the columns text_a, text_b (pairs
            only), label (int64, or float32 for regression) and idx (the row's number in its source). With
            `task.train_draw=seed`, `train` holds all rows that a seed draws from.
        fingerprint: sha256 over the normalised rows of all splits, the same for the same rows in any file format.
        facts: where the rows came from and how complete they are, as JSON values; see `_facts`.
    """

    name: str
    kind: str
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]
    splits: dict[str, pd.DataFrame]
    fingerprint: str
    facts: dict[str, Any]

    @property
    def n_labels(self) -> int:
        """Number of outputs of the head."""
        return len(self.label_names) or 1


@dataclass(frozen=True, eq=False)  # tables do not compare to one truth value
class Rows:
    """One split as its source gives it, before any cut.

    Attributes:
        table: columns text_a, text_b (pairs only), label, idx.
        official_split: its name at the source, such as `validation_matched`.
        official_rows: rows of the official split; None where no official split exists.
        is_complete: whether `table` holds all official rows; None where there is nothing to compare with.
        files: names of the files it was read from.
    """

    table: pd.DataFrame
    official_split: str
    official_rows: int | None = None
    is_complete: bool | None = None
    files: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)  # tables do not compare to one truth value
class Source:
    """What a loader (glue, files, generated, planted) hands over for cutting.

    Attributes:
        origin: for the record: `hub:nyu-mll/glue@main`, `files` or `generated`.
        splits: `train` and `report`, and where there is one `select` or `report_mismatched`.
        absent: official splits that are not there and are scored null.
        label_keys: what the fingerprint calls the labels, where it is not their names; a number is one however it is
            spelled.
    """

    origin: str
    kind: str
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]
    splits: dict[str, Rows]
    absent: tuple[str, ...] = ()
    extra_train: pd.DataFrame | None = None  # used after the shuffled rows, never shuffled into them
    label_keys: tuple[str, ...] = ()


def assemble(source: Source, config: TaskConfig) -> Task:
    """Cut a source into splits and fingerprint them.

    Raises:
        ConfigError: on an empty split, too few train rows, metrics that do not fit the labels, or a split of a
            regression task whose labels are all one number.
    """
    for split, rows in source.splits.items():
        if rows.table.empty:
            raise ConfigError(
                f"task.name: the {rows.official_split!r} split of {config.name!r} is empty; {split} needs rows"
            )
    metrics = _metrics(source, config)
    splits = _cut(source, config)
    if source.kind == "regression":
        _refuse_constant(splits, source, config.name)
    return Task(
        name=config.name,
        kind=source.kind,
        label_names=source.label_names,
        metrics=metrics,
        splits=splits,
        fingerprint=fingerprint(source.kind, source.label_keys or source.label_names, splits),
        facts=_facts(source, splits, config),
    )


def fingerprint(kind: str, label_keys: tuple[str, ...], splits: Mapping[str, pd.DataFrame]) -> str:
    """sha256 of texts and labels, split by split, row by row. File formats, names and row numbers do not enter."""
    digest = hashlib.sha256()
    _feed(digest, [kind, list(label_keys)])
    for split in SPLITS:
        if split not in splits:
            continue
        table = splits[split]
        _feed(digest, [split, len(table)])
        columns = [table[name].tolist() for name in ("text_a", "text_b", "label") if name in table]
        for row in zip(*columns, strict=True):
            _feed(digest, row)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    digest.update(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")


def _cut(source: Source, config: TaskConfig) -> dict[str, pd.DataFrame]:
    import pandas as pd

    train = source.splits["train"].table
    order = np.random.Generator(np.random.PCG64(DATA_SEED)).permutation(len(train))
    splits = {}
    if "select" in source.splits:
        splits["select"] = source.splits["select"].table
    else:
        if len(train) < 2:
            raise ConfigError(
                f"task.name: {config.name!r} has {len(train)} train row; at least 2 are needed, one of them for select"
            )
        n_select = size_of_select(len(train), config)
        splits["select"] = train.iloc[order[:n_select]]
        order = order[n_select:]
    rest = train.iloc[order]
    if source.extra_train is not None:
        rest = pd.concat([rest, source.extra_train])
    if config.train_rows is not None and config.train_rows > len(rest):
        raise ConfigError(
            f"task.train_rows: {config.train_rows} asked, but {config.name!r} has {len(rest)} train rows "
            f"beside select; give at most {len(rest)}, or null for all"
        )
    if config.is_drawn_by_seed:
        if config.train_rows is None or config.train_rows == len(rest):
            asked = "all of them are" if config.train_rows is None else f"{config.train_rows} are all of them,"
            raise ConfigError(
                f"task.train_draw: seed draws from {len(rest)} train rows, and {asked} the same rows for every seed; "
                f"give task.train_rows below {len(rest)}, or task.train_draw=fixed"
            )
        splits["train"] = rest
    else:
        splits["train"] = rest if config.train_rows is None else rest.iloc[: config.train_rows]
    for split in ("report", "report_mismatched"):
        if split in source.splits:
            table = source.splits[split].table
            splits[split] = table if config.report_rows is None else table.iloc[: config.report_rows]
    return {split: splits[split].reset_index(drop=True) for split in SPLITS if split in splits}


def _refuse_constant(splits: Mapping[str, pd.DataFrame], source: Source, name: str) -> None:
    """Refuse a split whose labels are one number: nothing correlates with it, so its runs would end without a score."""
    for split, table in splits.items():
        if table["label"].nunique() > 1:
            continue
        value = f"{table['label'].iloc[0]:.9g}"
        key, works = "task.name", "rows"
        if source.splits.get(split, source.splits["train"]).table["label"].nunique() > 1:
            key = f"task.{split.partition('_')[0]}_rows"
            works = f"more rows by {key}, or rows"
        raise ConfigError(
            f"{key}: every label of {name!r} in {split} ({len(table):,}) is {value}, with which no prediction "
            f"correlates; give {works} with different labels"
        )


def size_of_select(n_train: int, config: TaskConfig) -> int:
    if config.select_rows is None:
        return min(max(n_train // SELECT_ONE_IN, 1), SELECT_MOST_ROWS)
    if config.select_rows >= n_train:
        raise ConfigError(
            f"task.select_rows: {config.select_rows} asked, but {config.name!r} has {n_train} train rows to cut them "
            f"from; give at most {n_train - 1}, or null for a tenth"
        )
    return config.select_rows


def _metrics(source: Source, config: TaskConfig) -> tuple[str, ...]:
    """The official metrics, or those that the configuration names instead."""
    metrics = tuple(dict.fromkeys(config.metrics)) or source.metrics
    suited = ["pearson", "spearman"] if source.kind == "regression" else ["accuracy", "balanced_accuracy", "matthews"]
    if len(source.label_names) == 2:
        suited.append("f1")
    for metric in metrics:
        if metric not in suited:
            labels = f" with {len(source.label_names)} labels" if source.label_names else ""
            raise ConfigError(
                f"task.metrics: {metric!r} does not score {config.name!r}, a {source.kind} task{labels}; "
                f"metrics that do are {', '.join(suited)}"
            )
    return metrics


def _facts(source: Source, splits: Mapping[str, pd.DataFrame], config: TaskConfig) -> dict[str, Any]:
    """Origin, and per split: rows in use, rows at the source, official rows, and whether all official rows are in use.

    `complete` of train counts select in: true means that the two together are the official train split.
    `source_complete` says the same of the source, before `train_rows` and `report_rows` cut it.
    """
    described = {}
    n_drawn = config.train_rows if config.is_drawn_by_seed else None
    for split, table in splits.items():
        rows = source.splits.get(split)
        if rows is None:  # select, cut from train
            described[split] = {"rows": len(table), "official_split": "train", "official_rows": None, "complete": None}
            continue
        source_rows = len(rows.table)
        n_rows = used = n_drawn if split == "train" and n_drawn else len(table)
        if split == "train":
            source_rows += 0 if source.extra_train is None else len(source.extra_train)
            used += 0 if "select" in source.splits else len(splits["select"])
        described[split] = {
            "rows": n_rows,
            "source_rows": source_rows,
            "official_split": rows.official_split,
            "official_rows": rows.official_rows,
            "source_complete": rows.is_complete,
            "complete": rows.is_complete and used == source_rows if rows.is_complete is not None else None,
        }
    return {
        "source": source.origin,
        "splits": described,
        "absent": list(source.absent),
        "files": {split: list(rows.files) for split, rows in source.splits.items() if rows.files},
        "cut": {
            "data_seed": DATA_SEED,
            "select": "own split" if "select" in source.splits else "first rows of the shuffled train split",
            "train": "drawn by the seed from the rest" if n_drawn else "next rows of the shuffled train split",
        },
    }
