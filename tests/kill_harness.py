"""Kill a sweep at random moments, start it again until it ends, and compare its store with an undisturbed one.

    python tests/kill_harness.py --kills 50                        the sweep of the tests, 50 kills
    python tests/kill_harness.py --kills 5 --whole-process         whole commands, imports included

By default the sweep runs in forks of a process that has everything imported, so that kills hit planning, training and
writing rather than imports. SIGKILL leaves no handler a chance. The comparison is bit for bit: scores, curves, norms,
guards, the predictions' file and every tensor of every adapter.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

SWEEP = (
    *("-m", "model=tiny", "task=acceptability", "tracking=none", "task.train_rows=96", "task.report_rows=40"),
    *("train.epochs=2", "train.max_length=48", "train.batch_size=16", "adapter.targets=q,v,qv"),
    *("train.lr=1e-3,1e-2", "seed=0,1,2", "hydra.sweeper.pack_size=3"),
)
N_RUNS = 18
SMALL = (*SWEEP[:-4], "adapter.targets=q,qv", "train.lr=1e-3", "seed=0,1,2", "hydra.sweeper.pack_size=2")
N_SMALL = 6
WRITING_SECONDS = 0.3
"""After a new record, about what a pack of these sweeps takes to write its runs."""
COMPARED = ("status", "config", "metrics", "manifest", "parameters", "scores", "history", "norms", "guards", "data")
PATIENCE_SECONDS = 300.0


@dataclass
class Figures:
    """What a round of kills came to."""

    kills: int = 0
    starts: int = 0
    seconds: float = 0.0
    in_writing: int = 0
    finished_at_kill: list[int] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        spread = f"{min(self.finished_at_kill)} to {max(self.finished_at_kill)}" if self.finished_at_kill else "none"
        return (
            f"{self.kills} kills, {self.starts} starts, {self.seconds:.0f} s; finished runs at the kills: {spread}; "
            f"kills that left a pack half written: {self.in_writing}; "
            f"runs that differ or are lost: {len(self.differences)}"
        )


def contents(store_root: Path) -> dict[str, dict]:
    """Everything of a store that must not depend on how often it was interrupted, by run."""
    from lora_bench.store import Store

    found = {}
    for record in Store(store_root).records():
        folder = store_root / record["run_id"]
        files = [path for path in folder.rglob("*") if path.is_file() and path.name != "record.json"]
        found[record["run_id"]] = {
            **{key: record[key] for key in COMPARED},
            "pack_size": record["cost"]["pack_size"],
            "files": {str(path.relative_to(folder)): path.read_bytes() for path in files},
        }
    return found


def differences(expected: dict[str, dict], found: dict[str, dict]) -> list[str]:
    """Runs that are lost, foreign or not equal, in words."""
    told = [f"{run_id} is lost" for run_id in expected if run_id not in found]
    told += [f"{run_id} is foreign" for run_id in found if run_id not in expected]
    for run_id in expected.keys() & found.keys():
        parts = [key for key in expected[run_id] if expected[run_id][key] != found[run_id][key]]
        if parts:
            told.append(f"{run_id} differs in {', '.join(parts)}")
    return told


def start(folder: Path, arguments: tuple[str, ...], *, whole_process: bool) -> int:
    """Start the sweep in a process of its own; returns its id."""
    if whole_process:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        with open(folder / "log", "ab") as log:
            command = [sys.executable, "-m", "lora_bench", *arguments]
            return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log).pid
    child = os.fork()
    if child:
        return child
    status = 70
    with contextlib.suppress(BaseException):
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(folder)
        sys.argv = ["lora-bench", *arguments]
        from lora_bench.__main__ import main

        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        sys.stdout.flush()
    os._exit(status)


def wait(child: int, seconds: float, *, after: Callable[[], bool] | None = None) -> int | None:
    """The exit status of a child, negative for a signal; None while it still runs after `seconds`.

    Args:
        after: the seconds count from when this holds.
    """
    deadline = time.monotonic() + (seconds if after is None else PATIENCE_SECONDS)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if after is not None and after():
            after, deadline = None, time.monotonic() + seconds
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.002)


def finish(folder: Path, arguments: tuple[str, ...], *, whole_process: bool) -> int:
    """Run the sweep to its end; returns its exit status."""
    child = start(folder, arguments, whole_process=whole_process)
    status = wait(child, PATIENCE_SECONDS)
    if status is None:
        os.kill(child, signal.SIGKILL)
        wait(child, 10)
        raise TimeoutError(f"the sweep did not end in {PATIENCE_SECONDS:g} s; its log is {folder / 'log'}")
    return status


def kill_and_compare(
    place: Path,
    n_kills: int,
    *,
    seed: int,
    arguments: tuple[str, ...] = SWEEP,
    n_runs: int = N_RUNS,
    whole_process: bool = False,
) -> Figures:
    """Rounds of one sweep, each from an empty store, until `n_kills` processes were killed; every round is compared.

    A kill comes after a time drawn uniformly from nothing to what an undisturbed sweep takes; about every second one
    with the next record or a little later, so that packs are left half written.
    """
    rng, figures = random.Random(seed), Figures()
    undisturbed = place / "undisturbed"
    undisturbed.mkdir(parents=True)
    clock = time.monotonic()
    status = finish(undisturbed, arguments, whole_process=whole_process)
    duration = time.monotonic() - clock
    expected = contents(undisturbed / "runs")
    if status != 0 or len(expected) != n_runs:
        raise RuntimeError(f"the undisturbed sweep ended with status {status} and {len(expected)} runs")
    clock, number = time.monotonic(), 0
    while figures.kills < n_kills:
        folder = place / f"round-{number}"
        folder.mkdir()
        number += 1
        status = None
        while status != 0:
            child = start(folder, arguments, whole_process=whole_process)
            figures.starts += 1
            is_to_kill, before = figures.kills < n_kills, n_records(folder)
            if not is_to_kill:
                status = wait(child, PATIENCE_SECONDS)
            elif rng.random() < 0.5:
                status = wait(child, rng.uniform(0, duration))
            else:
                is_writing = lambda folder=folder, before=before: n_records(folder) > before  # noqa: E731
                status = wait(child, max(0.0, rng.uniform(-1, 1)) * WRITING_SECONDS, after=is_writing)
            if status is None:
                os.kill(child, signal.SIGKILL)
                status = wait(child, PATIENCE_SECONDS)
                figures.kills += 1
                figures.finished_at_kill.append(n_records(folder))
                figures.in_writing += is_half_written(folder)
                if not is_to_kill:
                    raise TimeoutError(f"a restart did not end; its log is {folder / 'log'}")
            elif status != 0:
                raise RuntimeError(f"a restart ended with status {status}; its log is {folder / 'log'}")
        told = differences(expected, contents(folder / "runs"))
        left = [path.name for path in (folder / "runs").glob(".tmp-*")]
        figures.differences += [f"round {number}: {one}" for one in [*told, *(f"{name} is left" for name in left)]]
        shutil.rmtree(folder)
    figures.seconds = time.monotonic() - clock
    return figures


def n_records(folder: Path) -> int:
    """Runs that ended."""
    return sum(1 for _ in (folder / "runs").glob("*/record.json"))


def is_half_written(folder: Path) -> bool:
    """Whether a pack of the kept plan has some of its records and not all."""
    for path in (folder / "runs" / ".plans").glob("*.json"):
        for pack in json.loads(path.read_text())["packs"]:
            n_held = sum((folder / "runs" / run_id / "record.json").exists() for run_id in pack)
            if 0 < n_held < len(pack):
                return True
    return False


def main() -> int:
    """The command line of the harness; status 1 when anything differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="processes to kill (50)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments (0)")
    parser.add_argument("--small", action="store_true", help=f"a sweep of {N_SMALL} runs in place of {N_RUNS}")
    parser.add_argument("--whole-process", action="store_true", help="kill whole commands, imports included")
    options = parser.parse_args()
    prepare()
    with tempfile.TemporaryDirectory(prefix="lora_bench-kills-") as folder:
        figures = kill_and_compare(
            Path(folder),
            options.kills,
            seed=options.seed,
            arguments=SMALL if options.small else SWEEP,
            n_runs=N_SMALL if options.small else N_RUNS,
            whole_process=options.whole_process,
        )
    print(figures)
    print("\n".join(figures.differences))
    return 1 if figures.differences else 0


def prepare() -> None:
    """Import what a sweep needs, so that its forks start at once; nothing here may start a thread."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import hydra  # noqa: F401
    import torch

    import lora_bench.run
    import lora_bench.sweep  # noqa: F401

    torch.set_num_threads(1)


if __name__ == "__main__":
    raise SystemExit(main())
