"""The cores and memory that this machine has free, and how busy others keep it; and how a process begins. Nothing here
needs torch.

OpenMP's threads spin while they wait for each other, which is fastest on idle cores and slowest on busy ones: a thread
that has to wait for a core keeps all others spinning. Threads that sleep cost a third of the speed on idle cores. How
they wait changes no result; how many there are does.
"""

import contextlib
import gc
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

LOOK_SECONDS = 0.2
BUSY_CORES = 0.5
"""From this many cores in use by others, threads sleep while they wait."""
CGROUP = Path("/sys/fs/cgroup")
MEMORY_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (*(f"memory/memory.{name}" for name in ("limit_in_bytes", "usage_in_bytes", "stat")), "total_inactive_file"),
)
"""Files of the limit, the use and the facts, and the key of reclaimable memory: of cgroup v2, and of v1."""

log = logging.getLogger(__name__)


def cores() -> int:
    """Cores that this process may use: those of its affinity, at most as many as its container has."""
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # of cgroup v2, and of v1
        try:
            quota, period = (int(word) for name in names for word in _limit(name).split())
        except (OSError, ValueError):  # no container, or one without a limit ("max")
            continue
        if quota > 0 and period > 0:  # v1 says -1 where there is no limit
            return max(1, min(n_cores, quota // period))
    return n_cores


def threads_asked() -> int | None:
    """The threads that the user asks for with OMP_NUM_THREADS; None where it is not set."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdigit() and int(first) else None


def available_memory() -> int:
    """Bytes that new processes can take, at most what the container has."""
    import psutil

    free = psutil.virtual_memory().available
    for limits, uses, facts, reclaimable in MEMORY_FILES:
        try:
            limit, used = int(_limit(limits)), int(_limit(uses))
            kept = dict(line.split() for line in _limit(facts).splitlines())
            return min(free, limit - used + int(kept.get(reclaimable, 0)))
        except (OSError, ValueError):  # no container, or one without a limit ("max"; v1 says a number beyond any host)
            continue
    return free


def _limit(name: str) -> str:
    return (CGROUP / name).read_text(encoding="ascii")


def busy_cores(seconds: float = LOOK_SECONDS) -> float:
    """Cores that other processes keep busy, sampled for a moment."""
    import psutil

    def look() -> tuple[float, float, float]:
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Linux counts the time of guests as the user's, too.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        return total - idle, time.process_time(), time.monotonic()

    busy, own, at = look()
    time.sleep(seconds)
    busy_then, own_then, at_then = look()
    return max(0.0, (busy_then - busy - (own_then - own)) / (at_then - at))


def be_considerate() -> None:
    """Let threads sleep while they wait, where others keep this machine busy. Call it before torch is imported, which
    reads the setting once; what the user has set stays."""
    if "torch" in sys.modules or {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & set(os.environ):
        return
    n_cores, n_threads = cores(), threads_asked() or cores()
    if n_threads == 1 or (busy := busy_cores()) < BUSY_CORES or busy + n_threads <= n_cores:
        return
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    log.info("others keep %.1f of %d cores busy: threads sleep while they wait for each other", busy, n_cores)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import torch and what rests on it without the collector of cycles, which looks through a million objects that
    stay, again and again, and once more at the end of the process. It never looks at them afterwards either."""
    is_first, is_on = "torch" not in sys.modules, gc.isenabled()
    if is_first:
        gc.disable()
    try:
        yield
    finally:
        if is_first:
            gc.freeze()
            if is_on:
                gc.enable()
