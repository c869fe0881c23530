"""Nothing lost: a sweep that is killed, starved or misled ends with the store of an undisturbed one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("kill_harness.py")


def run_harness(*arguments: str, timeout: float) -> dict[str, int]:
    """The harness in a process of its own, since it forks: what it counted."""
    environment = os.environ | {"PYTHONPATH": str(HARNESS.parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(HARNESS), *arguments], capture_output=True, text=True, env=environment, timeout=timeout
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    counted = re.search(r"(\d+) kills.*half written: (\d+); runs that differ or are lost: (\d+)", done.stdout)
    assert counted, done.stdout + done.stderr
    assert counted[3] == "0", done.stdout
    return dict(zip(("kills", "in_writing"), map(int, counted.groups()[:2]), strict=True))


def test_a_sweep_that_is_killed_ends_with_the_same_bits():
    assert run_harness("--small", "--kills", "2", "--seed", "1", timeout=300)["kills"] == 2


@pytest.mark.slow
def test_fifty_kills_lose_nothing():
    counted = run_harness("--kills", "50", timeout=3000)
    assert counted["kills"] == 50
    assert counted["in_writing"] > 3


@pytest.mark.slow
def test_whole_commands_can_be_killed_too():
    assert run_harness("--small", "--kills", "5", "--whole-process", timeout=1500)["kills"] == 5
