"""What a terminal and a log are told while runs train."""

import io
import math
import random

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from lora_bench.cli.outcome import one_answer
from lora_bench.launch import progress as meters
from lora_bench.launch.carry_out import _inside
from lora_bench.launch.progress import StepProgress, SweepProgress


@pytest.fixture
def clock(monkeypatch):
    """The time that progress goes by; a list of one number of seconds."""
    now = [0.0]
    monkeypatch.setattr(meters.time, "monotonic", lambda: now[0])
    return now


def recorded(kind: str, rng: random.Random):
    """Events of a launch of 63 runs, as (done, failed, inside): what a watcher or a pack's listener passes on."""
    if kind == "a pack that is halved":  # 16 runs' worth of work, then the halves from their start
        return [(0, 0, 4.0), (0, 0, 16.0), (0, 0, 1.0), (3, 0, 2.0), (9, 0, 0.0), (9, 1, 30.0), (63, 1, 0.0)]
    if kind == "a launcher that lost a worker":  # it counts anew from what the store holds
        return [(5, 0, 11.0), (16, 0, 4.0), (0, 0, 0.0), (3, 0, 0.0), (16, 2, 0.0), (63, 2, 0.0)]
    if kind == "packs that fail":
        return [(n, n // 2, 0.5) for n in range(0, 64, 3)]
    if kind == "workers side by side":  # marks of several packs, each forgotten when its records are there
        return [(min(63, 4 * n), 0, rng.uniform(0, 12)) for n in range(17)]
    return [(rng.randint(0, 63), rng.randint(0, 3), rng.uniform(0, 63)) for _ in range(40)] + [(63, 3, 0.0)]


@pytest.mark.parametrize("n_before", [0, 37])
@pytest.mark.parametrize(
    "kind",
    ["a pack that is halved", "a launcher that lost a worker", "packs that fail", "workers side by side", "anything"],
)
def test_nothing_that_a_sweep_tells_goes_back(clock, kind, n_before):
    """16/63 and then 3/63 reads as if runs had been lost."""
    out = Console(file=io.StringIO(), width=140)
    with SweepProgress(63, console=out, n_before=n_before) as progress:
        for done, failed, inside in recorded(kind, random.Random(1)):
            clock[0] += 60
            progress.update(done=done, failed=failed, inside=inside)
    lines = out.file.getvalue().splitlines()
    counts = [int(line.partition("/")[0]) for line in lines]
    shares = [int(line.partition("% done")[0].split()[-1]) for line in lines if "% done" in line]
    assert len(lines) > 1
    assert counts == sorted(counts) and shares == sorted(shares)
    assert lines[-1].startswith(f"{63 + n_before}/{63 + n_before} runs")
    assert "% done" not in lines[-1]


def test_a_run_is_counted_when_it_has_ended_and_work_stands_apart(clock):
    """Of twelve runs that train together none has ended at four tenths of the work: 5/12 would be no count of runs."""
    out = Console(file=io.StringIO(), width=140)
    with SweepProgress(12, console=out) as progress:
        listen = _inside(progress, 0, 0)
        clock[0] += 60
        listen({"event": "work", "share": 0.4, "runs": 12})
        clock[0] += 60
        listen({"event": "record", "run_id": "a", "status": "failed"})
    lines = out.file.getvalue().splitlines()
    assert lines[0] == "0/12 runs  40 % done  1 min 00 s passed  about 1 min 30 s left"
    assert lines[1].startswith("1/12 runs  40 % done  1 failed")


def screen(**options):
    return Console(file=io.StringIO(), force_terminal=True, **options)


@pytest.mark.parametrize("columns", [40, 80, 140])
def test_a_bar_fits_its_terminal(clock, columns):
    """A line that is too long is broken by the terminal, and each redrawing leaves a piece of it behind."""
    out = screen(width=columns)
    with SweepProgress(1000, console=out, n_before=8000) as progress:
        clock[0] = 40000.0
        progress.update(done=990, failed=120, inside=2.0)
        bar = progress._meter._bar
        assert bar is not None
        wide = Console(file=io.StringIO(), width=400)
        wide.print(bar.get_renderable())
        line = wide.file.getvalue().rstrip()
    assert "8990/9000 runs" in line and "left" in line
    assert len(line) <= 80 if columns <= 80 else len(line) <= columns


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": "unknown"}])
def test_a_terminal_that_cannot_move_its_cursor_gets_lines(clock, monkeypatch, environment):
    """A bar would say nothing there until it is taken away."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    out = screen(width=80)
    with SweepProgress(2, console=out) as progress:
        clock[0] = 20.0
        progress.update(done=1, failed=0)
    assert "1/2 runs" in out.file.getvalue() and "\x1b[" not in out.file.getvalue()


@pytest.mark.parametrize(("done", "is_told"), [(4, False), (20, True)])
def test_hours_are_not_told_from_the_first_pack_of_many(clock, done, is_told):
    """Two minutes that went into starting workers would say two days of a sweep that takes one hour."""
    out = Console(file=io.StringIO(), width=140)
    with SweepProgress(1000, console=out) as progress:
        clock[0] += 180.0
        progress.update(done=done, failed=0)
    assert ("left" in out.file.getvalue()) is is_told


@pytest.mark.parametrize("losses", [[0.7, 0.5, 0.25], [0.7, math.nan]])
def test_a_run_tells_steps_loss_and_time_left(clock, losses):
    """A minute without a word looks like a run that hangs."""
    out = Console(file=io.StringIO(), width=140)
    with StepProgress(console=out) as listen:
        for step, loss in enumerate(losses, start=1):
            clock[0] += 30
            listen({"event": "work", "share": step / 5, "runs": 1})
            listen({"event": "step", "step": step, "steps": 4, "runs": 1, "loss": loss})
        listen({"event": "record", "run_id": "a", "status": "finished"})
    lines = out.file.getvalue().splitlines()
    assert lines[0] == "step 1/4  loss 0.700  30 s passed  about 2 min 00 s left"
    last = "not finite" if math.isnan(losses[-1]) else f"{losses[-1]:.3f}"
    assert lines[-1] == f"{len(losses)} steps: loss 0.700 at first, {last} at last"


@pytest.mark.parametrize("n_labels", [2, 3, 20])
def test_a_run_whose_model_gives_one_answer_says_so(n_labels):
    """An accuracy of 88 where 88 of 100 rows have one label looks like learning."""
    labels = np.arange(100) % n_labels
    logits = np.zeros((100, n_labels))
    logits[:, 1] = 1.0
    names = [f"label {number}" for number in range(n_labels)]

    def judged(logits):
        columns = {f"logit_{number}": logits[:, number] for number in range(logits.shape[1])}
        frame = pd.DataFrame({"split": "report", "label": labels, **columns})
        return one_answer({"task": {"labels": names}}, frame)

    said = judged(logits)
    most = 100 * np.bincount(labels).max() / 100
    assert said is not None and "'label 1' for 100 of 100 report rows" in said and f"accuracy of {most:.1f}" in said
    logits[np.arange(100), labels] = 2.0
    assert judged(logits) is None
    assert "one number" in str(judged(np.full((100, 1), 0.5)))
