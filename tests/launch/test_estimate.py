"""What a plan says that it will take."""

from __future__ import annotations

import itertools
from typing import Any

import pandas as pd
import pytest

from configs import candidates
from lora_bench.launch import estimate
from lora_bench.launch.plan import Places, make
from lora_bench.store.folder import Store
from lora_bench.training import rehearsal
from lora_bench.training.cost import run_flops
from lora_bench.training.rehearsal import Pace, rehearse, with_shared
from lora_bench.training.resolve import resolve
from lora_bench.training.run import environment_here
from tiny import tiny_config

SECONDS_PER_FLOP = 3e-9


class Records:
    """A store of these rows."""

    def __init__(self, rows):
        self.rows = pd.DataFrame(rows)

    def frame(self):
        return self.rows


def estimated(plan, rows):
    store: Any = Records(rows)
    return estimate.estimate(plan, store)


def rows_of(plan, n_finished, *, size, seconds_per_flop=SECONDS_PER_FLOP, **changes):
    """Finished runs of the kind of the plan's first pack, from packs of `size` that took what the rule says."""
    run = next(iter(plan.runs.values())).run
    flops, scoring = estimate._operations([run])
    work = with_shared(flops * size) + with_shared(scoring * size)
    row = {
        "status": "finished",
        "model_fingerprint": run.science["model"]["fingerprint"],
        "task": run.science["task"]["name"],
        "precision": run.precision,
        "batch_size": run.config.train.batch_size,
        "max_length": run.config.train.max_length,
        "method": run.config.adapter.method,
        "environment": environment_here("cpu", plan.threads)["id"],
        "pack_size": size,
        "pack_seconds": seconds_per_flop * work,
        "flops": flops[0],
        "overhead_seconds": 0.5,
    }
    return [row | changes for _ in range(n_finished)]


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """Six runs at two seeds: one place, and two side by side."""
    store = Store(tmp_path_factory.mktemp("plans"))
    points = [(f"train.lr={rate}", f"seed={seed}") for seed in (0, 1) for rate in ("1e-3", "3e-3", "1e-2")]
    given = candidates(*points, store=store.root)
    return {n: make(given, store, places=Places(n, on_these_cores=True, threads=1)) for n in (1, 2)}


