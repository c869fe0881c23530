"""Packs side by side: processes that take one pack after another, and what the plan decides for them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from configs import candidates
from lora_bench.launch import jobs, precision, worker
from lora_bench.launch import packs as packs_module
from lora_bench.launch.plan import Places, make, save
from lora_bench.models import machine
from lora_bench.store.folder import Store
from patience import PATIENCE_SECONDS

OBEDIENT = """
import os, sys
from lora_bench.launch.worker import Order
answers = os.fdopen(int(sys.argv[1]), "w")
for line in sys.stdin:
    order = Order.read(line.encode())
    with open(order.path.with_suffix("") / "seen", "a") as seen:
        print(os.getpid(), os.environ.get("OMP_NUM_THREADS"), order.number, file=seen)
    {act}
    print(0, file=answers, flush=True)
"""


@pytest.fixture
def four_packs(tmp_path):
    store = Store(tmp_path / "runs")
    points = [(f"adapter.targets={targets}", f"seed={seed}") for seed in range(2) for targets in ("q", "v")]
    plan = make(candidates(*points, store=store.root), store, pack_size=1)
    plan.threads = 1
    save(plan)
    return plan, store


@pytest.fixture
def children(monkeypatch, four_packs):
    """Replace what the children do by a piece of Python; afterwards, what they have seen: (process, threads, pack)."""
    plan, _ = four_packs

    def act(code: str):
        source = OBEDIENT.format(act=code)
        command = [sys.executable, "-c", source]
        monkeypatch.setattr(worker, "child_command", lambda answers: [*command, str(answers)])

    def seen() -> list[tuple[str, ...]]:
        return [tuple(line.split()) for line in (plan.path.with_suffix("") / "seen").read_text().splitlines()]

    return act, seen


def references(plan):
    return [f"{plan.path}#{number}" for number in range(len(plan.packs))]


def train_side_by_side(references, *, n_workers):
    """As a sweep does, with one plan."""
    with jobs.Crew() as crew:
        return crew.train(references, n_workers=n_workers)


def test_a_worker_takes_one_pack_after_another_with_the_plans_threads(four_packs, children):
    """Importing torch and reading the weights for every pack would cost more than small packs train."""
    plan, _ = four_packs
    act, seen = children
    act("import time; time.sleep(0.2)")
    outcomes = train_side_by_side(references(plan), n_workers=2)
    assert [outcome["pack"] for outcome in outcomes] == references(plan)
    assert sorted(number for *_, number in seen()) == ["0", "1", "2", "3"]
    assert len({process for process, *_ in seen()}) == 2
    assert {threads for _, threads, _ in seen()} == {"1"}


def test_a_crew_takes_the_packs_of_one_plan_after_another(four_packs, children):
    """A study has a plan for each step, and many steps are shorter than a process takes to begin."""
    plan, store = four_packs
    act, seen = children
    act("pass")
    other = store.root / ".plans" / "#0@a 'b'\n\udcff.json"
    shutil.copyfile(plan.path, other)
    with jobs.Crew() as crew:
        crew.train(references(plan)[:1], n_workers=1)
        outcomes = crew.train([f"{other}#{number}" for number in range(4)], n_workers=1)
    assert [outcome["message"] for outcome in outcomes] == [None] * 4
    there = [line.split() for line in (other.with_suffix("") / "seen").read_text().splitlines()]
    assert [number for *_, number in there] == ["0", "1", "2", "3"]
    assert {process for process, *_ in there} == {process for process, *_ in seen()}


def test_a_crew_ends_with_its_last_plan_and_starts_anew_for_other_threads(four_packs, children):
    """Threads are part of what a record says of its machine, and a process has them from its beginning."""
    plan, _ = four_packs
    act, seen = children
    act("pass")
    with jobs.Crew() as crew:
        crew.train(references(plan), n_workers=1)
        plan.path.unlink()  # else its threads stay
        plan.threads = 2
        save(plan)
        crew.train(references(plan), n_workers=1)
    assert [threads for _, threads, _ in seen()] == ["1"] * 4 + ["2"] * 4
    processes = {process for process, *_ in seen()}
    assert len(processes) == 2
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(int(process), 0)


def test_the_workers_of_a_crew_end_at_once(four_packs, children):
    """A process that has imported torch takes a second to end."""
    plan, _ = four_packs
    act, _ = children
    log = plan.path.with_suffix("") / "ends"
    write = f"lambda word: open({str(log)!r}, 'a').write(word + chr(10))"
    end = "(note('ending'), time.sleep(1), note('ended'))"
    act(f"import atexit, time; note = {write}; time.sleep(0.2); atexit.register(lambda: {end})")
    train_side_by_side(references(plan)[:2], n_workers=2)
    assert log.read_text().split() == ["ending", "ending", "ended", "ended"]


def test_a_worker_that_dies_between_packs_costs_no_run(four_packs, children):
    """Between the steps of a study a worker waits, and the system may end it for want of memory."""
    plan, store = four_packs
    act, seen = children
    act("pass")
    with jobs.Crew() as crew:
        crew.train(references(plan)[:1], n_workers=1)
        os.kill(int(seen()[0][0]), signal.SIGKILL)
        time.sleep(0.2)
        crew.train(references(plan)[1:], n_workers=1)
    assert [number for *_, number in seen()] == ["0", "1", "2", "3"]
    assert not store.statuses()


def test_a_pack_that_kills_its_worker_costs_no_other_pack(four_packs, children):
    """The next pack gets a new worker, and only the runs of the pack at fault have failed."""
    plan, store = four_packs
    act, seen = children
    act("order.number == 1 and os._exit(7)")
    outcomes = train_side_by_side(references(plan), n_workers=1)
    assert [outcome["failed"] for outcome in outcomes] == [0, 1, 0, 0]
    assert [number for *_, number in seen()] == ["0", "1", "2", "3"]
    assert len({process for process, *_ in seen()}) == 2
    assert store.record(plan.packs[1][0])["error"]["kind"] == "died"


def test_an_interruption_ends_all_workers_and_fails_no_run(four_packs, children, monkeypatch):
    plan, store = four_packs
    act, seen = children
    act("import time; time.sleep(600)")

    def interrupt(self):
        while not (plan.path.with_suffix("") / "seen").exists() or len(seen()) < 2:
            time.sleep(0.05)
        raise KeyboardInterrupt

    monkeypatch.setattr("concurrent.futures.Future.result", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_side_by_side(references(plan), n_workers=2)
    assert not store.statuses()
    for process, *_ in seen():
        with pytest.raises(ProcessLookupError):
            os.kill(int(process), 0)


def test_a_child_ends_with_the_parent():
    """A killed sweep must not leave workers that train on: its end of their input closes with it."""
    reader, writer = os.pipe()
    command = worker.child_command(writer)
    child = worker.subprocess.Popen(command, stdin=worker.subprocess.PIPE, pass_fds=[writer])
    os.close(writer)
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(300) == 0
    os.close(reader)


ORPHANED = """
import os, sys, time
from lora_bench.launch import jobs, worker
source, path = sys.argv[1:]
worker.PARENT_SECONDS = 0.2
worker.child_command = lambda answers: [sys.executable, "-c", source, str(answers)]
print(os.getpid(), flush=True)
told = [jobs.run_isolated(f"{path}#{number}@00") for number in range(2)]
print(*(outcome["missing"] for outcome in told), told[1]["message"], flush=True)
"""


def test_a_killed_sweep_takes_its_launchers_workers_along(four_packs):
    """joblib's workers went on for hours, and with the packs behind the one that they trained."""
    plan, store = four_packs
    sleeper = OBEDIENT.format(act="import time; time.sleep(600)")
    job = [sys.executable, "-c", ORPHANED, sleeper, str(plan.path)]
    start = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:]); time.sleep(600)"
    sweep = subprocess.Popen([sys.executable, "-c", start, *job], stdout=subprocess.PIPE, text=True)
    seen = plan.path.with_suffix("") / "seen"
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not seen.exists() or not seen.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    sweep.kill()
    assert sweep.stdout is not None
    said = sweep.stdout.read().splitlines()  # ends with the job, whose output it is
    sweep.wait()
    assert said[1:] == ["1 1 the sweep was stopped"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(seen.read_text().split()[0]), 0)
    assert not store.statuses()


