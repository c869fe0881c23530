"""Where the seconds of a whole command go, from its start to its last line, and how well its dry run told them.

    wall = parts of the command itself + parts of its workers / number of workers + their idle time / number of workers

The command waits while its workers train, so that time is theirs, each worker's share the same. Every process is timed
from within (timers/sitecustomize.py); what no timer saw is `other`, as is the time in which a process ends.

Told by `dry_run=true`, taken by the clock around the command, start and end included: once in an empty store, where the
estimate rests on a few steps, and once for further seeds, where it rests on the runs that finished.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_bench import wording

TIMERS = Path(__file__).with_name("timers")
COMMANDS = {
    "quick": ("+sweeps=quick",),
    "study": ("study=quick",),
    "cola": (
        *("-m", "task=cola", "task.train_rows=1600", "task.select_rows=300", "task.report_rows=500"),
        *("train.epochs=1", "train.max_length=64", "train.dropout=0.0", "adapter.rank=null", "adapter.budget=q@8"),
        *("adapter.targets=q,k,v,o,qk,qv,qkvo", "train.lr=1e-3", "seed=range(4)"),
    ),
}
AGAIN = "seed=range(4,8)"
"""What makes another sweep of the same kind of each grid; a study chooses its seeds itself."""
PARTS = (
    "training steps",
    "scoring",
    "guards",
    "norms",
    "writing",
    "imports",
    "start of Python",
    "configuration",
    "planning",
    "estimate",
    "rows and tokens",
    "backbone",
    "adapters",
    "the answer",
    "ending processes",
    "other",
    "idle",
)
"""In the order of the figure; `idle` are workers without a pack."""


def measure(options: argparse.Namespace, words: Sequence[str], machine: dict[str, Any]) -> dict[str, Any]:
    """Run the command of this name and these words, from an empty store, and put it into OUT/profile.json beside others
    of this machine.

    Raises:
        SystemExit: when the command fails.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "profile.json"
    document: dict[str, Any] = {"machine": machine, "commands": {}, "estimates": []}
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["machine"]["id"] == machine["id"]:
            document = before
    name = options.profile
    store = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=options.out)).resolve()
    has_estimate = not words[0].startswith("study=")
    document["estimates"] = [line for line in document["estimates"] if line["name"] != name]
    for more in ((), (AGAIN,)) if has_estimate else ((),):
        asked = [*words, *more, f"store={store}", "tracking=none"]
        expected = _timed([*asked, "dry_run=true"], options.out)["notes"] if has_estimate else []
        run = _timed(asked, options.out)
        if not more:
            table = rows(run["processes"], run["seconds"])
            entry = {"words": list(words), "seconds": run["seconds"], "parts": by_part(table), "rows": table}
            document["commands"][name] = entry
        if expected:
            line = {"name": name, "of": "further seeds" if more else "an empty store", **expected[-1]}
            document["estimates"].append({**line, "taken": run["seconds"]})
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return document


def rows(processes: Sequence[Mapping[str, Any]], seconds: float) -> list[dict[str, Any]]:
    """The table of one command: part, where (command or workers), seconds and share of the wall time, cpu_seconds and
    calls of all processes. The seconds sum to those of the wall.

    Args:
        processes: what each process wrote; exactly one of them is the command itself.
        seconds: of the wall, around the command.

    Raises:
        ValueError: unless one process is the command.
    """
    own = [process for process in processes if not _is_worker(process)]
    workers = [process for process in processes if _is_worker(process)]
    if len(own) != 1:
        raise ValueError(f"{len(own)} processes wrote as the command itself; one is expected")
    parts = {part: list(values) for part, values in own[0]["parts"].items()}
    waited = parts.pop("waiting", [0.0, 0.0, 0])
    parts["other"] = [
        seconds - sum(values[0] for values in parts.values()) - waited[0] + parts.get("other", [0.0])[0],
        own[0]["cpu_seconds"] - sum(values[1] for values in parts.values()) + parts.get("other", [0.0, 0.0])[1],
        1,
    ]
    table = [_row("command", part, values, 1, seconds) for part, values in parts.items()]
    sums: dict[str, list[float]] = {}
    for worker in workers:
        for part, values in worker["parts"].items():
            total = sums.setdefault(part, [0.0, 0.0, 0])
            total[:] = [a + b for a, b in zip(total, values, strict=True)]
    if workers:
        idle = waited[0] * len(workers) - sum(values[0] for values in sums.values())
        sums["idle"] = [idle, sum(worker["cpu_seconds"] for worker in workers) - sum(v[1] for v in sums.values()), 0]
    table += [_row("workers", part, values, len(workers), seconds) for part, values in sums.items()]
    return sorted(table, key=lambda row: (row["where"], PARTS.index(row["part"])))


def _row(where: str, part: str, values: Sequence[float], n: int, whole: float) -> dict[str, Any]:
    share = values[0] / n / whole
    return {
        "part": part,
        "where": where,
        "seconds": values[0] / n,
        "share": share,
        "cpu_seconds": values[1],
        "calls": int(values[2]),
    }


def by_part(table: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of the wall of each of PARTS, of the command and its workers together."""
    return {part: sum(row["seconds"] for row in table if row["part"] == part) for part in PARTS}


def _is_worker(process: Mapping[str, Any]) -> bool:
    return "lora_bench.launch.child" in process["words"]


def _timed(words: Sequence[str], where: Path) -> dict[str, Any]:
    """Run `lora-bench` with these words in a folder, where a study writes its report: {"seconds", "processes",
    "notes"}."""
    with tempfile.TemporaryDirectory(prefix="lora_bench-profile-") as folder:
        paths = [str(TIMERS), str(TIMERS.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"LORA_BENCH_PROFILE": folder, "PYTHONPATH": os.pathsep.join(paths)}
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "lora_bench", *words],
            cwd=where, env=environment, stdout=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        files = sorted(Path(folder).glob("*.json"))
        processes = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    if done.returncode:
        raise SystemExit(f"throughput: {wording.command_line(['lora-bench', *words])} failed; its messages are above")
    notes = [note for process in processes for note in process["notes"]]
    return {"seconds": seconds, "processes": processes, "notes": notes}
