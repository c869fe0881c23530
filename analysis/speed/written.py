"""What the programs of this folder measured, as tables and figures."""

from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from lora_bench import wording
from lora_bench.reports.figures import speed, style


def verdict(document: dict[str, Any], out: Path) -> None:
    """OUT/tables/verdict.csv, OUT/figures/verdict.* and a table on the terminal."""
    rows = document["rows"]
    frame = pd.DataFrame(rows)
    frame["words"] = [_in_words(words) for words in frame["words"]]
    (out / "tables").mkdir(parents=True, exist_ok=True)
    frame.to_csv(out / "tables" / "verdict.csv", index=False)
    style.save(speed.verdict_times(frame), out / "figures", "verdict")
    table = Table(title=document["machine"]["told"], title_justify="left", box=None, pad_edge=False)
    for heading in ("", "runs", "seeds", "time", "over the study", "how", "qv is"):
        table.add_column(heading, justify="right" if heading in ("runs", "seeds", "time", "over the study") else "left")
    for row, words in zip(rows, frame["words"], strict=True):
        count, times = wording.count(row["n_runs"]), f"{row['over_study']:.1f}"
        time = wording.duration(row["seconds"])
        table.add_row(row["name"], count, str(row["n_seeds"]), time, times, row["basis"], words)
    wording.console(least_width=140).print(table)
    print(f"wrote {out / 'verdict.json'}, tables/verdict.csv and figures/verdict.png, .pdf, .svg")


def curve(document: dict[str, Any], out: Path) -> None:
    """OUT/tables/curve.csv and OUT/figures/curve.*"""
    frame = pd.DataFrame(document["points"])
    (out / "tables").mkdir(parents=True, exist_ok=True)
    frame.to_csv(out / "tables" / "curve.csv", index=False)
    figure = speed.crossover(frame)
    style.name(figure, document["machine"]["told"])
    style.save(figure, out / "figures", "curve")
    print(f"wrote {out / 'curve.json'}, tables/curve.csv and figures/curve.png, .pdf, .svg")


def _in_words(words: dict[str, list[str]] | None) -> str:
    """`better than q, k; open: o`, as of qv; a dash where nobody has judged such a grid."""
    if words is None:
        return "-"
    of = {"better": "better than", "worse": "worse than", "tied": "tied with"}
    return "; ".join(f"{of.get(word, word + ':')} {', '.join(placements)}" for word, placements in words.items())
