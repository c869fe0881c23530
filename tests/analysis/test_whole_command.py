"""Where the time of a command goes is told by timers in its processes; what they leave out would go unseen."""

import pkgutil
from types import SimpleNamespace

import pytest

from analysis.speed import whole_command
from analysis.speed.timers import sitecustomize as timers  # installs nothing: nobody profiles the tests


@pytest.mark.parametrize("module", list(timers.HOOKS))
def test_every_function_that_is_timed_exists(module):
    """A hook that finds nothing would stop the command that is profiled."""
    for name, part in timers.HOOKS[module].items():
        holder, _, attribute = name.rpartition(".")
        assert attribute in vars(pkgutil.resolve_name(f"{module}:{holder}")), name
        assert part in (*whole_command.PARTS, "waiting")


def test_time_inside_another_timed_call_is_counted_once(monkeypatch):
    """Scoring at the end of an epoch is called by the training loop."""
    now = [100.0]

    def work(seconds):
        now[0] += seconds

    clock = SimpleNamespace(perf_counter=lambda: now[0], process_time=lambda: now[0] / 2)
    monkeypatch.setattr(timers, "time", clock)
    monkeypatch.setattr(timers, "_parts", {})
    score = timers.timed(work, "scoring")
    train = timers.timed(lambda: (work(1.0), score(3.0), score(4.0), work(2.0)), "training steps")
    train()
    assert timers._parts == {"scoring": [7.0, 3.5, 2], "training steps": [3.0, 1.5, 1]}


def process(words, **parts):
    return {"words": words, "cpu_seconds": 9.0, "notes": [], "parts": {name: [s, s, 1] for name, s in parts.items()}}


def test_the_parts_of_a_command_and_its_workers_sum_to_the_wall_time():
    command = process(["-m", "lora_bench"], imports=5.0, waiting=40.0, other=0.5)
    workers = [
        process(["-m", "lora_bench.launch.child"], imports=6.0, **{"training steps": steps}) for steps in (20.0, 30.0)
    ]
    table = whole_command.rows([command, *workers], 48.0)
    assert sum(row["seconds"] for row in table) == pytest.approx(48.0)
    assert sum(row["share"] for row in table) == pytest.approx(1.0)
    parts = whole_command.by_part(table)
    assert parts["imports"] == 5.0 + 6.0 and parts["training steps"] == 25.0
    assert parts["idle"] == pytest.approx(40.0 - 6.0 - 25.0)
    assert parts["other"] == pytest.approx(48.0 - 5.0 - 40.0)


def test_a_command_that_trains_by_itself_has_no_workers():
    table = whole_command.rows([process(["-m", "lora_bench"], imports=5.0, scoring=2.0)], 10.0)
    assert {row["where"] for row in table} == {"command"}
    assert sum(row["seconds"] for row in table) == pytest.approx(10.0)


def test_one_process_is_the_command():
    """Two would be counted against the wall time of one."""
    with pytest.raises(ValueError, match="2 processes"):
        whole_command.rows([process(["-m", "lora_bench"]), process(["-m", "lora_bench"])], 1.0)
