"""A study that trains for real, killed and moved about: the same journal, looks and words, bit for bit."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).parents[1] / "study_harness.py"


def harness(*arguments: str) -> str:
    """What the harness said, from a process of its own, since it forks."""
    # No number of threads is asked for: it follows the number of workers.
    environment = os.environ | {"PYTHONPATH": str(HARNESS.parents[1])}
    environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, str(HARNESS), *arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_twenty_kills_leave_the_journal_of_an_undisturbed_study():
    """At random moments, by Ctrl-C, a scheduler or a dead machine, and while the journal itself is on its way to the
    disk: whoever starts the command again must get the words that nobody disturbed."""
    said = harness("--kills", "20")
    assert re.match(r"20 kills \(.*half_written 2, not_renamed 2, renamed 2\)", said)
    assert "journals that differ: 0" in said
    assert "tied at look 2" in said


@pytest.mark.slow
@pytest.mark.parametrize("place", ["one_process", pytest.param("joblib", marks=pytest.mark.extra("joblib"))])
def test_a_study_may_end_elsewhere_than_it_began(place):
    """Begun by two workers and killed, it goes on in one process, which would have more threads, or by a launcher."""
    said = harness("--moves", place)
    begun = re.match(rf"{place}: (\d+) of (\d+) runs on two workers; journals that differ: 0", said)
    assert begun
    assert 0 < int(begun[1]) < int(begun[2])
