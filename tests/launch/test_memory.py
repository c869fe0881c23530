"""Packs that memory runs out for: halved, down to single runs, each part in a process that begins with all of it."""

import contextlib
import signal

import pytest

from configs import candidates
from lora_bench.launch import carry_out, jobs, losses
from lora_bench.launch.files import log_file
from lora_bench.launch.plan import make, save
from lora_bench.launch.plan_file import PlanFile
from lora_bench.launch.worker import OUT_OF_MEMORY
from lora_bench.store.folder import Store
from lora_bench.store.record import Failure, utc_now

RATES = [f"train.lr={number}e-4" for number in range(1, 9)]


@pytest.fixture
def eight(tmp_path):
    """A saved plan of one pack of eight runs, and its store."""
    store = Store(tmp_path / "runs")
    plan = make(candidates(*((rate,) for rate in RATES), store=store.root), store)
    save(plan)
    assert [len(pack) for pack in plan.packs] == [8]
    return plan, store


class Cramped:
    """A worker whose processes have room for so many runs at once, or that a run kills."""

    def __init__(self, eight, training, *, room=8, death=OUT_OF_MEMORY, words="", fatal=None):
        (self.plan, self.store), self.training = eight, training
        self.room, self.death, self.words, self.fatal = room, death, words, fatal
        self.parts, self.has_trained = [], False

    def train(self, order, *, folder, environment):
        self.parts.append((len(order.run_ids), self.has_trained))
        log = log_file(order.path, order.number)
        log.parent.mkdir(parents=True, exist_ok=True)
        if len(order.run_ids) > self.room or self.fatal in order.run_ids:
            with log.open("a", encoding="utf-8") as file:
                file.write(self.words)
            return self.death
        runs = [self.plan.runs[run_id].run for run_id in order.run_ids]
        self.training(runs, self.store, tracking=None, invocation={}, only=order.wanted)
        self.has_trained = True
        return 0

    def end(self):
        self.has_trained = False

    def go(self):
        return jobs.train_in_child(self.plan.path, 0, PlanFile.load(self.plan.path), self.store, self)


DEATHS = {
    "answer": (OUT_OF_MEMORY, "", 1, [8, 4, 2, 1, 1, 2, 1, 1, 4, 2, 1, 1, 2, 1, 1]),
    "killed": (-signal.SIGKILL, "", 3, [8, 4, 2, 2, 4, 2, 2]),
    "aborted": (-signal.SIGABRT, "terminate called after throwing an instance of 'std::bad_alloc'", 7, [8, 4, 4]),
    "ended": (1, "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried", 4, [8, 4, 4]),
}


@pytest.mark.parametrize(("death", "words", "room", "sizes"), DEATHS.values(), ids=DEATHS)
def test_runs_that_fit_by_themselves_all_finish(eight, training, death, words, room, sizes):
    """A pack of eight failed eight of eight where eight packs of one finished."""
    worker = Cramped(eight, training, room=room, death=death, words=words)
    assert worker.go() is None
    plan, store = eight
    assert store.statuses() == dict.fromkeys(plan.runs, "finished")
    assert sorted(run_id for pack in training.packs for run_id in pack) == sorted(plan.runs)
    assert worker.parts == [(size, False) for size in sizes]  # in a process that has trained nothing else
    assert not worker.has_trained  # nor has the next pack less than all of it


def test_the_run_that_kills_its_process_fails_and_no_other(eight, training):
    """A single run says why it has no result, and the seven beside it have theirs."""
    plan, store = eight
    fatal = plan.packs[0][4]
    assert Cramped(eight, training, death=-signal.SIGKILL, fatal=fatal).go() is None
    assert store.statuses() == dict.fromkeys(plan.runs, "finished") | {fatal: "failed"}
    assert "was killed by SIGKILL, perhaps for want of memory" in store.record(fatal)["error"]["message"]