# What the plan decides


class Run:
    def __init__(self, number, key=0, steps=10):
        self.run_id, self.key, self.steps = f"{number:08x}", key, steps
        self.config = type("Config", (), {"train": type("Train", (), {"batch_size": 16})})


@pytest.mark.parametrize(
    ("n_groups", "n_each", "most", "n_workers", "sizes"),
    [
        (3, 21, 32, 2, [21, 21, 11, 10]),
        (2, 4, 32, 2, [4, 4]),
        (1, 1, 32, 8, [1]),
        (1, 8, 32, 4, [2, 2, 2, 2]),
        (1, 40, 8, 2, [7, 7, 7, 7, 6, 6]),
    ],
    ids=["last_round_full", "already_even", "one_run", "one_seed", "packs_of_at_most_eight"],
)
def test_packs_are_cut_so_that_all_workers_end_together(monkeypatch, n_groups, n_each, most, n_workers, sizes):
    """Three packs on two workers would leave one of them idle for a third of the time."""
    monkeypatch.setattr("lora_bench.training.resolve.pack_key", lambda run: run.key)
    monkeypatch.setattr(packs_module, "largest_pack", lambda group, **_: most)
    runs = [Run(n_each * group + i, key=group) for group in range(n_groups) for i in range(n_each)]
    packs = packs_module.form_packs(runs, "auto", n_workers=n_workers)
    assert [len(pack) for pack in packs] == sizes
    assert sorted(run_id for pack in packs for run_id in pack) == [run.run_id for run in runs]
    key_of = {run.run_id: run.key for run in runs}
    assert all(len({key_of[run_id] for run_id in pack}) == 1 for pack in packs)


