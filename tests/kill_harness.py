"""Kill a sweep at random moments, start it again until it ends, and compare its store with an undisturbed one.

    python tests/kill_harness.py --kills 50                        the sweep of the tests, 50 kills
    python tests/kill_harness.py --kills 5 --whole-process         whole commands, imports included
    python tests/kill_harness.py --scenarios all                   full disk, read-only store, garbled records ...

By default the sweep trains in forks of a process that has everything imported, so that kills hit planning, training
and writing rather than imports; whole commands train side by side where the machine has the cores. SIGKILL leaves no
handler a chance. The comparison is bit for bit: scores, curves, norms, guards, the predictions' file and every tensor
of every adapter.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from patience import PATIENCE_SECONDS

SWEEP = (
    *("-m", "model=tiny", "task=acceptability", "tracking=none", "task.train_rows=96"),
    *("task.select_rows=40", "task.report_rows=40"),
    *("train.epochs=2", "train.max_length=48", "train.batch_size=16", "adapter.targets=q,v,qv"),
    *("train.lr=1e-3,1e-2", "seed=0,1,2", "hydra.sweeper.pack_size=3"),
)
N_RUNS = 18
SMALL = (*SWEEP[:-4], "adapter.targets=q,qv", "train.lr=1e-3", "seed=0,1,2", "hydra.sweeper.pack_size=2")
N_SMALL = 6
LONG = (*SWEEP[:-4], "train.epochs=30", "adapter.targets=q,v,qv", "adapter.dropout=0.1", "train.lr=1e-3", "seed=0")
N_LONG = 3
WRITING_SECONDS = 0.3
"""After a new record, about what a pack of these sweeps takes to write its runs."""
COMPARED = ("status", "config", "metrics", "manifest", "parameters", "scores", "history", "norms", "guards", "data")


@dataclass
class Figures:
    """What a round of kills came to."""

    kills: int = 0
    starts: int = 0
    seconds: float = 0.0
    in_writing: int = 0
    taken_up: int = 0
    finished_at_kill: list[int] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        spread = f"{min(self.finished_at_kill)} to {max(self.finished_at_kill)}" if self.finished_at_kill else "none"
        return (
            f"{self.kills} kills, {self.starts} starts, {self.seconds:.0f} s; finished runs at the kills: {spread}; "
            f"kills that left a pack half written: {self.in_writing}; checkpoints taken up: {self.taken_up}; "
            f"runs that differ or are lost: {len(self.differences)}"
        )


def contents(store_root: Path) -> dict[str, dict]:
    """Everything of a store that must not depend on how often it was interrupted, by run."""
    from lora_bench.store.folder import Store

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


def start(
    folder: Path,
    arguments: tuple[str, ...],
    *,
    whole_process: bool = False,
    first: Callable[[], object] = lambda: None,
) -> int:
    """Start the sweep in a process of its own, where `first` is called before it; returns its id."""
    if whole_process:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        with open(folder / "log", "ab") as log:
            command = [sys.executable, "-m", "lora_bench", *arguments]
            return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log).pid
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(folder)
        _train_here()
        first()
        sys.argv = ["lora-bench", *arguments]
        from lora_bench.__main__ import main

        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return child


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


def finish(
    folder: Path,
    arguments: tuple[str, ...],
    *,
    whole_process: bool = False,
    first: Callable[[], object] = lambda: None,
) -> int:
    """Run the sweep to its end; returns its exit status."""
    child = start(folder, arguments, whole_process=whole_process, first=first)
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
    first: Callable[[], object] = lambda: None,
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
        log = (undisturbed / "log").read_text(encoding="utf-8", errors="replace")
        raise RuntimeError(f"the undisturbed sweep ended with status {status} and {len(expected)} runs:\n{log[-2000:]}")
    clock, number = time.monotonic(), 0
    while figures.kills < n_kills:
        folder = place / f"round-{number}"
        folder.mkdir()
        number += 1
        status = None
        while status != 0:
            child = start(folder, arguments, whole_process=whole_process, first=first)
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
        figures.taken_up += (folder / "log").read_text(errors="replace", encoding="utf-8").count(": goes on at step ")
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
        for pack in json.loads(path.read_text(encoding="utf-8"))["packs"]:
            n_held = sum((folder / "runs" / run_id / "record.json").exists() for run_id in pack)
            if 0 < n_held < len(pack):
                return True
    return False


# Other mishaps: each takes a folder, mishandles one sweep in it, lets it end, and returns what went otherwise


def _full_disk(folder: Path) -> list[str]:
    """A disk of its own that is too small for the store, then larger. Needs the right to mount."""
    (folder / "runs").mkdir()
    disk = str(folder / "runs")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=150k", "none", disk], capture_output=True).returncode:
        return ["skipped: no right to mount"]
    try:
        told = _ends_with(finish(folder, SMALL), 2, folder, "No space left on device")
        told += _left_behind(folder)
        subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
        told += _ends_with(finish(folder, SMALL), 0, folder, "")
        shutil.copytree(folder / "runs", folder / "kept", ignore=shutil.ignore_patterns(".claims"))
    finally:
        subprocess.run(["umount", disk], check=False)
    (folder / "runs").rmdir()
    (folder / "kept").rename(folder / "runs")
    return told


def _quota(folder: Path) -> list[str]:
    """No file may grow beyond a size, so adapters cannot be written; then all may."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))  # noqa: E731
    told = _ends_with(finish(folder, SMALL, first=limit), 2, folder, "File too large")
    return told + _left_behind(folder) + _ends_with(finish(folder, SMALL), 0, folder, "")