@pytest.fixture
def no_rehearsal(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("steps were taken though records say what they take")

    monkeypatch.setattr(rehearsal, "rehearse", refuse)


@pytest.mark.usefixtures("no_rehearsal")
@pytest.mark.parametrize("n_workers", [1, 2])
@pytest.mark.parametrize("size", [1, 3, 12])
def test_the_time_left_is_what_finished_packs_took_for_their_work(plans, n_workers, size, monkeypatch):
    """Alone, packed and side by side; in packs that were smaller or larger than those to come."""
    monkeypatch.setattr(estimate.time, "process_time", lambda: 4.0)
    plan = plans[n_workers]
    expected = estimated(plan, rows_of(plan, 5, size=size))
    packs = [[plan.runs[run_id].run for run_id in pack] for pack in plan.packs]
    assert [len(pack) for pack in packs] == [3, 3]
    of_pack = 3 * 0.5 + SECONDS_PER_FLOP * sum(map(with_shared, estimate._operations(packs[0])))
    assert expected.seconds == pytest.approx(4.0 + of_pack * 2 / n_workers)
    assert expected.basis == "from 5 finished runs"


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "fp64"},
        {"environment": "another machine, or as many threads as it has"},
        {"batch_size": 999},
        {"max_length": 999},
        {"method": "full"},
        {"status": "failed"},
        {"model_fingerprint": "another"},
        {"flops": float("nan")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_runs_that_were_trained_otherwise_say_nothing(plans, change, monkeypatch):
    """Ten times as fast or slow, they would be believed; then a few steps are taken instead."""
    monkeypatch.setattr(rehearsal, "rehearse", lambda runs, **_: Pace(0.0, 0.0, opening=70.0))
    monkeypatch.setattr(estimate.time, "process_time", lambda: 4.0)
    expected = estimated(plans[1], rows_of(plans[1], 5, size=3, seconds_per_flop=1.0, **change))
    assert (expected.seconds, expected.basis) == (4.0 + 2 * 70.0, "a few steps here")


@pytest.mark.usefixtures("no_rehearsal")
def test_packs_of_the_nearest_size_are_believed(plans):
    """What all runs of a pack share is not quite one run's work, so other sizes are the less reliable ones."""
    near = rows_of(plans[1], 2, size=3)
    far = rows_of(plans[1], 9, size=30, seconds_per_flop=1.0)
    alone = estimated(plans[1], near).seconds
    assert estimated(plans[1], [*near, *far]).seconds == pytest.approx(alone, rel=0.2)


@pytest.mark.parametrize("tried", [0.5, 60.0])
def test_steps_that_are_tried_do_not_count_as_the_start_of_a_worker(plans, tried, monkeypatch):
    """A worker imports what the planner did, and tries nothing: a slow machine would be told twenty seconds more."""
    computed = [4.0]
    monkeypatch.setattr(estimate.time, "process_time", lambda: computed[0])

    def rehearsed(runs, **_):
        computed[0] += tried
        return Pace(0.0, 0.0, opening=70.0)

    monkeypatch.setattr(rehearsal, "rehearse", rehearsed)
    assert estimated(plans[2], []).seconds == 4.0 + 70.0


def test_an_estimate_of_which_a_part_is_guessed_is_a_guess(tmp_path, monkeypatch):
    """Of a GPU no time is told that rests on this CPU's products, be it of some packs alone."""
    monkeypatch.setattr(estimate, "_matmul_rate", lambda precision: 1e9)
    store = Store(tmp_path)
    given = candidates(("train.batch_size=4",), ("train.batch_size=8",), store=store.root)
    plan = make(given, store, places=Places(1, on_these_cores=True, threads=1))
    rows = rows_of(plan, 2, size=1)
    other = [row | {"batch_size": 12 - row["batch_size"]} for row in rows]
    records: Any = [Records(these) for these in (rows, [*rows, *other])]
    partly, whole = (estimate.estimate(plan, these, rehearses=False) for these in records)
    assert partly.is_guess and " and a guess from " in partly.basis
    assert not whole.is_guess and whole.basis == "from 4 finished runs"


def test_where_no_step_can_be_taken_a_guess_is_told_as_one(plans, monkeypatch):
    """A dry run must not fail over what training would say anyway."""

    def fail(*_, **__):
        raise MemoryError("no room")

    monkeypatch.setattr(rehearsal, "rehearse", fail)
    monkeypatch.setattr(estimate, "_matmul_rate", lambda precision: 1e9)
    expected = estimated(plans[1], [])
    assert expected.seconds > 0 and expected.basis.startswith("a guess from this CPU's ")


@pytest.mark.parametrize("method", ["lora", "head_only", "bitfit", "full"])
def test_a_rehearsal_tells_the_seconds_of_all_steps(method):
    """By a clock on which a step takes a second: training takes a second a step, whatever the method."""
    run = resolve(tiny_config(adapter__method=method, task__train_rows=320))
    ticks = itertools.count()
    pace = rehearse([run], threads=1, clock=lambda: float(next(ticks)))
    n_tokens = int(run.tokens()["train"].lengths.sum()) * run.config.train.epochs
    flops = run_flops(run.blueprint, run.config, run.matrices, round(n_tokens))
    assert pace.training * with_shared([flops]) == pytest.approx(run.steps, rel=0.3)
    assert pace.closing == 1.0 and pace.opening == 2.0


def test_a_rehearsal_leaves_threads_and_numbers_as_they_were():
    """The plan's process may train next, and its runs must be those that no rehearsal came before."""
    import torch

    run = resolve(tiny_config())
    before = torch.get_num_threads(), torch.get_rng_state()
    rehearse([run], threads=before[0] + 1, n_beside=1)
    assert torch.get_num_threads() == before[0] and torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize(
    ("seconds", "n_workers", "end"),
    [([3.0, 2.0, 2.0], 1, 7.0), ([3.0, 2.0, 2.0], 2, 4.0), ([5.0, 1.0, 1.0], 2, 5.0), ([1.0], 4, 1.0)],
)
def test_the_last_worker_ends_a_sweep(seconds, n_workers, end):
    assert estimate._end_of(seconds, n_workers) == end
