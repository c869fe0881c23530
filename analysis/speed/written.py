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


def profile(document: dict[str, Any], out: Path) -> None:
    """OUT/tables/profile.csv, estimates.csv, OUT/figures/profile.* and both tables on the terminal."""
    commands = document["commands"]
    frame = pd.DataFrame([{"command": name, **row} for name, measured in commands.items() for row in measured["rows"]])
    (out / "tables").mkdir(parents=True, exist_ok=True)
    frame.to_csv(out / "tables" / "profile.csv", index=False)
    pd.DataFrame(document["estimates"]).to_csv(out / "tables" / "estimates.csv", index=False)
    figure = speed.where_time_goes(pd.DataFrame({name: measured["parts"] for name, measured in commands.items()}))
    style.name(figure, document["machine"]["told"])
    style.save(figure, out / "figures", "profile")
    screen = wording.console(least_width=100)
    for measured in commands.values():
        title = f"{wording.command_line(['lora-bench', *measured['words']])}: {wording.duration(measured['seconds'])}"
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for heading in ("part", "where", "seconds", "share", "CPU seconds", "calls"):
            table.add_column(heading, justify="left" if heading in ("part", "where") else "right")
        for row in sorted(measured["rows"], key=lambda row: -row["seconds"]):
            numbers = f"{row['seconds']:.1f}", f"{row['share']:.1%}", f"{row['cpu_seconds']:.1f}", str(row["calls"])
            table.add_row(row["part"], row["where"], *numbers)
        screen.print(table)
    table = Table(title="estimates", title_justify="left", box=None, pad_edge=False)
    for heading in ("command", "of", "told", "taken", "told / taken", "from"):
        table.add_column(heading, justify="left" if heading in ("command", "of", "from") else "right")
    for row in document["estimates"]:
        times = wording.duration(row["told"]), wording.duration(row["taken"]), f"{row['told'] / row['taken']:.2f}"
        table.add_row(row["name"], row["of"], *times, row["basis"])
    screen.print(table)
    print(f"wrote {out / 'profile.json'}, tables/profile.csv, estimates.csv and figures/profile.png, .pdf, .svg")


def _in_words(words: dict[str, list[str]] | None) -> str:
    """`better than q, k; open: o`, as of qv; a dash where nobody has judged such a grid."""
    if words is None:
        return "-"
    of = {"better": "better than", "worse": "worse than", "tied": "tied with"}
    return "; ".join(f"{of.get(word, word + ':')} {', '.join(placements)}" for word, placements in words.items())
