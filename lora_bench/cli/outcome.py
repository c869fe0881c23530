"""How a single run ended, in words: its scores in points, and whether they mean anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lora_bench import wording
from lora_bench.store.predictions import answers
from lora_bench.store.reader import StoreReader

LONGER = "train longer (train.epochs), or with another rate (train.lr)"


def tell(run_id: str, store: StoreReader, out: Any, *, is_new: bool = True) -> int:
    """Print how a run ended, and what its scores are worth. Returns the exit status."""
    record, file = store.record(run_id), store.path(run_id) / "record.json"
    if record["status"] == "failed":
        error = record["error"]
        out.print(f"{run_id} failed: {error['kind']}: {error['message']}\n  {file}")
        return 1
    if is_new:
        out.print(f"{run_id} finished in {wording.duration(record['cost']['pack_seconds'] or 0)}")
    out.print("  scores in points (× 100)")
    for split in ("train", "select", "report", "report_mismatched"):
        values = {name: value for name, value in (record["scores"].get(split) or {}).items() if value is not None}
        if values:
            scores = [f"{name.replace('_', ' ')} {wording.points(value)}" for name, value in values.items()]
            out.print(f"  {split.replace('_', ' '):<8} {'  '.join(scores)}")
    if warning := one_answer(record, store.predictions(run_id)):
        out.print(f"  {warning}", style="bold")
    counts = record["parameters"]
    out.print(f"  adapter {counts['adapter']:,} parameters, head {counts['head']:,}")
    out.print(f"  {file}")
    return 0


def one_answer(record: Mapping[str, Any], predictions: Any) -> str | None:
    """What to think of scores whose model gives one answer whatever it reads; None where it does not.

    Args:
        predictions: the run's, as `StoreReader.predictions` has them; None where none were kept.
    """
    from lora_bench.verdicts.collapse import has_collapsed

    if predictions is None:
        return None
    given, logits = answers(predictions)
    if not has_collapsed(given, logits):
        return None
    if logits.shape[1] == 1:
        return f"it predicts one number, whatever it reads: it has learned nothing yet; {LONGER}"
    counts = np.bincount(logits.argmax(axis=1), minlength=logits.shape[1])
    answer = int(counts.argmax())
    labels = (record.get("task") or {}).get("labels") or []
    name = repr(labels[answer]) if answer < len(labels) else f"number {answer}"
    most = np.unique(given, return_counts=True)[1].max() / given.size
    return (
        f"it predicts {name} for {counts[answer]:,} of {given.size:,} report rows: it has learned "
        f"nothing yet (one class for all, the most frequent, has an accuracy of {wording.points(most)}); {LONGER}"
    )