@pytest.mark.parametrize("death", [7, -signal.SIGSEGV])
def test_another_death_is_that_of_the_pack(eight, training, death):
    """A crash comes again, and halving would take a process for every run."""
    worker = Cramped(eight, training, room=0, death=death)
    worker.go()
    assert [size for size, _ in worker.parts] == [8]
    assert set(worker.store.statuses().values()) == {"failed"}


def test_a_pack_that_fits_into_a_fresh_process_is_not_halved(eight, training):
    """What a process has trained before takes room; halves would have other bits than the pack."""
    worker = Cramped(eight, training)
    worker.has_trained = True
    train = worker.train
    worker.train = lambda order, **ours: OUT_OF_MEMORY if worker.has_trained else train(order, **ours)
    assert worker.go() is None
    assert [size for size, _ in worker.parts] == [8]
    assert len(worker.store.statuses()) == 8


def test_runs_that_were_finished_before_a_death_are_not_trained_again(eight, training):
    """A half that lacks nothing costs no process; of the other, what is finished rides along."""
    plan, store = eight
    done = plan.packs[0][:5]
    training([plan.runs[run_id].run for run_id in done], store, tracking=None, invocation={})
    Cramped(eight, training, room=4).go()
    assert training.packs[1:] == [plan.packs[0][4:]]  # its first half has nothing to give


@pytest.mark.parametrize("ending", [130, -signal.SIGTERM])
def test_an_interruption_halves_nothing(eight, training, ending):
    """Whoever asks a sweep to stop must not wait for new processes."""
    worker = Cramped(eight, training, room=0, death=ending, words="out of memory")
    worker.go()
    assert len(worker.parts) == 1
    assert not worker.store.statuses()


def test_a_sweep_in_one_process_gives_its_halves_to_others(command, training, monkeypatch):
    """The process of the sweep keeps what it took when memory ran out."""
    parts = []

    class Here(Cramped):
        def __init__(self):
            self.parts, self.has_trained = parts, False

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

        def train(self, order, **surroundings):
            from lora_bench.training.resolve import resolve

            plan = PlanFile.load(order.path)
            runs = [resolve(plan.runs[run_id].checked_config()) for run_id in order.run_ids]
            parts.append(len(runs))
            training(runs, Store("runs"), tracking=None, invocation={}, only=order.wanted)
            return 0

    def short(runs, store, *, halves_on_cpu, **options):
        assert not halves_on_cpu
        raise MemoryError("no room")

    monkeypatch.setattr("lora_bench.training.run.run_pack", short)
    monkeypatch.setattr(carry_out, "Worker", Here)
    rates = f"train.lr={','.join(rate.partition('=')[2] for rate in RATES)}"
    small = ("model=tiny", "tracking=none", "task.train_rows=40", "train.precision=fp32")
    ended = command("-m", *small, rates, "hydra.sweeper.workers=1")
    assert ended.status == 0, ended.text
    assert parts == [4, 4]
    assert set(Store("runs").statuses().values()) == {"finished"}


@pytest.mark.parametrize("is_retried", [False, True])
def test_what_a_lost_workers_child_still_holds_is_failed_once_it_has_ended(eight, monkeypatch, is_retried):
    """Of runs that are tried again, those that the child held kept their old record, as if they had not been tried."""
    plan, store = eight
    former, reason = Failure.died("an earlier launch"), "the pool broke"
    plan_file = PlanFile.load(plan.path)
    if is_retried:
        losses.fail(plan_file, plan_file.packs[0], store, former, utc_now(), where=plan.path.with_suffix(".none"))
        plan.retry = dict.fromkeys(plan.runs)
        save(plan)
    claims = contextlib.ExitStack()
    for run_id in plan.packs[0][2:4]:
        claims.enter_context(store.claim(run_id))
    monkeypatch.setattr(losses.time, "sleep", lambda seconds: claims.close())
    losses.fail_abandoned(plan.path, 0, reason)
    assert [reason in store.record(run_id)["error"]["message"] for run_id in plan.packs[0]] == [True] * 8