def _read_only(folder: Path) -> list[str]:
    """A store that holds half a sweep and cannot be written, then can. Needs the right to mount."""
    told = _ends_with(finish(folder, (*SMALL, "seed=0")), 0, folder, "")
    disk = str(folder / "runs")
    if subprocess.run(["mount", "--bind", disk, disk], capture_output=True).returncode:
        return ["skipped: no right to mount"]
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", disk], check=True)
        before = contents(folder / "runs")
        told += _ends_with(finish(folder, SMALL), 2, folder, "Read-only file system")
        if contents(folder / "runs") != before:
            told.append("a store that cannot be written has changed")
    finally:
        subprocess.run(["umount", disk], check=False)
    return told + _ends_with(finish(folder, SMALL), 0, folder, "")


def _garbled(folder: Path) -> list[str]:
    """Records cut short, garbled and emptied in a finished store: they are set aside and trained again."""
    told = _ends_with(finish(folder, SMALL), 0, folder, "")
    paths = sorted((folder / "runs").glob("*/record.json"))
    content = paths[0].read_bytes()
    paths[0].write_bytes(content[: len(content) // 2])
    content = bytearray(paths[1].read_bytes())
    place = content.index(b'"scores"') + 40
    content[place] ^= 1
    paths[1].write_bytes(content)
    paths[2].write_bytes(b"")
    told += _ends_with(finish(folder, SMALL), 0, folder, "set aside as")
    n_aside = sum(1 for _ in (folder / "runs" / "quarantine").iterdir())
    return told if n_aside == 3 else [*told, f"{n_aside} runs were set aside, not 3"]


def _clock(folder: Path) -> list[str]:
    """A clock that jumps by years, forwards and back, whenever it is read; killed once in between."""

    def mislead() -> None:
        from lora_bench.store import record as records

        rng, honest = random.Random(os.getpid()), time.time

        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime.fromtimestamp(honest() + rng.uniform(-6e8, 6e8), tz)

        records.datetime = Clock
        time.time = lambda: honest() + rng.uniform(-6e8, 6e8)

    child = start(folder, SMALL, first=mislead)
    if wait(child, 0.0, after=lambda: n_records(folder) > 0) is None:
        os.kill(child, signal.SIGKILL)
        wait(child, PATIENCE_SECONDS)
    for path in (folder / "runs").glob("*/record.json"):
        os.utime(path, (4e9, 4e9))
    return _ends_with(finish(folder, SMALL, first=mislead), 0, folder, "")


def _two_launches(folder: Path) -> list[str]:
    """The same sweep started twice at once, and a third time a little later."""
    children = [start(folder, SMALL), start(folder, SMALL)]
    time.sleep(1.0)
    children.append(start(folder, SMALL))
    statuses = [wait(child, PATIENCE_SECONDS) for child in children]
    return (
        [] if statuses == [0, 0, 0] else [f"statuses {statuses}: {(folder / 'log').read_text(encoding='utf-8')[-600:]}"]
    )


def _stopped(folder: Path) -> list[str]:
    """Ctrl-C and SIGTERM by turns, at random moments, until the sweep has ended."""
    rng, told, n_stopped = random.Random(5), [], 0
    for number in range(50):
        child = start(folder, SMALL)
        status = wait(child, rng.uniform(0.5, 2.5))
        if status is None:
            os.kill(child, (signal.SIGINT, signal.SIGTERM)[number % 2])
            status = wait(child, PATIENCE_SECONDS)
            n_stopped += status == 130
        if status == 0:
            break
        told += [] if status == 130 else [f"a stopped sweep ended with status {status}"]
    return told if n_stopped else [*told, "no sweep was stopped"]


SCENARIOS = {
    "full_disk": _full_disk,
    "quota": _quota,
    "read_only": _read_only,
    "garbled": _garbled,
    "clock": _clock,
    "two_launches": _two_launches,
    "stopped": _stopped,
}


def play(place: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Every named mishap: what went otherwise than it should, by name."""
    undisturbed = place / "undisturbed"
    undisturbed.mkdir(parents=True)
    status = finish(undisturbed, SMALL)
    expected = contents(undisturbed / "runs")
    if status != 0 or len(expected) != N_SMALL:
        raise RuntimeError(f"the undisturbed sweep ended with status {status} and {len(expected)} runs")
    found = {}
    for name in names:
        folder = place / name
        folder.mkdir()
        told = SCENARIOS[name](folder)
        if not any(one.startswith("skipped") for one in told):
            told += differences(expected, contents(folder / "runs")) + _left_behind(folder)
        found[name] = told
    return found


def _ends_with(status: int | None, expected: int, folder: Path, said: str) -> list[str]:
    """Nothing when a sweep ended as it should and said so in its log; the log starts anew for the next one."""
    log = (folder / "log").read_text(errors="replace", encoding="utf-8")
    (folder / "log").unlink()
    told = [] if status == expected else [f"status {status}, not {expected}: {log[-600:]}"]
    return told if said in log else [*told, f"it did not say {said!r}: {log[-600:]}"]


def _left_behind(folder: Path) -> list[str]:
    return [f"{path.name} is left behind" for path in (folder / "runs").glob(".tmp-*")]


def main() -> int:
    """The command line of the harness; status 1 when anything differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kills", type=int, metavar="N", help="processes to kill (50, with --scenarios none)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments (0)")
    parser.add_argument("--small", action="store_true", help=f"a sweep of {N_SMALL} runs in place of {N_RUNS}")
    parser.add_argument(
        "--checkpoints", action="store_true", help="one long pack that keeps a checkpoint at every step"
    )
    parser.add_argument("--whole-process", action="store_true", help="kill whole commands, imports included")
    parser.add_argument("--scenarios", nargs="+", choices=["all", *SCENARIOS], metavar="NAME", help="other mishaps")
    options = parser.parse_args()
    prepare()
    with tempfile.TemporaryDirectory(prefix="lora_bench-kills-") as folder:
        if options.scenarios:
            played = play(Path(folder), list(SCENARIOS) if "all" in options.scenarios else options.scenarios)
            for name, told in played.items():
                print(f"{name}: {'as it should' if not told else '; '.join(told)}")
            is_wrong = any(told and not told[0].startswith("skipped") for told in played.values())
            if is_wrong or not options.kills:
                return int(is_wrong)
        figures = kill_and_compare(
            Path(folder) / "kills",
            options.kills or 50,
            seed=options.seed,
            arguments=LONG if options.checkpoints else SMALL if options.small else SWEEP,
            n_runs=N_LONG if options.checkpoints else N_SMALL if options.small else N_RUNS,
            whole_process=options.whole_process,
            first=_always if options.checkpoints else lambda: None,
        )
    print(figures)
    print("\n".join(figures.differences))
    return 1 if figures.differences else 0


def _train_here() -> None:
    """Workers would import everything anew, which takes longer than what a small sweep trains."""
    from lora_bench.models import machine

    machine.cores = lambda: 1


def _always() -> None:
    from lora_bench.training import checkpoint

    checkpoint.EVERY_SECONDS = 0.0


def prepare() -> None:
    """Import what a sweep needs, so that its forks start at once; nothing here may start a thread."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import hydra  # noqa: F401
    import torch

    from lora_bench.training import run  # noqa: F401

    torch.set_num_threads(1)


if __name__ == "__main__":
    raise SystemExit(main())
