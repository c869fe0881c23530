"""Kill a study at random moments, or move it to other workers, and hold its journal against an undisturbed one's.

    python tests/study_harness.py --kills 20                   random moments and signals, every third in the journal
    python tests/study_harness.py --moves one_process,joblib   begun on two workers, killed, and ended elsewhere

The study trains for real, on a backbone that learns the rows below in a second. Journals are compared byte for byte but
for the times and the checksum over them.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from kill_harness import finish, n_records, prepare, start, wait
from patience import PATIENCE_SECONDS

STUDY = (
    *("study=weight_types", "model=tiny", "+model.architecture.initializer_range=0.3", "task=files", "tracking=none"),
    *("task.train_file=train.csv", "task.report_file=report.csv", "task.select_rows=60", "train.epochs=2"),
    *("train.batch_size=8", "train.max_length=8", "train.dropout=0", "train.precision=fp32", "device=cpu"),
    *("adapter.targets=q,v,qv", "study.rates=[1e-2,3e-2]", "study.looks=[4,6,12]", "study.margin=0.15"),
)
BEGUN = ("hydra.sweeper.workers=2",)
MOVES = {
    "one_process": ("hydra.sweeper.workers=1",),
    "joblib": ("hydra/launcher=workers", "hydra.launcher.n_jobs=2"),
}
SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
MOMENTS = ("half_written", "not_renamed", "renamed")
"""Of a journal: half of its new content on the disk, all of it under another name, and in its place."""
TIMES = re.compile(rb'("(?:checksum|declared|held)": ")[^"]*')


def folder_of(place: Path) -> Path:
    """A folder with rows of three letters, of which two or more are of one kind."""
    place.mkdir(parents=True)
    draw = random.Random(1)
    for name, n_rows in {"train": 200, "report": 100}.items():
        with (place / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            rows = [draw.choices([*"abcdefghij"], k=3) for _ in range(n_rows)]
            csv.writer(file).writerows([("text", "label"), *((" ".join(row), _label(row)) for row in rows)])
    return place


def _label(row: list[str]) -> int:
    return int(sum(word in "abcde" for word in row) >= 2)


def journal(place: Path) -> bytes:
    """The only journal of a store, without its times."""
    (path,) = place.glob("runs/.studies/*/family.json")
    return TIMES.sub(rb"\1", path.read_bytes())


def whole(place: Path, *more: str) -> tuple[bytes, float]:
    """An undisturbed study's journal, and the seconds that it took."""
    clock = time.monotonic()
    is_elsewhere = bool(more)
    status = finish(folder_of(place), (*STUDY, *more), whole_process=is_elsewhere)
    if status != 0:
        raise RuntimeError(f"the study ended with status {status}; its log is {place / 'log'}")
    return journal(place), time.monotonic() - clock


def die_at(moment: str) -> Callable[[], None]:
    """Patches the journal of a process, which then dies with its group while it writes."""

    def patch() -> None:
        os.setpgrp()
        from lora_bench.store import journal

        to_disk = journal.to_disk

        def deadly(path: Path) -> None:
            is_renamed = path.is_dir()
            if is_renamed == (moment == "renamed"):
                if moment == "half_written":
                    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
                os.killpg(0, signal.SIGKILL)
            to_disk(path)

        journal.to_disk = deadly

    return patch


def killed(place: Path, n_kills: int, *, seed: int) -> str:
    """Rounds of one study, each from an empty store, until it was killed so often. Returns the figures in words."""
    expected, duration = whole(place / "undisturbed")
    draw, counts, differing, n_starts, n_rounds = random.Random(seed), Counter(), 0, 0, 0
    clock = time.monotonic()
    while sum(counts.values()) < n_kills:
        folder, status = folder_of(place / f"round-{n_rounds}"), None
        n_rounds += 1
        while status != 0:
            n_starts += 1
            n_killed = sum(counts.values())
            if n_killed >= n_kills:
                status = finish(folder, STUDY)
                continue
            if n_killed % 3 == 2:
                moment = MOMENTS[n_killed // 3 % 3]
                status = wait(start(folder, STUDY, first=die_at(moment)), PATIENCE_SECONDS)
                counts[moment] += status == -signal.SIGKILL
                continue
            number = draw.choice(SIGNALS)
            child = start(folder, STUDY, first=os.setpgrp)
            status = wait(child, draw.uniform(0.05, duration / 2))
            if status is None:
                os.killpg(child, number)
                status = wait(child, PATIENCE_SECONDS)
                counts[number.name] += 1
        differing += journal(folder) != expected
        if b"Traceback" in (folder / "log").read_bytes():
            raise RuntimeError(f"a traceback is in {folder / 'log'}")
        shutil.rmtree(folder)
    moments = ", ".join(f"{name} {n}" for name, n in sorted(counts.items()))
    return (
        f"{sum(counts.values())} kills ({moments}), {n_starts} starts, {n_rounds} rounds, "
        f"{time.monotonic() - clock:.0f} s; undisturbed {duration:.0f} s; words {words_of(expected)}; "
        f"journals that differ: {differing}"
    )


def moved(place: Path, name: str, *, seed: int) -> str:
    """Begin on two workers, be killed somewhere in the middle, and end elsewhere. Returns the figures in words."""
    expected, _ = whole(place / "undisturbed", *BEGUN)
    folder = folder_of(place / name)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with (folder / "log").open("ab") as log:
        command = [sys.executable, "-m", "lora_bench", *STUDY, *BEGUN]
        begun = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    n_runs = n_records(place / "undisturbed")
    target = random.Random(seed).uniform(0.3, 0.8) * n_runs
    if wait(begun.pid, 0.2, after=lambda: n_records(folder) >= target) is None:
        os.killpg(begun.pid, signal.SIGKILL)
        wait(begun.pid, PATIENCE_SECONDS)
    n_before = n_records(folder)
    status = finish(folder, (*STUDY, *MOVES[name]), whole_process=True)
    if status != 0:
        raise RuntimeError(f"on {name} the study ended with status {status}; its log is {folder / 'log'}")
    return (
        f"{name}: {n_before} of {n_runs} runs on two workers; journals that differ: {int(journal(folder) != expected)}"
    )


def words_of(content: bytes) -> str:
    looks = json.loads(content)["looks"]
    words = [f"{finding['first']} - {finding['second']} {finding['word']}" for finding in looks[-1]["findings"]]
    return f"{', '.join(words)} at look {len(looks)}"


def without_report() -> None:
    """The page takes as long as the study, and is none of it."""
    from lora_bench.cli import report

    report.write = lambda scope: report.Written([], "no report")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--moves", default="", help=f"comma-separated: {', '.join(MOVES)}")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.kills:
            prepare()
            without_report()
            print(killed(Path(folder) / "kills", options.kills, seed=options.seed))
        for name in filter(None, options.moves.split(",")):
            print(moved(Path(folder) / "moves" / name, name, seed=options.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
