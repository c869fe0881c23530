"""What W&B is given beside curves and scores: files of a stored run, tables and figures."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lora_bench.store import unpack
from lora_bench.store.secrets import scrub
from lora_bench.wording import visible

MOST_ROWS = 200
"""Of a table of predictions; the file has all."""
MOST_LETTERS = 300
"""Of a text in it."""
KIND = "lora_bench-run"


def keep(tracked: Any, folder: Path, *, has_all: bool) -> None:
    """Log the run's record as an artifact, and with `has_all` its predictions and adapter.

    Args:
        tracked: a W&B run.
        folder: the run's in the store. What it does not hold, as an adapter that was dropped, is left out.
    """
    import wandb

    if not (folder / "record.json").is_file():  # a run of an archive has no folder
        return
    artifact = wandb.Artifact(f"run-{folder.name}", type=KIND)
    names = ("record.json", "predictions.parquet") if has_all else ("record.json",)
    for name in names:
        if (folder / name).is_file():
            artifact.add_file(str(folder / name), name=name)
    if has_all and (folder / "adapter").is_dir():
        artifact.add_dir(str(folder / "adapter"), name="adapter")
    tracked.log_artifact(artifact)


def predictions(folder: Path, report: Any) -> Any:
    """Report rows with what was predicted: idx, texts, label, predicted and the score of each label. None where the
    store kept none.

    Args:
        report: DataFrame of the report rows with idx, text_a and perhaps text_b; None shows no texts.
    """
    file = folder / "predictions.parquet"
    if not file.is_file():
        return None
    kept: Any = unpack.table(file)
    kept = kept[kept["split"] == "report"].head(MOST_ROWS)
    logits = kept.filter(regex=r"^logit_\d+$")
    labels = (json.loads((folder / "record.json").read_text(encoding="utf-8")).get("task") or {}).get("labels") or []

    def name(number: Any) -> Any:
        return labels[int(number)] if 0 <= int(number) < len(labels) else int(number)

    table: Any = kept[["idx"]].copy()
    rows: Any = kept[["idx"]] if report is None else report
    for column in [name for name in ("text_a", "text_b") if name in rows]:
        texts = dict(rows[["idx", column]].itertuples(index=False, name=None))
        table[column] = [_short(str(texts.get(idx, ""))) for idx in kept["idx"]]
    if logits.shape[1] == 1:
        return table.assign(label=kept["label"], predicted=logits.iloc[:, 0])
    table["label"] = [name(number) for number in kept["label"]]
    table["predicted"] = [name(number) for number in logits.to_numpy().argmax(axis=1)]
    return table.join(logits)


def table(frame: Any) -> Any:
    """A DataFrame as W&B's table: numbers, and texts without secrets."""
    import wandb

    def plain(value: Any) -> Any:
        if hasattr(value, "item"):
            value = value.item()
        elif not isinstance(value, (bool, int, float)):
            return scrub(str(value)) if value is not None else None
        return value if isinstance(value, (bool, int)) or math.isfinite(value) else None

    rows: list[Iterable[Any]] = [[plain(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    return wandb.Table(columns=[str(name) for name in frame.columns], data=rows, allow_mixed_types=True)


def image(content: bytes) -> Any:
    import wandb
    from PIL import Image

    return wandb.Image(Image.open(io.BytesIO(content)))


def _short(text: str) -> str:
    shown = visible(text)
    return shown if len(shown) <= MOST_LETTERS else f"{shown[: MOST_LETTERS - 1]}…"
