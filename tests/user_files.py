"""Tasks as files that users have."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from lora_bench.tasks import glue

NASTY = (
    'say "so"',
    '"quoted"',
    "tab\there",
    "line\nbreak",
    "comma, here",
    " spaces ",
    "Ünïcödé \u2028 ☃",
    "null",
    "NA",
    "1",
)


def glue_rows(name: str, n_rows: int, seed: int = 0) -> dict[str, list]:
    """Made-up rows in the Hub's schema."""
    rng = np.random.default_rng(seed)
    task = glue.TASKS[name]
    rows = {
        column: [f"{NASTY[rng.integers(len(NASTY))]} {column} {row}" for row in range(n_rows)]
        for column in task.columns
    }
    if task.label_names:
        rows["label"] = [row % len(task.label_names) for row in range(n_rows)]
    else:
        rows["label"] = [round(float(value), 1) for value in rng.uniform(0, 5, n_rows)]
    return rows | {"idx": list(range(n_rows))}


def write(path: Path, rows: dict[str, list], metadata: dict | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows)
    if path.suffix == ".parquet":
        written = pa.table(rows)
        if metadata:
            written = written.replace_schema_metadata({key: json.dumps(value) for key, value in metadata.items()})
        pa.parquet.write_table(written, path)
    elif path.suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True, force_ascii=False)
    else:
        table.to_csv(path, index=False, sep="," if path.suffix == ".csv" else "\t")
    return path


def write_glue(folder: Path, name: str, *, suffix: str = "parquet", rows: int = 40) -> Path:
    for seed, split in enumerate(glue.TASKS[name].rows):
        write(folder / f"{split}.{suffix}", glue_rows(name, rows, seed))
    return folder


def user_rows(labels: list, name: str = "label") -> dict[str, list]:
    return {"text": [f"text {row}" for row in range(len(labels))], name: labels}
