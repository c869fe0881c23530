"""The nine GLUE tasks, from the Hub (`nyu-mll/glue`) or from local files in the Hub's schema.

Local files may be parquet, CSV, TSV or JSONL and may carry the Hub's names (`train-00000-of-00001.parquet`, several
shards) or plain ones (`validation.csv`). A split is only ever taken from a file of its own name. Where the parquet
schema carries a `glue_subset` entry or label names, they must agree with the task and the split they are read for.

Source: Wang et al. 2019, arXiv:1804.07461 (tasks and metrics); https://huggingface.co/datasets/nyu-mll/glue (schema).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_bench.config.errors import ConfigError
from lora_bench.config.schema import TaskConfig
from lora_bench.tasks import shards
from lora_bench.tasks.files import text_table
from lora_bench.tasks.hub import asked_once
from lora_bench.tasks.labels import class_label, json_object, regression_labels
from lora_bench.tasks.quotes import refuse_two_rules
from lora_bench.tasks.readers import Columns, read_columns, require, suffix_of
from lora_bench.tasks.rows import Rows, Source

if TYPE_CHECKING:
    import pandas as pd


HUB_NAME = "nyu-mll/glue"
ROLE_OF = {
    "train": "train",
    "validation": "report",
    "validation_matched": "report",
    "validation_mismatched": "report_mismatched",
}


@dataclass(frozen=True)
class GlueTask:
    """Schema, official metrics (primary first) and official row counts of one task."""

    columns: tuple[str, ...]
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]
    rows: dict[str, int]


TASKS = {
    "cola": GlueTask(
        ("sentence",), ("unacceptable", "acceptable"), ("matthews",), {"train": 8_551, "validation": 1_043}
    ),
    "sst2": GlueTask(("sentence",), ("negative", "positive"), ("accuracy",), {"train": 67_349, "validation": 872}),
    "mrpc": GlueTask(
        ("sentence1", "sentence2"),
        ("not_equivalent", "equivalent"),
        ("accuracy", "f1"),
        {"train": 3_668, "validation": 408},
    ),
    "qqp": GlueTask(
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        ("accuracy", "f1"),
        {"train": 363_846, "validation": 40_430},
    ),
    "stsb": GlueTask(("sentence1", "sentence2"), (), ("pearson", "spearman"), {"train": 5_749, "validation": 1_500}),
    "mnli": GlueTask(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        ("accuracy",),
        {"train": 392_702, "validation_matched": 9_815, "validation_mismatched": 9_832},
    ),
    "qnli": GlueTask(
        ("question", "sentence"),
        ("entailment", "not_entailment"),
        ("accuracy",),
        {"train": 104_743, "validation": 5_463},
    ),
    "rte": GlueTask(
        ("sentence1", "sentence2"), ("entailment", "not_entailment"), ("accuracy",), {"train": 2_490, "validation": 277}
    ),
    "wnli": GlueTask(
        ("sentence1", "sentence2"), ("not_entailment", "entailment"), ("accuracy",), {"train": 635, "validation": 71}
    ),
}


def read(config: TaskConfig) -> Source:
    """Official splits of a GLUE task, from `task.data_dir` or else from the Hub.

    Raises:
        ConfigError: on an unknown task, an absent split (only MNLI's mismatched one may be), or files of another task
            or split, with hidden labels or wrong columns.
    """
    if config.name not in TASKS:
        raise ConfigError(f"task.name: no GLUE task {config.name!r}; tasks are {', '.join(TASKS)}")
    if config.data_dir is None:
        return _from_hub(config.name, config.revision)
    if config.revision is not None:
        raise ConfigError(
            f"task.revision: {config.revision!r} names a version on the Hub, but task.data_dir is set; drop one of them"
        )
    return _from_files(config.name, Path(config.data_dir))


def _from_files(name: str, given: Path) -> Source:
    task = TASKS[name]
    folder = _task_folder(name, given)
    import pandas as pd

    files = _split_files(folder, task)
    read_in = {path: read_columns(path, key="task.data_dir") for paths in files.values() for path in paths}
    refuse_two_rules(read_in, key="task.data_dir")
    splits = {}
    for split, paths in files.items():
        tables, claims = [], []
        for path in paths:
            columns = read_in[path]
            claims.append(_check_metadata(columns.metadata, name, split, path))
            tables.append(_table(task, columns, where=path, key="task.data_dir"))
        table = pd.concat(tables, ignore_index=True)
        is_complete = len(table) == task.rows[split] and all(claims)
        splits[ROLE_OF[split]] = Rows(table, split, task.rows[split], is_complete, tuple(path.name for path in paths))
    absent = _absent(task, splits)
    if missing := [split for split in absent if ROLE_OF[split] != "report_mismatched"]:
        there = sorted(path.name + ("/" if path.is_dir() else "") for path in folder.iterdir())
        raise ConfigError(
            f"task.data_dir: no {missing[0]!r} split of {name} in {str(folder)!r}, "
            f"which holds {', '.join(there) or 'nothing'}; "
            f"add {missing[0]}.parquet (or .csv, .tsv, .jsonl), or set task.data_dir=null to load {name} from the Hub"
        )
    return Source("files", _kind(task), task.label_names, task.metrics, splits, absent)


def _from_hub(name: str, revision: str | None) -> Source:
    task = TASKS[name]
    origin = f"hub:{HUB_NAME}@{revision or 'main'}"
    key = "task.revision" if revision else "task.name"
    import datasets

    silence = None
    try:
        with asked_once() as silence:
            hub = datasets.load_dataset(HUB_NAME, name, revision=revision)
    except Exception as error:  # the client raises its own, requests', httpx's and OS errors for one cause: no data
        reason = silence or (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"{key}: cannot load {name!r} from the Hub's {HUB_NAME} at {revision or 'main'!r} ({reason}); "
            f"set task.data_dir to a folder with its files, or use an embedded task such as task=acceptability"
        ) from error
    splits = {}
    for split, official_rows in task.rows.items():
        if split not in hub:
            continue
        where = f"{origin} {split}"
        names = getattr(hub[split].features.get("label"), "names", None)
        if names is not None and tuple(names) != task.label_names:
            raise ConfigError(f"{key}: {where} labels {list(names)}, but {name} has {list(task.label_names)}")
        rows = hub[split]
        columns = Columns({column: list(rows[column]) for column in rows.column_names}, rows.num_rows, {})
        table = _table(task, columns, where=where, key=key)
        splits[ROLE_OF[split]] = Rows(table, split, official_rows, len(table) == official_rows)
    absent = _absent(task, splits)
    if missing := [split for split in absent if ROLE_OF[split] != "report_mismatched"]:
        raise ConfigError(f"{key}: {origin} has no {missing[0]!r} split of {name}; it has {', '.join(map(str, hub))}")
    return Source(origin, _kind(task), task.label_names, task.metrics, splits, absent)


def _kind(task: GlueTask) -> str:
    return "classification" if task.label_names else "regression"


def _absent(task: GlueTask, splits: dict[str, Rows]) -> tuple[str, ...]:
    return tuple(split for split in task.rows if ROLE_OF[split] not in splits)


def _task_folder(name: str, given: Path) -> Path:
    """`given`, or its subfolder named after the task where `given` holds no split itself."""
    if not given.is_dir():
        raise ConfigError(f"task.data_dir: no folder {str(given)!r}; give the folder of {name}'s files, or its parent")
    holds_split = any(_parse_name(path, TASKS[name]) for path in given.iterdir() if path.is_file())
    if not holds_split and (given / name).is_dir():
        return given / name
    if given.resolve().name in TASKS and given.resolve().name != name:
        raise ConfigError(
            f"task.data_dir: {str(given)!r} is the folder of {given.resolve().name}, not of {name}; "
            f"give the folder of {name}"
        )
    return given


def _parse_name(path: Path, task: GlueTask) -> shards.Shard | None:
    """What the name of a split's data file says; None for any other file."""
    shard = shards.parse(path)
    return shard if shard is not None and shard.split in task.rows else None


def _split_files(folder: Path, task: GlueTask) -> dict[str, list[Path]]:
    """The files of every split that is there, shards in order.

    Raises:
        ConfigError: when a split has several sources, or lacks a shard.
    """
    by_split: dict[str, dict[tuple[str, int | None], list[tuple[int, Path]]]] = {}
    for path in sorted(folder.iterdir()):
        parsed = _parse_name(path, task) if path.is_file() else None
        if parsed:
            source = by_split.setdefault(parsed.split, {}).setdefault((suffix_of(path), parsed.count), [])
            source.append((parsed.number or 0, path))
    files = {}
    for split, sources in by_split.items():
        if len(sources) > 1:
            names = ", ".join(path.name for source in sources.values() for _, path in source)
            raise ConfigError(f"task.data_dir: several sources of {split!r} in {str(folder)!r} ({names}); keep one")
        ((_, count), source) = next(iter(sources.items()))
        numbers = sorted(number for number, _ in source)
        if numbers != list(range(count or 1)):
            lacking = shards.lacking(numbers, count or 1)
            problem = f"lacks shard {lacking[0]} of {count}" if lacking else "has a shard twice or a number too high"
            names = ", ".join(path.name for _, path in source)
            raise ConfigError(f"task.data_dir: {split!r} in {str(folder)!r} {problem} ({names}); keep each shard once")
        files[split] = [path for _, path in sorted(source)]
    return files


def _check_metadata(metadata: dict[str, str], name: str, split: str, path: Path) -> bool:
    """Whether a file's `glue_subset` entry calls it complete; true without one, so that the row count decides."""
    subset = json_object(metadata.get("glue_subset"))
    for key, expected in (("task", name), ("split", split)):
        if subset.get(key, expected) != expected:
            raise ConfigError(
                f"task.data_dir: {str(path)!r} says that it holds {key} {subset[key]!r}, not {expected!r}; "
                f"a split is never replaced by another"
            )
    names = class_label(metadata, "label")
    if names and names != TASKS[name].label_names:
        raise ConfigError(
            f"task.data_dir: {str(path)!r} has the labels {', '.join(names)}, "
            f"but {name} has {', '.join(TASKS[name].label_names) or 'numbers'}"
        )
    return bool(subset.get("complete", True))


def _table(task: GlueTask, columns: Columns, *, where: Path | str, key: str) -> pd.DataFrame:
    import pandas as pd

    require(columns, [*task.columns, "label"], where=where, key=key)
    table = text_table(columns, task.columns, where=where, key=key)
    labels = columns.of("label")
    if task.label_names:
        table["label"] = pd.Series(_class_labels(labels, task.label_names, where=where, key=key), dtype="int64")
    else:
        numbers = regression_labels(labels, where=where, key=key)
        for row, number in enumerate(numbers, start=1):
            if not 0 <= number <= 5:
                hint = "; -1 marks hidden test labels" if number == -1 else ""
                raise ConfigError(
                    f"{key}: row {row} of {str(where)!r} has the label {number:g}; labels are 0 to 5{hint}"
                )
        table["label"] = pd.Series(numbers, dtype="float32")
    table["idx"] = _row_numbers(columns)
    return table


def _class_labels(values: Sequence[Any], names: tuple[str, ...], *, where: Path | str, key: str) -> list[int]:
    """Labels as positions in `names`; number text and the names themselves are read too."""
    spelled = {str(number): number for number in range(len(names))} | {
        name: number for number, name in enumerate(names)
    }
    labels = []
    for row, value in enumerate(values, start=1):
        text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
        if text not in spelled:
            works = ", ".join(f"{number} ({name})" for number, name in enumerate(names))
            hint = "; -1 marks hidden test labels, which cannot be scored" if text == "-1" else ""
            raise ConfigError(f"{key}: row {row} of {str(where)!r} has the label {value!r}; labels are {works}{hint}")
        labels.append(spelled[text])
    return labels


def _row_numbers(columns: Columns) -> list[int]:
    """The source's own `idx` where every row has a whole number, else positions."""
    try:
        numbers = [int(value) for value in columns.of("idx")]
    except (KeyError, TypeError, ValueError, OverflowError):
        return list(range(columns.n_rows))
    is_storable = all(-(2**63) <= number < 2**63 for number in numbers)
    return numbers if is_storable else list(range(columns.n_rows))
