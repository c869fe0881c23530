"""Timers in every process of a command, without a change to its code: Python imports this module when it starts, where
this folder is on PYTHONPATH (`whole_command.py` puts it there).

Each function of HOOKS is replaced, once its module is imported, by one that takes the time: a call's seconds are those
of its part, without those of the hooked calls inside it. The main thread alone is timed. At its end a process writes

    $LORA_BENCH_PROFILE/PID.json    {"words", "cpu_seconds", "parts": {part: [seconds, cpu seconds, calls]}, "notes"}

with a note of each estimate of a plan: {"told", "basis"}.
"""

import atexit
import functools
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

BORN, BORN_CPU = time.perf_counter(), time.process_time()

HOOKS = {  # module -> function, or Class.method -> the part that its time belongs to
    "hydra_plugins.lora_bench.grids": {"Composer.parse": "configuration", "expand": "configuration"},
    "lora_bench.cli.runs": {"run": "configuration"},
    "lora_bench.launch.plan": {"make": "planning", "save": "planning"},
    "lora_bench.launch.plan_file": {"PlanFile.load": "planning"},
    "lora_bench.launch.estimate": {"estimate": "estimate"},
    "lora_bench.launch.jobs": {"Crew.train": "waiting", "Crew.__exit__": "ending processes"},
    "lora_bench.launch.tell": {"describe": "the answer", "conclude": "the answer"},
    "lora_bench.launch.carry_out": {"log_findings": "the answer", "drop_adapters": "the answer"},
    "lora_bench.launch.study": {"_follow_all": "the answer"},
    "hydra_plugins.lora_bench.study": {"write_report": "the answer"},
    "lora_bench.launch.precision": {"keep_precision": "planning"},
    "lora_bench.training.inputs": {"check": "rows and tokens"},
    "lora_bench.tasks.load": {"load_task": "rows and tokens"},
    "lora_bench.tasks.tokens": {"tokenise": "rows and tokens", "require_known": "rows and tokens"},
    "lora_bench.models.blueprint": {"blueprint": "backbone"},
    "lora_bench.models.backbone": {"load": "backbone"},
    "lora_bench.training.resolve": {"resolve": "planning"},
    "lora_bench.training.opening": {"open_pack": "adapters"},
    "lora_bench.training.loop": {"train_pack": "training steps"},
    "lora_bench.training.evaluate": {"predict": "scoring"},
    "lora_bench.tasks.metrics": {"score": "scoring"},
    "lora_bench.training.guards": {"require_known_start": "guards", "require_unchanged_start": "guards"},
    "lora_bench.packing.pack": {"Pack.is_frozen_intact": "guards"},
    "lora_bench.packing.solo": {"SoloPack.is_frozen_intact": "guards"},
    "lora_bench.training.readback": {"read_back": "guards"},
    "lora_bench.training.norms": {"matrix_norms": "norms"},
    "lora_bench.models.adapters": {"save": "writing"},
    "lora_bench.models.label_names": {"write": "writing"},
    "lora_bench.store.record": {"finished": "writing", "failed": "writing"},
    "lora_bench.store.folder": {"Store.write": "writing", "Store.claim": "writing", "Store.frame": "the answer"},
    "lora_bench.training.run": {"run_pack": "other", "environment_here": "other"},
}
START, IMPORTS, ESTIMATE = "start of Python", "imports", "estimate"

_parts: dict[str, list[float]] = {}
_notes: list[dict[str, Any]] = []
_open: list[list[float]] = []  # of each call under way, what the calls inside it took: [seconds, cpu seconds]
_main = threading.main_thread()


def timed(function: Callable[..., Any], part: str) -> Callable[..., Any]:
    """The same function, whose time is added to its part."""

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        if threading.current_thread() is not _main:
            return function(*arguments, **options)
        began, began_cpu = time.perf_counter(), time.process_time()
        _open.append([0.0, 0.0])
        try:
            result = function(*arguments, **options)
            if part == ESTIMATE:
                _notes.append({"told": result.seconds, "basis": result.basis})
            return result
        finally:
            inside = _open.pop()
            whole = time.perf_counter() - began, time.process_time() - began_cpu
            total = _parts.setdefault(part, [0.0, 0.0, 0])
            for place in (0, 1):
                total[place] += whole[place] - inside[place]
                if _open:
                    _open[-1][place] += whole[place]
            total[2] += 1

    return run


def _hook(module: Any, name: str, part: str) -> None:
    holder, _, attribute = name.rpartition(".")
    owner = getattr(module, holder) if holder else module
    function = vars(owner)[attribute]
    if isinstance(function, classmethod):
        setattr(owner, attribute, classmethod(timed(function.__func__, part)))
    else:
        setattr(owner, attribute, timed(function, part))


def _install() -> None:
    """Time every import that is none yet, and hook what is imported."""
    bootstrap: Any = importlib._bootstrap  # pyright: ignore[reportAttributeAccessIssue]
    import_anew = bootstrap._find_and_load

    def find_and_load(name: str, import_: Any) -> Any:
        module = import_anew(name, import_)
        for function, part in HOOKS.pop(name, {}).items():
            _hook(module, function, part)
        return module

    bootstrap._find_and_load = timed(find_and_load, IMPORTS)
    atexit.register(_write)


def _write() -> None:
    parts = {START: [_since_start(), BORN_CPU, 1], **_parts}
    document = {"words": sys.orig_argv, "cpu_seconds": time.process_time(), "parts": parts, "notes": _notes}
    with open(os.path.join(os.environ["LORA_BENCH_PROFILE"], f"{os.getpid()}.json"), "w", encoding="utf-8") as file:
        json.dump(document, file)


def _since_start() -> float:
    """Seconds from the start of this process to that of these timers; Linux says, to a hundredth."""
    try:
        with open("/proc/self/stat", encoding="ascii") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError):
        return 0.0
    alive = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return alive - (time.perf_counter() - BORN)


if "LORA_BENCH_PROFILE" in os.environ and "lora_bench" in " ".join(sys.orig_argv):
    _install()
