"""What the machine can give: read without torch, before anything trains."""

import os
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from lora_bench.models import machine

AFFINITY = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
real_cores = machine.cores  # tests have one core (conftest)


@pytest.fixture
def container(monkeypatch, tmp_path):
    """A container's limits, by file."""
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    return lambda **files: [(tmp_path / name.replace("_", ".", 1)).write_text(text) for name, text in files.items()]


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", AFFINITY), ("100000 100000", 1), ("50000 100000", 1), ("garbled", AFFINITY)]
)
def test_a_containers_share_of_the_cores_is_respected(container, quota, expected):
    """A thread for each of the host's 64 cores, on two of them, is the slowest way to train."""
    container(cpu_max=quota)
    assert real_cores() == expected


def test_a_containers_memory_is_what_it_is_given_not_what_the_host_has(container):
    container(memory_max="1000000", memory_current="600000", memory_stat="anon 5\ninactive_file 100000\n")
    assert machine.available_memory() == 500_000
    container(memory_max="max")
    assert machine.available_memory() > 1_000_000


def test_the_older_kind_of_container_is_respected_too(monkeypatch, tmp_path):
    """Half of the clusters still have cgroup v1."""
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    files = {"cpu.cfs_quota_us": "100000", "cpu.cfs_period_us": "100000", "memory.limit_in_bytes": "1000000"}
    files |= {"memory.usage_in_bytes": "600000", "memory.stat": "inactive_file 7\ntotal_inactive_file 100000\n"}
    for name, text in files.items():
        (tmp_path / name.partition(".")[0]).mkdir(exist_ok=True)
        (tmp_path / name.partition(".")[0] / name).write_text(text)
    assert (real_cores(), machine.available_memory()) == (1, 500_000)
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1")
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(str(2**63 - 4096))
    assert real_cores() == AFFINITY
    assert machine.available_memory() > 1_000_000


def test_others_are_told_from_ourselves():
    """Our own work before training must not make the machine look busy, and a loop beside us must."""
    loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        psutil.Process(loop.pid).cpu_times()
        assert machine.busy_cores(1.0) > 0.1
    finally:
        loop.kill()
        loop.wait()


@pytest.mark.parametrize(
    ("busy", "settings", "expected"),
    [
        (0.1, {}, None),
        (1.0, {}, "PASSIVE"),
        (1.0, {"OMP_NUM_THREADS": "2"}, None),
        (1.0, {"OMP_NUM_THREADS": "1"}, None),
        (1.0, {"GOMP_SPINCOUNT": "10"}, None),
        (1.0, {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
    ],
    ids=["quiet", "busy", "busy_elsewhere", "one_thread", "spins_as_told", "waits_as_told"],
)
def test_threads_sleep_while_they_wait_where_others_need_the_cores(monkeypatch, busy, settings, expected):
    """Spinning threads beside one busy process made training twenty times slower; what the user has set wins."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    modules = {name: module for name, module in sys.modules.items() if name != "torch"}
    monkeypatch.setattr(machine, "sys", SimpleNamespace(modules=modules))
    monkeypatch.setattr(machine, "cores", lambda: 4)
    monkeypatch.setattr(machine, "busy_cores", lambda: busy)
    machine.be_considerate()
    assert os.environ.get("OMP_WAIT_POLICY") == expected
    os.environ.pop("OMP_WAIT_POLICY", None)


@pytest.mark.parametrize(("given", "expected"), [("", None), ("3", 3), ("4,2", 4), ("0", None), ("many", None)])
def test_the_users_threads_are_read_as_openmp_reads_them(monkeypatch, given, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert machine.threads_asked() == expected


IMPORTING = """
import gc, sys
from lora_bench.models import machine
seen = []
for _ in range(2):
    with machine.importing():
        seen.append(gc.isenabled())
        sys.modules["torch"] = [[] for _ in range(1000)]
    seen += [gc.isenabled(), gc.get_freeze_count() > 1000]
    gc.unfreeze()
print(*seen)
"""


def test_the_collector_of_cycles_passes_over_what_is_imported_first():
    """It took a fifth of the time to import, and a second at the end of every process; later it has work to do."""
    done = subprocess.run([sys.executable, "-c", IMPORTING], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "True", "True", "True", "False"]


def test_the_machine_is_looked_at_without_torch():
    """What is decided here must be decided before torch reads how its threads shall wait."""
    code = "import sys, lora_bench.models.machine as m; m.cores(), m.available_memory(), m.busy_cores(0.01); "
    done = subprocess.run(
        [sys.executable, "-c", code + "print('torch' in sys.modules)"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
