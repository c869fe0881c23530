"""Nothing lost: a sweep that is killed, starved or misled ends with the store of an undisturbed one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("kill_harness.py")


def run_harness(*arguments: str, timeout: float) -> str:
    """What the harness said, from a process of its own, since it forks."""
    environment = os.environ | {"PYTHONPATH": str(HARNESS.parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(HARNESS), *arguments],
        capture_output=True,
        encoding="utf-8",
        env=environment,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_sweep_that_is_killed_ends_with_the_same_bits():
    said = run_harness("--small", "--kills", "2", "--seed", "1", timeout=300)
    assert said.startswith("2 kills, ")
    assert "runs that differ or are lost: 0" in said


@pytest.mark.slow
def test_fifty_kills_lose_nothing():
    said = run_harness("--kills", "50", timeout=3000)
    counted = re.match(r"50 kills.*half written: (\d+); .*; runs that differ or are lost: 0", said)
    assert counted
    assert int(counted[1]) > 3


@pytest.mark.slow
def test_a_long_pack_goes_on_where_it_was_killed():
    """Checkpoints at every step, and kills within the pack."""
    said = run_harness("--checkpoints", "--kills", "15", timeout=1500)
    counted = re.match(r"15 kills.*taken up: (\d+); runs that differ or are lost: 0", said)
    assert counted
    assert int(counted[1]) > 3


@pytest.mark.slow
def test_whole_commands_can_be_killed_too():
    assert run_harness("--small", "--kills", "5", "--whole-process", timeout=1500).startswith("5 kills, ")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full_disk", "quota", "read_only", "garbled", "clock", "two_launches", "stopped"])
def test_a_mishap_costs_nothing(name):
    said = run_harness("--scenarios", name, timeout=600)
    if "skipped" in said:
        pytest.skip(said)
    assert f"{name}: as it should" in said