@pytest.fixture
def plan_on(monkeypatch, tmp_path):
    """A plan of two seeds on a machine of so many cores and so much memory."""

    def plan(*, cores=2, memory=2**40, targets=("q", "v"), **asked):
        monkeypatch.setattr(machine, "cores", lambda: cores)
        monkeypatch.setattr(machine, "available_memory", lambda: memory)
        store = Store(tmp_path / "runs")
        points = [(f"adapter.targets={one}", f"seed={seed}") for seed in range(2) for one in targets]
        places = Places(cores, on_these_cores=True)
        return make(candidates(*points, store=store.root), store, places=places, **asked)

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return plan


@pytest.mark.parametrize(("cores", "workers", "threads"), [(1, 1, None), (2, 2, 1), (3, 2, 1), (4, 4, 1), (8, 4, 2)])
def test_each_core_gets_a_pack_and_what_is_left_over_more_threads(plan_on, cores, workers, threads):
    plan = plan_on(cores=cores)
    assert (plan.n_workers, plan.threads) == (workers, threads)


def test_as_many_packs_train_at_once_as_there_is_memory_for(plan_on):
    """Two packs that do not fit together would both be lost."""
    assert plan_on(memory=2 * 2**30).n_workers == 1
    assert plan_on(memory=8 * 2**30).n_workers == 2


def test_a_restart_keeps_the_threads_of_the_plan(plan_on):
    """Runs with other threads are of another environment: what is left of a sweep must not be compared with nothing."""
    save(plan_on(cores=2))
    again = plan_on(cores=8)
    assert again.threads == 1
    assert again.packs == plan_on(cores=1).packs
    assert plan_on(cores=1).threads == 1


