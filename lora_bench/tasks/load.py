"""The task that a configuration names, from the source that it names; remembered per process."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

from lora_bench.config.errors import ConfigError
from lora_bench.config.schema import TaskConfig
from lora_bench.tasks.rows import Rows, Source, Task, assemble, size_of_select

GENERATED_TRAIN_ROWS = 8_000
GENERATED_REPORT_ROWS = 1_000


_loaded: dict[str, Task] = {}


def load_task(config: TaskConfig) -> Task:
    """The task that a configuration names. Repeated calls in one process return the same object.

    Raises:
        ConfigError: on an unknown name, unreadable or absent files, missing columns, wrong labels, absent splits.
    """
    key = _memory_key(config)
    if key not in _loaded:
        _loaded[key] = assemble(_read(config), config)
    return _loaded[key]


def _read(config: TaskConfig) -> Source:
    if config.source == "glue":
        from lora_bench.tasks import glue

        return glue.read(config)
    if config.source == "files":
        from lora_bench.tasks import files

        return files.read(config)
    if config.source == "generated":
        return _generated(config)
    raise ConfigError(
        f"task.source: {config.source!r} cannot be loaded from rows alone; sources of rows are glue, generated, files"
    )


def _generated(config: TaskConfig) -> Source:
    """An embedded task. Rows asked for beyond the default follow the default ones, so that `select` never moves."""
    from lora_bench.tasks.generated import grammars

    if config.name not in EMBEDDED:
        raise ConfigError(f"task.name: no embedded task {config.name!r}; embedded tasks are {', '.join(EMBEDDED)}")
    spec = EMBEDDED[config.name]
    select_rows = size_of_select(GENERATED_TRAIN_ROWS, config)
    n_asked = 0 if config.is_drawn_by_seed else config.train_rows or 0  # a seed draws from the usual rows
    train_rows = max(GENERATED_TRAIN_ROWS, n_asked + select_rows)
    report_rows = max(GENERATED_REPORT_ROWS, config.report_rows or 0)
    try:
        train = grammars.generate(config.name, "train", train_rows, config.phenomena)
        report = grammars.generate(config.name, "report", report_rows, config.phenomena)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if spec.kind == "regression":
        train, report = (table.assign(label=table["label"].astype("float32")) for table in (train, report))
    shuffled, extra = train.iloc[:GENERATED_TRAIN_ROWS], train.iloc[GENERATED_TRAIN_ROWS:]
    return replace(
        spec,
        splits={"train": Rows(shuffled, "train"), "report": Rows(report, "report")},
        extra_train=None if extra.empty else extra,
    )


EMBEDDED = {
    "acceptability": Source("generated", "classification", ("unacceptable", "acceptable"), ("matthews",), {}),
    "sentiment": Source("generated", "classification", ("negative", "positive"), ("accuracy",), {}),
    "entailment": Source("generated", "classification", ("not_entailment", "entailment"), ("accuracy",), {}),
    "similarity": Source("generated", "regression", (), ("pearson", "spearman"), {}),
}


def _memory_key(config: TaskConfig) -> str:
    """Equal for equal configurations whose files have not changed since."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    paths = [config.data_dir, config.train_file, config.select_file, config.report_file]
    folder = Path(config.data_dir or ".")
    stamps = []
    for path in paths:
        for file in _files_under(folder / path if path is not config.data_dir else folder) if path else ():
            status = file.stat()
            stamps.append([str(file.resolve()), status.st_mtime_ns, status.st_size])
    return json.dumps([values, stamps], sort_keys=True, default=str)


def _files_under(path: Path) -> list[Path]:
    """The file itself, or the files of a folder and of its subfolders."""
    if path.is_dir():
        return sorted(file for pattern in ("*", "*/*") for file in path.glob(pattern) if file.is_file())
    return [path] if path.is_file() else []
