"""Do the stored predictions give the stored scores? Recompute every score, and apply other metrics without retraining.

Every finished run that kept its predictions is scored again, split by split, by the metrics of its record; the numbers
must be equal byte for byte, as JSON writes them. With --add, further metrics are computed for every run and written
to tables/rescored.csv.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import pandas as pd

from lora_bench import wording
from lora_bench.config.options import parsed
from lora_bench.reports import output, scope, script
from lora_bench.reports.section import Table
from lora_bench.store import StoreReader, open_store
from lora_bench.store.errors import StoreError
from lora_bench.store.predictions import answers
from lora_bench.store.reader import is_archive
from lora_bench.tasks.metrics import CLASSIFICATION, REGRESSION, score
from lora_bench.verdicts import settings

SPLITS = ("select", "report", "report_mismatched")
COLUMNS = (
    *("run_id", "model", "task", "targets", "lr", "seed", "split", "n_rows", "state", "why"),
    *("recorded", "recomputed"),
)


def main(argv: list[str] | None = None) -> int:
    wording.spell_out()
    parser = argparse.ArgumentParser(
        prog="lora-bench rescore",
        description=(__doc__ or "").split("\n\n")[0],
        epilog="example: lora-bench rescore store=runs add=balanced_accuracy",
    )
    script.add_folders(parser, written="tables/ goes")
    parser.add_argument(
        "--add",
        default="",
        metavar="NAMES",
        help=f"further metrics, comma-separated: {', '.join((*CLASSIFICATION, *REGRESSION))}",
    )
    options = parsed(parser, argv)
    added = [name for name in options.add.split(",") if name]
    unknown = [name for name in added if name not in (*CLASSIFICATION, *REGRESSION)]
    if unknown:
        parser.error(f"--add: no metric {unknown[0]!r}; metrics are {', '.join((*CLASSIFICATION, *REGRESSION))}")
    try:
        frame = scope.read_frame(options.store)
    except (settings.NothingToShow, StoreError) as error:
        return script.refuse("rescore", error)
    result = rescore(open_store(options.store), frame, added)
    console = script.console()
    console.print(sentence(result), style="bold", soft_wrap=True)
    for row in result[result["state"] == "differs"].head(20).itertuples():
        console.print(
            f"- {row.run_id} {row.split}: the record says {row.recorded}, the predictions give {row.recomputed}",
            soft_wrap=True,
        )
    for why, rows in result[~result["state"].isin(["equal", "differs"])].groupby("why", sort=False):
        console.print(f"- {len(rows)} not checked: {why}", soft_wrap=True)
    path = output.write_table(Table("rescored", "re-scored", result), options.out / "tables")
    console.print(f"written: {path}", style="dim", soft_wrap=True)
    return 1 if (result["state"] == "differs").any() else 0


def rescore(store: StoreReader, frame: pd.DataFrame, added: list[str]) -> pd.DataFrame:
    """One row per run and split.

    Returns:
        run_id, split, n_rows, state (equal, differs, unchecked), why, recorded, recomputed, added metrics.
    """
    rows = []
    absent = "the archive holds no predictions of the run" if is_archive(store.root) else "the run kept no predictions"
    for run in frame[frame["status"] == "finished"].itertuples():
        record = store.record(str(run.run_id))
        try:
            predictions = store.predictions(str(run.run_id))
        except StoreError as error:
            rows.append(_unchecked(run, "", str(error).split("(")[0].strip()))
            continue
        if predictions is None:
            rows.append(_unchecked(run, "", absent))
            continue
        for split in (name for name in SPLITS if record["scores"].get(name)):
            labels, values = answers(predictions, split)
            if not labels.size:
                rows.append(_unchecked(run, split, f"no predictions of {split}"))
                continue
            recorded = record["scores"][split]
            recomputed = score(list(recorded), labels, values)
            equal = json.dumps(recorded) == json.dumps(recomputed)
            row = _of_run(run) | {
                "split": split,
                "n_rows": len(labels),
                "state": "equal" if equal else "differs",
                "why": "",
            }
            row |= {"recorded": json.dumps(recorded), "recomputed": json.dumps(recomputed)}
            for name in added:
                try:
                    row[name] = score([name], labels, values)[name]
                except ValueError:
                    row[name] = np.nan  # a metric of another kind of task
            rows.append(row)
    return pd.DataFrame(rows, columns=[*COLUMNS, *added])


def sentence(result: pd.DataFrame) -> str:
    """How many scores were checked, and how many agree."""
    checked = result[result["state"].isin(["equal", "differs"])]
    if checked.empty:
        return "No score could be checked: no finished run of this store kept its predictions."
    equal = int((checked["state"] == "equal").sum())
    n_runs = checked["run_id"].nunique()
    return f"{equal} of {len(checked)} scored splits of {n_runs} runs are equal to the record, byte for byte."


def _unchecked(run, split: str, why: str) -> dict:
    return _of_run(run) | {"split": split, "state": "unchecked", "why": why}


def _of_run(run) -> dict:
    return {name: getattr(run, name) for name in ("run_id", "model", "task", "targets", "lr", "seed")}