def test_the_users_threads_win(plan_on, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert plan_on(cores=4).threads == 3


# The precision of a CPU


def slow_and_fast(monkeypatch, rates):
    from lora_bench.models import devices

    measured = []

    def measure():
        measured.append(rates)
        return rates

    measure.cache_info = lambda: type("Info", (), {"currsize": len(measured)})
    monkeypatch.setattr(devices, "cpu_rates", measure)
    return measured


def auto(store):
    return make(candidates(("train.precision=auto", "device=cpu"), store=store.root), store)


@pytest.mark.parametrize(
    ("fp32", "bf16", "expected"), [(275e9, 151e9, "fp32"), (100e9, 149e9, "fp32"), (90e9, 140e9, "bf16")]
)
def test_auto_is_bf16_where_it_was_seen_to_be_faster(monkeypatch, tmp_path, fp32, bf16, expected):
    """CPUs with the same flag were seen to multiply bf16 at half and at four times the rate of fp32."""
    slow_and_fast(monkeypatch, {"fp32": fp32, "bf16": bf16})
    (planned,) = auto(Store(tmp_path / "runs")).runs.values()
    assert planned.run.science["train"]["precision"] == planned.run.config.train.precision == expected


def test_a_store_keeps_the_precision_that_its_first_plan_measured(monkeypatch, tmp_path):
    """A measurement that comes out otherwise on a restart would make other runs of the same command."""
    store = Store(tmp_path / "runs")
    slow_and_fast(monkeypatch, {"fp32": 90e9, "bf16": 140e9})
    first = auto(store)
    precision.keep_precision(store)
    save(first)
    measured = slow_and_fast(monkeypatch, {"fp32": 100e9, "bf16": 140e9})
    assert auto(store).path == first.path
    assert not measured
    assert list(auto(store).runs) == list(first.runs)
    document = json.loads(next((store.root / ".plans" / "precision").iterdir()).read_text())
    assert document["precision"] == "bf16"
    assert document["bf16_gflops"] == 140.0


def test_a_plan_asks_its_store_once_for_the_precision(monkeypatch, tmp_path):
    """A plan of a thousand runs read the same file, and every package's version, a thousand times."""
    store = Store(tmp_path / "runs")
    slow_and_fast(monkeypatch, {"fp32": 90e9, "bf16": 140e9})
    looks = []
    environment = precision.environment
    monkeypatch.setattr(precision, "environment", lambda **facts: looks.append(facts) or environment(**facts))
    points = [("train.precision=auto", "device=cpu", f"seed={seed}") for seed in range(3)]
    plan = make(candidates(*points, store=store.root), store)
    assert {planned.run.precision for planned in plan.runs.values()} == {"bf16"}
    assert len(looks) == 1


def test_the_measurement_is_short_and_of_one_thread():
    """On a busy machine many threads measure the others; how long it may take is said where it is written."""
    import torch

    from lora_bench.models import devices

    threads = torch.get_num_threads()
    rates = devices.cpu_rates()
    assert set(rates) == {"fp32", "bf16"}
    assert all(rate > 0 for rate in rates.values())
    assert torch.get_num_threads() == threads


# The whole of it


def test_a_sweep_side_by_side_gives_the_records_of_one_process(command, monkeypatch):
    """What every sweep on a CPU does by default: the scores, bit for bit, must not know of it."""
    small = (
        *("model=tiny", "tracking=none", "task.train_rows=40", "task.report_rows=20", "train.epochs=1", "device=cpu"),
        *("train.max_length=32", "adapter.targets=q,v", "train.lr=1e-3", "seed=0,1", "train.precision=fp32"),
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert command("-m", *small, "store=alone").status == 0
    monkeypatch.setattr(machine, "cores", lambda: 2)
    ended = command("-m", *small, "store=beside")
    assert ended.status == 0, ended.text
    assert "4 runs to train in 2 packs, 2 side by side with 1 thread each" in ended.out
    alone, beside = (Store(name) for name in ("alone", "beside"))
    assert alone.statuses() == beside.statuses()
    assert len(alone.statuses()) == 4
    for run_id in alone.statuses():
        one, other = alone.record(run_id), beside.record(run_id)
        assert one["scores"] == other["scores"]
        assert one["history"] == other["history"]
        assert one["environment"]["id"] == other["environment"]["id"]


def test_a_cpu_sweep_refuses_workers_that_cannot_be(command, training):
    ended = command("-m", "model=tiny", "seed=0,1", "hydra.sweeper.workers=0")
    assert ended.status == 2
    assert "hydra.sweeper.workers: no 0; give auto or a number of packs that train at once, at least 1" in ended.err


def test_one_worker_trains_in_the_process_of_the_sweep(command, training, monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 2)
    ended = command("-m", "model=tiny", "tracking=none", "task.train_rows=40", "seed=0,1", "hydra.sweeper.workers=1")
    assert ended.status == 0, ended.text
    assert len(training.packs) == 2
